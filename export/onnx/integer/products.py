"""Convolutions and linear layers as one product of rows: ``[rows, K] · [K, out]``, int8 weights.

Signals have channels last, so the rows of a 1x1 convolution are the signal itself; larger windows are gathered into
rows. Inputs are bytes and products are MatMulInteger wherever that is safe: kernels without 32-bit multiply-add
instructions join two products in 16 bits, so that two of the largest products must stay below 2^15. Larger inputs, such
as the bytes of an image, are cut into several bytes with the same weights; what that does not cover is multiplied as
whole numbers in float32 or float64, below 2^24 or 2^53.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto

from statten_deploy.export.onnx.builder import FUNCTION_DOMAIN, Array, FunctionBody, Shape, Time
from statten_deploy.export.onnx.integer.bounds import FloatType, exact_float
from statten_deploy.export.onnx.integer.signals import (
    ELEMENT,
    IntegerBuilder,
    IntegerSignal,
    channels_last,
)
from statten_deploy.fixed_point.arithmetic import CURRENT_SHIFT
from statten_deploy.ir.integer import IntegerConv2d, IntegerLinear

PAIR_LIMIT = (1 << 15) - 1
MAX_PARTS = 4
"""An input is cut into at most so many bytes."""
GAIN = 1 << CURRENT_SHIFT
"""Currents leave a product as ``a << 6``."""


Weighted = IntegerConv2d | IntegerLinear


@dataclass(frozen=True)
class _Rows:
    """An operand: its value with `len(signs)` times as many channels; ``x = Σ sign · part``."""

    value: str
    signs: tuple[int, ...]
    integer: bool
    time: Time


def emit_conv(b: IntegerBuilder, name: str, node: IntegerConv2d, x: IntegerSignal) -> IntegerSignal:
    """``a = shift(w · window, exponent)``, times the gain; zero padding."""
    dtype = _product_type(b, name, node, x)
    rows = _operand(b, name, node, x, dtype)
    out, per_group, kh, kw = node.weight.shape
    shape = b.shapes[name]
    if (kh, kw) != (1, 1) or node.stride != (1, 1) or node.padding != (0, 0):
        rows = replace(rows, value=_windows(b, name, node, rows, x.shape, shape))
    weight = node.weight.reshape(node.groups, out // node.groups, per_group, kh * kw).transpose(0, 3, 2, 1)
    if node.groups > 1:
        rows = replace(rows, value=_grouped(b, name, node, rows, kh * kw, per_group))
    return _product(b, name, node, rows, weight, dtype)


def emit_linear(b: IntegerBuilder, name: str, node: IntegerLinear, x: IntegerSignal) -> IntegerSignal:
    """``a = shift(W s, exponent) + bias``, times the gain."""
    dtype = _product_type(b, name, node, x)
    rows = _operand(b, name, node, x, dtype)
    return _product(b, name, node, rows, node.weight.T[None, None], dtype)


# operands


def _operand(b: IntegerBuilder, name: str, node: Weighted, x: IntegerSignal, dtype: FloatType) -> _Rows:
    """The input as bytes for MatMulInteger, or as whole floats where bytes would overflow a kernel."""
    heaviest = int(np.abs(node.weight).max(initial=1)) or 1
    top = min(PAIR_LIMIT // (2 * heaviest), 255)
    high, low = int(x.range.high.max(initial=0)), int(x.range.low.min(initial=0))
    plus, minus = -(-max(high, 0) // top), -(-max(-low, 0) // top)
    if plus + minus > MAX_PARTS or _largest_sum(node.weight, x) >= 1 << 31:
        return _Rows(b.cast(b.regain(x, 1, name), dtype).value, (1,), False, x.time)
    if (plus, minus) == (1, 0) or x.magnitude == 0:
        return _Rows(b.cast(b.regain(x, 1, name), np.uint8).value, (1,), True, x.time)
    plain = b.real(b.regain(x, 1, name), name)
    parts = [_part(b, name, plain, 1, i * top, top) for i in range(plus)]
    parts += [_part(b, name, plain, -1, i * top, top) for i in range(minus)]
    value = b.aux("Concat", parts, name, "parts", axis=-1) if len(parts) > 1 else parts[0]
    return _Rows(value, (1,) * plus + (-1,) * minus, True, x.time)


def _largest_sum(weight: NDArray[np.int64], x: IntegerSignal) -> int:
    """Bound of every partial sum of a product."""
    return int(np.abs(weight).reshape(len(weight), -1).sum(1).max(initial=0)) * max(x.magnitude, 1)


def _part(b: IntegerBuilder, name: str, x: IntegerSignal, sign: int, start: int, top: int) -> str:
    """``clip(sign · x - start, 0, top)`` as a byte; over all starts these add up to the positive part of sign · x."""
    what = f"part_{'plus' if sign > 0 else 'minus'}_{start}"
    value = b.aux("Neg", [x.value], name, f"{what}/negative") if sign < 0 else x.value
    if start:
        value = b.aux("Sub", [value, b.number(start, x.dtype)], name, f"{what}/above")
    limits = [b.number(0, x.dtype), b.number(top, x.dtype)]
    clipped = b.aux("Clip", [value, *limits], name, f"{what}/clipped")
    return b.aux("Cast", [clipped], name, what, to=TensorProto.UINT8)


def _windows(b: IntegerBuilder, name: str, node: IntegerConv2d, rows: _Rows, given: Shape, shape: Shape) -> str:
    """Every window as one row [rows, H', W', kh · kw · channels], by one Gather of the padded plane."""
    (ph, pw), (kh, kw) = node.padding, node.weight.shape[2:]
    height, width = given[1] + 2 * ph, given[2] + 2 * pw
    channels = given[0] * len(rows.signs)
    index = _window_index(b.whole, node, shape, width)
    pads = [b.ints(0, ph, pw, 0, 0, ph, pw, 0)] if ph or pw else []
    flat = [b.ints(-1, height * width, channels), index, b.ints(-1, *shape[1:], kh * kw * channels)]
    function = b.variant("Windows", (bool(pads),), lambda named: _windows_function(named, padded=bool(pads)))
    return b.call_aux(function, [rows.value, *pads, *flat], name, "windows")


def _windows_function(name: str, *, padded: bool) -> FunctionProto:
    body = FunctionBody()
    value = body.op("Pad", ["x", "pads"], "padded") if padded else "x"
    plane = body.op("Reshape", [value, "plane"], "pixels")
    taken = body.op("Gather", [plane, "index"], "taken", axis=1)
    body.op("Reshape", [taken, "rows"], "y")
    inputs = ["x", *(["pads"] if padded else []), "plane", "index", "rows"]
    return body.function(
        name, inputs, "Windows of x [rows, H, W, C] as rows: y [rows, H', W', window · C], zero padding"
    )


def _window_index(b: IntegerBuilder, node: IntegerConv2d, shape: Shape, width: int) -> str:
    """Positions in the padded plane, [H', W', kh · kw]: a sum of two small tables, so that the file stays small."""
    (kh, kw), (sh, sw), (dh, dw) = node.weight.shape[2:], node.stride, node.dilation
    key = (shape[1:], kh, kw, node.stride, node.dilation, width)

    def write() -> str:
        name = b.unique(f"index/{shape[1]}x{shape[2]}")
        row = (np.arange(shape[1])[:, None] * sh + np.arange(kh) * dh) * width
        column = np.arange(shape[2])[:, None] * sw + np.arange(kw) * dw
        tables = [
            b.array(f"{name}.rows", row[:, None, :, None].astype(np.int32)),
            b.array(f"{name}.columns", column[None, :, None, :].astype(np.int32)),
        ]
        return b.reshape(b.aux("Add", tables, name, "window"), (*shape[1:], kh * kw), name, "flat")

    return b.once(("window", key), write)


def _grouped(b: IntegerBuilder, name: str, node: IntegerConv2d, rows: _Rows, window: int, per_group: int) -> str:
    """[groups, rows, window · parts · channels of a group]."""
    parts = len(rows.signs)
    split = b.reshape(rows.value, (-1, window, parts, node.groups, per_group), name, "by_group")
    apart = b.aux("Transpose", [split], name, "groups", perm=[3, 0, 1, 2, 4])
    return b.reshape(apart, (node.groups, -1, window * parts * per_group), name, "group_rows")


# products


def _product_type(b: IntegerBuilder, name: str, node: Weighted, x: IntegerSignal) -> FloatType:
    """The float type that holds sums and results."""
    bias = int(np.abs(node.bias).max(initial=0))
    return exact_float(max(b.ranges[name].magnitude + bias, _largest_sum(node.weight, x)), name)


def _product(
    b: IntegerBuilder, name: str, node: Weighted, rows: _Rows, weight: NDArray[np.int64], dtype: FloatType
) -> IntegerSignal:
    """``(Σ w s) · 2^exponent`` (rounded down where an exponent is negative) times the gain, plus what is added to it.

    `weight` [groups, window, channels, out].
    """
    shape, groups = b.shapes[name], weight.shape[0]
    gain = GAIN if name in b.currents_of_neurons else 1
    floor = bool(np.any(node.exponent < 0))
    exponent = node.exponent if floor else node.exponent + int(np.log2(gain))
    inputs = {"x": rows.value, "weight": _weight(b.whole, name, weight, rows.signs)}
    if groups > 1:
        inputs["rows"] = b.ints(-1, *channels_last(shape))
    if rows.integer and dtype == np.float32:
        inputs["one"] = b.one()
    inputs["exponent"] = b.array(f"{name}.exponent", exponent.astype(np.int8))
    terms = tuple(inputs)
    function = b.variant(
        "IntegerProduct",
        (rows.integer, dtype, terms),
        lambda named: _product_function(named, terms, b.powers, integer=rows.integer, dtype=dtype),
    )
    addend = _addend(b, name, node, gain)
    if floor or addend.any():
        biased, after_floor = bool(addend.any()), gain if floor else 0
        if biased:
            inputs["bias"] = b.integers(f"{name}.bias", addend)
        b.register(function)
        product, key = function, (function.name, after_floor, biased)
        function = b.variant(
            "IntegerCurrent",
            key,
            lambda named: _current_function(named, product, after_floor, dtype, biased=biased),
        )
    b.call(function, list(inputs.values()), name)
    return IntegerSignal(b.result_name(name), shape, rows.time, dtype, b.ranges[name], gain)


def _product_function(
    name: str, inputs: tuple[str, ...], powers: Array, *, integer: bool, dtype: FloatType
) -> FunctionProto:
    body = FunctionBody()
    element = ELEMENT[np.dtype(dtype)]
    if integer:
        value = body.op("MatMulInteger", ["x", "weight"], "sum")
    else:
        value = body.op("MatMul", ["x", body.op("Cast", ["weight"], "w", to=element)], "sum")
    if "rows" in inputs:  # [groups, rows, out of a group]
        apart = body.op("Transpose", [value], "apart", perm=[1, 0, 2])
        value = body.op("Reshape", [apart, "rows"], "joined")
    if integer:
        value = body.op("Cast", [value], "whole", to=element)
    exponent = body.op("Cast", ["exponent"], "e", to=TensorProto.INT32)
    scale = body.op("Gather", [body.constant(powers, dtype, "powers"), exponent], "scale")
    factor = body.op("Mul", ["one", scale], "factor") if "one" in inputs else scale
    body.op("Mul", [value, factor], "y")
    return body.function(name, inputs, "y = x · weight · 2^exponent\nexponent per channel")


def _current_function(
    name: str, product: FunctionProto, gain_after_floor: int, dtype: FloatType, *, biased: bool
) -> FunctionProto:
    """What stands behind some products: rounding, where exponents are negative, and a bias."""
    body = FunctionBody()
    inputs = list(product.input)
    value = body.op(product.name, inputs, "product", domain=FUNCTION_DOMAIN)
    equation = "x · weight · 2^exponent"
    if gain_after_floor:
        gain = body.constant(gain_after_floor, dtype, "gain")
        value = body.op("Mul", [body.op("Floor", [value], "floored"), gain], "current")
        equation = f"{gain_after_floor} · floor({equation})"
    if biased:
        body.op("Add", [value, body.op("Cast", ["bias"], "b", to=ELEMENT[np.dtype(dtype)])], "biased")
        inputs.append("bias")
        equation += " + bias"
    body.name_last("y")
    return body.function(name, inputs, f"y = {equation}")


def powers_of_two(nodes: Iterable[Weighted]) -> Array:
    """A table with ``table[e] = 2^e`` for every exponent; negative ones count from its end, as Gather does."""
    exponents = np.concatenate([np.zeros(1, dtype=np.int64), *(node.exponent for node in nodes)])
    low, high = int(exponents.min()), int(exponents.max()) + CURRENT_SHIFT
    return np.asarray(2.0 ** np.array([*range(high + 1), *range(low, 0)]))


def _weight(b: IntegerBuilder, name: str, weight: NDArray[np.int64], signs: tuple[int, ...]) -> str:
    """[groups, K, out], or [K, out] for one group; repeated per byte where the input was cut into several."""
    groups, window, channels, out = weight.shape
    if len(signs) == 1:
        full = weight.reshape(groups, window * channels, out)
        return b.array(f"{name}.weight", (full[0] if groups == 1 else full).astype(np.int8))
    stored = b.array(f"{name}.weight", weight.astype(np.int8))
    negative = b.aux("Neg", [stored], f"{name}.weight", "negative") if -1 in signs else ""
    repeated = b.aux("Concat", [stored if sign > 0 else negative for sign in signs], f"{name}.weight", "parts", axis=2)
    lead = (groups,) if groups > 1 else ()
    return b.reshape(repeated, (*lead, window * len(signs) * channels, out), f"{name}.weight", "rows")


def _addend(b: IntegerBuilder, name: str, node: Weighted, gain: int) -> NDArray[np.int64]:
    """What is added per channel: its own bias, the bias of the one neuron layer behind."""
    return node.bias * gain + b.neuron_biases.get(name, 0)
