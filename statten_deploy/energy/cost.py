"""Counts times figures. Dynamic energy only: static power is in no profile."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from statten_deploy.energy.counts import Counts, LayerCounts
from statten_deploy.energy.fanout import CONVOLUTIONS, LINEAR
from statten_deploy.energy.profiles import Figure, Profile
from statten_deploy.errors import InputError

STATIC = "static power"


class Hops(NamedTuple):
    """Tile hops of all spike messages over all counted samples, from a placement."""

    east_west: int
    north_south: int


@dataclass(frozen=True)
class LayerEnergy:
    """One node: pJ per sample, by figure."""

    name: str
    operation: str
    role: str
    parts_pj: dict[str, float]

    @property
    def total_pj(self) -> float:
        """Sum of the parts."""
        return sum(self.parts_pj.values())


@dataclass(frozen=True)
class EnergyReport:
    """Energy per sample in pJ. `ann_pj`: an ANN of the same shape, for paper profiles. What is missing is named."""

    profile: Profile
    layers: tuple[LayerEnergy, ...]
    hops_pj: float | None
    ann_pj: float | None
    not_included: tuple[str, ...]

    @property
    def total_pj(self) -> float:
        """All layers, and hops where they are known."""
        return sum(layer.total_pj for layer in self.layers) + (self.hops_pj or 0.0)

    @property
    def parts_pj(self) -> dict[str, float]:
        """The total by figure."""
        found: dict[str, float] = {}
        for layer in self.layers:
            for part, value in layer.parts_pj.items():
                found[part] = found.get(part, 0.0) + value
        if self.hops_pj is not None:
            found["hops"] = self.hops_pj
        return found

    @property
    def statuses(self) -> tuple[str, ...]:
        """How the figures that were used came about: estimated, measured, pre-silicon."""
        return tuple(sorted({self.profile.figures[part].status for part in self.parts_pj if part != "hops"}))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        return {
            "profile": self.profile.name,
            "title": self.profile.title,
            "family": self.profile.family,
            "statuses": list(self.statuses),
            "figures": {name: vars(figure) for name, figure in self.profile.figures.items()},
            "total_pj": self.total_pj,
            "ann_pj": self.ann_pj,
            "parts_pj": self.parts_pj,
            "not_included": list(self.not_included),
            "notes": list(self.profile.notes),
            "layers": [
                {"name": layer.name, "role": layer.role, "total_pj": layer.total_pj, "parts_pj": layer.parts_pj}
                for layer in self.layers
            ],
        }


def energy(counts: Counts, profile: Profile, *, hops: Hops | None = None) -> EnergyReport:
    """Energy per sample.

    Family ``paper``: ``mac · MACs + ac · ACs`` of the paper convention. Family ``events``: every SynOp, neuron update
    and spike at its figure; analog layers only if the profile has a figure for a MAC. `hops` needs a placement, which
    this package does not make: without it hops are left out, and the report says so.

    Raises:
        InputError: hops are given, and the profile has no figures for them.
    """
    figures, samples = profile.figures, counts.samples
    amounts = _paper if profile.family == "paper" else _events
    layers = []
    for layer in counts.layers:
        found = amounts(layer, figures)
        if found:
            parts = {name: float(amount) * figures[name].pj / samples for name, amount in found.items()}
            layers.append(LayerEnergy(layer.name, layer.operation, layer.role, parts))
    hops_pj = None
    if hops is not None:
        if not {"hop_east_west", "hop_north_south"} <= set(figures):
            raise InputError(f"profile {profile.name!r} has no figures for hops; leave them out")
        paid = hops.east_west * figures["hop_east_west"].pj + hops.north_south * figures["hop_north_south"].pj
        hops_pj = paid / samples
    ann = counts.ann_macs * figures["mac"].pj / samples if profile.family == "paper" else None
    missing = _missing(counts, profile, hops_pj is not None)
    return EnergyReport(profile, tuple(layers), hops_pj, ann, missing)


def _paper(layer: LayerCounts, figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: n for name, n in (("mac", layer.paper_macs), ("ac", layer.paper_acs)) if n}


def _events(layer: LayerCounts, figures: Mapping[str, Figure]) -> dict[str, Any]:
    found: dict[str, int] = {}
    if layer.event_ops:
        found[_synop_figure(layer, figures)] = layer.event_ops
    if layer.role != "input":
        found |= {name: getattr(layer, field) for name, field in PER_NEURON.items() if name in figures}
    if "mac" in figures:
        found["mac"] = layer.macs
    return {name: n for name, n in found.items() if n}


PER_NEURON = {
    "neuron_access": "updates",
    "neuron_update": "updates",
    "spike": "spikes",
    "spike_out": "spikes",
    "axon_out": "spikes",
}
"""Figures paid by neurons and gates, and the count each one is multiplied with."""

SYNAPSE_KINDS: dict[str, str] = {
    **{kind.__name__: "synop_conv" for kind in CONVOLUTIONS},
    **{kind.__name__: "synop_dense" for kind in LINEAR},
}


def _synop_figure(layer: LayerCounts, figures: Mapping[str, Figure]) -> str:
    """A profile may tell kinds of synapses apart; attention, pools and gates count as sparse ones."""
    kind = SYNAPSE_KINDS.get(layer.operation, "synop_sparse")
    return kind if kind in figures else "synop"


def _missing(counts: Counts, profile: Profile, hops_known: bool) -> tuple[str, ...]:
    found = [STATIC]
    if profile.family == "paper":
        return (
            *found,
            "neurons, pools and gates (attention's own sums apart), memory and data movement: the convention has no "
            "figure for them",
        )
    figures = profile.figures
    if "hop_east_west" in figures and not hops_known:
        found.append("hops between tiles: they need a placement")
    if "mac" not in figures and counts.macs:
        found.append(f"{counts.macs / counts.samples:,.0f} MACs per sample of analog layers: no figure")
    more = counts.synops_unshared - counts.synops
    if more:
        found.append(
            f"up to {more / counts.samples:,.0f} further SynOps per sample where residual currents cannot be passed on "
            "and every reader needs synapses of its own"
        )
    for what, priced_by in (("neuron updates", "updates"), ("spike transport", "spikes")):
        if not any(PER_NEURON.get(figure) == priced_by for figure in figures):
            found.append(f"{what}: no figure of their own")
    reads = sum(layer.reads for layer in counts.layers)
    if reads:
        found.append(f"{reads / counts.samples:,.0f} reads per sample of currents by pools: no figure")
    return tuple(found)
