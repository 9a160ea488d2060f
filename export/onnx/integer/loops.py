"""Loops of an integer model: as in the float export, with whole numbers from step to step."""

from dataclasses import replace

import numpy as np
from onnx import ValueInfoProto, helper

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx.builder import BATCH, Shape
from statten_deploy.export.onnx.integer.neurons import emit_in_loop, loop_states
from statten_deploy.export.onnx.integer.signals import ELEMENT, IntegerBuilder, IntegerSignal
from statten_deploy.export.onnx.loops import LoopWriter
from statten_deploy.ir.integer import IntegerLI, IntegerLIF


class IntegerLoop(LoopWriter[IntegerBuilder, IntegerSignal]):
    """A loop of an integer model."""

    def remember(self, name: str, written: str, x: IntegerSignal) -> IntegerSignal:
        node, plan = self.graph.nodes[name], self.b.plans[name]
        states = [self.b.unique(f"{name}/{state}/before") for state in loop_states(plan)]
        result, ends, dtype = emit_in_loop(self.body, written, node, x, states)
        for state, end in zip(states, ends, strict=True):
            like = replace(result, dtype=dtype)
            self.carry(self.declared(state, like), "", end)
        if isinstance(node, IntegerLIF):
            self.b.neurons.append(
                {"name": name, "values": name, "shape": list(node.shape), "loop": ends[0], "state": states[0]}
            )
        return result

    def rename(self, source: str, written: str) -> None:
        super().rename(source, written)
        b, body = self.b, self.body
        body.ranges = {**body.ranges, written: b.ranges[source]}
        body.originals = {**body.originals, written: source}
        if source in b.gains:
            body.gains = {**body.gains, written: b.gains[source]}

    def kept(self, source: str, value: str) -> IntegerSignal:
        if source in self.signals:
            return self.renamed(self.signals[source], value)
        if isinstance(self.graph.nodes[source], IntegerLI):
            raise UnsupportedError(f"{source!r} (IntegerLI): an integrator inside a loop; it can only be read out")
        return IntegerSignal((value,), self.b.shapes[source], "steps", np.uint8, self.b.ranges[source])

    def rest(self, source: str) -> str:
        return ""

    def declared(self, value: str, like: IntegerSignal) -> ValueInfoProto:
        return helper.make_tensor_value_info(value, ELEMENT[np.dtype(like.dtype)], [BATCH, *self.sizes(like)])

    def sizes(self, signal: IntegerSignal) -> Shape:
        return self.b.stored(signal.shape)

    def renamed(self, signal: IntegerSignal, value: str) -> IntegerSignal:
        return replace(signal, values=(value,), time="steps", joined=False, heads=None, offset=None)

    def stacked(self, source: str, name: str) -> str:
        b, signal = self.b, self.b.ungrouped(self.b.plain(self.signals[source], name))
        steps = [b.reshape(v, (1, -1, *self.sizes(signal)), name, source) for v in b.each(signal)]
        return b.aux("Concat", steps, name, f"{source}/steps", axis=0) if len(steps) > 1 else steps[0]

    def all_steps(self, name: str, value: str, signal: IntegerSignal) -> IntegerSignal:
        b, count, sizes = self.b, self.b.time_steps, self.sizes(signal)
        apart = [value]
        if count > 1:
            apart = b.several("Split", [value], count, name, "apart", axis=0, num_outputs=count)
        values = [b.aux("Reshape", [v, b.ints(-1, *sizes)], f"{name}/{t}") for t, v in enumerate(apart)]
        return replace(signal, values=tuple(values), joined=False)
