"""What a caller hands over, checked before an engine sees it: one line says what is wrong."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError

RANGE_SLACK = 0.01
"""Part of the range by which values may leave it: interpolation and rounding do, wrong units do by far more."""


def check_count(name: str, value: object, most: int | None = None) -> int:
    """`value` as a whole number of at least 1, and of at most `most`.

    Raises:
        InputError: something else.
    """
    try:
        number = int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1 or (most is not None and number > most):
        wanted = "of at least 1" if most is None else f"from 1 to {most}"
        raise InputError(f"{name} must be a whole number {wanted}, got {value!r}")
    return number


def check_array(name: str, x: object, shapes: Sequence[Sequence[int | str]]) -> NDArray[np.float32]:
    """`x` as a float32 array of one of the `shapes`, whose words stand for any size of at least 1.

    Raises:
        InputError: another type, dtype or shape.
    """
    wanted = " or ".join("[" + ", ".join(map(str, shape)) + "]" for shape in shapes)
    if not isinstance(x, np.ndarray):
        raise InputError(f"{name}: expected a numpy array, float32 {wanted}, found {type(x).__name__}")
    if x.dtype != np.float32:
        raise InputError(f"{name}: expected float32 {wanted}, found {x.dtype}; convert it with astype(np.float32)")
    if not any(_fits(x.shape, shape) for shape in shapes):
        raise InputError(f"{name}: expected shape {wanted}, found {list(x.shape)}")
    return x


def _fits(found: Sequence[int], wanted: Sequence[int | str]) -> bool:
    return len(found) == len(wanted) and all(
        a == b or (isinstance(b, str) and a > 0) for a, b in zip(found, wanted, strict=True)
    )


def check_values(name: str, x: NDArray[Any], low: float, high: float) -> None:
    """Every number finite and in [low, high].

    Raises:
        InputError: NaN, infinite, or outside.
    """
    least, most = float(x.min()), float(x.max())  # both are NaN where any number is
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InputError(f"{name}: holds NaN or infinite values")
    slack = RANGE_SLACK * (high - low) if math.isfinite(high - low) else 0.0
    if least < low - slack or most > high + slack:
        worst = least if least < low - slack else most
        above, below = math.isfinite(low), math.isfinite(high)
        wanted = (
            f"from {low:g} to {high:g}" if above and below else f"of at least {low:g}" if above else f"up to {high:g}"
        )
        raise InputError(f"{name}: holds {worst:g}, the network takes values {wanted}; scale the input as in training")
