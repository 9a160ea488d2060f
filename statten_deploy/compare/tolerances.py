"""Every tolerance of the verification, with its reason. Nothing else in the package holds one.

Float spiking networks do not agree to the last bit between backends: another summation order moves a membrane by a
few units in the last place, a neuron at its threshold flips, and the flip cascades. So flips are counted, and each
sample's first flip is traced: it must lie at its neuron's threshold. What follows it in the same sample is cascade,
whose size is compared with how far the reference strays from itself between float32 and float64.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """A limit and why it is what it is."""

    limit: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "logits": Tolerance(
        1e-4,
        "largest difference of the logits, relative to their largest magnitude (at least 1), in a sample without any "
        "flip: the head is one float32 sum over the channels",
    ),
    "margin": Tolerance(
        1e-4,
        "distance |v - threshold| / threshold of a sample's first flips in the reference: float32 rounding of one sum "
        "of a few thousand terms; a wrong weight, threshold or window flips neurons far from their threshold",
    ),
    "flips": Tolerance(
        0.01,
        "fraction of all (neuron, step) pairs that may differ beyond the yardstick: one cascade in one of a few dozen "
        "samples",
    ),
    "flips_factor": Tolerance(
        4.0,
        "times the fraction that differs between float32 and float64 of the reference: two backends with a summation "
        "order each stray as far as float64 does, and the size of cascades varies between inputs",
    ),
    "predictions": Tolerance(
        0.02, "fraction of samples, and at least one, whose class may differ: a cascade can reach the head"
    ),
    "predictions_factor": Tolerance(
        2.0, "times the predictions that differ between float32 and float64 of the reference, for the same reason"
    ),
}


def limit(name: str) -> float:
    """The limit called `name`."""
    return TOLERANCES[name].limit
