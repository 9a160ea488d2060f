"""Emitters of the operations without memory, and of delays: one function per kind of node.

An emitter gets the builder, the node's name, the node and the signal on each of its ports; it appends ONNX nodes and
returns the node's result. Shapes without batch and time are known, so every Reshape has constant sizes and one -1.
"""

from typing import Any

import nir
import numpy as np
from onnx import TensorProto

from statten_deploy.export.onnx.builder import BATCH, Array, Builder, Shape, Signal, compact, float_value
from statten_deploy.ir.nodes import SpikeAnd, TokenMaxPool
from statten_deploy.ir.shapes import explicit_padding, sizes
from statten_deploy.ir.verify import delay_steps

# inputs and outputs of the model


def emit_input(b: Builder, name: str, shape: Shape, *, image: bool) -> Signal:
    """`image`: [batch, ...], the same at every step. Otherwise [batch, T, ...], turned time-major."""
    if image:
        b.model.graph.input.append(float_value(name, [BATCH, *shape]))
        return Signal(name, shape, "held")
    b.model.graph.input.append(float_value(name, [BATCH, b.time_steps, *shape]))
    value = name
    if b.time_steps > 1:
        value = b.aux("Transpose", [name], name, "time_first", perm=[1, 0, *range(2, len(shape) + 2)])
    return Signal(b.reshape(value, (-1, *shape), name, "steps"), shape, "steps")


def emit_output(b: Builder, name: str, source: Signal) -> None:
    """[batch, ...] for a signal without time axis, else [batch, T, ...]."""
    shape, steps = source.shape, b.time_steps
    if source.time == "final":
        b.model.graph.output.append(float_value(name, [BATCH, *shape]))
        if source.value != name:
            b.result("Identity", [source.value], name)
        return
    b.model.graph.output.append(float_value(name, [BATCH, steps, *shape]))
    if source.time == "held":
        once = b.reshape(source.value, (-1, 1, *shape), name, "once")
        b.result("Tile", [once, b.ints(1, steps, *(1 for _ in shape))], name)
    elif steps == 1:
        b.result("Reshape", [source.value, b.ints(-1, 1, *shape)], name)
    else:
        split = b.reshape(source.value, (steps, -1, *shape), name, "time_first")
        b.result("Transpose", [split], name, perm=[1, 0, *range(2, len(shape) + 2)])


# linear maps


def emit_affine(b: Builder, name: str, node: Any, x: Signal) -> Signal:
    """``y = W x + b`` (Affine) or ``y = W x`` (Linear); leading axes of the weight are batches of maps."""
    weight = np.asarray(node.weight)
    shape = (*weight.shape[:-2], weight.shape[-2])
    w = b.floats(f"{name}.weight", weight)
    bias = [] if getattr(node, "bias", None) is None else [b.floats(f"{name}.bias", node.bias)]
    if weight.ndim == 2:
        return b.main("Gemm", [x.value, w, *bias], name, shape, x.time, transB=1)
    column = b.aux("Unsqueeze", [x.value, b.ints(-1)], name, "column")
    product = b.aux("MatMul", [w, column], name, "product")
    if not bias:
        return b.main("Squeeze", [product, b.ints(-1)], name, shape, x.time)
    flat = b.aux("Squeeze", [product, b.ints(-1)], name, "row")
    return b.main("Add", [flat, *bias], name, shape, x.time)


def conv_attributes(node: Any) -> dict[str, Any]:
    """Attributes of the ONNX Conv of a NIR convolution."""
    kernel = np.shape(node.weight)[2:]
    padding = explicit_padding(node)
    return {
        "kernel_shape": [int(k) for k in kernel],
        "strides": list(sizes(node.stride, len(kernel), "stride")),
        "pads": [before for before, _ in padding] + [after for _, after in padding],
        "dilations": list(sizes(node.dilation, len(kernel), "dilation")),
        "group": int(node.groups),
    }


def emit_conv(b: Builder, name: str, node: Any, x: Signal) -> Signal:
    """Conv1d on [C, N], Conv2d on [C, H, W]."""
    parameters = [b.floats(f"{name}.weight", node.weight)]
    if node.bias is not None:
        parameters.append(b.floats(f"{name}.bias", node.bias))
    return b.main("Conv", [x.value, *parameters], name, b.shapes[name], x.time, **conv_attributes(node))


def emit_conv_siblings(b: Builder, names: tuple[str, ...], nodes: list[Any], x: Signal) -> list[Signal]:
    """Several convolutions of the same signal with the same hyper-parameters, as one convolution and a Split."""
    prefix = names[0].rpartition(".")[0]
    short = [n.removeprefix(f"{prefix}.") if n.rpartition(".")[0] == prefix else n for n in names[1:]]
    joint = "+".join([names[0], *short])
    parameters = [b.floats(f"{joint}.weight", np.concatenate([np.asarray(node.weight) for node in nodes]))]
    if nodes[0].bias is not None:
        parameters.append(b.floats(f"{joint}.bias", np.concatenate([np.asarray(node.bias) for node in nodes])))
    value = b.aux("Conv", [x.value, *parameters], joint, **conv_attributes(nodes[0]))
    channels = b.ints(*(len(node.weight) for node in nodes))
    b.append("Split", [value, channels], [b.result_name(name) for name in names], b.unique(f"{joint}/split"), axis=1)
    return [b.declare(name, b.shapes[name], x.time) for name in names]


def emit_scale(b: Builder, name: str, node: nir.Scale, x: Signal) -> Signal:
    """``y = scale · x``, elementwise."""
    return b.main("Mul", [x.value, b.floats(f"{name}.scale", compact(node.scale))], name, x.shape, x.time)


def emit_flatten(b: Builder, name: str, node: nir.Flatten, x: Signal) -> Signal:
    """Join axes of one sample; batch and time stay."""
    shape = b.shapes[name]
    if len(shape) == 1:
        return b.main("Flatten", [x.value], name, shape, x.time, axis=1)
    return b.main("Reshape", [x.value, b.ints(-1, *shape)], name, shape, x.time)


# pooling


def _window(node: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(kernel, stride, padding) of a pooling node."""
    kernel, stride, padding = (sizes(getattr(node, field), 2, field) for field in ("kernel_size", "stride", "padding"))
    return kernel, stride, padding


def _covers(node: Any, x: Signal) -> bool:
    """Whether the window is the whole plane, so that the result is one number per channel."""
    kernel, _, padding = _window(node)
    return kernel == x.shape[1:] and padding == (0, 0)


def emit_avg_pool(b: Builder, name: str, node: nir.AvgPool2d, x: Signal) -> Signal:
    """Mean over a window; padding counts as zeros, as in torch."""
    if _covers(node, x):
        return b.main("GlobalAveragePool", [x.value], name, b.shapes[name], x.time)
    kernel, stride, padding = _window(node)
    value = x.value
    if any(p >= k for p, k in zip(padding, kernel, strict=True)):  # more than AveragePool takes in onnxruntime
        value, padding = b.aux("Pad", [value, b.ints(*padding * 2), "", b.ints(2, 3)], name, "padded"), (0, 0)
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2, "count_include_pad": 1}
    return b.main("AveragePool", [value], name, b.shapes[name], x.time, **attributes)


def emit_sum_pool(b: Builder, name: str, node: nir.SumPool2d, x: Signal) -> Signal:
    """Sum over a window, exact on integers (a mean times the window's size would not be)."""
    if _covers(node, x):
        return b.main("ReduceSum", [x.value, b.ints(2, 3)], name, b.shapes[name], x.time, keepdims=1)
    kernel, stride, padding = _window(node)
    ones = b.floats(f"{name}.ones", np.ones((x.shape[0], 1, *kernel), dtype=np.float32))
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2, "group": x.shape[0]}
    return b.main("Conv", [x.value, ones], name, b.shapes[name], x.time, **attributes)


def emit_max_pool(b: Builder, name: str, node: Any, x: Signal) -> Signal:
    """Maximum over a window. Padding never wins: neither against currents, nor (being 0) against spikes."""
    kernel, stride, padding = _window(node)
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}
    return b.main("MaxPool", [x.value], name, b.shapes[name], x.time, **attributes)


def emit_token_max_pool(b: Builder, name: str, node: TokenMaxPool, x: Signal) -> Signal:
    """3x3 maximum over the plane (channel in the head, token); the window is square, so no transpose is needed."""
    channels, height, width = x.shape
    planes = b.reshape(x.value, (-1, node.num_heads, channels // node.num_heads, height * width), name, "planes")
    pooled = b.aux("MaxPool", [planes], name, "pool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    return b.main("Reshape", [pooled, b.ints(-1, *x.shape)], name, x.shape, x.time)


# spikes, and the time axis


def emit_spike_and(b: Builder, name: str, node: SpikeAnd, a: Signal, other: Signal) -> Signal:
    """``y = a · b``; b may be [C, 1, 1]."""
    left, right = b.aligned(a, other)
    return b.main("Mul", [left.value, right.value], name, left.shape, left.time)


def emit_temporal_mean(b: Builder, name: str, node: nir.NIRNode, x: Signal) -> Signal:
    """``y = (1/T) Σ_t x[t]``; in a stream, the mean over the steps so far."""
    if b.streams and x.time != "final":
        return _running_mean(b, name, b.stepped(x))
    if x.time != "steps":
        return b.main("Identity", [x.value], name, x.shape, "final")
    split = b.reshape(x.value, (b.time_steps, -1, *x.shape), name, "time_first")
    return b.main("ReduceMean", [split, b.ints(0)], name, x.shape, "final", keepdims=0)


def _running_mean(b: Builder, name: str, x: Signal) -> Signal:
    """Adds step after step, in the order in which a runtime sums over all of them, and divides by their number."""
    state, steps = b.state(f"{name}.sum", x.shape), b.elapsed()
    parts = [x.value]
    if b.time_steps > 1:
        parts = [b.unique(f"{name}/step_{t}") for t in range(b.time_steps)]
        b.append("Split", [x.value], parts, b.unique(f"{name}/split"), axis=0, num_outputs=b.time_steps)
    total = state.input
    for part in parts[:-1]:
        total = b.aux("Add", [total, part], name, "sum")
    b.append("Add", [total, parts[-1]], [state.output], b.unique(f"{name}/total"))
    count = b.aux("Cast", [steps.output], name, "count", to=TensorProto.FLOAT)
    column = b.reshape(count, (-1, *(1,) * len(x.shape)), name, "count_of_sample")
    return b.main("Div", [state.output, column], name, x.shape, "final")


def passes_at_once(node: nir.NIRNode, dt: float) -> Array:
    """Which elements of a delay are not delayed; of other nodes none."""
    return delay_steps(node.delay, dt) == 0 if isinstance(node, nir.Delay) else np.zeros((), dtype=np.bool_)


def emit_delay(b: Builder, name: str, node: nir.Delay, x: Signal) -> Signal:
    """``y[t] = x[t - d]``, 0 before; elements may have delays of their own."""
    x, steps = b.stepped(x), delay_steps(node.delay, b.dt)
    if not b.streams:
        steps = np.minimum(steps, b.time_steps)
    longest = int(steps.max(initial=0))
    split = b.reshape(x.value, (b.time_steps, -1, *x.shape), name, "time_first")
    known = _carried_past(b, name, split, x.shape, longest) if b.streams and longest else ""
    total = ""
    for d in np.unique(steps).tolist():
        if d == 0:
            part = split
        elif known:
            first, end = b.ints(longest - d), b.ints(longest - d + b.time_steps)
            part = b.aux("Slice", [known, first, end, b.ints(0)], name, f"by_{d}")
        else:  # pad with d zero steps in front and cut d steps off the end
            part = b.aux("Pad", [split, b.ints(d, -d), "", b.ints(0)], name, f"by_{d}")
        if steps.size > 1 and np.any(steps != steps.flat[0]):
            part = b.aux("Mul", [part, b.floats(f"{name}.where_{d}", steps == d)], name, f"part_{d}")
        total = b.aux("Add", [total, part], name, "sum") if total else part
    return b.main("Reshape", [total, b.ints(-1, *x.shape)], name, x.shape, "steps")


def _carried_past(b: Builder, name: str, split: str, shape: Shape, longest: int) -> str:
    """The last `longest` steps before this call and those of this call, [longest + steps, batch, ...]."""
    state = b.state(f"{name}.past", (longest, *shape))
    past = b.reshape(b.steps_first(state.input, longest, shape, name, "before"), (longest, -1, *shape), name, "past")
    known = b.aux("Concat", [past, split], name, "known", axis=0)
    last = b.aux("Slice", [known, b.ints(b.time_steps), b.ints(b.time_steps + longest), b.ints(0)], name, "last")
    b.batch_first(last, longest, shape, name, state.output)
    return known
