"""Emitters of inputs, outputs, pools and what else has no weights and no memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import nir
import numpy as np
from onnx import FunctionProto, TensorProto, helper

from statten_deploy.export.onnx.builder import BATCH, FunctionBody, Shape, compact, float_value
from statten_deploy.export.onnx.integer.bounds import exact_float
from statten_deploy.export.onnx.integer.signals import (
    ELEMENT,
    IntegerBuilder,
    IntegerSignal,
    channels_last,
)
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, SpikeMaxPool2d, TokenMaxPool

READOUT = "IntegerReadout"
"""The function behind the last integers of a model."""

# inputs and outputs of the model


def emit_input(b: IntegerBuilder, name: str, shape: Shape, *, image: bool) -> IntegerSignal:
    """Real frames, channels first: `image` [batch, ...], the same at every step; otherwise [batch, T, ...]."""
    bounds = b.ranges[name]
    if image:
        b.model.graph.input.append(float_value(name, [BATCH, *shape]))
        return IntegerSignal(name, shape, "held", np.float32, bounds)
    b.model.graph.input.append(float_value(name, [BATCH, b.time_steps, *shape]))
    value = name
    if b.time_steps > 1:
        value = b.aux("Transpose", [name], name, "time_first", perm=[1, 0, *range(2, len(shape) + 2)])
    return IntegerSignal(b.reshape(value, (-1, *shape), name, "steps"), shape, "steps", np.float32, bounds)


def emit_encoder(b: IntegerBuilder, name: str, node: InputEncoder, x: IntegerSignal) -> IntegerSignal:
    """``clip(rint(x / scale), 0, 255) - zero_point``, divided in float64: the only real numbers.

    float32 could round a quotient to another side of a half.
    """

    def parameter(what: str, values: Any) -> str:
        column = np.asarray(values, dtype=np.float64).reshape(-1, *(1,) * (len(x.shape) - 1))
        return b.array(f"{name}.{what}", compact(column, np.float64))

    wide = b.aux("Cast", [x.value], name, "wide", to=TensorProto.DOUBLE)
    steps = b.aux("Div", [wide, parameter("scale", node.scale)], name, "steps")
    value = b.aux("Round", [steps], name, "rounded")
    value = b.aux("Clip", [value, b.number(0, np.float64), b.number(255, np.float64)], name, "byte")
    shifted = bool(np.any(node.zero_point))
    value = b.aux("Sub", [value, parameter("zero_point", node.zero_point)], name, "centred") if shifted else value
    dtype = np.float32 if shifted else np.uint8
    value = b.aux("Cast", [value], name, "whole", to=ELEMENT[np.dtype(dtype)])
    b.turned(value, len(x.shape), name, "channels_last", channels_last=True)
    b.name_last(name)
    return IntegerSignal(b.result_name(name), x.shape, x.time, dtype, b.ranges[name])


def emit_output(b: IntegerBuilder, name: str, source: IntegerSignal, node: nir.NIRNode) -> None:
    """float32 in real units, channels first: [batch, ...] behind a temporal sum, else [batch, T, ...].

    `node` is where the result comes from and says what one unit means, as in `fixed_point.runner.real_outputs`.
    """
    shape, rank = source.shape, len(source.shape)
    time = () if source.time == "final" else (b.time_steps,)
    value = b.regain(source if source.time == "final" else b.stepped(source), 1, name).value
    if time:
        value = b.reshape(value, (*time, -1, *channels_last(shape)), name, "time_first")
        perm = [1, 0, *([rank + 1] if rank else []), *range(2, rank + 1)]
        value = b.aux("Transpose", [value], name, "batch_first", perm=perm)
    elif rank > 1:
        value = b.turned(value, rank, name, "channels_first", channels_last=False)
    if value != source.value or source.dtype != np.int64:
        value = b.aux("Cast", [value], name, "integers", to=TensorProto.INT64)
    dims = [BATCH, *time, *shape]
    b.model.graph.value_info.append(helper.make_tensor_value_info(value, TensorProto.INT64, dims))
    b.model.graph.output.append(float_value(name, dims))
    unit = _unit(b, name, node)
    if b.streams and isinstance(node, TemporalSum):  # the mean over the steps so far; after T of them a factor of 1.0
        steps = b.aux("Cast", [b.elapsed().output], name, "steps", to=TensorProto.DOUBLE)
        share = b.aux("Div", [b.number(b.sample_steps, np.float64), steps], name, "share")
        column = b.reshape(share, (-1, *(1,) * len(shape)), name, "share_of_sample")
        unit = b.aux("Mul", [unit, column], name, "unit")
    b.call(b.variant(READOUT, (), _readout_function), [value, unit], name)


def _unit(b: IntegerBuilder, name: str, node: nir.NIRNode) -> str:
    """The real value of the integer 1, a number or one per channel."""
    if isinstance(node, IntegerConv2d | IntegerLinear | IntegerLI):
        axes = len(node.shape) if isinstance(node, IntegerLI) else node.weight.ndim - 1
        column = (1 / node.scale).reshape(-1, *(1,) * (axes - 1))
        return b.array(f"{name}.unit", compact(column, np.float64))
    return b.number(node.scale if isinstance(node, TemporalSum) else 1.0, np.float64)


def _readout_function(name: str) -> FunctionProto:
    body = FunctionBody()
    body.op("Mul", [body.op("Cast", ["x"], "wide", to=TensorProto.DOUBLE), "unit"], "real")
    body.op("Cast", ["real"], "y", to=TensorProto.FLOAT)
    return body.function(name, ["x", "unit"], "y = unit * x: integers in real units, rounded once")


def emit_temporal_sum(b: IntegerBuilder, name: str, node: TemporalSum, x: IntegerSignal) -> IntegerSignal:
    """``y = Σ_t x[t]``, the integer readout: int64 [batch, ...] under the node's own name."""
    dtype = exact_float(b.ranges[name].magnitude, name)
    x = b.regain(b.cast(b.stepped(x), dtype), 1, name)
    split = b.reshape(x.value, (b.time_steps, -1, *channels_last(x.shape)), name, "time_first")
    total = b.aux("ReduceSum", [split, b.ints(0)], name, "total", keepdims=0)
    if b.streams:
        state = b.state(f"{name}.sum", channels_last(x.shape), np.int64)
        whole = b.aux("Cast", [total], name, "whole", to=TensorProto.INT64)
        b.result("Add", [whole, state.input], name)
        b.append("Identity", [b.result_name(name)], [state.output], b.unique(f"{name}/next"))
    else:
        b.result("Cast", [total], name, to=TensorProto.INT64)
    return IntegerSignal(b.result_name(name), x.shape, "final", np.int64, b.ranges[name])


def emit_flatten(b: IntegerBuilder, name: str, node: nir.Flatten, x: IntegerSignal) -> IntegerSignal:
    """Join axes of one sample, in the order of the graph: channels first."""
    shape = b.shapes[name]
    value = x.value
    if len(x.shape) == 3 and x.shape[1:] == (1, 1):
        value = b.reshape(value, (-1, *x.shape), name, "channels_first")  # nothing to turn
    else:
        value = b.turned(value, len(x.shape), name, "channels_first", channels_last=False)
    if len(shape) > 1:
        value = b.reshape(value, (-1, *shape), name, "joined")
        b.result("Transpose", [value], name, perm=[0, *range(2, len(shape) + 1), 1])
    else:
        b.result("Reshape", [value, b.ints(-1, *shape)], name)
    return IntegerSignal(b.result_name(name), shape, x.time, x.dtype, b.ranges[name], x.gain)


# pools


def emit_max_pool(b: IntegerBuilder, name: str, node: MaxPool2d | SpikeMaxPool2d, x: IntegerSignal) -> IntegerSignal:
    """Maximum over a window, of currents or of spikes; padding never wins.

    MaxPool wants channels first; turning there and back is three times as fast as slices and Max.
    """
    window = {"kernel_shape": node.kernel_size, "strides": node.stride, "pads": (*node.padding, *node.padding)}
    function = b.variant("IntegerMaxPool", tuple(window.values()), lambda named: _max_pool_function(named, **window))
    b.call(function, [x.value], name)
    return replace(x, value=b.result_name(name), shape=b.shapes[name], range=b.ranges[name])


def _max_pool_function(name: str, **window: Sequence[int]) -> FunctionProto:
    body = FunctionBody()
    planes = body.op("Transpose", ["x"], "planes", perm=[0, 3, 1, 2])
    body.op("Transpose", [body.op("MaxPool", [planes], "pooled", **window)], "y", perm=[0, 2, 3, 1])
    return body.function(name, ["x"], "y = maximum over a window; x, y [rows, H, W, C]")


def emit_token_max_pool(b: IntegerBuilder, name: str, node: TokenMaxPool, x: IntegerSignal) -> IntegerSignal:
    """3x3 maximum over the plane (token, channel in the head)."""
    key = (node.num_heads, x.shape)
    function = b.variant("IntegerTokenMaxPool", key, lambda named: _token_pool_function(named, node.num_heads, x.shape))
    b.call(function, [x.value], name)
    return replace(x, value=b.result_name(name), range=b.ranges[name])


def _token_pool_function(name: str, heads: int, shape: Shape) -> FunctionProto:
    body = FunctionBody()
    channels, height, width = shape
    split = body.op("Reshape", ["x", body.ints("split", -1, height * width, heads, channels // heads)], "by_head")
    planes = body.op("Transpose", [split], "planes", perm=[0, 2, 1, 3])
    pooled = body.op("MaxPool", [planes], "pooled", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    joined = body.op("Transpose", [pooled], "tokens", perm=[0, 2, 1, 3])
    body.op("Reshape", [joined, body.ints("grid", -1, height, width, channels)], "y")
    return body.function(name, ["x"], "y = 3x3 maximum over (token, channel in the head); x, y [rows, H, W, C]")


def emit_sum_pool(b: IntegerBuilder, name: str, node: IntegerSumPool2d, x: IntegerSignal) -> IntegerSignal:
    """``shift(sum over the window, exponent)``."""
    window = int(np.prod(node.kernel_size))
    dtype = exact_float(x.range.times(window).magnitude, name)
    value = b.cast(x, dtype).value
    if node.kernel_size == x.shape[1:]:
        value = b.aux("ReduceSum", [value, b.ints(1, 2)], name, "total", keepdims=1)
    else:
        for axis, size, count, stride in zip((1, 2), node.kernel_size, b.shapes[name][1:], node.stride, strict=True):
            value = _summed(b, name, value, axis, size, count, stride)
    value = b.aux("Mul", [value, b.number(2.0**node.exponent / x.gain, dtype)], name, "shifted")
    if node.exponent < 0:
        b.aux("Floor", [value], name, "floored")
    b.name_last(name)
    return IntegerSignal(b.result_name(name), b.shapes[name], x.time, dtype, b.ranges[name])


def _summed(b: IntegerBuilder, name: str, value: str, axis: int, size: int, count: int, stride: int) -> str:
    """Sums of `size` neighbours along an axis, every `stride`: `size` slices, added."""
    total = ""
    for i in range(size):
        limits = [b.ints(i), b.ints(i + (count - 1) * stride + 1), b.ints(axis), b.ints(stride)]
        part = b.aux("Slice", [value, *limits], name, f"slice_{axis}_{i}")
        total = b.aux("Add", [total, part], name, f"sum_{axis}_{i}") if total else part
    return total


# spikes


def emit_spike_and(b: IntegerBuilder, name: str, node: SpikeAnd, x: IntegerSignal, y: IntegerSignal) -> IntegerSignal:
    """``a · b``; b may be [C, 1, 1]."""
    if x.time != y.time:
        x, y = b.stepped(x), b.stepped(y)
    if x.is_spikes and y.is_spikes:
        operands = [b.aux("Cast", [s.value], name, what, to=TensorProto.BOOL) for s, what in ((x, "a"), (y, "b"))]
        b.result("Cast", [b.aux("And", operands, name, "both")], name, to=TensorProto.UINT8)
        return IntegerSignal(b.result_name(name), x.shape, x.time, np.uint8, b.ranges[name])
    dtype = exact_float(max(b.ranges[name].magnitude, x.magnitude, y.magnitude), name)
    factors = [b.cast(b.regain(s, 1, name), dtype).value for s in (x, y)]
    b.result("Mul", factors, name)
    return IntegerSignal(b.result_name(name), x.shape, x.time, dtype, b.ranges[name])
