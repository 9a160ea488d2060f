"""The numbers that lava-dl's netx (0.6.0) and the Lava processes behind it keep without loss."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.fixed_point.arithmetic import BIAS_MANTISSA_BITS, CURRENT_SHIFT, STATE_BITS, shift
from statten_deploy.fixed_point.ranges import Interval
from statten_deploy.ir.integer import IntegerConv2d, IntegerLIF, IntegerLinear

LARGEST_BIAS = (1 << 15) - 1
"""Lava keeps the mantissa of a bias in 16 bits."""
CHIP_BIAS = (1 << (BIAS_MANTISSA_BITS - 1)) - 1
"""Loihi keeps 13 of them."""


def number_problems(
    name: str, weights: IntegerConv2d | IntegerLinear, neurons: IntegerLIF, current: Interval
) -> Iterator[str]:
    """What is lost of one layer; `current` bounds the sum of its inputs."""
    if np.ptp(neurons.threshold) > 0:
        yield f"{name!r} has a threshold per channel"
    if neurons.input_exponent or np.any(weights.exponent):
        yield f"the weights of {name!r} have exponents"
    if np.any(membrane_bias(neurons) % (1 << CURRENT_SHIFT)):
        yield f"biases of {name!r} are not multiples of {1 << CURRENT_SHIFT}"
    elif (largest := largest_bias(neurons)) > LARGEST_BIAS:
        yield f"biases of {name!r} reach {largest} times {1 << CURRENT_SHIFT}, the most is {LARGEST_BIAS}"
    if current.magnitude >= 1 << (STATE_BITS - 1):
        yield f"the input of {name!r} can reach {current.magnitude}, beyond the {STATE_BITS} bits of Lava's Conv"
    if np.any(weights.bias):
        yield f"the weights of {name!r} have a bias of their own"
    if isinstance(weights, IntegerLinear) and not _survives(weights.weight):
        yield f"lava-dl {'fails on' if not weights.weight.any() else 'clips'} the weights of {name!r}"


def membrane_bias(neurons: IntegerLIF) -> NDArray[np.int64]:
    """Biases [C] in membrane units."""
    return shift(neurons.bias_mantissa, neurons.bias_exponent).reshape(-1)


def largest_bias(neurons: IntegerLIF) -> int:
    """Largest bias in netx's unit, 64 membrane units."""
    return int(np.abs(membrane_bias(neurons) >> CURRENT_SHIFT).max(initial=0))


def _survives(weight: NDArray[Any]) -> bool:
    """Whether lava-dl packs a dense matrix without loss.

    It takes the logarithm of the largest weight, so not all may be 0; and where none is positive it scales a least
    weight of -2^k to -256, which Lava clips to -255.
    """
    least = -int(weight.min(initial=0))
    return bool((weight > 0).any()) or (least > 0 and least & (least - 1) != 0)
