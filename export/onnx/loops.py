"""Recurrent parts of a graph: every loop is one Scan over the steps, whose body computes one step of its nodes.

The body reads what comes from outside at the present step and what comes back from the step before. What comes back is
kept where memory is, at the outputs of neurons; operations without memory on the way are computed from there, so that
at the first step they give what they give in silence (`statten_deploy.ir.schedule.Loop`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import nir
import numpy as np
from onnx import TensorProto, helper

from statten_deploy.export.onnx import ops
from statten_deploy.export.onnx.builder import BATCH, Builder, Shape, Signal, float_value
from statten_deploy.export.onnx.neurons import NEURONS, emit_neuron_step, has_memory, starting_states
from statten_deploy.ir.graph import successors
from statten_deploy.ir.schedule import Loop
from statten_deploy.ir.verify import SPIKING

Emitter = Callable[..., Signal]


def emit_loop(
    b: Builder, loop: Loop, graph: nir.NIRGraph, signals: Mapping[str, Signal], emitters: Mapping[type, Emitter]
) -> dict[str, Signal]:
    """Write a loop; the results of its nodes that somebody outside reads, and of its spiking layers, over all steps.

    `signals` are the results of everything before; `emitters` write the nodes without memory.
    """
    return _Loop(b, loop, graph, signals, emitters).emit()


class _Loop:
    def __init__(
        self,
        b: Builder,
        loop: Loop,
        graph: nir.NIRGraph,
        signals: Mapping[str, Signal],
        emitters: Mapping[type, Emitter],
    ) -> None:
        self.b, self.loop, self.graph, self.signals, self.emitters = b, loop, graph, signals, emitters
        self.after, self.recurrent = successors(graph), loop.recurrent
        self.needed = self._needed()
        self.body = b.step(loop.names)
        self.carried: list[tuple[str, Shape, str, str]] = []
        """(value in the body, its shape, what it is before the first step and after a step)."""
        self.scanned: dict[str, str] = {}
        """Sources outside that change over time -> the input of the body."""
        self.now: dict[str, Signal] = {}
        self.before: dict[str, Signal] = {}

    def emit(self) -> dict[str, Signal]:
        for name in self.loop.names:
            if name in self.needed:
                self.now[name] = self._node(name, name, partial(self._arriving, name))
        for source, signal in list(self.before.items()):  # what the next step will read as the step before
            if self._remembers(source):
                self._carry(signal.value, signal.shape, self._rest(source), self._value(source).value)
        results = [n for n in self.now if self._is_read_outside(n) or isinstance(self.graph.nodes[n], SPIKING)]
        return self._scan(f"{self.loop.names[0]}/loop", results)

    def _scan(self, name: str, results: list[str]) -> dict[str, Signal]:
        """The Scan around the body that is complete now."""
        b, graph = self.b, self.body.graph
        inputs, outputs = [], []

        def declare(values: Any, value: str, shape: Shape) -> None:
            values.append(float_value(value, [BATCH, *shape]))

        for value, shape, start, end in self.carried:
            inputs.append(start)
            declare(graph.input, value, shape)
            declare(graph.output, self.body.aux("Identity", [end], value, "next"), shape)
            outputs.append(b.unique(f"{value}/last"))
        for source, value in self.scanned.items():
            shape = b.shapes[source]
            inputs.append(b.reshape(self.signals[source].value, (b.time_steps, -1, *shape), name, source))
            declare(graph.input, value, shape)
        if not self.scanned:  # a Scan takes the number of steps from what it scans
            inputs.append(b.ints(*range(b.time_steps)))
            graph.input.append(helper.make_tensor_value_info(b.unique(f"{name}/clock"), TensorProto.INT64, []))
        for result in results:
            declare(graph.output, self.body.aux("Identity", [self.now[result].value], result, "kept"), b.shapes[result])
            outputs.append(b.unique(f"{result}/steps"))
        b.append("Scan", inputs, outputs, name, body=graph, num_scan_inputs=max(1, len(self.scanned)))
        return {
            result: b.main("Reshape", [value, b.ints(-1, *b.shapes[result])], result, b.shapes[result], "steps")
            for result, value in zip(results, outputs[len(self.carried) :], strict=True)
        }

    # one step

    def _arriving(self, reader: str, source: str) -> tuple[str, Signal]:
        """What an edge carries, with a name of its own for the sum."""
        if (source, reader) in self.recurrent:
            return f"{source}/before", self._previous(source)
        return source, self._value(source)

    def _value(self, source: str) -> Signal:
        """A source at the present step."""
        if source in self.now:
            return self.now[source]
        signal = self.signals[source]
        if signal.time != "steps":
            return Signal(signal.value, signal.shape, "steps")
        if source not in self.scanned:
            self.scanned[source] = self.b.unique(f"{source}/now")
        return Signal(self.scanned[source], signal.shape, "steps")

    def _previous(self, source: str) -> Signal:
        """A source at the step before."""
        if source not in self.before:
            if self._remembers(source):
                self.before[source] = Signal(self.b.unique(f"{source}/before"), self.b.shapes[source], "steps")
            else:
                written = self.b.unique(f"{source}/again") if source in self.needed else source
                self.body.shapes = {**self.body.shapes, written: self.b.shapes[source]}
                self.before[source] = self._node(source, written, lambda s: (f"{s}/before", self._previous(s)))
        return self.before[source]

    def _node(self, name: str, written: str, arriving: Callable[[str], tuple[str, Signal]]) -> Signal:
        node = self.graph.nodes[name]
        inputs = [self.body.total([arriving(source) for source in sources]) for sources in self.loop.inputs[name]]
        if type(node) in NEURONS:
            states = tuple(self.b.unique(f"{name}/{state}/before") for state in NEURONS[type(node)].states)
            result, ends = emit_neuron_step(self.body, written, node, inputs[0], states)
            starts = starting_states(self.b, name, node, inputs[0].shape)
            for state, start, end in zip(states, starts, ends, strict=True):
                self._carry(state, inputs[0].shape, start, end)
            return result
        if isinstance(node, nir.Delay):
            return self._delay(written, node, inputs[0])
        return self.emitters[type(node)](self.body, written, node, *inputs)

    def _delay(self, name: str, node: Any, x: Signal) -> Signal:
        """``y[t] = x[t - d]`` as a row of memories."""
        steps = ops.delay_steps(node.delay, self.b.dt)
        row = [x.value, *(self.b.unique(f"{name}/past_{d}") for d in range(1, int(steps.max(initial=0)) + 1))]
        for newer, older in pairwise(row):
            self._carry(older, x.shape, self.b.zeros(x.shape, TensorProto.FLOAT, name), newer)
        total = ""
        for d in np.unique(steps).tolist():
            part = row[d]
            if steps.size > 1 and np.any(steps != steps.flat[0]):
                part = self.body.aux("Mul", [part, self.b.floats(f"{name}.where_{d}", steps == d)], name, f"part_{d}")
            total = self.body.aux("Add", [total, part], name, "sum") if total else part
        return self.body.main("Identity", [total], name, x.shape, "steps")

    # what is known of a node

    def _needed(self) -> set[str]:
        """Nodes that somebody reads at the present step; of the others only the step before matters."""
        needed: set[str] = set()
        for name in reversed(self.loop.names):
            now = [reader for reader in self.after[name] if (name, reader) not in self.recurrent]
            if has_memory(self.graph.nodes[name]) or any(r in needed or r not in self.loop.names for r in now):
                needed.add(name)
        return needed

    def _remembers(self, name: str) -> bool:
        """Whether what a node gives at a step is kept for the next one: neurons, delays, what comes from outside."""
        return name not in self.loop.names or has_memory(self.graph.nodes[name])

    def _is_read_outside(self, name: str) -> bool:
        return any(reader not in self.loop.names for reader in self.after[name])

    def _carry(self, value: str, shape: Shape, start: str, end: str) -> None:
        self.carried.append((value, shape, start, end))

    def _rest(self, source: str) -> str:
        """What a source gives before the first step."""
        node, shape = self.graph.nodes[source], self.b.shapes[source]
        if source in self.loop.names and type(node) in NEURONS and not isinstance(node, SPIKING):
            return starting_states(self.b, source, node, shape)[-1]
        return self.b.zeros(shape, TensorProto.FLOAT, source)
