"""Rounding weights to a few bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statten_deploy.quantize.rounding import best_step, largest_integer, mantissa_and_exponent, to_integers


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_best_step_is_no_worse_than_the_largest_weight(bits: int) -> None:
    rows = np.random.default_rng(0).normal(size=(16, 200))
    top = largest_integer(bits)

    def error(step: np.ndarray) -> np.ndarray:
        integers = to_integers(rows, 1 / step, bits)
        assert np.abs(integers).max() <= top
        return ((integers * step[:, None] - rows) ** 2).sum(1)

    plain = error(np.abs(rows).max(1) / top)
    best = error(best_step(rows, bits))
    assert (best <= plain + 1e-9).all()
    if bits <= 4:
        assert best.sum() < 0.95 * plain.sum()


def test_rows_of_zeros_have_no_step() -> None:
    assert best_step(np.zeros((2, 3)), 8).tolist() == [0, 0]


@given(st.integers(-(1 << 22), 1 << 22))
def test_mantissa_and_exponent_are_near(value: int) -> None:
    mantissa, exponent = mantissa_and_exponent(np.array([float(value)]), 13)
    assert abs(int(mantissa[0])) <= 4095
    assert abs((int(mantissa[0]) << int(exponent[0])) - value) <= (1 << int(exponent[0])) / 2
    assert int(exponent[0]) == 0 or abs(value) > 4095
