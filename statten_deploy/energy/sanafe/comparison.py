"""SANA-FE's energy beside ours for the same spikes, and every difference as a number of operations with its reason.

Both are counts times the figures of the profile `loihi1-sanafe`. A row is one figure: our count, what SANA-FE counts
besides or leaves out, and its count. The rows give SANA-FE's energies to the last digit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from statten_deploy.energy.cost import PER_NEURON, SYNAPSE_KINDS
from statten_deploy.energy.counter import EnergyCounter, InputKind
from statten_deploy.energy.counts import Counts, LayerCounts
from statten_deploy.energy.fanout import WEIGHTED, WINDOWS
from statten_deploy.energy.profiles import load_profile
from statten_deploy.energy.sanafe.chip import SanafeRun
from statten_deploy.energy.sanafe.emitter import GATES
from statten_deploy.energy.sanafe.network import Connection, Population
from statten_deploy.energy.sanafe.placement import routes
from statten_deploy.ir.graph import hints

PROFILE = "loihi1-sanafe"
SYNAPSES = ("synop_conv", "synop_dense", "synop_sparse")
HOPS = ("hop_east_west", "hop_north_south")
FIGURES = (*SYNAPSES, "neuron_access", "neuron_update", "spike_out", "axon_out", *HOPS)
PART = {
    **dict.fromkeys(SYNAPSES, "synapse"),
    **dict.fromkeys(("neuron_access", "neuron_update", "spike_out"), "soma"),
    **dict.fromkeys(("axon_out", *HOPS), "network"),
}
"""Which of SANA-FE's energies a figure belongs to."""

OUTSIDE = "computed outside, not by synapses"
COPIES = "residual currents: every reader has synapses of its own"
CHAINED = "weights and the pool behind them are one synapse"
KIND = "charged as another kind of synapse"
RELAYS = "relays, which pass spikes on to later layers"
CIRCUIT = "attention as a circuit of gates"
READOUT = "the readout's sums are neurons"
WAITING = "steps in which a layer waits for the others"
AT_REST = "neurons at rest: no input, no bias, membrane 0"
FURTHER = "a message to every further core that listens"
UNHEARD = "spikes that no synapse hears"
INPUTS = "spikes of the input"
TILES = "tiles between the cores"


@dataclass(frozen=True)
class Row:
    """One figure: `ours` operations, what is different, and `sanafe` operations; over all samples."""

    figure: str
    pj: float
    ours: int
    differences: dict[str, int]
    sanafe: int

    @property
    def part(self) -> str:
        """SANA-FE's name for the part of the chip."""
        return PART[self.figure]

    @property
    def explained(self) -> bool:
        """Whether our count and the differences add up to SANA-FE's."""
        return self.ours + sum(self.differences.values()) == self.sanafe


@dataclass(frozen=True)
class Comparison:
    """All rows of one run; energies in pJ per sample."""

    rows: tuple[Row, ...]
    samples: int
    counts: Counts
    reported_pj: dict[str, float]

    @property
    def ours_pj(self) -> float:
        """What `energy(counts, load_profile("loihi1-sanafe"))` says."""
        return sum(row.ours * row.pj for row in self.rows) / self.samples

    @property
    def sanafe_pj(self) -> dict[str, float]:
        """SANA-FE's counts at these figures, by part; equal to what it reports (`reported_pj`)."""
        found = dict.fromkeys(("synapse", "soma", "network"), 0.0)
        for row in self.rows:
            found[row.part] += row.sanafe * row.pj / self.samples
        return found

    @property
    def differences_pj(self) -> dict[str, float]:
        """Every reason with its energy, largest first."""
        found: dict[str, float] = {}
        for row in self.rows:
            for why, amount in row.differences.items():
                found[why] = found.get(why, 0.0) + amount * row.pj / self.samples
        return dict(sorted(found.items(), key=lambda item: -abs(item[1])))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        return {
            "profile": PROFILE,
            "samples": self.samples,
            "ours_pj": self.ours_pj,
            "sanafe_pj": self.sanafe_pj,
            "reported_pj": self.reported_pj,
            "differences_pj": self.differences_pj,
            "rows": [{**vars(row), "part": row.part} for row in self.rows],
        }


def compare(run: SanafeRun) -> Comparison:
    """Count the run's own spikes with our counter, and explain what SANA-FE counts."""
    graph = run.network.graph
    counter = EnergyCounter(graph, input=_told(run))
    counter.update(
        run.spikes, np.broadcast_to(run.frames, (run.samples, run.network.time_steps, *run.frames.shape[2:]))
    )
    counts = counter.counts()
    explained = _Explainer(run, counts)
    figures = load_profile(PROFILE).figures
    rows = []
    for figure in FIGURES:
        differences = {why: n for why, n in explained.differences[figure].items() if n}
        rows.append(Row(figure, figures[figure].pj, ours(counts, figure), differences, explained.sanafe[figure]))
    reported = {part: run.energy_pj[part] / run.samples for part in ("synapse", "soma", "network")}
    return Comparison(tuple(rows), run.samples, counts, reported)


def _told(run: SanafeRun) -> InputKind | None:
    """What the input carries: the graph's own word, unless it contradicts the run."""
    if run.network.inputs == "spikes":
        return "events"
    whole = bool(np.all(run.frames == np.rint(run.frames)))
    said = hints(run.network.graph).get("input")
    return None if said == "image" or (said == "frames" and whole) else "frames"


def ours(counts: Counts, figure: str) -> int:
    """How often our cost model pays a figure."""
    if figure in SYNAPSES:
        return sum(layer.event_ops for layer in counts.layers if _kind(layer) == figure)
    return sum(getattr(layer, PER_NEURON[figure]) for layer in _paid(counts)) if figure in PER_NEURON else 0


def _kind(layer: LayerCounts) -> str:
    return SYNAPSE_KINDS.get(layer.operation, "synop_sparse")


def _paid(counts: Counts) -> Iterator[LayerCounts]:
    """Units that pay per step and per spike."""
    return (layer for layer in counts.layers if layer.role != "input" and layer.neurons)


class _Reading(NamedTuple):
    """Synaptic events of one node's weights at one reader."""

    reader: tuple[str, tuple[str, ...]]
    kind: str
    events: int


class _Explainer:
    def __init__(self, run: SanafeRun, counts: Counts) -> None:
        self.run, self.counts, self.graph = run, counts, run.network.graph
        self.populations = run.network.populations
        self.fired = {name: int(fired.sum()) for name, fired in run.fired.items()}
        self.differences: dict[str, dict[str, int]] = {figure: {} for figure in FIGURES}
        self.sanafe = dict.fromkeys(FIGURES, 0)
        self._synapses()
        self._neurons()
        self._messages()

    def _differs(self, figure: str, why: str, amount: int) -> None:
        known = self.differences[figure]
        known[why] = known.get(why, 0) + amount

    def _is_given(self, population: Population) -> bool:
        return population.name in self.graph.nodes

    def _synapses(self) -> None:
        by_node: dict[str, list[_Reading]] = {}
        for population in self.populations.values():
            for connection in population.connections:
                fan_out = np.diff(connection.weights.indptr)
                events = int(self.run.fired[connection.source] @ fan_out)
                self.sanafe[population.synapses] += events
                node = self._stands_for(population, connection)
                if node is None:
                    self._differs(population.synapses, RELAYS if population.role == "relay" else CIRCUIT, events)
                else:
                    reader = (population.name, connection.via)
                    by_node.setdefault(node, []).append(_Reading(reader, population.synapses, events))
        for layer in self.counts.layers:
            kind, once, readings = _kind(layer), layer.event_ops, by_node.get(layer.name, [])
            if not readings:
                attention = layer.role == "attention" and self.run.network.lowered is not self.graph
                self._differs(kind, CIRCUIT if attention else OUTSIDE, -once)
                continue
            readers = len({reading.reader for reading in readings})
            self._differs(kind, COPIES, once * (readers - 1))
            self._differs(kind, CHAINED, sum(reading.events for reading in readings) - once * readers)
            for reading in readings:
                if reading.kind != kind:
                    self._differs(kind, KIND, -reading.events)
                    self._differs(reading.kind, KIND, reading.events)

    def _stands_for(self, population: Population, connection: Connection) -> str | None:
        """The node of the graph that reads the spikes; None for relays and circuits."""
        if population.role == "relay" or not self._is_given(population):
            return None
        counted = (*WEIGHTED, *WINDOWS, *GATES)
        readers = [name for name in connection.via if isinstance(self.run.network.lowered.nodes[name], counted)]
        return readers[0] if readers and readers[0] in self.graph.nodes else None

    def _neurons(self) -> None:
        samples, steps = self.run.samples, self.run.network.steps
        per_step = ("neuron_access", "neuron_update")
        for layer in _paid(self.counts):
            emitted = self.populations.get(layer.name)
            if emitted is None:
                for figure in per_step:
                    self._differs(figure, OUTSIDE, -layer.updates)
                self._differs("spike_out", OUTSIDE, -layer.spikes)
        for population in self.populations.values():
            if population.role == "input":
                continue
            self.sanafe["neuron_access"] += population.size * steps * samples
            self.sanafe["spike_out"] += self.fired[population.name]
            why = self._besides(population)
            for figure in per_step:
                if why:
                    self._differs(figure, why, population.size * population.steps * samples)
                self._differs(figure, WAITING, population.size * (steps - population.steps) * samples)
            if why:
                self._differs("spike_out", why, self.fired[population.name])
        inputs = sum(self.fired[p.name] for p in self.populations.values() if p.role == "input")
        self.sanafe["neuron_update"] = self.run.counters["updates"] - inputs
        self._differs("neuron_update", AT_REST, self.sanafe["neuron_update"] - self.sanafe["neuron_access"])

    def _besides(self, population: Population) -> str | None:
        """Why a population is none of the units that we count."""
        if population.role in ("relay", "readout"):
            return RELAYS if population.role == "relay" else READOUT
        return None if self._is_given(population) else CIRCUIT

    def _messages(self) -> None:
        """Our model sends one message per spike of a neuron or a gate."""
        for layer in _paid(self.counts):
            if layer.name not in self.populations:
                self._differs("axon_out", OUTSIDE, -layer.spikes)
        found = routes(self.run.network, self.run.placement)
        for name, reached in found.items():
            population, fired = self.populations[name], self.run.fired[name]
            heard = np.zeros(population.size, dtype=np.int64)
            for core, neurons in reached.items():
                heard[neurons] += 1
                hops = self.run.mesh.hops(self.run.placement.cores[name][neurons], core)
                for figure, far in zip(HOPS, hops, strict=True):
                    self.sanafe[figure] += int(fired[neurons] @ far)
            self.sanafe["axon_out"] += int(fired @ heard)
            why = INPUTS if population.role == "input" else self._besides(population)
            if why:
                self._differs("axon_out", why, self.fired[name])
            self._differs("axon_out", UNHEARD, -int(fired[heard == 0].sum()))
            self._differs("axon_out", FURTHER, int(fired @ np.maximum(heard - 1, 0)))
        for figure in HOPS:
            self._differs(figure, TILES, self.sanafe[figure])
