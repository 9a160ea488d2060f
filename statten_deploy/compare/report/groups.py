"""What the reports ask a `Comparison`: who ran, who is whose reference, which backends found the same."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from statten_deploy.compare.comparison import BackendResult, Comparison, Latency, LayerResult, ProfileInfo
from statten_deploy.compare.report.text import EnergyUnit, count, energy_unit, relative, samples

Family = Literal["events", "paper"]
FAMILIES: dict[Family, str] = {"events": "Event counts", "paper": "Paper convention"}


def ordered(comparison: Comparison) -> list[BackendResult]:
    """All backends, those of one arithmetic together, else in the order given."""
    kinds = list(dict.fromkeys(row.arithmetic for row in comparison.backends))
    return sorted(comparison.backends, key=lambda row: kinds.index(row.arithmetic))


def ran(comparison: Comparison) -> list[BackendResult]:
    """The backends that were there."""
    return [row for row in ordered(comparison) if not row.unavailable]


def missing(comparison: Comparison) -> list[BackendResult]:
    """The backends that were not."""
    return [row for row in ordered(comparison) if row.unavailable]


def stands_alone(row: BackendResult) -> bool:
    """Whether this one is compared with nobody."""
    return row.name == row.reference


def leads(comparison: Comparison) -> set[str]:
    """The backends that others are compared with."""
    return {row.reference for row in ran(comparison)}


def across(comparison: Comparison) -> list[BackendResult]:
    """Backends whose reference is of another arithmetic: the integer reference beside the float one."""
    kinds = {row.name: row.arithmetic for row in comparison.backends}
    return [row for row in ran(comparison) if kinds.get(row.reference, row.arithmetic) != row.arithmetic]


def held(comparison: Comparison) -> list[BackendResult]:
    """Backends that should do what their reference does."""
    apart = {row.name for row in across(comparison)}
    return [row for row in ran(comparison) if not stands_alone(row) and row.name not in apart]


def profiles_of(comparison: Comparison, family: Family) -> list[ProfileInfo]:
    """The profiles of one family by which somebody has an energy."""
    used = {name for row in ran(comparison) for name in row.energy}
    return [profile for profile in comparison.profiles if profile.family == family and profile.name in used]


def units_of(rows: Iterable[BackendResult], profile: ProfileInfo) -> tuple[EnergyUnit, EnergyUnit]:
    """The units for a column of energies by a profile, and for the networks without spikes beside it."""
    known = [row.energy[profile.name] for row in rows if profile.name in row.energy]
    return energy_unit(found.total_pj for found in known), energy_unit(found.ann_pj or 0.0 for found in known)


def difference(row: BackendResult, value: float | None) -> str:
    """In words; one that is compared with nobody has none."""
    return "" if stands_alone(row) else relative(value)


def timing(comparison: Comparison) -> list[str]:
    """How latencies were taken: samples in a call, and how many calls."""
    sentences = []
    for what, field_name in (("Latency", "latency"), ("Latency of a batch", "batch_latency")):
        found: list[Latency] = [taken for row in ran(comparison) if (taken := getattr(row, field_name)) is not None]
        if found:
            sizes = " or ".join(samples(size) for size in sorted({taken.batch for taken in found}))
            least, most = min(taken.runs for taken in found), max(taken.runs for taken in found)
            calls = count(least) if least == most else f"{count(least)} to {count(most)}"
            sentences.append(f"{what}: one call with {sizes}; median and 90th percentile (p90) of {calls} calls.")
    return sentences


def firing(row: BackendResult) -> list[LayerResult]:
    """The layers that can fire."""
    return [layer for layer in row.layers if layer.neurons and layer.spikes_by_step]


def rates(row: BackendResult, layer: LayerResult) -> list[float]:
    """Per step: spikes per neuron and sample."""
    sites = layer.neurons * row.samples
    return [spikes / sites if sites else 0.0 for spikes in layer.spikes_by_step]


@dataclass(frozen=True)
class Group:
    """Backends that found the same; the reference first where it is one of them."""

    rows: tuple[BackendResult, ...]

    @property
    def first(self) -> BackendResult:
        """The one to show."""
        return self.rows[0]

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [row.name for row in self.rows]


def grouped(rows: Iterable[BackendResult], key: Callable[[BackendResult], Hashable]) -> list[Group]:
    """Rows whose `key` is equal, in the order in which each key appears first."""
    found: dict[Hashable, list[BackendResult]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    groups = []
    for members in found.values():
        first = {row.reference for row in members}
        groups.append(Group(tuple(sorted(members, key=lambda row: row.name not in first))))
    return groups


def layer_key(row: BackendResult) -> Hashable:
    """Everything the table of layers shows, except the differences to the reference."""
    layers = tuple(replace(layer, relative_spikes=None, relative_synops=None) for layer in row.layers)
    energies = tuple((name, tuple(found.layers_pj.items())) for name, found in row.energy.items())
    return (row.arithmetic, row.samples, layers, energies)


HEAVY = 0.25


def blocks(weight: Mapping[str, float], limit: int) -> dict[str, list[str]]:
    """Layers by the blocks in their dotted names, at most `limit` of them, in the order of `weight`.

    Blocks that hold more than `HEAVY` of the weight are cut into finer ones where that fits.
    """
    heavy = HEAVY * sum(weight.values())
    paths = {name: tuple(name.split(".")) for name in weight}
    parts: dict[tuple[str, ...], list[str]] = {(): list(weight)}
    while True:
        cuts = []
        for prefix, members in parts.items():
            finer: dict[tuple[str, ...], list[str]] = {}
            for name in members:
                finer.setdefault(paths[name][: len(prefix) + 1], []).append(name)
            total = sum(weight[name] for name in members)
            if total > heavy and set(finer) != {prefix} and len(parts) - 1 + len(finer) <= limit:
                cuts.append((total, prefix, finer))
        if not cuts:
            break
        _, prefix, finer = max(cuts, key=lambda cut: cut[0])
        parts = {key: value for old in parts for key, value in (finer if old == prefix else {old: parts[old]}).items()}
    found = {".".join(prefix): members for prefix, members in parts.items()}
    order = list(weight)
    return dict(sorted(found.items(), key=lambda part: order.index(part[1][0])))


def file_stem(text: str, taken: Sequence[str] = ()) -> str:
    """A harmless file name from any text, unlike the ones in `taken`."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in text)
    stem = "-".join(part for part in safe.split("-") if part)[:60] or "plot"
    number = 2
    found = stem
    while found.lower() in (other.lower() for other in taken):
        found = f"{stem}-{number}"
        number += 1
    return found
