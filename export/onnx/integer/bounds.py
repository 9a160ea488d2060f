"""How large the numbers inside a neuron get, and so which float type holds them exactly and what may be left out."""

from dataclasses import dataclass

import numpy as np

from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.arithmetic import (
    CURRENT_SHIFT,
    DECAY_BITS,
    NO_SYNAPTIC_MEMORY,
    STATE_BITS,
    STATE_MAX,
    Int,
    shift,
    truncate,
)
from statten_deploy.fixed_point.ranges import Interval, wrapped
from statten_deploy.ir.integer import IntegerLI, IntegerLIF

FloatType = type[np.float32] | type[np.float64]
ONE = 1 << DECAY_BITS
HALF, FULL = 1 << (STATE_BITS - 1), 1 << STATE_BITS
ALWAYS = 1 << 30
"""More steps than any."""
SETTLES = 64
"""Steps to wait for the bounds of a state to settle, as those of a leaky one do."""


def exact_float(magnitude: int, name: str) -> FloatType:
    """The float type that holds every whole number up to `magnitude`: float32 below 2^24, float64 below 2^53.

    Raises:
        UnsupportedError: neither does.
    """
    if magnitude < 1 << 24:
        return np.float32
    if magnitude < 1 << 53:
        return np.float64
    raise UnsupportedError(
        f"{name!r}: its numbers can reach {magnitude}, expected less than 2^53; use smaller weights or exponents"
    )


@dataclass(frozen=True)
class NeuronPlan:
    """What a layer's neurons need, proved for every input.

    `dtype` holds every number of the update exactly, but for the products of the decays of `v` and `u` where `splits`
    says so; `whole`: so many decays of v from the first on leave nothing to truncate. `saturates`: it matters that
    membranes are clipped, which at the upper end it does not where they fire anyway.
    """

    dtype: FloatType
    dv: int
    du: int
    wraps: bool
    saturates: bool
    whole: int
    splits: tuple[bool, bool] = (False, False)


def plan_neuron(name: str, node: IntegerLIF | IntegerLI, a: Interval, steps: int | None) -> NeuronPlan:
    """Interval arithmetic over all steps for input sums `a` (after `input_exponent`), per channel.

    `steps` None: over any number of them, as a stream needs it.
    """
    kept, recalled = ONE - node.dv, NO_SYNAPTIC_MEMORY - node.du
    bias = neuron_bias(node).reshape(-1)
    fires = isinstance(node, IntegerLIF)
    threshold = shift(node.threshold, CURRENT_SHIFT).reshape(-1) if fires else np.full_like(bias, STATE_MAX)
    top = STATE_MAX if threshold.max(initial=0) >= STATE_MAX else np.inf
    current = a.shifted(CURRENT_SHIFT)
    u = v = Interval(np.zeros_like(a.low), np.zeros_like(a.low))
    largest = a.magnitude  # a << 6 has no more significant bits than a
    products = [0, 0]
    wraps = saturates = False
    for step in range(SETTLES + 2 if steps is None else steps):
        before = u, v
        if recalled:
            products[1] = max(products[1], u.magnitude * odd_part(recalled))
            u = _decayed(u, recalled) + current
            largest = max(largest, u.magnitude)
        else:
            u = current
        if bool(np.any(u.high > HALF) or np.any(u.low <= -HALF)):
            wraps, u = True, wrapped(u)
        drive = Interval(u.low + bias, u.high + bias)
        products[0] = max(products[0], v.magnitude * odd_part(kept))
        v = _decayed(v, kept) + drive
        # Sums with the bias and with what was left may need more bits. They are beyond 2^24 then, and rounded to
        # something beyond 2^24, while the rest is below 2^23: whatever it is, it is clipped, or fires.
        saturates |= bool(np.any(v.low < -STATE_MAX) or np.any(v.high > top))
        # what stays below the threshold, or 0 after a spike
        v = Interval(np.clip(v.low, -STATE_MAX, 0), np.clip(v.high, 0, threshold))
        if steps is None and all(_same(old, new) for old, new in zip(before, (u, v), strict=True)):
            break
        if steps is None and step == SETTLES:  # one more step from whatever the registers can hold
            u = Interval(np.full_like(u.low, 1 - HALF), np.full_like(u.high, HALF)) if recalled else u
            v = Interval(np.full_like(v.low, -STATE_MAX), np.maximum(threshold, 0) + np.zeros_like(v.high))
    whole = ALWAYS if kept in (0, ONE) else 0
    if not (saturates or recalled or steps is None):
        whole = _whole_decays(node, bias)
    dtype = exact_float(largest, name)
    limit = 1 << (24 if dtype is np.float32 else 53)
    splits = products[0] >= limit, products[1] >= limit
    return NeuronPlan(dtype, node.dv, node.du, wraps, saturates, whole, splits)


def _same(a: Interval, b: Interval) -> bool:
    return bool(np.array_equal(a.low, b.low) and np.array_equal(a.high, b.high))


def neuron_bias(node: IntegerLIF | IntegerLI) -> Int:
    """Bias in membrane units, shaped as in the node."""
    return shift(node.bias_mantissa, node.bias_exponent)


def odd_part(factor: int) -> int:
    """`factor` without its powers of two: only this multiplies the significant bits of a product."""
    return factor // (factor & -factor) if factor else 0


def _decayed(x: Interval, factor: int) -> Interval:
    return Interval(truncate(x.low * factor), truncate(x.high * factor))


def _whole_decays(node: IntegerLIF | IntegerLI, bias: Int) -> int:
    """How many decays by (4096 - dv) / 4096 stay whole numbers.

    Drives are multiples of 2^k, as ``a << 6`` and the biases are; each decay uses up some of the k.
    """
    kept = ONE - node.dv
    if kept in (0, ONE):
        return ALWAYS
    k = CURRENT_SHIFT + max(node.input_exponent, 0)
    together = int(np.bitwise_or.reduce(np.abs(bias)))
    if together:
        k = min(k, _twos(together))
    return k // (DECAY_BITS - _twos(kept))


def significant(largest: int, step: int, *offsets: Int) -> int:
    """Bound of multiples of `step` up to `largest` with offsets added, without the factors of 2 that all of it has."""
    common = step
    for values in offsets:
        largest += int(np.abs(values).max(initial=0))
        common |= int(np.bitwise_or.reduce(np.abs(values), axis=None))
    return largest >> _twos(common)


def _twos(value: int) -> int:
    """The powers of two in a number."""
    return (value & -value).bit_length() - 1
