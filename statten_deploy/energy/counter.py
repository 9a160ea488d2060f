"""Counts events from recorded spikes, batch by batch. The same spikes give the same integers, whoever computed them.

SynOps are linear in how often every site fired, so one number per site is kept, not the spikes. Pools, gates and
attention are not linear: they are worked out on every batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import prod
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import ArrayLike, NDArray

from statten_deploy.energy.counts import Counts, LayerCounts
from statten_deploy.energy.fanout import WEIGHTED, WINDOWS, Int, dense, fan_out
from statten_deploy.energy.signals import (
    EVENT_OPERATIONS,
    FIRING,
    GATES,
    INTEGRATING,
    PER_EDGE,
    Kind,
    Values,
    joined,
    kinds,
    widened,
)
from statten_deploy.errors import ConfigError, InputError
from statten_deploy.ir import SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool
from statten_deploy.ir.graph import hints, inline_subgraphs, input_names, predecessors, successors
from statten_deploy.ir.integer import IntegerSumPool2d
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.ir.verify import time_step

SUMS = (nir.SumPool2d, IntegerSumPool2d)

InputKind = Literal["image", "frames", "events"]
INPUT_KINDS: dict[str, Kind] = {"image": Kind.HELD, "frames": Kind.CURRENTS, "events": Kind.EVENTS}


@dataclass
class _Attention:
    """Active entries of q, k and v, and the pairs that meet in KV."""

    q: int = 0
    k: int = 0
    v: int = 0
    accumulations: int = 0
    removals: int = 0


class EnergyCounter:
    """Exact event counts of a float or a quantised graph.

        counter = EnergyCounter(graph)
        for batch in batches:
            counter.update(spikes)      # per neuron layer [T, B, ...], as any engine gives them
        counts = counter.counts()

    `input` says what the graph's Input carries: ``"image"`` (the same real values at every step), ``"frames"`` (real
    values, new at every step) or ``"events"`` (whole numbers, zero where nothing happened; `update` needs them then).
    By default the graph's own word: an image is an image, frames are events.

    Raises:
        ConfigError: the graph does not say what its input is.
    """

    def __init__(self, graph: nir.NIRGraph, *, input: InputKind | None = None) -> None:
        self.graph = inline_subgraphs(graph)
        self.input = input_kind(self.graph, input)
        self.dt = time_step(self.graph)
        """Seconds per step: Delay nodes count in seconds."""
        self.into = predecessors(self.graph)
        self.shapes = infer_shapes(self.graph)
        self.kinds = kinds(self.graph, self.into, self.input)
        self.samples = 0
        self.steps = 0
        self._by_step: dict[str, Int] = {}
        self._sites: dict[str, list[Int]] = {}
        self._attention: dict[str, _Attention] = {}

    def update(self, spikes: Mapping[str, ArrayLike], inputs: ArrayLike | None = None) -> None:
        """Add one batch.

        Args:
            spikes: per neuron layer [T, B, *shape] of 0/1. Names that the graph does not have (circuits of other
                tools have more neurons) are left out.
            inputs: the graph's input [B, T, *shape]; needed, and looked at, for event inputs only.

        Raises:
            InputError: layers are missing, shapes differ, or values are not 0/1 (for events: whole numbers).
        """
        values = self._checked(spikes)
        steps, batch = next(iter(values.values())).shape[:2] if values else (0, 0)
        if self.samples and self.steps != steps:
            raise InputError(f"spikes of {steps} steps after others of {self.steps}; count them apart")
        if self.input is Kind.EVENTS:
            values.update(self._events(inputs, steps, batch))
        run = _Batch(self, values)
        for name, node in self.graph.nodes.items():
            if name in values or (isinstance(node, GATES) and self.kinds[name] is Kind.EVENTS):
                by_step = np.count_nonzero(run.merged([name]).reshape(steps, -1), axis=1)
                self._by_step[name] = self._by_step.get(name, 0) + by_step
            if isinstance(node, STAttenAttention):
                _attend(self._attention.setdefault(name, _Attention()), node, run, self.into[name])
        for source in self._counted_sources():
            active = [np.count_nonzero(stream, axis=(0, 1)).astype(np.int64) for stream in run.streams(source)]
            known = self._sites.get(source)
            self._sites[source] = active if known is None else [a + b for a, b in zip(known, active, strict=True)]
        self.samples += batch
        self.steps = steps

    def counts(self) -> Counts:
        """Everything so far.

        Raises:
            InputError: nothing was given yet.
        """
        if not self.samples:
            raise InputError("nothing was counted: no spikes were given")
        layers = (self._layer(name, node) for name, node in self.graph.nodes.items())
        return Counts(tuple(layer for layer in layers if layer is not None), self.samples, self.steps)

    # what comes in

    def _checked(self, spikes: Mapping[str, ArrayLike]) -> dict[str, Values]:
        firing = [name for name, node in self.graph.nodes.items() if isinstance(node, FIRING)]
        missing = [name for name in firing if name not in spikes]
        if missing:
            raise InputError(f"no spikes of {', '.join(missing)}; every neuron layer of the graph is needed")
        values = {name: np.asarray(spikes[name]) for name in firing}
        lead: tuple[int, ...] | None = None
        for name, value in values.items():
            lead = value.shape[:2] if lead is None else lead
            if value.shape != (*lead, *self.shapes[name]) or len(lead) != 2 or not value.size:
                shape = ", ".join(map(str, self.shapes[name]))
                raise InputError(f"spikes of {name!r} have shape {list(value.shape)}, expected [T, B, {shape}]")
            if value.dtype != np.bool_:
                if not np.isin(value, (0, 1)).all():
                    raise InputError(f"spikes of {name!r} hold other values than 0 and 1")
                values[name] = value.astype(np.bool_)
        return values

    def _events(self, inputs: ArrayLike | None, steps: int, batch: int) -> dict[str, Values]:
        names = input_names(self.graph)
        if inputs is None or len(names) != 1:
            raise InputError(f"event inputs are counted too: give the values of {', '.join(names)} (one is supported)")
        shape = self.shapes[names[0]]
        x = np.asarray(inputs)
        if x.shape != (batch, steps, *shape):
            raise InputError(f"inputs have shape {list(x.shape)}, expected {[batch, steps, *shape]} for event inputs")
        whole = x.astype(np.int64)
        if not np.array_equal(whole, x):
            raise InputError(
                "event inputs hold fractions; for real-valued frames make EnergyCounter(..., input='frames')"
            )
        return {names[0]: whole.swapaxes(0, 1)}

    def _counted_sources(self) -> list[str]:
        """Nodes whose events somebody reads site by site, each once."""
        readers = (name for name, node in self.graph.nodes.items() if isinstance(node, (*WEIGHTED, *WINDOWS, *GATES)))
        ports = (
            sources for name in readers for sources in self.into[name].values() if self._port(sources) is Kind.EVENTS
        )
        return list(dict.fromkeys(source for sources in ports for source in sources))

    def _port(self, sources: list[str]) -> Kind:
        return joined([self.kinds[source] for source in sources])

    # what comes out

    def _layer(self, name: str, node: nir.NIRNode) -> LayerCounts | None:
        by_step = tuple(int(n) for n in self._by_step.get(name, ()))
        units = prod(self.shapes[name])
        facts: dict[str, Any] = {"spikes": sum(by_step), "spikes_by_step": by_step}
        if isinstance(node, nir.Input):
            return LayerCounts(name, "Input", "input", **facts) if by_step else None
        operation = type(node).__name__
        facts |= {"neurons": units, "updates": units * self.steps * self.samples}
        if isinstance(node, (*FIRING, *INTEGRATING)):
            return LayerCounts(name, operation, "neurons", **facts)
        if isinstance(node, GATES) and by_step:
            synops = sum(
                self._synops(sources, self._gate_fan_out(name, port)) for port, sources in self.into[name].items()
            )
            return LayerCounts(name, operation, "gates", synops=synops, **facts)
        if isinstance(node, STAttenAttention):
            return self._attention_layer(name, node)
        if isinstance(node, (*WEIGHTED, *WINDOWS, SpikeMaxPool2d)):
            return self._connection(name, node)
        return None

    def _connection(self, name: str, node: Any) -> LayerCounts:
        """A node with weights or windows: events set off SynOps, currents MACs (in windows: reads)."""
        weighted = isinstance(node, WEIGHTED)
        sources = self.into[name]["input"]
        shape, out = self.shapes[sources[0]], self.shapes[name]
        reached = fan_out(node, shape, out)
        products = dense(node, shape, out)
        attends = self._sums_tokens(name, node)
        facts: dict[str, Any] = {"dense_macs": products if weighted or attends else 0}
        if weighted:
            facts["weights"] = int(np.count_nonzero(node.weight))
            facts["readers"] = max(1, len(_readers(self.graph, name)))
        kind = self._port(sources)
        if kind is Kind.EVENTS:
            facts["synops"] = self._synops(sources, reached)
            if weighted or attends:
                facts["paper_acs"] = Fraction(self._active(sources) * products, prod(shape))
        else:
            every_step = self.samples * (1 if kind is Kind.RESULT else self.steps)
            once = self.samples if kind is Kind.HELD else every_step
            total = int(reached.sum())
            if weighted:
                facts |= {"macs": total * once, "macs_every_step": total * every_step}
                facts["paper_macs"] = products * every_step
            else:
                facts["reads"] = total * once
        return LayerCounts(name, type(node).__name__, "synapses" if weighted else "pool", **facts)

    def _sums_tokens(self, name: str, node: Any) -> bool:
        """Whether this is attention's sum of k AND v over all tokens. Other pools are free in the paper convention."""
        if not isinstance(node, SUMS) or prod(self.shapes[name][1:]) != 1:
            return False
        source = self.into[name]["input"][0]
        if isinstance(self.graph.nodes[source], TokenMaxPool):
            source = self.into[source]["input"][0]
        return isinstance(self.graph.nodes[source], SpikeAnd)

    def _attention_layer(self, name: str, node: STAttenAttention) -> LayerCounts:
        found = self._attention.get(name, _Attention())
        channels, height, width = self.shapes[name]
        d = channels // node.num_heads
        return LayerCounts(
            name,
            type(node).__name__,
            "attention",
            kv_accumulations=found.accumulations,
            kv_removals=found.removals,
            q_reads=found.q * d,
            dense_macs=2 * channels * d * height * width,
            paper_acs=Fraction(d * (min(found.k, found.v) + found.q)),
        )

    def _gate_fan_out(self, name: str, port: str) -> Int:
        node, out = self.graph.nodes[name], self.shapes[name]
        shape = self.shapes[self.into[name][port][0]]
        if isinstance(node, TokenMaxPool):
            plane = (node.num_heads, shape[0] // node.num_heads, prod(shape[1:]))
            return fan_out(SpikeMaxPool2d((3, 3), (1, 1), (1, 1)), plane, plane).reshape(shape)
        if isinstance(node, SpikeAnd):  # port b may be one value for all tokens
            return np.full(shape, prod(out) // prod(shape), dtype=np.int64)
        return fan_out(node, shape, out)

    def _synops(self, sources: list[str], reached: Int) -> int:
        return sum(int((sites * reached).sum()) for source in sources for sites in self._sites[source])

    def _active(self, sources: list[str]) -> int:
        return sum(int(sites.sum()) for source in sources for sites in self._sites[source])


class _Batch:
    """The events of one batch at every node, worked out when asked for."""

    def __init__(self, counter: EnergyCounter, values: Mapping[str, Values]) -> None:
        self.counter = counter
        self.known: dict[str, list[Values]] = {name: [value] for name, value in values.items()}

    def streams(self, name: str) -> list[Values]:
        """A node's events, those of different sources apart where they still are."""
        if name not in self.known:
            node = self.counter.graph.nodes[name]
            operation, shape = EVENT_OPERATIONS[type(node)], self.counter.shapes[name]
            operation = partial(operation, dt=self.counter.dt) if isinstance(node, nir.Delay) else operation
            ports = list(self.counter.into[name].values())
            if isinstance(node, PER_EDGE):
                found = [operation(node, shape, stream) for source in ports[0] for stream in self.streams(source)]
            else:
                found = [operation(node, shape, *(self.merged(sources) for sources in ports))]
            self.known[name] = found
        return self.known[name]

    def merged(self, sources: list[str]) -> Values:
        """The sum of everything that arrives from `sources`."""
        first, *others = (stream for source in sources for stream in self.streams(source))
        total = widened(first) if others else first
        for other in others:
            total = total + other
        return total


def _attend(found: _Attention, node: STAttenAttention, run: _Batch, into: Mapping[str, list[str]]) -> None:
    """Per token, step and head: active(k) · active(v) pairs; in sliding windows each leaves again after `window`."""
    if any(run.counter.kinds[source] is not Kind.EVENTS for sources in into.values() for source in sources):
        return
    active = {}
    for port, sources in into.items():
        x = run.merged(sources)
        T, B, C, H, W = x.shape
        active[port] = np.count_nonzero(x.reshape(T, B, node.num_heads, C // node.num_heads, H * W), axis=3)
    pairs: NDArray[Any] = (active["k"] * active["v"]).reshape(T, -1).sum(1)
    found.q += int(active["q"].sum())
    found.k += int(active["k"].sum())
    found.v += int(active["v"].sum())
    found.accumulations += int(pairs.sum())
    if node.mode == "sliding":
        found.removals += int(pairs[: max(0, T - node.window)].sum())


def _readers(graph: nir.NIRGraph, name: str) -> set[str]:
    """Neuron layers behind a node, reached without passing another weight or neuron."""
    after = successors(graph)
    found: set[str] = set()
    waiting = list(after[name])
    seen = set(waiting)
    while waiting:
        reached = waiting.pop()
        node = graph.nodes[reached]
        if isinstance(node, (*FIRING, *INTEGRATING)):
            found.add(reached)
        elif not isinstance(node, WEIGHTED):
            waiting += [other for other in after[reached] if other not in seen]
            seen.update(after[reached])
    return found


def input_kind(graph: nir.NIRGraph, told: str | None) -> Kind:
    """What the Input carries: as told, else as the graph says."""
    if told is not None and told not in INPUT_KINDS:
        raise ConfigError(f"input {told!r}: expected one of {', '.join(INPUT_KINDS)}")
    said = told or {"image": "image", "frames": "events"}.get(str(hints(graph).get("input")))
    if said is None:
        raise ConfigError("the graph does not say what its input is; give input='image', 'frames' or 'events'")
    return INPUT_KINDS[said]
