"""Convolutions and linear layers as products of rows: ``[batch, tokens, K] · [K, out]``, int8 weights, step by step.

The rows of a 1x1 convolution are the signal itself; larger windows are gathered into rows. Inputs are bytes and
products are MatMulInteger wherever that is safe: kernels without 32-bit multiply-add instructions join two products in
16 bits, so that two of the largest products must stay below 2^15. Larger inputs, such as the bytes of an image, are cut
into several bytes with the same weights; what that does not cover is multiplied as whole numbers in float32 or float64,
below 2^24 or 2^53.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from statten_deploy.export.onnx.builder import Shape
from statten_deploy.export.onnx.integer.bounds import FloatType
from statten_deploy.export.onnx.integer.signals import ELEMENT, IntegerBuilder, IntegerSignal
from statten_deploy.fixed_point.arithmetic import Int
from statten_deploy.ir.integer import IntegerConv2d, IntegerLinear

PAIR_LIMIT = (1 << 15) - 1
MAX_PARTS = 4
"""An input is cut into at most so many bytes."""
TOGETHER = 1 << 15
"""Layers with at most so many numbers a step multiply all steps at once: there a call costs more than a copy, and what
comes out of all steps still fits into the cache of a core."""

Weighted = IntegerConv2d | IntegerLinear


def largest_sum(weight: NDArray[np.int64], x: IntegerSignal) -> int:
    """Bound of every partial sum of a product."""
    return int(np.abs(weight).reshape(len(weight), -1).sum(1).max(initial=0)) * max(x.range.magnitude, 1)


def largest_byte(weight: NDArray[np.int64]) -> int:
    """The largest input with which two products fit into 16 bits."""
    return min(PAIR_LIMIT // (2 * (int(np.abs(weight).max(initial=1)) or 1)), 255)


def product_type(b: IntegerBuilder, name: str, node: Weighted, x: IntegerSignal) -> FloatType:
    """The float type that holds sums and results."""
    bias = int(np.abs(node.bias).max(initial=0))
    return b.float_type(max(b.ranges[name].magnitude + bias, largest_sum(node.weight, x)), name)


def emit_rows(b: IntegerBuilder, name: str, node: Weighted, x: IntegerSignal) -> IntegerSignal:
    """``shift(w · window, exponent) + bias``, times the gain, plus biases of neurons behind it; zero padding."""
    dtype = product_type(b, name, node, x)
    operand = _operand(b, name, node, b.ungrouped(x), dtype)
    layer = _Layer(b, name, node, x.shape, b.shapes[name], operand, dtype)
    given = operand.signal
    together = given.time == "steps" and b.time_steps > 1 and int(np.prod(layer.shape)) <= TOGETHER
    if given.time != "steps" or together:
        values = [layer.product(layer.rows(None), None)]
    else:
        values = [layer.product(layer.rows(step), step) for step in range(b.time_steps)]
    return IntegerSignal(
        tuple(values), layer.shape, given.time, dtype, b.ranges[name], layer.gain, layer.addend, together
    )


# operands


@dataclass(frozen=True)
class _Operand:
    """What is multiplied: `signal` with `len(signs)` times as many channels; ``x = Σ sign · part``."""

    signal: IntegerSignal
    signs: tuple[int, ...]
    integer: bool


def _operand(b: IntegerBuilder, name: str, node: Weighted, x: IntegerSignal, dtype: FloatType) -> _Operand:
    """The input as bytes for MatMulInteger, or as whole floats where bytes would overflow a kernel."""
    top = largest_byte(node.weight)
    high, low = int(x.range.high.max(initial=0)), int(x.range.low.min(initial=0))
    plus, minus = -(-max(high, 0) // top), -(-max(-low, 0) // top)
    x = b.whole_numbers(x, name)
    if plus + minus > MAX_PARTS or largest_sum(node.weight, x) >= 1 << 31:
        return _Operand(b.cast(x, dtype), (1,), False)
    if (plus, minus) == (1, 0) or x.range.magnitude == 0:
        return _Operand(b.cast(x, np.uint8), (1,), True)
    signs = (1,) * plus + (-1,) * minus
    starts = [*range(0, plus * top, top), *range(0, minus * top, top)]
    plain = b.real(x, name)

    def parts(value: str) -> str:
        cut = [_part(b, value, sign, start, top, plain) for sign, start in zip(signs, starts, strict=True)]
        return b.aux("Concat", cut, value, "parts", axis=-1) if len(cut) > 1 else cut[0]

    return _Operand(b.apply(plain, f"parts_{top}", parts, dtype=np.uint8), signs, True)


def _part(b: IntegerBuilder, value: str, sign: int, start: int, top: int, x: IntegerSignal) -> str:
    """``clip(sign · x - start, 0, top)`` as a byte; over all starts these add up to the positive part of sign · x."""
    what = f"part_{'plus' if sign > 0 else 'minus'}_{start}"
    part = b.aux("Neg", [value], value, f"{what}/negative") if sign < 0 else value
    if start:
        part = b.aux("Sub", [part, b.number(start, x.dtype)], value, f"{what}/above")
    limits = [b.number(0, x.dtype), b.number(top, x.dtype)]
    clipped = b.aux("Clip", [part, *limits], value, f"{what}/clipped")
    return b.aux("Cast", [clipped], value, what, to=TensorProto.UINT8)


# products


class _Layer:
    """One weighted node: its constants, its windows and its products."""

    def __init__(
        self,
        b: IntegerBuilder,
        name: str,
        node: Weighted,
        given: Shape,
        shape: Shape,
        operand: _Operand,
        dtype: FloatType,
    ) -> None:
        self.b, self.name, self.node, self.given, self.shape = b, name, node, given, shape
        self.source = b.originals.get(name, name)
        self.operand, self.dtype = operand, dtype
        self.gain = b.gains.get(name, 1)
        self.addend = b.addends.get(name)
        self.tokens, self.channels = b.stored(shape)
        self.steps = b.time_steps if operand.signal.time == "steps" else 1
        weight = node.weight if isinstance(node, IntegerConv2d) else node.weight[:, :, None, None]
        self.groups = node.groups if isinstance(node, IntegerConv2d) else 1
        out, self.per_group, *self.kernel = weight.shape
        window = self.kernel[0] * self.kernel[1]
        stored = weight.reshape(self.groups, out // self.groups, self.per_group, window).transpose(0, 3, 2, 1)
        self.window = window
        self.weight = self._weight(stored)
        self.floors = bool(np.any(node.exponent < 0))
        gain = 1 if self.floors else self.gain
        scale = np.ldexp(np.float64(gain), node.exponent.astype(np.int32))
        self.scale = b.whole.once((self.source, "scale"), lambda: b.array(f"{self.source}.scale", scale.astype(dtype)))
        added = node.bias * self.gain + (0 if self.addend is None else self.addend)
        self.bias = ""
        if added.any():
            stored_bias = added.astype(dtype)
            self.bias = b.whole.once((self.source, "bias"), lambda: b.array(f"{self.source}.bias", stored_bias))

    def rows(self, step: int | None) -> str:
        """The rows of a step, or of all of them."""
        b, signal, node = self.b, self.operand.signal, self.node
        strided = isinstance(node, IntegerConv2d) and (
            self.kernel != [1, 1] or node.stride != (1, 1) or node.padding != (0, 0)
        )
        if not strided:
            return b.all_steps(signal) if step is None else b.each(signal)[step]
        return self._windows(step)

    def product(self, rows: str, step: int | None) -> str:
        """The result of a step (or of all) from its rows [batch, tokens, K]."""
        b, label = self.b, self.b.label(self.name, step)
        if self.groups > 1:
            rows = self._grouped(rows, label)
        if self.operand.integer:
            value = b.aux("MatMulInteger", [rows, self.weight], label, "sum")
        else:
            weight = b.whole.once(
                (self.weight, "real"),
                lambda: b.whole.aux("Cast", [self.weight], self.weight, "real", to=ELEMENT[np.dtype(self.dtype)]),
            )
            value = b.aux("MatMul", [rows, weight], label, "sum")
        if self.groups > 1:  # [groups, rows, out of a group]
            value = b.aux("Transpose", [value], label, "apart", perm=[1, 0, 2])
            count = self.tokens * (self.steps if step is None else 1)
            value = b.reshape(value, (-1, count, self.channels), label, "joined")
        if self.operand.integer:
            value = b.aux("Cast", [value], label, "whole", to=ELEMENT[np.dtype(self.dtype)])
        scale = self.scale
        if self.operand.integer and self.dtype is np.float32:
            scale = b.aux("Mul", [b.one(), scale], label, "scale")
        value = b.aux("Mul", [value, scale], label, "current")
        if self.floors:
            value = b.aux("Floor", [value], label, "floored")
            if self.gain != 1:
                value = b.aux("Mul", [value, b.number(self.gain, self.dtype)], label, "gained")
        if self.bias:
            value = b.aux("Add", [value, self.bias], label, "biased")
        return b.rename(value, self.name, step)

    def _weight(self, stored: Int) -> str:
        """[groups, K, out], or [K, out] for one group; repeated per byte where the input was cut into several."""
        b, name, signs = self.b.whole, self.source, self.operand.signs
        groups, window, channels, out = stored.shape

        def write() -> str:
            if signs == (1,):
                full = stored.reshape(groups, window * channels, out)
                return b.array(f"{name}.weight", (full[0] if groups == 1 else full).astype(np.int8))
            weight = b.array(f"{name}.weight", stored.astype(np.int8))
            negative = b.aux("Neg", [weight], f"{name}.weight", "negative") if -1 in signs else ""
            parts = [weight if sign > 0 else negative for sign in signs]
            repeated = b.aux("Concat", parts, f"{name}.weight", "parts", axis=2)
            lead = (groups,) if groups > 1 else ()
            return b.reshape(repeated, (*lead, window * len(signs) * channels, out), f"{name}.weight", "rows")

        written: str = b.once((name, "weight"), write)
        return written

    def _windows(self, step: int | None) -> str:
        """Every window of a step (or of all) as one row [batch, H'·W', window · channels].

        First the columns of each window side by side, by slices of all steps, then its lines, by one Gather: what a
        Gather costs is its number of rows, which these are a third of. It takes from all steps, behind a row of zeros
        for the padding; so layers are computed one after the other, and what a layer remembers is still in the cache at
        its next step.
        """
        b, node = self.b, self.node
        assert isinstance(node, IntegerConv2d)
        label = b.label(self.name, step)
        source = self._columns()
        rows, channels = self.tokens * (self.steps if step is None else 1), self.given[0] * len(self.operand.signs)
        if node.padding[0]:
            inner, zero = source, b.ints(0, 1, 0, 0, 0, 0)
            source = b.once((inner, "padded"), lambda: b.aux("Pad", [inner, zero], inner, "padded"))
        index = self._index(0 if step is None else step, self.steps if step is None else 1)
        taken = b.aux("Gather", [source, index], label, "taken", axis=1)
        return b.reshape(taken, (-1, rows, self.window * channels), label, "windows")

    def _columns(self) -> str:
        """All steps [batch, steps · H · W', kernel width · channels]: the columns of each window side by side."""
        b, node, source = self.b, self.node, self.b.all_steps(self.operand.signal)
        assert isinstance(node, IntegerConv2d)
        (_, height, width), columns, taps = self.given, self.shape[2], self.kernel[1]
        pad, stride, dilation = node.padding[1], node.stride[1], node.dilation[1]
        channels = self.given[0] * len(self.operand.signs)
        if (taps, pad, stride) == (1, 0, 1):
            return source

        def write() -> str:
            value = b.reshape(source, (-1, width, channels), source, "lines")
            if pad:
                value = b.aux("Pad", [value, b.ints(0, pad, 0, 0, pad, 0)], source, "padded_lines")
            shifted = []
            for tap in range(taps):
                first = tap * dilation
                limits = [b.ints(first), b.ints(first + (columns - 1) * stride + 1), b.ints(1), b.ints(stride)]
                shifted.append(b.aux("Slice", [value, *limits], source, f"column_{tap}"))
            value = b.aux("Concat", shifted, source, "columns", axis=2) if taps > 1 else shifted[0]
            return b.reshape(value, (-1, self.steps * height * columns, taps * channels), source, "wide")

        wide: str = b.once((source, "columns", columns, taps, pad, stride, dilation), write)
        return wide

    def _index(self, first: int, count: int) -> str:
        """Rows of `_columns` that make the windows, [count · H' · W' · kernel height]: sums of small tables."""
        node, b = self.node, self.b.whole
        assert isinstance(node, IntegerConv2d)
        height, (lines, columns) = self.given[1], self.shape[1:]
        padded = int(node.padding[0] > 0)
        outside = -2 * self.steps * height * columns - 2  # with anything added still negative: the row of zeros
        key = ("window", height, lines, columns, self.kernel[0], node.stride[0], node.padding[0], node.dilation[0])

        def tables() -> str:
            label = b.unique(f"index/{lines}x{columns}")
            at = np.arange(lines)[:, None] * node.stride[0] - node.padding[0]
            at = at + np.arange(self.kernel[0]) * node.dilation[0]
            at = np.where((at >= 0) & (at < height), at * columns, outside)
            small = [
                b.array(f"{label}.lines", at[:, None, :].astype(np.int32)),
                b.array(f"{label}.columns", np.arange(columns, dtype=np.int32).reshape(1, -1, 1)),
            ]
            return b.aux("Add", small, label, "window")

        window: str = b.once((*key, self.steps), tables)

        def shifted() -> str:
            start = np.arange(first, first + count) * height * columns + padded
            table = b.array(f"{window}/start", start.astype(np.int32).reshape(-1, 1, 1, 1))
            index = b.aux("Add", [window, table], window, "step")
            if padded:
                index = b.aux("Max", [index, b.number(0, np.int32)], window, "inside")
            return b.reshape(index, (-1,), window, "flat")

        index: str = b.once((*key, self.steps, first, count), shifted)
        return index

    def _grouped(self, rows: str, label: str) -> str:
        """[groups, rows, window · parts · channels of a group]."""
        b, parts = self.b, len(self.operand.signs)
        split = b.reshape(rows, (-1, self.window, parts, self.groups, self.per_group), label, "by_group")
        apart = b.aux("Transpose", [split], label, "groups", perm=[3, 0, 1, 2, 4])
        return b.reshape(apart, (self.groups, -1, self.window * parts * self.per_group), label, "group_rows")
