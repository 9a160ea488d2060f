"""From real weights to integers of a few bits, on the grid that costs least."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statten_deploy.ir.integer import IntArray

Real = NDArray[np.float64]

FRACTIONS = 8
"""Steps are tried at so many positions per octave: the best one is at most 4.5 % away."""
FINE_BITS = 4
"""From this many bits on, clipping below half of the largest weight never pays."""
BLOCK = 1 << 15
"""Weights looked at together: they and their errors stay in the cache."""


@dataclass(frozen=True)
class Rows:
    """Real weights of a branch [rows, n], and how much the square of each error counts [rows, n]; None: all alike."""

    weight: Real
    importance: Real | None = None

    def flat(self) -> "Rows":
        """All rows as one."""
        return Rows(self.weight.reshape(1, -1), None if self.importance is None else self.importance.reshape(1, -1))

    def largest(self) -> Real:
        """Per row."""
        return np.asarray(np.abs(self.weight).max(1, initial=0.0))


@dataclass(frozen=True)
class Grid:
    """``w · scale ≈ integer · 2^exponent``: one scale [rows] for all branches, one exponent [rows] for each."""

    scale: Real
    exponents: list[IntArray]


def largest_integer(bits: int) -> int:
    """2^(bits-1) - 1: the range is symmetric, -127 .. 127 for 8 bits."""
    return (1 << (bits - 1)) - 1


def shared_grid(branches: Sequence[Rows], bits: int, shifts: bool = True) -> Grid:
    """The grid with the least ``Σ importance (w - integer · 2^exponent / scale)²`` over all branches, row by row.

    Tried are a power of two, the scale at which the largest weight is the largest integer, and `FRACTIONS` positions
    per octave from there; branches that are added also at the next coarser exponent; few bits also at the next finer
    one. Without `shifts` all exponents are 0. Ties go to the power of two: weights that are exact in so many bits stay
    exact.
    """
    top = largest_integer(bits)
    peak = np.max([rows.largest() for rows in branches], axis=0)
    peak = np.where(peak > 0, peak, np.max(peak, initial=0.0) or 1.0)
    octaves = 1 if bits >= FINE_BITS else 2
    places = np.arange(FRACTIONS if shifts else FRACTIONS * octaves)[:, None] / FRACTIONS
    power = 2.0 ** np.floor(np.log2(top / peak) + 1e-9)
    scales = np.concatenate([power[None], top / peak * 2.0**places])
    offsets = [0] + [1] * (len(branches) > 1) + [-1] * (octaves > 1)
    tried = [_exponents(rows, scales, top, offsets if shifts else None) for rows in branches]
    best = np.sum([error for error, _ in tried], axis=0).argmin(0)[None]
    return Grid(
        np.take_along_axis(scales, best, 0)[0], [np.take_along_axis(exponent, best, 0)[0] for _, exponent in tried]
    )


def common_grid(rows: Rows, bits: int, by_row: bool, shifts: bool = True) -> tuple[Real, IntArray]:
    """One scale [1] for all rows and an exponent >= 0 for each ([rows]; or one for all, [1])."""
    grid = shared_grid([rows.flat()], bits, shifts)
    if not by_row or not shifts:
        return grid.scale, grid.exponents[0]
    scales = np.broadcast_to(grid.scale, (1, len(rows.weight)))
    _, exponents = _exponents(rows, scales, largest_integer(bits), [0, -1] if bits >= FINE_BITS else [0, -1, -2])
    least = exponents.min()
    return grid.scale * 2.0**-least, exponents[0] - least


def _exponents(rows: Rows, scales: Real, top: int, offsets: list[int] | None) -> tuple[Real, IntArray]:
    """(error, exponent) [candidates, rows] of a branch at every scale, with the best exponent of those tried.

    Tried are `offsets` from the least exponent that clips no weight (first scale) or from the one below it (the
    others); None: 0 is the only exponent.
    """
    exponents = np.zeros((1, *scales.shape))
    if offsets is not None:
        largest = rows.largest()
        octave = np.log2(scales * np.where(largest > 0, largest, top / scales) / top)
        near = np.concatenate([np.ceil(octave[:1] - 1e-9), np.floor(octave[1:] + 1e-9)])
        exponents = np.stack([near + offset for offset in offsets])
    errors = squared_errors(rows, 2.0**exponents / scales, top)
    best = errors.argmin(0)[None]
    return np.take_along_axis(errors, best, 0)[0], np.take_along_axis(exponents, best, 0)[0].astype(np.int64)


def squared_errors(rows: Rows, steps: Real, top: int) -> Real:
    """``Σ importance (w - q · clip(round(w / q)))²`` for every step q [..., rows]; the result has that shape."""
    size, width = rows.weight.shape
    tried = steps.reshape(-1, size)
    errors = np.empty(tried.shape)
    each = max(1, BLOCK // max(width, 1))
    for start in range(0, size, each):
        part = slice(start, start + each)
        weight = np.abs(rows.weight[part])
        counts = None if rows.importance is None else rows.importance[part]
        scaled, rounded = np.empty_like(weight), np.empty_like(weight)
        for index, step in enumerate(tried[:, part]):
            np.multiply(weight, (1 / step)[:, None], out=scaled)
            np.rint(scaled, out=rounded)
            np.minimum(rounded, top, out=rounded)
            np.subtract(scaled, rounded, out=scaled)
            np.multiply(scaled, scaled, out=rounded)
            squared = rounded.sum(1) if counts is None else np.einsum("ij,ij->i", rounded, counts)
            errors[index, part] = squared * step**2
    return errors.reshape(steps.shape)


def to_integers(rows: Real, scale: Real, bits: int) -> IntArray:
    """``clip(round(w · scale))`` per row."""
    top = largest_integer(bits)
    return np.clip(np.rint(rows * scale[:, None]), -top, top).astype(np.int64)


def mantissa_and_exponent(
    value: Real, mantissa_bits: int, exponent_max: int, exponent_min: int = 0
) -> tuple[IntArray, IntArray]:
    """Integers (m, e) with ``m << e`` nearest to `value`: m of so many bits, e as small as possible.

    What does not fit with an e of `exponent_max` is clipped.
    """
    top = largest_integer(mantissa_bits)
    exponent = np.full(value.shape, exponent_min, dtype=np.int64)
    for _ in range(exponent_max - exponent_min):
        exponent = exponent + (np.abs(np.rint(value / 2.0**exponent)) > top)
    return np.clip(np.rint(value / 2.0**exponent), -top, top).astype(np.int64), exponent
