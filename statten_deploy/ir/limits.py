"""What the integers of a quantised graph may be: the widths of the fixed-point arithmetic (docs/fixed_point.md)."""

from collections.abc import Callable, Iterator
from typing import Any

import nir
import numpy as np

from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.shapes import Shape

DEFAULT_BITS = 8
MAX_SHIFT = 24
"""Shifts beyond the 24 bits of a state lose everything or overflow."""
MAX_THRESHOLD = (1 << 17) - 1
MAX_BIAS = (1 << 23) - 1
MAX_MANTISSA = (1 << 12) - 1
MAX_DECAY = 1 << 12


def integer_problems(node: nir.NIRNode, shape: Shape | None, bits: int) -> Iterator[str]:
    """What is out of range at one node of a quantised graph; nothing for other nodes.

    `shape` is that of its output, if known; `bits` is the width of the weights.
    """
    rule = _RULES.get(type(node))
    if rule is not None:
        yield from rule(node, shape, bits)


def _outside(node: Any, field: str, low: int, high: int) -> Iterator[str]:
    values = np.asarray(getattr(node, field))
    if values.size and (values.min() < low or values.max() > high):
        worst = values.min() if values.min() < low else values.max()
        yield f"{field} holds {int(worst)}, expected whole numbers from {low} to {high}"


def _one_each(node: Any, fields: tuple[str, ...], channels: int) -> Iterator[str]:
    for field in fields:
        found = np.shape(getattr(node, field))
        if found != (channels,):
            yield f"{field} has shape {found}, expected ({channels},)"


def _positive(node: Any, field: str) -> Iterator[str]:
    if not np.all(np.asarray(getattr(node, field)) > 0):
        yield f"{field} must be positive"


def _encoder(node: InputEncoder, shape: Shape | None, bits: int) -> Iterator[str]:
    yield from _positive(node, "scale")
    yield from _outside(node, "zero_point", 0, 255)
    if shape:
        yield from _one_each(node, ("scale", "zero_point"), shape[0])


def _weighted(node: IntegerConv2d | IntegerLinear, shape: Shape | None, bits: int) -> Iterator[str]:
    largest = (1 << (bits - 1)) - 1
    yield from _outside(node, "weight", -largest, largest)
    yield from _outside(node, "exponent", -MAX_SHIFT, MAX_SHIFT)
    yield from _positive(node, "scale")
    yield from _one_each(node, ("exponent", "scale", "bias"), len(node.weight))
    yield from _outside(node, "bias", -MAX_BIAS, MAX_BIAS)


def _sum_pool(node: IntegerSumPool2d, shape: Shape | None, bits: int) -> Iterator[str]:
    yield from _outside(node, "exponent", -MAX_SHIFT, MAX_SHIFT)


def _neuron(node: IntegerLIF | IntegerLI, shape: Shape | None, bits: int) -> Iterator[str]:
    yield from _outside(node, "dv", 0, MAX_DECAY)
    yield from _outside(node, "du", 0, MAX_DECAY - 1)
    yield from _outside(node, "input_exponent", -MAX_SHIFT, MAX_SHIFT)
    fields = ["bias_mantissa", "bias_exponent"]
    if isinstance(node, IntegerLIF):
        yield from _outside(node, "threshold", 0, MAX_THRESHOLD)
        fields = ["threshold", *fields]
    else:
        yield from _positive(node, "scale")
        yield from _one_each(node, ("scale",), node.shape[0])
    yield from _outside(node, "bias_mantissa", -MAX_MANTISSA, MAX_MANTISSA)
    exponents = list(_outside(node, "bias_exponent", 0, MAX_SHIFT))
    yield from exponents
    expected = (*node.shape[:1], *(1,) * (len(node.shape) - 1))
    wrong = [f for f in fields if np.shape(getattr(node, f)) != expected]
    for field in wrong:
        yield f"{field} has shape {np.shape(getattr(node, field))}, expected {expected}: one per channel"
    if not wrong and not exponents:
        largest = int(np.abs(np.left_shift(node.bias_mantissa, node.bias_exponent)).max(initial=0))
        if largest > MAX_BIAS:
            yield f"its bias reaches {largest}, expected at most {MAX_BIAS}"


def _readout(node: TemporalSum, shape: Shape | None, bits: int) -> Iterator[str]:
    yield from _positive(node, "scale")


_RULES: dict[type[nir.NIRNode], Callable[..., Iterator[str]]] = {
    InputEncoder: _encoder,
    IntegerConv2d: _weighted,
    IntegerLinear: _weighted,
    IntegerSumPool2d: _sum_pool,
    IntegerLIF: _neuron,
    IntegerLI: _neuron,
    TemporalSum: _readout,
}
"""Every node of a quantised graph that has numbers."""
