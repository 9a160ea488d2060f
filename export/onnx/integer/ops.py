"""Emitters of inputs, outputs, pools and what else has no weights and no memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from statten_deploy.export.onnx.builder import BATCH, Shape, Time, compact, float_value
from statten_deploy.export.onnx.integer.planes import bytes_of, emit_planes
from statten_deploy.export.onnx.integer.products import TOGETHER, Weighted, emit_rows
from statten_deploy.export.onnx.integer.signals import IntegerBuilder, IntegerSignal
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, SpikeMaxPool2d, TokenMaxPool

NEAR = 0.499
"""What is added before a quotient is rounded down: float32 leaves at most one step to go up from there."""


def emit_weighted(b: IntegerBuilder, name: str, node: Weighted, x: IntegerSignal) -> IntegerSignal:
    """Convolutions and linear layers, as the flavour multiplies."""
    return (emit_planes if b.planar else emit_rows)(b, name, node, x)


# inputs and outputs of the model


def emit_input(b: IntegerBuilder, name: str, shape: Shape, *, image: bool) -> IntegerSignal:
    """Real frames, channels first: `image` [batch, ...], the same at every step; otherwise [batch, T, ...]."""
    bounds = b.ranges[name]
    if image:
        b.model.graph.input.append(float_value(name, [BATCH, *shape]))
        return IntegerSignal((name,), shape, "held", np.float32, bounds)
    b.model.graph.input.append(float_value(name, [BATCH, b.time_steps, *shape]))
    return IntegerSignal((name,), shape, "steps", np.float32, bounds, joined=b.time_steps > 1)


def emit_encoder(b: IntegerBuilder, name: str, node: InputEncoder, x: IntegerSignal) -> IntegerSignal:
    """``clip(rint(x / scale), 0, 255) - zero_point`` of the quotient in float64, without a float64.

    Runtimes without float64 would round some quotients to another side of a half. So a product in float32 only says
    which two bytes are possible, and a table of the least float32 that becomes the upper one decides.
    """

    def per_channel(what: str, values: Any, dtype: Any) -> str:
        column = np.asarray(values).reshape(-1, *(1,) * (len(x.shape) - 1))
        return b.array(f"{name}.{what}", compact(column, dtype))

    inverse = b.aux("Mul", [x.value, per_channel("inverse", 1 / node.scale, np.float32)], name, "steps")
    if np.all(np.frexp(node.scale)[0] == 0.5):  # a power of two divides exactly
        value = b.aux("Round", [inverse], name, "rounded")
        value = b.aux("Clip", [value, b.number(0, np.float32), b.number(255, np.float32)], name, "byte")
    else:
        lower = b.aux("Floor", [b.aux("Add", [inverse, b.number(NEAR, np.float32)], name, "near")], name, "lower")
        lower = b.aux("Clip", [lower, b.number(0, np.float32), b.number(254, np.float32)], name, "possible")
        scales, table = np.unique(node.scale), []
        for scale in scales:
            table.append(least_floats(float(scale)))
        index = b.aux("Cast", [lower], name, "index", to=TensorProto.INT32)
        if len(scales) > 1:
            first = per_channel("table", np.searchsorted(scales, node.scale) * 255, np.int32)
            index = b.aux("Add", [index, first], name, "entry")
        least = b.aux("Gather", [b.array(f"{name}.least", np.concatenate(table)), index], name, "least", axis=0)
        upper = b.aux("GreaterOrEqual", [x.value, least], name, "upper")
        up = b.aux("Cast", [upper], name, "up", to=TensorProto.FLOAT)
        value = b.aux("Add", [lower, up], name, "byte")
    dtype: Any = np.float32
    if np.any(node.zero_point):
        value = b.aux("Sub", [value, per_channel("zero_point", node.zero_point, np.float32)], name, "centred")
    elif not b.planar:
        dtype = np.uint8
        value = b.aux("Cast", [value], name, "whole", to=TensorProto.UINT8)
    value = _as_stored(b, name, value, x.shape, frames=x.time == "steps")
    return replace(x, values=(b.rename(value, name),), dtype=dtype, range=b.ranges[name])


def least_floats(scale: float) -> NDArray[np.float32]:
    """The least float32 x with ``rint(x / scale) >= k`` in float64, for k = 1 .. 255."""
    k = np.arange(1, 256)
    found = ((k - 0.5) * scale).astype(np.float32)
    for _ in range(4):  # the estimate is next to it
        found = np.where(
            np.rint(found.astype(np.float64) / scale) >= k, np.nextafter(found, np.float32(-np.inf)), found
        )
    for _ in range(8):
        found = np.where(np.rint(found.astype(np.float64) / scale) < k, np.nextafter(found, np.float32(np.inf)), found)
    return found


def _as_stored(b: IntegerBuilder, name: str, value: str, shape: Shape, *, frames: bool) -> str:
    """[batch, (T,) C, H, W] as signals are kept."""
    rank, steps = len(shape), b.time_steps
    if not frames:
        return value if b.planar else b.unplanes(value, shape, name)
    if b.planar:
        turned = b.aux("Transpose", [value], name, "time_first", perm=[1, 0, *range(2, rank + 2)])
        return b.reshape(turned, (-1, *shape), name, "steps")
    if rank > 1:
        value = b.aux("Transpose", [value], name, "channels_last", perm=[0, 1, *range(3, rank + 2), 2])
    rows, channels = b.stored(shape)
    return b.reshape(value, (-1, steps * rows, channels), name, "rows")


def emit_output(b: IntegerBuilder, name: str, source: IntegerSignal, node: nir.NIRNode) -> None:
    """float32 in real units, channels first: [batch, ...] behind a temporal sum, else [batch, T, ...].

    `node` is where the result comes from and says what one unit means, as in `fixed_point.runner.real_outputs`.
    """
    source = b.ungrouped(b.whole_numbers(source, name))
    shape, time = source.shape, () if source.time == "final" else (b.time_steps,)
    dims = [BATCH, *time, *shape]
    if time:
        planes = [b.planes(v, shape, b.label(name, t), "plane") for t, v in enumerate(b.each(b.stepped(source)))]
        apart = [b.reshape(v, (-1, 1, *shape), b.label(name, t), "step") for t, v in enumerate(planes)]
        value = b.aux("Concat", apart, name, "steps", axis=1) if len(apart) > 1 else apart[0]
    else:
        value = b.planes(source.value, shape, name)
    if source.dtype != np.int64:
        value = b.aux("Cast", [value], name, "integers", to=TensorProto.INT64)
    b.model.graph.value_info.append(helper.make_tensor_value_info(value, TensorProto.INT64, dims))
    b.model.graph.output.append(float_value(name, dims))
    b.integers[name] = value
    unit = _unit(node)
    # Whole numbers and a unit that float32 holds: their product, rounded once, is what float64 gives too.
    exact = source.magnitude < 1 << 24 and bool(np.all(unit == unit.astype(np.float32)))
    dtype, element = (np.float32, TensorProto.FLOAT) if exact else (np.float64, TensorProto.DOUBLE)
    factor = b.array(f"{name}.unit", unit.astype(dtype))
    if b.streams and isinstance(node, TemporalSum):  # the mean over the steps so far; after T of them a factor of 1.0
        steps = b.aux("Cast", [b.elapsed().output], name, "steps", to=element)
        share = b.aux("Div", [b.number(b.sample_steps, dtype), steps], name, "quotient")
        # OpenVINO divides by multiplying with a reciprocal, which can miss 1 in the last bit
        whole = b.aux("Equal", [b.elapsed().output, b.ints(b.sample_steps)], name, "whole")
        share = b.aux("Where", [whole, b.number(1, dtype), share], name, "share")
        column = b.reshape(share, (-1, *(1,) * len(shape)), name, "share_of_sample")
        factor = b.aux("Mul", [factor, column], name, "unit")
    number = b.aux("Cast", [value], name, "number", to=element)
    if exact:
        b.result("Mul", [number, factor], name)
    else:
        b.result("Cast", [b.aux("Mul", [number, factor], name, "real")], name, to=TensorProto.FLOAT)


def _unit(node: nir.NIRNode) -> NDArray[np.float64]:
    """The real value of the integer 1, a number or one per channel."""
    if isinstance(node, IntegerConv2d | IntegerLinear | IntegerLI):
        axes = len(node.shape) if isinstance(node, IntegerLI) else node.weight.ndim - 1
        return compact((1 / node.scale).reshape(-1, *(1,) * (axes - 1)), np.float64)
    return np.asarray(node.scale if isinstance(node, TemporalSum) else 1.0, dtype=np.float64)


def emit_temporal_sum(b: IntegerBuilder, name: str, node: TemporalSum, x: IntegerSignal) -> IntegerSignal:
    """``y = Σ_t x[t]``, the integer readout: int64 under the node's own name."""
    largest = b.ranges[name].magnitude // b.sample_steps * b.time_steps  # of this call; what a stream carries is int64
    dtype = b.float_type(largest, name)
    x = b.ungrouped(b.cast(b.whole_numbers(x, name), dtype))
    total, *rest = b.each(x)
    for step, value in enumerate(rest, 1):
        total = b.aux("Add", [total, value], f"{name}/{step}", "sum")
    value = b.aux("Cast", [total], name, "total", to=TensorProto.INT64)
    if b.streams:
        state = b.state(f"{name}.sum", b.stored(x.shape), np.int64)
        value = b.aux("Add", [value, state.input], name, "sum_so_far")
        value = b.rename(value, name)
        b.append("Identity", [value], [state.output], b.unique(f"{name}/next"))
    else:
        value = b.rename(value, name)
    return IntegerSignal((value,), x.shape, "final", np.int64, b.ranges[name])


def emit_flatten(b: IntegerBuilder, name: str, node: nir.Flatten, x: IntegerSignal) -> IntegerSignal:
    """Join axes of one sample, in the order of the graph: channels first."""
    shape, x = b.shapes[name], b.ungrouped(b.plain(x, name))

    def flat(value: str, label: str) -> str:
        if not b.planar and b.stored(x.shape)[0] == 1 and len(shape) == 1:
            return b.aux("Identity", [value], label, "flat")
        joined = b.reshape(b.planes(value, x.shape, label), (-1, *shape), label, "joined")
        return joined if b.planar else b.unplanes(joined, shape, label)

    return _each(b, name, x, flat, shape=shape, range=b.ranges[name])


def _each(
    b: IntegerBuilder, name: str, x: IntegerSignal, make: Callable[[str, str], str], **changes: Any
) -> IntegerSignal:
    """A node that treats every step alike. Where all steps are one value it may be given that, as more samples."""
    if x.time == "steps" and not (x.joined and b.planar):
        steps = b.each(x)
        values = [b.rename(make(v, b.label(name, t)), name, t) for t, v in enumerate(steps)]
        return replace(x, values=tuple(values), joined=False, **changes)
    return replace(x, values=(b.rename(make(x.value, name), name),), **changes)


# pools


def emit_max_pool(b: IntegerBuilder, name: str, node: MaxPool2d | SpikeMaxPool2d, x: IntegerSignal) -> IntegerSignal:
    """Maximum over a window, of currents or of spikes; padding never wins."""
    window = {
        "kernel_shape": list(node.kernel_size),
        "strides": list(node.stride),
        "pads": [*node.padding, *node.padding],
    }
    x, shape = b.ungrouped(x), b.shapes[name]
    if b.planar and x.is_bytes:
        x = _as_bytes(b, x, together=x.time == "steps" and int(np.prod(shape)) <= TOGETHER)

    def pooled(value: str, label: str) -> str:
        planes = b.planes(value, x.shape, label)
        return b.unplanes(b.aux("MaxPool", [planes], label, "pooled", **window), shape, label)

    result = _each(b, name, x, pooled, shape=shape, range=b.ranges[name])
    if b.planar and x.is_bytes:
        b.dequantised.update(result.values)
    return result


def _as_bytes(b: IntegerBuilder, x: IntegerSignal, *, together: bool) -> IntegerSignal:
    """Values that runtimes know to be bytes; `together`: all steps in one."""
    if x.time == "steps" and not (x.joined or together):
        values = tuple(bytes_of(b, x, step) for step in range(b.time_steps))
    else:
        values = (bytes_of(b, x, None),)
    b.dequantised.update(values)
    return replace(x, values=values, joined=x.joined or (together and b.time_steps > 1))


def emit_token_max_pool(b: IntegerBuilder, name: str, node: TokenMaxPool, x: IntegerSignal) -> IntegerSignal:
    """3x3 maximum over the plane (channel in the head, token)."""
    x = b.ungrouped(x)
    channels, height, width = x.shape

    def pooled(value: str, label: str) -> str:
        planes = b.planes(value, x.shape, label)
        split = b.reshape(planes, (-1, node.num_heads, channels // node.num_heads, height * width), label, "by_head")
        window = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
        joined = b.reshape(b.aux("MaxPool", [split], label, "pooled", **window), (-1, *x.shape), label, "joined")
        return joined if b.planar else b.unplanes(joined, x.shape, label)

    return _each(b, name, x, pooled, range=b.ranges[name])


def emit_sum_pool(b: IntegerBuilder, name: str, node: IntegerSumPool2d, x: IntegerSignal) -> IntegerSignal:
    """``shift(sum over the window, exponent)``.

    Sums beyond float32 that are rounded down are taken apart: ``Σ ⌊x / 2^s⌋ + ⌊Σ (x mod 2^s) / 2^s⌋``.
    """
    window, shape = int(np.prod(node.kernel_size)), b.shapes[name]
    largest = x.range.times(window).magnitude
    halves = (
        max(window * ((x.range.magnitude >> -node.exponent) + 1), window << -node.exponent) if node.exponent < 0 else 0
    )
    apart = largest >= 1 << 24 > halves > 0 and x.dtype == np.float32
    dtype = b.float_type(halves if apart else largest, name)
    x = b.ungrouped(b.cast(b.plain(x, name), dtype))
    factor = b.number(2.0**node.exponent / x.gain, dtype)

    def summed(value: str, label: str) -> str:
        if apart:
            upper = b.aux("Floor", [b.aux("Mul", [value, factor], label, "share")], label, "upper")
            back = b.aux("Mul", [upper, b.number(x.gain * 2.0**-node.exponent, dtype)], label, "upper_part")
            lower = b.aux("Sub", [value, back], label, "lower")
            upper, lower = (
                _window_sums(b, f"{label}/{part}", half, node, x.shape, shape, dtype)
                for part, half in (("upper", upper), ("lower", lower))
            )
            carried = b.aux("Floor", [b.aux("Mul", [lower, factor], label, "lower_share")], label, "carried")
            return b.aux("Add", [upper, carried], label, "total")
        total = _window_sums(b, label, value, node, x.shape, shape, dtype)
        if node.exponent or x.gain != 1:
            total = b.aux("Mul", [total, factor], label, "shifted")
        return b.aux("Floor", [total], label, "floored") if node.exponent < 0 else total

    return _each(b, name, x, summed, shape=shape, dtype=dtype, range=b.ranges[name], gain=1)


def _window_sums(
    b: IntegerBuilder, label: str, value: str, node: IntegerSumPool2d, given: Shape, shape: Shape, dtype: Any
) -> str:
    if node.kernel_size == given[1:]:  # all tokens
        if b.planar:
            return b.aux("ReduceSum", [value, b.ints(2, 3)], label, "sum", keepdims=1)
        tokens = b.stored(given)[0]
        ones = b.once(("ones", tokens, dtype), lambda: b.array(f"ones/{tokens}", np.ones((1, tokens), dtype=dtype)))
        return b.aux("MatMul", [ones, value], label, "sum")
    value = b.planes(value, given, label)
    for axis, size, count, stride in zip((2, 3), node.kernel_size, shape[1:], node.stride, strict=True):
        value = _neighbours(b, label, value, axis, size, count, stride)
    return value if b.planar else b.unplanes(value, shape, label)


def _neighbours(b: IntegerBuilder, label: str, value: str, axis: int, size: int, count: int, stride: int) -> str:
    """Sums of `size` neighbours along an axis, every `stride`: `size` slices, added."""
    total = ""
    for i in range(size):
        limits = [b.ints(i), b.ints(i + (count - 1) * stride + 1), b.ints(axis), b.ints(stride)]
        part = b.aux("Slice", [value, *limits], label, f"slice_{axis}_{i}")
        total = b.aux("Add", [total, part], label, f"sum_{axis}_{i}") if total else part
    return total


# spikes


def emit_spike_and(b: IntegerBuilder, name: str, node: SpikeAnd, x: IntegerSignal, y: IntegerSignal) -> IntegerSignal:
    """``a · b``; b may be [C, 1, 1]."""
    x, y = (b.ungrouped(b.whole_numbers(s, name)) for s in (x, y))
    dtype: Any = np.uint8
    boolean = not b.planar and x.is_spikes and y.is_spikes
    if not boolean:
        dtype = b.float_type(max(b.ranges[name].magnitude, x.magnitude, y.magnitude), name)
        x, y = b.cast(x, dtype), b.cast(y, dtype)

    def truth(value: str) -> str:
        return b.aux("Cast", [value], value, "bool", to=TensorProto.BOOL)

    def both(first: str, second: str, label: str) -> str:
        if not boolean:
            return b.aux("Mul", [first, second], label, "both")
        operands = [b.once((v, "bool"), partial(truth, v)) for v in (first, second)]
        return b.aux("Cast", [b.aux("And", operands, label, "and")], label, "both", to=TensorProto.UINT8)

    alike = x.time == y.time == "held" or (x.joined and y.joined and b.planar)
    if alike:
        values: Sequence[str] = [b.rename(both(x.value, y.value, name), name)]
    else:
        pairs = zip(b.each(x), b.each(y), strict=True)
        values = [b.rename(both(v, w, b.label(name, t)), name, t) for t, (v, w) in enumerate(pairs)]
    time: Time = "held" if x.time == y.time == "held" else "steps"
    return replace(x, values=tuple(values), dtype=dtype, range=b.ranges[name], time=time, joined=alike and x.joined)


# spikes of a layer, counted


def emit_spike_count(b: IntegerBuilder, output: str, spikes: IntegerSignal) -> None:
    """One more output of the model: int64 [batch], the spikes of a layer over all steps and neurons."""
    total = ""
    axes = b.ints(*range(1, (len(b.stored(spikes.shape)) if not spikes.heads else 3 + (spikes.heads[1] > 1)) + 1))
    for step, value in enumerate(b.each(spikes)):
        label = f"{output}/{step}"
        wide = b.aux("Cast", [value], label, "wide", to=TensorProto.INT32)  # enough for a step of a sample
        count = b.aux("ReduceSum", [wide, axes], label, "count", keepdims=0)
        exact = b.aux("Cast", [count], label, "exact", to=TensorProto.INT64)
        total = b.aux("Add", [total, exact], label, "sum") if total else exact
    b.append("Identity", [total], [output], output)
    declared = b.model.graph.output.add(name=output)
    declared.type.tensor_type.elem_type = TensorProto.INT64
    declared.type.tensor_type.shape.dim.add(dim_param=BATCH)
