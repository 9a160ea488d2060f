"""What a checker reads out of an integer model: spikes, membranes and integer readouts, as more outputs.

`metadata_props` say under ``neurons`` where the values of every layer are (see `neurons`), and under ``integers`` which
value holds the integers of an output.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from statten_deploy.errors import GraphError
from statten_deploy.export.onnx.builder import BATCH


@dataclass(frozen=True)
class Probes:
    """What the outputs of a probed model show: neuron layer (for `integers`: output) -> name of the output."""

    spikes: dict[str, str] = field(default_factory=dict)
    membranes: dict[str, str] = field(default_factory=dict)
    integers: dict[str, str] = field(default_factory=dict)


def integer_values(model: onnx.ModelProto) -> dict[str, str]:
    """Output -> the value that holds its integers: int64, shaped like the output."""
    values: dict[str, str] = json.loads(_told(model).get("integers", "{}"))
    return values


def spike_values(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Neuron layer -> the values that hold its spikes, one for each step; q, k and v of an attention share theirs."""
    told = _told(model)
    return {layer["name"]: _steps(layer, told) for layer in _layers(told) if "integrates" not in layer}


def with_probes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Probes]:
    """A copy of an integer model with further outputs, and their names.

    In the layout of the graph and of `IntegerRunner`: spikes (bool) and membranes after the reset (int32)
    [T, batch, C, H, W]; the integers of every output before they get their unit (int64), shaped like the output.

    Raises:
        GraphError: the model is not one that `build_integer_onnx` wrote.
    """
    told = _told(model)
    if "neurons" not in told or "integers" not in told:
        raise GraphError("not an integer model of this package: its metadata do not say where neurons are")
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probes, writer = Probes(), _Writer(probed, told)
    for layer in _layers(told):
        name, steps = layer["name"], _steps(layer, told)
        if "integrates" in layer:
            probes.membranes[name] = writer.show("membranes", layer, steps, TensorProto.INT32)
            continue
        probes.spikes[name] = writer.show("spikes", layer, steps, TensorProto.BOOL)
        membranes = writer.loop_membranes(layer) if "loop" in layer else writer.after_reset(layer, steps)
        probes.membranes[name] = writer.show("membranes", layer, membranes, TensorProto.INT32)
    for output, value in integer_values(probed).items():
        probes.integers[output] = f"integers/{output}"
        probed.graph.node.append(helper.make_node("Identity", [value], [f"integers/{output}"]))
        declared = next(info for info in model.graph.value_info if info.name == value)
        probed.graph.output.append(declared)
        probed.graph.output[-1].name = f"integers/{output}"
    return probed, probes


def _told(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _layers(told: dict[str, str]) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(told.get("neurons", "[]"))
    return layers


def _steps(layer: dict[str, Any], told: dict[str, str]) -> list[str]:
    count = int(told.get("steps_per_call", told.get("time_steps", "0")))
    return [f"{layer['values']}/{step}" for step in range(count)]


class _Writer:
    """Adds outputs to a model."""

    def __init__(self, model: onnx.ModelProto, told: dict[str, str]) -> None:
        self.model, self.planar = model, told["flavour"] == "qdq"
        self.count = 0
        self.made: dict[str, str] = {}

    def op(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        self.count += 1
        output = output or f"probe/{self.count}"
        self.model.graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def ints(self, *values: int) -> str:
        self.count += 1
        name = f"probe/{self.count}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=np.int64), name))
        return name

    def show(self, kind: str, layer: dict[str, Any], steps: list[str], element: int) -> str:
        """One value for each step as one output [T, batch, *shape]."""
        shape, output = layer["shape"], f"{kind}/{layer['name']}"
        planes = [self.op("Cast", [self._planes(value, layer)], to=element) for value in steps]
        apart = [self.op("Reshape", [value, self.ints(1, -1, *shape)]) for value in planes]
        self.op("Concat", apart, output, axis=0)
        dims: list[str | int | None] = [len(steps), BATCH, *shape]
        self.model.graph.output.append(helper.make_tensor_value_info(output, element, dims))
        return output

    def _planes(self, value: str, layer: dict[str, Any]) -> str:
        """A value as it is stored as [batch, C, ...], of a joint layer the channels that belong to this one."""
        if "channels" in layer:
            first = sum(layer["channels"][: layer["part"]])
            own = self.ints(*range(first, first + layer["channels"][layer["part"]]))
            value = self.op("Gather", [value, own], axis=1 if self.planar else 2)
        if "heads" in layer:
            return self.op("Transpose", [value], perm=[0, 1, 3, 2] if layer["heads"][1] == 1 else [0, 1, 4, 2, 3])
        return value if self.planar else self.op("Transpose", [value], perm=[0, 2, 1])

    def after_reset(self, layer: dict[str, Any], steps: list[str]) -> list[str]:
        """Membranes after the reset: 0 where there is a spike."""
        found = []
        for value in steps:
            if value not in self.made:
                silent = self.op("Not", [self.op("Cast", [value], to=TensorProto.BOOL)])
                kept = self.op("CastLike", [silent, f"{value}/v"])
                self.made[value] = self.op("Mul", [f"{value}/v", kept])
            found.append(self.made[value])
        return found

    def loop_membranes(self, layer: dict[str, Any]) -> list[str]:
        """Those of a loop, which its Scan has to give for every step: [T, batch, ...] apart."""
        for node in self.model.graph.node:
            for body in (attribute.g for attribute in node.attribute if attribute.name == "body"):
                declared = next((value for value in body.input if value.name == layer["state"]), None)
                if declared is None:
                    continue
                output = f"{layer['name']}/membranes"
                body.node.append(helper.make_node("Identity", [layer["loop"]], [f"{output}/step"]))
                body.output.append(declared)
                body.output[-1].name = f"{output}/step"
                node.output.append(output)
                return self._apart(output, layer)
        raise GraphError(f"no loop holds the layer {layer['name']!r}")

    def _apart(self, value: str, layer: dict[str, Any]) -> list[str]:
        told = _told(self.model)
        shape, steps = layer["shape"], _steps(layer, told)
        rows = self.ints(-1, math.prod(shape[1:]), shape[0])
        found = []
        for step in range(len(steps)):
            part = self.op("Slice", [value, self.ints(step), self.ints(step + 1), self.ints(0)])
            found.append(self.op("Reshape", [part, rows]))
        return found
