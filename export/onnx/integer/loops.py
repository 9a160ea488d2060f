"""Loops of an integer model: as in the float export, with whole numbers from step to step."""

from dataclasses import replace

import numpy as np
from onnx import ValueInfoProto, helper

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx.builder import BATCH, Shape
from statten_deploy.export.onnx.integer.neurons import emit_in_loop, loop_states
from statten_deploy.export.onnx.integer.signals import ELEMENT, IntegerBuilder, IntegerSignal, channels_last
from statten_deploy.export.onnx.loops import LoopWriter
from statten_deploy.ir.integer import IntegerLI


class IntegerLoop(LoopWriter[IntegerBuilder, IntegerSignal]):
    """A loop of an integer model."""

    def remember(self, name: str, written: str, x: IntegerSignal) -> IntegerSignal:
        node, plan = self.graph.nodes[name], self.b.plans[name]
        states = [self.b.unique(f"{name}/{state}/before") for state in loop_states(plan)]
        result, ends, dtype = emit_in_loop(self.body, written, node, x, states)
        for state, end in zip(states, ends, strict=True):
            like = replace(result, dtype=dtype)
            self.carry(self.declared(state, like), self._zeros(name, like), end)
        return result

    def rename(self, source: str, written: str) -> None:
        super().rename(source, written)
        b, body = self.b, self.body
        body.ranges = {**body.ranges, written: b.ranges[source]}
        if source in b.currents_of_neurons:
            body.currents_of_neurons = {*body.currents_of_neurons, written}
        if source in b.neuron_biases:
            body.neuron_biases = {**body.neuron_biases, written: b.neuron_biases[source]}

    def kept(self, source: str, value: str) -> IntegerSignal:
        if source in self.signals:
            return replace(self.signals[source], value=value, time="steps")
        if isinstance(self.graph.nodes[source], IntegerLI):
            raise UnsupportedError(f"{source!r} (IntegerLI): an integrator inside a loop; it can only be read out")
        return IntegerSignal(value, self.b.shapes[source], "steps", np.uint8, self.b.ranges[source])

    def rest(self, source: str) -> str:
        return self._zeros(source, self.before[source])

    def _zeros(self, name: str, like: IntegerSignal) -> str:
        return self.b.zeros(channels_last(like.shape), ELEMENT[np.dtype(like.dtype)], name)

    def declared(self, value: str, like: IntegerSignal) -> ValueInfoProto:
        return helper.make_tensor_value_info(value, ELEMENT[np.dtype(like.dtype)], [BATCH, *channels_last(like.shape)])

    def sizes(self, signal: IntegerSignal) -> Shape:
        return channels_last(signal.shape)

    def all_steps(self, name: str, value: str, signal: IntegerSignal) -> IntegerSignal:
        b = self.b
        b.result("Reshape", [value, b.ints(-1, *self.sizes(signal))], name)
        return b.declare(replace(signal, value=b.result_name(name)))
