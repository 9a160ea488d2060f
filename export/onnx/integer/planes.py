"""Convolutions and linear layers for OpenVINO: Conv and MatMul between QuantizeLinear and DequantizeLinear of scale 1.

Spikes are float32; what stands in front of a product writes them as bytes and takes them back, and the weights are int8
behind a DequantizeLinear that shifts them. OpenVINO makes integer products of that; as ONNX defines it, it is a product
of whole numbers below 2^24 in float32, so the order of the sums does not matter.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from statten_deploy.export.onnx.integer.bounds import FloatType
from statten_deploy.export.onnx.integer.products import TOGETHER, Weighted, largest_byte, product_type
from statten_deploy.export.onnx.integer.signals import IntegerBuilder, IntegerSignal
from statten_deploy.fixed_point.arithmetic import Int
from statten_deploy.ir.integer import IntegerConv2d

WITHOUT_SCALE = frozenset({"Greater", "Where"})
"""What neurons do first. OpenVINO leaves the scale of a product in front of these operators."""


PASSED = frozenset({"Identity", "Mul"})
"""What a scale is taken past on its way to those."""


def emit_planes(b: IntegerBuilder, name: str, node: Weighted, x: IntegerSignal) -> IntegerSignal:
    """``shift(w · window, exponent) + bias``, times the gain, plus biases of neurons behind it; zero padding."""
    dtype = product_type(b, name, node, x)
    x, shape, node = b.whole_numbers(x, name), b.shapes[name], _without_padded_pixels(node)
    quantised = x.is_bytes and int(x.range.high.max(initial=0)) <= largest_byte(node.weight)
    gain, addend = b.gains.get(name, 1), b.addends.get(name)
    floors = bool(np.any(node.exponent < 0))
    weight = _weight(b, name, node, 1 if floors else gain)
    added = node.bias * gain + (0 if addend is None else addend)
    bias = [b.array(f"{name}.bias", added.astype(dtype))] if added.any() and not floors else []

    def product(value: str, label: str) -> str:
        result = _product(b, label, node, value, weight, bias)
        if not floors:
            return result
        result = b.aux("Floor", [result], label, "floored")
        if gain != 1:
            result = b.aux("Mul", [result, b.number(gain, dtype)], label, "gained")
        return _biased(b, name, result, label, added, shape, dtype)

    together = x.time == "steps" and b.time_steps > 1 and int(np.prod(shape)) <= TOGETHER
    if x.time != "steps" or together:
        value = bytes_of(b, x, None) if quantised else b.all_steps(x)
        values = [b.rename(product(value, name), name)]
    else:
        values = []
        for step in range(b.time_steps):
            value = bytes_of(b, x, step) if quantised else b.each(x)[step]
            values.append(b.rename(product(value, b.label(name, step)), name, step))
    return IntegerSignal(tuple(values), shape, x.time, dtype, b.ranges[name], gain, addend, together)


def bytes_of(b: IntegerBuilder, x: IntegerSignal, step: int | None) -> str:
    """Bytes, or all steps of them, written as bytes and taken back."""
    zero, one = b.number(0, np.uint8), b.number(1, np.float32)

    def written(value: str) -> str:
        stored: str = b.once((value, "u8"), lambda: b.aux("QuantizeLinear", [value, one, zero], value, "u8"))
        return stored

    def taken(stored: str, name: str) -> str:
        return b.aux("DequantizeLinear", [stored, one, zero], name, "byte")

    if step is not None or len(x.values) == 1:
        value = b.each(x)[step] if step is not None else x.value
        result: str = b.once(
            (value, "bytes"), lambda: value if value in b.dequantised else taken(written(value), value)
        )
        return result
    if all(value in b.dequantised for value in x.values):
        return b.all_steps(x)
    name = x.values[0].rpartition("/")[0]

    def together() -> str:
        stored = [written(value) for value in x.values]
        return taken(b.aux("Concat", stored, name, "u8", axis=0), name)

    result = b.once((x.values, "bytes"), together)
    return result


def _weight(b: IntegerBuilder, name: str, node: Weighted, gain: int) -> str:
    """int8 weights, shifted; one scale for each output channel."""
    stored = node.weight if isinstance(node, IntegerConv2d) else node.weight[:, :, None, None]
    scale = np.ldexp(np.float64(gain), node.exponent.astype(np.int32)).astype(np.float32)
    values = [b.array(f"{name}.weight", stored.astype(np.int8)), b.array(f"{name}.scale", scale)]
    return b.aux("DequantizeLinear", values, f"{name}.weight", "shifted", axis=0)


def _without_padded_pixels(node: Weighted) -> Weighted:
    """1x1 convolutions with padding as 3x3 ones with zeros around the weight: OpenVINO (2026.4) ignores the padding."""
    if not isinstance(node, IntegerConv2d) or node.weight.shape[2:] != (1, 1) or node.padding == (0, 0):
        return node
    around = np.pad(node.weight, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return replace(node, weight=around, padding=(node.padding[0] + 1, node.padding[1] + 1), dilation=(1, 1))


def _product(b: IntegerBuilder, label: str, node: Weighted, value: str, weight: str, bias: list[str]) -> str:
    if not isinstance(node, IntegerConv2d):  # OpenVINO's products of a few rows are slower
        out, into = node.weight.shape
        pixel = b.reshape(value, (-1, into, 1, 1), label, "pixel")
        result = b.aux("Conv", [pixel, weight, *bias], label, "sum", kernel_shape=[1, 1])
        return b.reshape(result, (-1, out), label, "flat")
    (ph, pw), kernel = node.padding, list(node.weight.shape[2:])
    return b.aux(
        "Conv",
        [value, weight, *bias],
        label,
        "sum",
        kernel_shape=kernel,
        pads=[ph, pw, ph, pw],
        strides=list(node.stride),
        dilations=list(node.dilation),
        group=node.groups,
    )


def _biased(
    b: IntegerBuilder, name: str, value: str, label: str, added: Int, shape: tuple[int, ...], dtype: FloatType
) -> str:
    if not added.any():
        return value
    column = added.reshape(-1, *(1,) * (len(shape) - 1)).astype(dtype)
    bias = b.once((name, "added"), lambda: b.array(f"{name}.bias", column))
    return b.aux("Add", [value, bias], label, "biased")


def hold_scales(b: IntegerBuilder) -> None:
    """A Round, which leaves whole numbers as they are, behind every convolution that several nodes calculate with.

    Where the batch is not fixed, OpenVINO (2026.4) gives each of them a copy of the scale of the weights, and then
    multiplies with several of these copies in the convolution. It takes none past a Round; nor past a bias, so
    convolutions that have one are left alone.
    """
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in b.graph.node:
        for value in node.input:
            readers[value].append(node)

    def users(value: str) -> list[str]:
        found: list[str] = []
        for node in readers[value]:
            found += users(node.output[0]) if node.op_type in PASSED else [node.op_type]
        return found

    nodes: list[onnx.NodeProto] = []
    for node in b.graph.node:
        nodes.append(node)
        value = node.output[0]
        if node.op_type != "Conv" or len(node.input) > 2:
            continue
        if len(used := users(value)) > 1 and not WITHOUT_SCALE.issuperset(used):
            rounded = helper.make_node("Round", [b.unique(f"{value}/product")], [value], name=node.name)
            node.output[0] = node.name = rounded.input[0]
            nodes.append(rounded)
    del b.graph.node[:]
    b.graph.node.extend(nodes)
