"""What a comparison of backends found: plain data, filled by the runner, read by the reports."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Arithmetic = Literal["float32", "integer"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds that one call with `batch` samples takes, over `runs` calls: median and 90th percentile."""

    batch: int
    median_ms: float
    p90_ms: float
    runs: int


@dataclass(frozen=True)
class LayerResult:
    """One node that computes something, over all samples.

    role: as in `LayerCounts`. spikes_by_step: [T]. synops: everything that events set off here. relative: (this
    backend's SynOps - the reference's) / the reference's, None where the reference has none.
    """

    name: str
    role: str
    neurons: int
    spikes: int
    spikes_by_step: tuple[int, ...]
    firing_rate: float
    synops: int
    relative_spikes: float | None = None
    relative_synops: float | None = None
    macs: int = 0
    paper_macs: int = 0
    paper_acs: float = 0.0
    """By the paper convention, beside the exact `macs` and `synops`."""


@dataclass(frozen=True)
class ProfileInfo:
    """A cost profile, as the report names it. statuses: measured, estimated, pre-silicon; sources: one per figure.

    not_included: what it leaves out, with the numbers of the backend `counted_on`.
    """

    name: str
    title: str
    family: str
    statuses: tuple[str, ...]
    not_included: tuple[str, ...]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()
    counted_on: str = ""


@dataclass(frozen=True)
class EnergyResult:
    """Energy per sample in pJ by one profile; `layers_pj` adds up to `total_pj`. ann_pj: paper profiles only."""

    total_pj: float
    layers_pj: dict[str, float]
    ann_pj: float | None = None
    relative: float | None = None
    """(total - the reference's total) / the reference's total."""


@dataclass
class BackendResult:
    """One backend on all samples. A backend that is not there has `unavailable` and nothing else.

    agreement: share of samples with the class that `reference` predicts. accuracy_interval: 95 %, Wilson.
    spike_mismatches: (neuron, step, sample) triples whose spike differs from `reference`'s, of `spike_sites`.
    confusion: [true class, predicted class] counts.
    """

    name: str
    arithmetic: Arithmetic
    reference: str
    unavailable: str = ""
    """Why it did not run and how to install it, in one line; empty where it ran."""
    samples: int = 0
    predictions: list[int] = field(default_factory=list)
    correct: int | None = None
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    agreement: float | None = None
    spike_mismatches: int = 0
    spike_sites: int = 0
    spikes: int = 0
    synops: int = 0
    macs: int = 0
    neuron_updates: int = 0
    relative_spikes: float | None = None
    relative_synops: float | None = None
    energy: dict[str, EnergyResult] = field(default_factory=dict)
    latency: Latency | None = None
    """Of one sample."""
    batch_latency: Latency | None = None
    """Of a whole batch; None where calls would take too long."""
    layers: list[LayerResult] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Raster:
    """The spikes of one sample in the reference: per layer [T, neurons]. sample: its number in the data set."""

    sample: int
    label: int | None
    predicted: int | None
    layers: dict[str, NDArray[np.bool_]]


@dataclass
class Comparison:
    """A comparison of backends on one data set. `references`: float32 and integer -> the backend others are held to.

    bits: of the integer network's weights, None where there is none.
    problems: integer backends that differ from the integer reference, float ones beyond the tolerances: exit status 1.
    """

    model: str
    dataset: str
    samples: int
    classes: int | None
    time_steps: int
    seed: int
    bits: int | None
    references: dict[str, str]
    tool_version: str
    profiles: list[ProfileInfo]
    backends: list[BackendResult]
    raster: Raster | None = None
    machine: str = ""
    """Where latencies were taken: processor and threads, in words."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    """Tracebacks of what engines raised, for ``--debug``; not in the report."""

    def to_dict(self) -> dict[str, Any]:
        """``report.json``: the fields of docs/compare.md, plain numbers only."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "samples": self.samples,
            "classes": self.classes,
            "time_steps": self.time_steps,
            "seed": self.seed,
            "bits": self.bits,
            "reference": self.references,
            "tool_version": self.tool_version,
            "machine": self.machine,
            "profiles": [vars(profile) for profile in self.profiles],
            "backends": [_backend(row) for row in self.backends],
            "problems": self.problems,
            "warnings": self.warnings,
        }


def _backend(row: BackendResult) -> dict[str, Any]:
    apart = ("energy", "latency", "batch_latency", "layers")
    return {
        **{key: value for key, value in vars(row).items() if key not in apart},
        "energy_pj": {name: found.total_pj for name, found in row.energy.items()},
        "energy": {name: vars(found) for name, found in row.energy.items()},
        "latency_ms": _latency(row.latency),
        "batch_latency_ms": _latency(row.batch_latency),
        "layers": [{**vars(layer), "spikes_by_step": list(layer.spikes_by_step)} for layer in row.layers],
    }


def _latency(found: Latency | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"median": found.median_ms, "p90": found.p90_ms, "batch": found.batch, "runs": found.runs}
