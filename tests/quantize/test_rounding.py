"""Rounding weights to a few bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from statten_deploy.quantize.rounding import (
    Rows,
    common_grid,
    largest_integer,
    mantissa_and_exponent,
    shared_grid,
    squared_errors,
    to_integers,
)

BITS = st.integers(2, 8)
WEIGHTS = arrays(np.float64, (3, 7), elements=st.floats(-4, 4, width=32))


def rounded(rows: np.ndarray, scale: np.ndarray, exponent: np.ndarray, bits: int) -> np.ndarray:
    """Back in real units."""
    integers = to_integers(rows, scale * 2.0**-exponent, bits)
    assert np.abs(integers).max() <= largest_integer(bits)
    return integers * (2.0**exponent / scale)[:, None]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_grid_is_no_worse_than_that_of_the_largest_weight(bits: int) -> None:
    rows = np.random.default_rng(0).normal(size=(16, 200))
    top = largest_integer(bits)
    plain = squared_errors(Rows(rows), np.abs(rows).max(1)[None] / top, top)[0]
    grid = shared_grid([Rows(rows)], bits)
    best = ((rounded(rows, grid.scale, grid.exponents[0], bits) - rows) ** 2).sum(1)
    assert (best <= plain + 1e-9).all()
    if bits <= 4:
        assert best.sum() < 0.95 * plain.sum()


@given(WEIGHTS, st.integers(1, 127), st.floats(1e-3, 1e3))
def test_errors_are_those_of_rounding_and_clipping(rows: np.ndarray, top: int, step: float) -> None:
    expected = [sum((w - step * max(-top, min(top, round(w / step)))) ** 2 for w in row) for row in rows.tolist()]
    found = squared_errors(Rows(rows), np.full((1, 3), step), top)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_what_counts_more_is_rounded_better() -> None:
    rows = np.array([[1.0, 0.2, 0.2]])
    seldom, often = (
        shared_grid([Rows(rows, np.array([counts]))], 2) for counts in ([100.0, 1.0, 1.0], [0.01, 100.0, 100.0])
    )
    assert np.round(rounded(rows, seldom.scale, seldom.exponents[0], 2)[0, 0], 1) == 1.0
    assert np.abs(rounded(rows, often.scale, often.exponents[0], 2)[0, 1] - 0.2) < 0.08


@given(BITS, st.data())
def test_weights_that_fit_stay_exact_where_branches_are_added(bits: int, data: st.DataObject) -> None:
    """Integers of so many bits times any power of two, another one per row and branch."""
    top = largest_integer(bits)
    integers = data.draw(arrays(np.int64, (2, 3, 5), elements=st.integers(-top, top)))
    powers = data.draw(arrays(np.int64, (2, 3, 1), elements=st.integers(-6, 6)))
    branches = integers * 2.0**powers
    grid = shared_grid([Rows(rows) for rows in branches], bits)
    for rows, exponent in zip(branches, grid.exponents, strict=True):
        np.testing.assert_array_equal(rounded(rows, grid.scale, exponent, bits), rows)


@pytest.mark.parametrize("bits", [4, 8])
def test_branches_of_any_size_keep_their_bits(bits: int) -> None:
    """No worse than with steps twice as coarse as the largest weight asks for, whatever the other branches need."""
    rng = np.random.default_rng(1)
    top = largest_integer(bits)
    branches = [rng.uniform(-1, 1, size=(50, 30)) * size for size in (1.0, 0.3, 0.013)]
    grid = shared_grid([Rows(rows) for rows in branches], bits)
    for rows, exponent in zip(branches, grid.exponents, strict=True):
        error = ((rounded(rows, grid.scale, exponent, bits) - rows) ** 2).mean(1)
        assert (error <= (np.abs(rows).max(1) / top) ** 2).all()


@given(BITS, WEIGHTS, WEIGHTS)
def test_without_shifts_all_exponents_are_zero(bits: int, first: np.ndarray, second: np.ndarray) -> None:
    grid = shared_grid([Rows(first), Rows(second)], bits, shifts=False)
    assert not any(exponent.any() for exponent in grid.exponents)
    assert (grid.scale > 0).all()


@given(BITS, WEIGHTS, st.booleans())
def test_a_readout_has_one_scale_and_loses_no_bits_to_shifts(bits: int, rows: np.ndarray, by_row: bool) -> None:
    scale, exponent = common_grid(Rows(rows), bits, by_row)
    assert scale.shape == (1,)
    assert exponent.min() >= 0 or not by_row
    error = np.abs(rounded(rows, np.repeat(scale, 3), np.broadcast_to(exponent, 3), bits) - rows)
    assert error.max() <= np.abs(rows).max() * 0.8 + 1e-9


def test_rows_of_zeros_get_the_scale_of_the_others() -> None:
    grid = shared_grid([Rows(np.array([[0.0, 0.0], [1.0, 0.5]]))], 8)
    assert np.isfinite(grid.scale).all()
    assert 0.5 <= grid.scale[0] / grid.scale[1] <= 2
    assert np.isfinite(shared_grid([Rows(np.zeros((2, 3)))], 8).scale).all()


@given(st.integers(-(1 << 22), 1 << 22))
def test_mantissa_and_exponent_are_near(value: int) -> None:
    mantissa, exponent = mantissa_and_exponent(np.array([float(value)]), 13, 20)
    assert abs(int(mantissa[0])) <= 4095
    assert abs((int(mantissa[0]) << int(exponent[0])) - value) <= (1 << int(exponent[0])) / 2
    assert int(exponent[0]) == 0 or abs(value) > 4095


@given(st.integers(-(1 << 22), 1 << 22))
def test_what_the_exponent_cannot_reach_is_clipped(value: int) -> None:
    mantissa, exponent = mantissa_and_exponent(np.array([float(value)]), 13, 7)
    assert 0 <= int(exponent[0]) <= 7
    expected = max(-(4095 << 7), min(4095 << 7, value))
    assert abs((int(mantissa[0]) << int(exponent[0])) - expected) <= 64


@given(st.integers(-(1 << 22), 1 << 22), st.integers(0, 6))
def test_the_least_exponent_makes_multiples(value: int, least: int) -> None:
    mantissa, exponent = mantissa_and_exponent(np.array([float(value)]), 13, 7, least)
    assert least <= int(exponent[0]) <= 7
    expected = max(-(4095 << 7), min(4095 << 7, value))
    assert abs((int(mantissa[0]) << int(exponent[0])) - expected) <= (1 << int(exponent[0])) / 2
