"""Recurrent parts of a graph: every loop is one Scan over the steps, whose body computes one step of its nodes.

The body reads what comes from outside at the present step and what comes back from the step before. What comes back is
kept where memory is, at the outputs of neurons; operations without memory on the way are computed from there, so that
at the first step they give what they give in silence (`statten_deploy.ir.schedule.Loop`). Where such an operation reads
a recurrent edge itself, what it read a step ago was a step old already: that is kept one step longer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, Generic, TypeVar

import nir
import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from statten_deploy.export.onnx import ops
from statten_deploy.export.onnx.builder import BATCH, Builder, ModelWriter, Shape, Signal, State, float_value
from statten_deploy.export.onnx.neurons import NEURONS, emit_neuron_step, from_rest, has_memory, resting_states
from statten_deploy.ir.graph import successors
from statten_deploy.ir.schedule import Loop
from statten_deploy.ir.verify import SPIKING, delay_steps

AnyBuilder = TypeVar("AnyBuilder", bound=ModelWriter)
AnySignal = TypeVar("AnySignal", bound=Any)
Emitter = Callable[..., Any]


class LoopWriter(ABC, Generic[AnyBuilder, AnySignal]):
    """Writes a loop; float and integer models differ in what a signal is and in their neurons.

    `signals` are the results of everything before the loop; `emitters` write the nodes without memory.
    """

    def __init__(
        self,
        b: AnyBuilder,
        loop: Loop,
        graph: nir.NIRGraph,
        signals: Mapping[str, AnySignal],
        emitters: Mapping[type, Emitter],
    ) -> None:
        self.b, self.loop, self.graph, self.signals, self.emitters = b, loop, graph, signals, emitters
        self.after, self.recurrent = successors(graph), loop.recurrent
        self.needed = self._needed()
        self.body = b.step(loop.names)
        self.carried: list[tuple[ValueInfoProto, str, str]] = []
        """(value in the body, the constant that it is before the first step, what it is after a step)."""
        self.scanned: dict[str, AnySignal] = {}
        """Sources outside that change over time, as the body sees them."""
        self.now: dict[str, AnySignal] = {}
        self.before: dict[str, AnySignal] = {}
        self.earlier: dict[str, AnySignal] = {}
        self.remembered: dict[str, AnySignal] = {}

    # what differs

    @abstractmethod
    def remember(self, name: str, written: str, x: AnySignal) -> AnySignal:
        """One step of a node with memory, called `written`, whose states it carries."""

    @abstractmethod
    def kept(self, source: str, value: str) -> AnySignal:
        """What a source with memory gave at the step before, as the signal `value`."""

    @abstractmethod
    def rest(self, source: str) -> str:
        """What a source with memory gives before the first step: a constant, or nothing for zeros."""

    @abstractmethod
    def declared(self, value: str, like: AnySignal) -> ValueInfoProto:
        """`value` as an input or output of the body."""

    @abstractmethod
    def sizes(self, signal: AnySignal) -> Shape:
        """The axes of one step of one sample as they are stored."""

    @abstractmethod
    def stacked(self, source: str, name: str) -> str:
        """A source outside that changes over time, [T, batch, ...]."""

    @abstractmethod
    def renamed(self, signal: AnySignal, value: str) -> AnySignal:
        """One step of a signal as `value`."""

    @abstractmethod
    def all_steps(self, name: str, value: str, signal: AnySignal) -> AnySignal:
        """The result of a node from its steps [T, batch, ...], under its own name."""

    def rename(self, source: str, written: str) -> None:
        """Make what the builder knows of a node hold for its second copy."""
        self.body.shapes = {**self.body.shapes, written: self.b.shapes[source]}

    # the loop

    def emit(self) -> dict[str, AnySignal]:
        """Write it; the results that somebody outside reads, and those of its spiking layers."""
        for name in self.loop.names:
            if name in self.needed:
                self.now[name] = self._node(name, name, partial(self._arriving, name))
        for source, signal in self.remembered.items():  # what the next step will read as the step before
            self.carry(self.declared(signal.value, signal), self.rest(source), self._value(source).value)
        for source, signal in self.earlier.items():
            self.carry(self.declared(signal.value, signal), self.rest(source), self.before[source].value)
        results = [n for n in self.now if self._is_read_outside(n) or isinstance(self.graph.nodes[n], SPIKING)]
        return self._scan(f"{self.loop.names[0]}/loop", results)

    def carry(self, value: ValueInfoProto, rest: str, end: str) -> None:
        """A value that goes from step to step, in a stream from call to call; `rest`: the constant it starts as."""
        self.carried.append((value, rest, end))

    def _start(self, value: ValueInfoProto) -> tuple[str, State | None]:
        """Zeros before the first step, in a stream what the call before left."""
        b, kind = self.b, value.type.tensor_type
        shape = tuple(axis.dim_value for axis in kind.shape.dim[1:])
        if not b.streams:
            return b.zeros(shape, kind.elem_type, value.name), None
        state = b.state(value.name.removesuffix("/before"), shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        return state.input, state

    def _scan(self, name: str, results: list[str]) -> dict[str, AnySignal]:
        """The Scan around the body that is complete now."""
        b, graph = self.b, self.body.graph
        inputs, outputs = [], []
        lasting: list[tuple[str, State]] = []
        for value, rest, end in self.carried:
            start, state = self._start(value)
            if rest and state:
                start = from_rest(b, value.name, start, rest, len(state.shape))
            elif rest:
                start = b.aux("Add", [start, rest], value.name, "rest")
            inputs.append(start)
            graph.input.append(value)
            graph.output.append(value)
            graph.output[-1].name = self.body.aux("Identity", [end], value.name, "next")
            outputs.append(b.unique(f"{value.name}/last"))
            if state:
                lasting.append((outputs[-1], state))
        for source, signal in self.scanned.items():
            inputs.append(self.stacked(source, name))
            graph.input.append(self.declared(signal.value, signal))
        if not self.scanned:  # a Scan takes the number of steps from what it scans
            inputs.append(b.ints(*range(b.time_steps)))
            graph.input.append(helper.make_tensor_value_info(b.unique(f"{name}/clock"), TensorProto.INT64, []))
        for result in results:
            kept = self.body.aux("Identity", [self.now[result].value], result, "kept")
            graph.output.append(self.declared(kept, self.now[result]))
            outputs.append(b.unique(f"{result}/steps"))
        b.append("Scan", inputs, outputs, name, body=graph, num_scan_inputs=max(1, len(self.scanned)))
        for last, state in lasting:
            b.append("Identity", [last], [state.output], "")
        values = zip(results, outputs[len(self.carried) :], strict=True)
        return {result: self.all_steps(result, value, self.now[result]) for result, value in values}

    # one step

    def _arriving(self, reader: str, source: str) -> tuple[str, AnySignal]:
        """What an edge carries, with a name of its own for the sum."""
        if (source, reader) in self.recurrent:
            return f"{source}/before", self._previous(source)
        return source, self._value(source)

    def _value(self, source: str) -> AnySignal:
        """A source at the present step."""
        if source in self.now:
            return self.now[source]
        signal = self.signals[source]
        if signal.time != "steps":
            return replace(signal, time="steps")
        if source not in self.scanned:
            self.scanned[source] = self.renamed(signal, self.b.unique(f"{source}/now"))
        return self.scanned[source]

    def _previous(self, source: str) -> AnySignal:
        """A source at the step before."""
        if source not in self.before:
            self.before[source] = self.previous(source)
        return self.before[source]

    def previous(self, source: str) -> AnySignal:
        """A source at the step before, where nobody has asked yet."""
        return self.recall(source) if self._remembers(source) else self._again(source)

    def recall(self, source: str) -> AnySignal:
        """What a source gave at the step before, kept from there."""
        self.remembered[source] = self.kept(source, self.b.unique(f"{source}/before"))
        return self.remembered[source]

    def _again(self, source: str) -> AnySignal:
        """What a source without memory gave at the step before, computed from what it read there."""
        written = self.b.unique(f"{source}/again") if source in self.needed else source
        self.rename(source, written)
        return self._node(source, written, partial(self._arrived, source))

    def _arrived(self, reader: str, source: str) -> tuple[str, AnySignal]:
        """What an edge carried a step ago; over a recurrent edge that was a step old then."""
        if (source, reader) not in self.recurrent:
            return f"{source}/before", self._previous(source)
        if source not in self.earlier:  # no cycle: operations without memory have none among themselves
            self.earlier[source] = self.renamed(self._previous(source), self.b.unique(f"{source}/earlier"))
        return f"{source}/earlier", self.earlier[source]

    def _node(self, name: str, written: str, arriving: Callable[[str], tuple[str, AnySignal]]) -> AnySignal:
        inputs = self._inputs(name, arriving)
        if self._remembers(name):
            return self.remember(name, written, inputs[0])
        node = self.graph.nodes[name]
        result: AnySignal = self.emitters[type(node)](self.body, written, node, *inputs)
        return result

    def _inputs(self, name: str, arriving: Callable[[str], tuple[str, AnySignal]]) -> list[AnySignal]:
        """The sum on each port of a node."""
        return [self._total([arriving(source) for source in sources]) for sources in self.loop.inputs[name]]

    def _total(self, sources: list[tuple[str, AnySignal]]) -> AnySignal:
        body: Any = self.body
        result: AnySignal = body.total(sources)
        return result

    # what is known of a node

    def _needed(self) -> set[str]:
        """Nodes that somebody reads at the present step; of the others only the step before matters."""
        needed: set[str] = set()
        for name in reversed(self.loop.names):
            now = [reader for reader in self.after[name] if (name, reader) not in self.recurrent]
            if self._remembers(name) or any(r in needed or r not in self.loop.names for r in now):
                needed.add(name)
        return needed

    def _remembers(self, name: str) -> bool:
        """Whether what a node gives at a step is kept for the next one: neurons, delays, what comes from outside."""
        return name not in self.loop.names or has_memory(self.graph.nodes[name])

    def _is_read_outside(self, name: str) -> bool:
        return any(reader not in self.loop.names for reader in self.after[name])


class FloatLoop(LoopWriter[Builder, Signal]):
    """A loop of a float model."""

    def remember(self, name: str, written: str, x: Signal) -> Signal:
        node = self.graph.nodes[name]
        if isinstance(node, nir.Delay):
            return self._delay(written, node, x)
        states = tuple(self.b.unique(f"{name}/{state}/before") for state in NEURONS[type(node)].states)
        result, ends = emit_neuron_step(self.body, written, node, x, states)
        for state, rest, end in zip(states, resting_states(self.b, name, node), ends, strict=True):
            self.carry(self.declared(state, x), rest, end)
        return result

    def _delay(self, name: str, node: Any, x: Signal) -> Signal:
        """``y[t] = x[t - d]`` as a row of memories."""
        steps = delay_steps(node.delay, self.b.dt)
        row = [x.value, *(self.b.unique(f"{name}/past_{d}") for d in range(1, int(steps.max(initial=0)) + 1))]
        for newer, older in pairwise(row):
            self.carry(self.declared(older, x), "", newer)
        total = ""
        for d in np.unique(steps).tolist():
            part = row[d]
            if steps.size > 1 and np.any(steps != steps.flat[0]):
                part = self.body.aux("Mul", [part, self.b.floats(f"{name}.where_{d}", steps == d)], name, f"part_{d}")
            total = self.body.aux("Add", [total, part], name, "sum") if total else part
        return self.body.main("Identity", [total], name, x.shape, "steps")

    def previous(self, source: str) -> Signal:
        """Elements of a delay that are not delayed have no memory."""
        at_once = ops.passes_at_once(self.graph.nodes[source], self.b.dt)
        if source not in self.loop.names or not at_once.any():
            return super().previous(source)
        (x,) = self._inputs(source, partial(self._arrived, source))
        if at_once.all():
            return x
        late = self.recall(source)
        where = self.b.floats(f"{source}.at_once", at_once)
        where = self.b.aux("Cast", [where], source, "at_once", to=TensorProto.BOOL)
        return replace(x, value=self.body.aux("Where", [where, x.value, late.value], source, "again"))

    def kept(self, source: str, value: str) -> Signal:
        return Signal(value, self.b.shapes[source], "steps")

    def rest(self, source: str) -> str:
        node = self.graph.nodes[source]
        if source in self.loop.names and type(node) in NEURONS and not isinstance(node, SPIKING):
            return resting_states(self.b, source, node)[-1]
        return ""

    def declared(self, value: str, like: Signal) -> ValueInfoProto:
        return float_value(value, [BATCH, *like.shape])

    def sizes(self, signal: Signal) -> Shape:
        return signal.shape

    def stacked(self, source: str, name: str) -> str:
        signal = self.signals[source]
        return self.b.reshape(signal.value, (self.b.time_steps, -1, *signal.shape), name, source)

    def renamed(self, signal: Signal, value: str) -> Signal:
        return replace(signal, value=value)

    def all_steps(self, name: str, value: str, signal: Signal) -> Signal:
        return self.b.main("Reshape", [value, self.b.ints(-1, *signal.shape)], name, signal.shape, "steps")
