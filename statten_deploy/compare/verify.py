"""Does an artefact do what the reference does? Names, then shapes, then values; every disagreement is reported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.compare.executors import Array, Execution, Executor, Traceable
from statten_deploy.compare.tolerances import limit

BATCH_BYTES = 64 << 20
"""Spikes of one batch are kept for comparison; the batch size follows from this."""


@dataclass
class LayerAgreement:
    """Spikes of one layer over all samples: (neuron, step) pairs, how many differ, and the two totals."""

    name: str
    sites: int = 0
    mismatches: int = 0
    yardstick: int = 0
    reference_spikes: int = 0
    spikes: int = 0


@dataclass
class Agreement:
    """How well an artefact agrees with the reference. `problems` is empty when it does."""

    reference: str
    candidate: str
    samples: int = 0
    max_abs_diff: float = 0.0
    predictions_differ: int = 0
    yardstick_predictions_differ: int = 0
    samples_with_flips: int = 0
    largest_first_flip_margin: float | None = None
    """None where no first flip was traced: there was none, or the graph is recurrent."""
    exact: bool = False
    """Integers compared with integers: nothing is tolerated."""
    membrane_sites: int = 0
    membrane_mismatches: int = 0
    output_mismatches: int = 0
    layers: dict[str, LayerAgreement] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def spike_mismatches(self) -> int:
        """(neuron, step) pairs whose spike differs, over all layers and samples."""
        return sum(layer.mismatches for layer in self.layers.values())

    @property
    def sites(self) -> int:
        """(neuron, step) pairs compared."""
        return sum(layer.sites for layer in self.layers.values())

    @property
    def yardstick(self) -> int:
        """Pairs that differ between float32 and float64 of the reference."""
        return sum(layer.yardstick for layer in self.layers.values())

    @property
    def prediction_agreement(self) -> float:
        """Fraction of samples with the same predicted class."""
        return 1.0 - self.predictions_differ / max(self.samples, 1)

    @property
    def passed(self) -> bool:
        """Whether the artefact agrees."""
        return not self.problems

    def summary(self) -> dict[str, Any]:
        """For the sidecar and ``--json``."""
        integers = {
            "membrane_sites": self.membrane_sites,
            "membrane_mismatches": self.membrane_mismatches,
            "output_mismatches": self.output_mismatches,
        }
        return {
            "reference": self.reference,
            "exact": self.exact,
            "samples": self.samples,
            "max_abs_diff": self.max_abs_diff,
            "spike_mismatches": self.spike_mismatches,
            "spike_sites": self.sites,
            "spike_mismatches_float64_yardstick": self.yardstick,
            **(integers if self.exact else {}),
            "samples_with_flips": self.samples_with_flips,
            "prediction_agreement": self.prediction_agreement,
            "layers": {
                layer.name: {
                    "reference_spikes": layer.reference_spikes,
                    "spikes": layer.spikes,
                    "mismatches": layer.mismatches,
                }
                for layer in self.layers.values()
            },
        }


def verify_against(
    reference: Traceable, candidate: Executor, samples: Array, yardstick: Executor | None = None
) -> Agreement:
    """Run both on `samples` [N, ...] and compare; bounded memory whatever N.

    `yardstick` is the reference in float64, where there is one. It runs on the batches in which spikes differ, when the
    candidate is done: a caller that keeps no name for the candidate has its memory back by then.
    """
    agreement = Agreement(reference.name, candidate.name)
    if not np.isfinite(samples).all():
        agreement.problems.append("the samples hold NaN or infinite values")
        return agreement
    strayed: list[slice] = []
    start, step = 0, 1  # the first sample alone tells how much memory one takes
    while start < len(samples):
        part = slice(start, start + step)
        batch = samples[part]
        expected, found = reference.run(batch), candidate.run(batch)
        if not same_interface(agreement, expected, found):
            break
        before = agreement.spike_mismatches
        compare_batch(agreement, reference, batch, expected, found)
        if agreement.spike_mismatches > before:
            strayed.append(part)
        start += step
        step = batch_size(expected, len(batch))
        del expected, found  # before the next batch needs memory for its own
    del candidate
    if yardstick is not None:
        for part in strayed:
            measure_yardstick(agreement, reference.run(samples[part]), yardstick.run(samples[part]))
    judge(agreement)
    note_activity(agreement)
    return agreement


def batch_size(execution: Execution, samples: int) -> int:
    """How many samples to run at once, from what one took."""
    size = sum(spikes.nbytes for spikes in execution.spikes.values()) // samples
    return max(1, min(64, BATCH_BYTES // max(size, 1)))


def same_interface(agreement: Agreement, expected: Execution, found: Execution) -> bool:
    """Whether outputs and neuron layers have the same names and shapes; what does not is added to the problems."""
    before = len(agreement.problems)
    for kind, a, b in (("output", expected.outputs, found.outputs), ("neuron layer", expected.spikes, found.spikes)):
        for name in sorted(a.keys() - b.keys()):
            agreement.problems.append(f"{kind} {name!r} is missing from {agreement.candidate}")
        if kind == "neuron layer":
            agreement.notes += [
                f"{kind} {name!r} is new in {agreement.candidate}" for name in sorted(b.keys() - a.keys())
            ]
        for name in sorted(a.keys() & b.keys()):
            if a[name].shape != b[name].shape:
                agreement.problems.append(f"{kind} {name!r}: shape {b[name].shape}, expected {a[name].shape}")
    return len(agreement.problems) == before


def measure_yardstick(agreement: Agreement, expected: Execution, exact: Execution) -> None:
    """Add how far the reference strays from itself in float64 on one batch."""
    for name, spikes in expected.spikes.items():
        layer = agreement.layers.setdefault(name, LayerAgreement(name))
        layer.yardstick += int(np.count_nonzero(spikes != exact.spikes[name]))
    agreement.yardstick_predictions_differ += int((_classes(expected) != _classes(exact)).sum())


def _classes(execution: Execution) -> NDArray[np.int64]:
    output = next(iter(execution.outputs.values()))
    return predicted_classes(output)


def predicted_classes(output: NDArray[Any]) -> NDArray[np.int64]:
    """Class per sample: argmax of the output [B, classes], or of its mean over time [B, T, ...]."""
    if output.ndim > 2:
        output = output.mean(1).reshape(len(output), -1)
    return np.asarray(output.argmax(-1), dtype=np.int64)


def compare_batch(
    agreement: Agreement, reference: Traceable, batch: Array, expected: Execution, found: Execution
) -> None:
    """Add one batch, whose first flips are traced in `reference`; `judge` has the last word when all are in."""
    flipped: NDArray[np.bool_] = np.zeros(len(batch), dtype=np.bool_)
    first_layers: dict[str, NDArray[np.bool_]] = {}
    for name, spikes in expected.spikes.items():
        other = found.spikes[name]
        layer = agreement.layers.setdefault(name, LayerAgreement(name))
        different = spikes != other
        layer.sites += spikes.size
        layer.mismatches += int(np.count_nonzero(different))
        layer.reference_spikes += int(np.count_nonzero(spikes))
        layer.spikes += int(np.count_nonzero(other))
        fresh = different.any(axis=(0, *range(2, different.ndim))) & ~flipped
        if fresh.any():
            first_layers[name] = fresh
            _trace_first_flips(agreement, reference, batch[fresh], name, different[:, fresh])
            flipped |= fresh
    agreement.samples += len(batch)
    agreement.samples_with_flips += int(flipped.sum())
    agreement.predictions_differ += int((_classes(expected) != _classes(found)).sum())
    for name, values in expected.outputs.items():
        difference = np.abs(values.astype(np.float64) - found.outputs[name])
        agreement.max_abs_diff = max(agreement.max_abs_diff, float(difference.max(initial=0.0)))
        if not np.isfinite(found.outputs[name]).all():
            agreement.problems.append(f"output {name!r} holds NaN or infinite values")
        steady = difference[~flipped].max(initial=0.0)
        allowed = limit("logits") * max(1.0, float(np.abs(values).max(initial=0.0)))
        if steady > allowed:
            worst = np.unravel_index(
                int(np.argmax(np.where(_lift(flipped, difference), 0, difference))), difference.shape
            )
            agreement.problems.append(
                f"output {name!r} differs by {steady:.3g} (allowed {allowed:.3g}) at {tuple(int(i) for i in worst)} "
                "without any spike that differs"
            )


def _lift(mask: NDArray[np.bool_], like: NDArray[Any]) -> NDArray[np.bool_]:
    return mask.reshape(-1, *(1,) * (like.ndim - 1))


def _trace_first_flips(
    agreement: Agreement, reference: Traceable, batch: Array, layer: str, different: NDArray[np.bool_]
) -> None:
    """The first flips of each sample must be at the threshold: nothing upstream differs, so only rounding may."""
    found = reference.margins(batch, layer)
    if found is None:  # a recurrent graph: everything is upstream of everything
        return
    steps = different.shape[0]
    per_step = different.reshape(steps, len(batch), -1).any(-1)  # [T, B]
    earliest = per_step.argmax(0)  # [B]
    margins = found.reshape(steps, len(batch), -1)
    flat = different.reshape(steps, len(batch), -1)
    for sample, step in enumerate(earliest):
        distances = np.where(flat[step, sample], margins[step, sample], 0.0)
        neuron = int(distances.argmax())
        known = agreement.largest_first_flip_margin or 0.0
        agreement.largest_first_flip_margin = max(known, float(distances[neuron]))
        if distances[neuron] > limit("margin"):
            index = tuple(int(i) for i in np.unravel_index(neuron, different.shape[2:]))
            agreement.problems.append(
                f"layer {layer!r}, step {int(step)}, neuron {index}: the spike differs although the membrane is "
                f"{distances[neuron]:.2g} thresholds away from its threshold (allowed {limit('margin'):.0e})"
            )


def note_activity(agreement: Agreement) -> None:
    """Say which layers never fired, or always: their agreement means nothing."""
    counts = {layer.name: (layer.reference_spikes, layer.sites) for layer in agreement.layers.values()}
    agreement.notes += activity_warnings(counts, "verified")


def activity_warnings(counts: Mapping[str, tuple[int, int]], done: str) -> list[str]:
    """Layers that never fired, or that always did; `counts`: layer -> (spikes, neurons · steps · samples)."""
    silent = [name for name, (spikes, sites) in counts.items() if sites and spikes == 0]
    saturated = [name for name, (spikes, sites) in counts.items() if 0 < sites == spikes]
    found = []
    for what, names in (("no neuron of {} fired", silent), ("every neuron of {} fired at every step", saturated)):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            found.append(f"{what.format(shown)} on these samples: nothing behind them is {done}")
    return found


def judge(agreement: Agreement) -> None:
    """Hold the totals of all batches to the tolerances."""
    sites, samples = max(agreement.sites, 1), max(agreement.samples, 1)
    flips, own = agreement.spike_mismatches / sites, agreement.yardstick / sites
    allowed = limit("flips") + limit("flips_factor") * own
    if flips > allowed:
        agreement.problems.append(f"{flips:.2%} of all spikes differ, allowed {allowed:.2%}")
    differ = agreement.predictions_differ
    budget = max(1.0, limit("predictions") * samples) if agreement.samples_with_flips else 0.0
    budget += limit("predictions_factor") * agreement.yardstick_predictions_differ
    if differ > budget:
        agreement.problems.append(f"{differ} of {samples} predictions differ, allowed {int(budget)}")
    if agreement.samples_with_flips > samples // 2:
        agreement.notes.append(
            f"{agreement.samples_with_flips} of {samples} samples hold flips at thresholds that cascade "
            f"({flips:.2%} of spikes; float32 against float64 of the reference: {own:.2%}): float verification says "
            "little about the layers behind them"
        )
