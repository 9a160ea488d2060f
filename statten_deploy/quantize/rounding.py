"""From real weights to integers of a few bits, with the clip that costs least."""

import numpy as np
from numpy.typing import NDArray

from statten_deploy.ir.integer import IntArray

Real = NDArray[np.float64]
CLIPS = np.linspace(1.0, 0.4, 25)
"""Fractions of the largest weight that are tried as the end of the integer range."""


def largest_integer(bits: int) -> int:
    """2^(bits-1) - 1: the range is symmetric, -127 .. 127 for 8 bits."""
    return (1 << (bits - 1)) - 1


def best_step(rows: Real, bits: int) -> Real:
    """Per row of [rows, n], the step ``q`` with the least ``Σ (w - q · clip(round(w / q)))²`` of the tried clips.

    0 for a row of zeros.
    """
    top = largest_integer(bits)
    largest = np.abs(rows).max(1, initial=0.0)
    best, least = largest / top, np.full(len(rows), np.inf)
    for clip in CLIPS:
        step = largest * clip / top
        safe = np.where(step > 0, step, 1.0)[:, None]
        error = ((rows - safe * np.clip(np.rint(rows / safe), -top, top)) ** 2).sum(1)
        better = error < least
        best, least = np.where(better, step, best), np.where(better, error, least)
    return np.asarray(best)


def to_integers(rows: Real, scale: Real, bits: int) -> IntArray:
    """``clip(round(w · scale))`` per row."""
    top = largest_integer(bits)
    return np.clip(np.rint(rows * scale[:, None]), -top, top).astype(np.int64)


def mantissa_and_exponent(value: Real, mantissa_bits: int) -> tuple[IntArray, IntArray]:
    """Integers (m, e) with ``m << e`` nearest to `value`, m of so many bits and e >= 0 as small as possible."""
    top = largest_integer(mantissa_bits)
    exponent = np.zeros(value.shape, dtype=np.int64)
    while True:
        mantissa = np.rint(value / 2.0**exponent)
        over = np.abs(mantissa) > top
        if not over.any():
            return mantissa.astype(np.int64), exponent
        exponent = np.where(over, exponent + 1, exponent)
