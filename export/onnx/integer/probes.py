"""What a checker reads out of an integer model: spikes, membranes and integer readouts, as more outputs."""

from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, helper

from statten_deploy.errors import GraphError
from statten_deploy.export.onnx.builder import BATCH, FUNCTION_DOMAIN
from statten_deploy.export.onnx.integer.neurons import (
    integrator_calls,
    loop_calls,
    neuron_calls,
    show_loop_membranes,
    show_membranes,
)
from statten_deploy.export.onnx.integer.ops import READOUT


@dataclass(frozen=True)
class Probes:
    """What the outputs of a probed model show: neuron layer (for `integers`: output) -> name of the output."""

    spikes: dict[str, str] = field(default_factory=dict)
    membranes: dict[str, str] = field(default_factory=dict)
    integers: dict[str, str] = field(default_factory=dict)


def spike_values(model: onnx.ModelProto) -> dict[str, str]:
    """Neuron layer -> the value that holds its spikes: uint8 [T*batch, H, W, C] or [T*batch, N], time-major."""
    results = {node.name: node.output[0] for node in model.graph.node}
    return {name: results[name] for name in [*(n.name for n in neuron_calls(model)), *loop_calls(model)]}


def integer_values(model: onnx.ModelProto) -> dict[str, str]:
    """Output -> the value that holds its integers: int64, shaped like the output."""
    readouts = (node for node in model.graph.node if node.domain == FUNCTION_DOMAIN and node.op_type == READOUT)
    return {node.output[0]: node.input[0] for node in readouts}


def with_probes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Probes]:
    """A copy of an integer model with further outputs, and their names.

    In the layout of the graph and of `IntegerRunner`: spikes (bool) and membranes after the reset (int32)
    [T, batch, C, H, W]; the integers of every output before they get their unit (int64), shaped like the output.

    Raises:
        GraphError: the model is not one that `build_integer_onnx` wrote.
    """
    told = {entry.key: entry.value for entry in model.metadata_props}
    steps = next((int(told[key]) for key in ("steps_per_call", "time_steps") if key in told), None)
    sizes = {info.name: [d.dim_value for d in info.type.tensor_type.shape.dim][1:] for info in model.graph.value_info}
    layers = spike_values(model)
    if steps is None or not set(layers.values()) <= sizes.keys():
        raise GraphError("not an integer model of this package: no time_steps, or neuron layers of unknown shape")
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    show_membranes(probed)
    probes = Probes()
    results = {node.name: node.output[0] for node in probed.graph.node}
    for name, membranes in show_loop_membranes(probed).items():
        shape = [steps, *sizes[results[name]]]
        probes.spikes[name], probes.membranes[name] = f"spikes/{name}", f"membranes/{name}"
        _show(probed, results[name], probes.spikes[name], shape, TensorProto.BOOL)
        _show(probed, membranes, probes.membranes[name], shape, TensorProto.INT32)
    for node in integrator_calls(probed):
        probes.membranes[node.name] = f"membranes/{node.name}"
        shape = [steps, *sizes[node.output[0]]]
        _show(probed, node.output[0], probes.membranes[node.name], shape, TensorProto.INT32)
    for node in neuron_calls(probed):
        node.output.append(f"{node.name}/membranes")
        shape = [steps, *sizes[node.output[0]]]
        for shown, value, kind, element in (
            (probes.spikes, node.output[0], "spikes", TensorProto.BOOL),
            (probes.membranes, node.output[-1], "membranes", TensorProto.INT32),
        ):
            shown[node.name] = f"{kind}/{node.name}"
            _show(probed, value, shown[node.name], shape, element)
    for output, value in integer_values(probed).items():
        probes.integers[output] = f"integers/{output}"
        probed.graph.node.append(helper.make_node("Identity", [value], [f"integers/{output}"]))
        declared = next(info for info in model.graph.value_info if info.name == value)
        probed.graph.output.append(declared)
        probed.graph.output[-1].name = f"integers/{output}"
    return probed, probes


def _show(model: onnx.ModelProto, value: str, output: str, shape: list[int], element: int) -> None:
    """[T*batch, ..., C] or [T, batch, ..., C] as an output [T, batch, C, ...]; `shape` is [T, ..., C]."""
    steps, *sizes = shape
    rank = len(sizes)
    target = helper.make_tensor(f"{output}/shape", TensorProto.INT64, [rank + 2], [steps, -1, *sizes])
    model.graph.initializer.append(target)
    perm = [0, 1, rank + 1, *range(2, rank + 1)]
    model.graph.node.extend(
        [
            helper.make_node("Cast", [value], [f"{output}/cast"], to=element),
            helper.make_node("Reshape", [f"{output}/cast", target.name], [f"{output}/steps"]),
            helper.make_node("Transpose", [f"{output}/steps"], [output], perm=perm),
        ]
    )
    dims: list[str | int | None] = [steps, BATCH, *sizes[-1:], *sizes[:-1]]
    model.graph.output.append(helper.make_tensor_value_info(output, element, dims))
