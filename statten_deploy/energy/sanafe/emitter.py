"""A quantised graph as populations: every layer of neurons, every gate and the readout, with relays between them.

Whatever is not a sum of weights of spikes is computed outside and injected; `SpikingNetwork.outside` names it.
"""

from dataclasses import replace
from math import prod
from typing import Any, Literal

import nir
import numpy as np

from statten_deploy.energy.fanout import CONVOLUTIONS, LINEAR
from statten_deploy.energy.sanafe.linear import Matrix, Real, constant, is_linear, matrix
from statten_deploy.energy.sanafe.network import (
    UNIT,
    Connection,
    Inputs,
    Population,
    Role,
    SpikingNetwork,
    synaptic_bounds,
)
from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point import DECAY_BITS, NO_SYNAPTIC_MEMORY, shift
from statten_deploy.fixed_point.ranges import CURRENT_LIMIT
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool
from statten_deploy.ir.graph import hints, predecessors, topological_order
from statten_deploy.ir.integer import InputEncoder, IntegerLIF, TemporalSum, is_quantised
from statten_deploy.ir.shapes import Shape, infer_shapes
from statten_deploy.ir.verify import time_step
from statten_deploy.passes import input_latencies, statten_to_circuit
from statten_deploy.passes.latency import delay_of, is_memoryless

Attention = Literal["outside", "circuit"]

GATES = (SpikeAnd, SpikeMaxPool2d, MaxPool2d, TokenMaxPool)
"""What a neuron without memory computes from spikes."""
NEVER = 1 << 30
"""A threshold that no readout reaches."""
READOUT_LIMIT = 1 << 25
"""SANA-FE holds 64ths of a potential in 32 bits."""
FINE = 1 << 10
"""Circuits may hold neurons that halve: in units this fine all their membranes are whole."""
FROM_INPUT = "made of values of the input, which are no spikes"


def emit(graph: nir.NIRGraph, *, inputs: Inputs = "currents", attention: Attention = "outside") -> SpikingNetwork:
    """The populations of a quantised graph (`statten_deploy.quantize.quantize`, `passes.part_until` for a part of one).

    `inputs`: ``"currents"`` injects what the first layer makes of real values and counts; ``"spikes"`` sends inputs of
    0/1 as spikes. `attention`: ``"outside"`` injects its counts, ``"circuit"`` builds it of gates (small networks).

    Raises:
        UnsupportedError: not a quantised graph; neurons with a synaptic memory or a negative threshold; currents
            that may leave the 24-bit state; inputs that are no spikes.
    """
    if not is_quantised(graph):
        raise UnsupportedError("SANA-FE gets quantised graphs; quantize() first")
    lowered = statten_to_circuit(graph, "core")[0] if attention == "circuit" else graph
    return _Emitter(graph, lowered, inputs).emit()


class _NoSynapsesError(Exception):
    """Why a branch is no sum of weights of spikes."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


class _Emitter:
    def __init__(self, graph: nir.NIRGraph, lowered: nir.NIRGraph, inputs: Inputs) -> None:
        self.given, self.graph, self.inputs = graph, lowered, inputs
        self.order, self.into, self.shapes = topological_order(lowered), predecessors(lowered), infer_shapes(lowered)
        self.dt = time_step(lowered)
        self.time_steps = int(hints(lowered)["time_steps"])
        self.starts = input_latencies(graph) if lowered is not graph else {}
        self.late = max(self.starts.values(), default=0)
        self.found: dict[str, Population] = {}
        self.outside: dict[str, str] = {}

    def emit(self) -> SpikingNetwork:
        _refuse(self._problems())
        for name in self.order:
            population = self._population(name)
            if population is not None:
                self.found[name] = self._placed_in_time(population)
        self._relays()
        return SpikingNetwork(self.given, self.graph, self.inputs, self.found, self.outside, self.time_steps, self.late)

    def _problems(self) -> list[str]:
        found = []
        for name, node in self.graph.nodes.items():
            if not isinstance(node, IntegerLIF):
                continue
            if node.du != NO_SYNAPTIC_MEMORY:
                found.append(
                    f"{name} has a synaptic memory (du = {node.du}), which SANA-FE does not truncate as Loihi does"
                )
            if np.any(node.threshold < 0):
                found.append(f"{name} has a negative threshold and would fire before its first step")
        if self.inputs == "spikes":
            encoders = [(n, node) for n, node in self.graph.nodes.items() if isinstance(node, InputEncoder)]
            found += [
                f"{name} does not pass spikes on as they are (scale 1, zero point 0); take inputs='currents'"
                for name, node in encoders
                if np.any(node.scale != 1) or np.any(node.zero_point)
            ]
        return found

    # populations

    def _population(self, name: str) -> Population | None:
        node, shape = self.graph.nodes[name], self.shapes[name]
        size = prod(shape)
        if isinstance(node, nir.Input) and self.inputs == "spikes":
            return Population(name, "input", shape, np.zeros(0), 0.0, np.zeros(0), ())
        if isinstance(node, GATES) and self._reads_spikes(name):
            least = 1.0 if isinstance(node, SpikeAnd) else 0.0
            found: list[Connection] = []
            for (source,) in self.into[name].values():
                found += self._trace(source, matrix(node, self.shapes[source], shape), 0, (name,))[0]
            return Population(name, "gates", shape, np.full(size, least), 0.0, np.zeros(size), tuple(found))
        if isinstance(node, nir.LIF):
            return self._gate(name, node)
        if isinstance(node, IntegerLIF):
            bias = shift(node.bias_mantissa, node.bias_exponent)
            decay = ((1 << DECAY_BITS) - node.dv) / (1 << DECAY_BITS)
            threshold = _full(node.threshold, shape)
            return self._neurons(name, "neurons", threshold, decay, _full(bias, shape) / UNIT, node.input_exponent)
        if isinstance(node, TemporalSum):
            return self._neurons(name, "readout", np.full(size, float(NEVER)), 1.0, np.zeros(size), 0)
        return None

    def _reads_spikes(self, name: str) -> bool:
        """Whether every port of a gate gets one spike train, perhaps a late one."""
        return all(len(sources) == 1 and self._is_train(sources[0]) for sources in self.into[name].values())

    def _is_train(self, name: str) -> bool:
        if isinstance(self.graph.nodes[name], nir.Delay):
            return all(len(sources) == 1 and self._is_train(sources[0]) for sources in self.into[name].values())
        return name in self.found

    def _gate(self, name: str, node: nir.LIF) -> Population:
        """A neuron of a circuit: without memory, or one that halves (a clock)."""
        rate = 1.0 if is_memoryless(node, self.dt) else float(np.round(self.dt / np.max(node.tau), 6))
        scale = 1 if rate == 1 else FINE
        shape = self.shapes[name]
        threshold = _full(node.v_threshold, shape) * scale
        found = self._neurons(name, "gates", threshold, 1 - rate, np.zeros(prod(shape)), 0, rate * scale)
        if found.outside:
            raise UnsupportedError(f"{name}: a gate of a circuit reads what is not spikes")
        return found

    def _neurons(
        self, name: str, role: Role, threshold: Real, leak: float, bias: Real, exponent: int, factor: float = 1.0
    ) -> Population:
        """Each branch into a neuron is synapses, or computed outside as a whole."""
        connections: list[Connection] = []
        outside = []
        for source in self.into[name]["input"]:
            unit = sparse_identity(prod(self.shapes[name])) * factor * float(1 << max(exponent, 0))
            try:
                if exponent < 0:
                    raise _NoSynapsesError(name, "rounds the sum of its inputs down")
                found, added = self._trace(source, unit, 0, ())
            except _NoSynapsesError as no:
                outside.append(source)
                self.outside.setdefault(no.node, no.reason)
                continue
            connections += found
            bias = bias + added
        kinds = {self._kind(connection.via) for connection in connections}
        charged = kinds.pop() if len(kinds) == 1 else "synop_sparse"
        population = Population(
            name, role, self.shapes[name], threshold, leak, bias, tuple(connections), tuple(outside), exponent, charged
        )
        if role != "gates":
            _check_state(population, self.time_steps)
        return population

    def _trace(self, name: str, weights: Matrix, lag: int, via: tuple[str, ...]) -> tuple[list[Connection], Real]:
        """(synapses from the populations behind a node, what it adds at every step); `weights` lead on from it."""
        node, shape = self.graph.nodes[name], self.shapes[name]
        nothing = np.zeros(weights.shape[1])
        if name in self.found:
            return [Connection(name, via, weights, lag)], nothing
        if isinstance(node, InputEncoder) and self.inputs == "spikes":
            return self._trace(self.into[name]["input"][0], weights, lag, via)
        if isinstance(node, nir.Delay):
            steps = {round(float(seconds) / self.dt) for seconds in np.unique(node.delay)}
            (lag,) = (lag + step for step in steps)
        elif not is_linear(node):
            raise _NoSynapsesError(name, _why(node) if self._hears_spikes(name) else FROM_INPUT)
        bias = constant(node, shape)
        added = nothing if bias is None else bias @ weights
        if lag and added.any():
            raise UnsupportedError(f"{name}: a constant that starts late")
        found: list[Connection] = []
        step = matrix(node, self.shapes[self.into[name]["input"][0]], shape) @ weights
        step.eliminate_zeros()
        if step.nnz:
            for source in self.into[name]["input"]:
                more, further = self._trace(source, step, lag, (name, *via))
                found += more
                added = added + further
        return found, added

    def _hears_spikes(self, name: str) -> bool:
        sources = (source for group in self.into[name].values() for source in group)
        return any(source in self.found or self._hears_spikes(source) for source in sources)

    def _kind(self, via: tuple[str, ...]) -> str:
        nodes = [self.graph.nodes[name] for name in via]
        if any(isinstance(node, CONVOLUTIONS) for node in nodes):
            return "synop_conv"
        return "synop_dense" if any(isinstance(node, LINEAR) for node in nodes) else "synop_sparse"

    # time

    def _placed_in_time(self, population: Population) -> Population:
        """Level: behind everything it hears; what is computed outside is known a step after its last spike."""
        levels = [self.found[connection.source].level + 1 for connection in population.connections]
        levels += [self._known(source) for source in population.outside]
        level = max(levels, default=0)
        given = population.name in self.given.nodes
        start = self.starts.get(population.name, 0) if given else 0
        steps = self.time_steps if given else self.time_steps + self.late
        return replace(population, level=level, start=start, steps=steps)

    def _known(self, name: str) -> int:
        """The level from which on a value that is computed outside is known."""
        if name in self.found:
            return self.found[name].level + 1
        sources = [source for group in self.into[name].values() for source in group]
        return max((self._known(source) for source in sources), default=0) + delay_of(self.graph.nodes[name])

    def _relays(self) -> None:
        """Populations that pass spikes on until they are due; one chain per source."""
        for population in list(self.found.values()):
            connections = []
            for connection in population.connections:
                source = self.found[connection.source]
                stages = population.level - source.level - 1 + connection.lag
                connections.append(replace(connection, source=self._relay(source, stages)))
            self.found[population.name] = replace(population, connections=tuple(connections))

    def _relay(self, source: Population, stage: int) -> str:
        if stage == 0:
            return source.name
        name = f"{source.name}.relay{stage}"
        if name not in self.found:
            before = self._relay(source, stage - 1)
            synapse = Connection(before, (), sparse_identity(source.size))
            zero = np.zeros(source.size)
            relay = Population(name, "relay", source.shape, zero, 0.0, zero, (synapse,))
            self.found[name] = replace(relay, level=source.level + stage, start=source.start, steps=source.steps)
        return name


def sparse_identity(size: int) -> Matrix:
    """One synapse of weight 1 from each neuron to its partner."""
    return matrix(None, (size,), (size,))


def _full(values: Any, shape: Shape) -> Real:
    return np.broadcast_to(np.asarray(values, dtype=np.float64), shape).reshape(-1).copy()


def _why(node: nir.NIRNode) -> str:
    if isinstance(node, STAttenAttention):
        return "spikes meet spikes: no synapses do this"
    if isinstance(node, MaxPool2d):
        return "a maximum of currents: no neuron does this"
    if isinstance(node, GATES):
        return "a gate on what is not one spike train"
    return "rounds sums down: synapses only add"


def _check_state(population: Population, time_steps: int) -> None:
    """Synaptic sums stay inside the state, so that the wrap of 24 bits (docs/fixed_point.md) cannot act."""
    least, most = synaptic_bounds(population)
    if population.role == "readout":
        largest = time_steps * float(np.max(np.maximum(-least, most) + np.abs(population.bias)))
        if largest >= READOUT_LIMIT:
            raise UnsupportedError(
                f"{population.name}: its sums may reach {largest:.0f}, and SANA-FE holds {READOUT_LIMIT}; "
                "quantise with fewer bits"
            )
    elif np.any(most > CURRENT_LIMIT) or np.any(least <= -CURRENT_LIMIT):
        raise UnsupportedError(
            f"{population.name}: its currents may reach {max(most.max(), -least.min()):.0f} and wrap at "
            f"{CURRENT_LIMIT}, which SANA-FE does not do; quantise with fewer bits"
        )


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UnsupportedError(f"no SANA-FE network: {'; '.join(problems)}")
