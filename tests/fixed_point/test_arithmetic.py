"""The arithmetic against Python's own unbounded integers, one neuron at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statten_deploy.fixed_point import STATE_MAX, lif_step, saturate, shift, synapse_step, truncate, wrap
from tests.fixed_point.slow_network import neuron

WORD = st.integers(-(1 << 40), 1 << 40)
STATE = st.integers(-STATE_MAX, STATE_MAX)


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@given(WORD, st.integers(-20, 20))
def test_shift_multiplies_or_floors(a: int, e: int) -> None:
    assert shift(array(a), e)[0] == (a << e if e >= 0 else a // 2**-e)


@given(WORD)
def test_truncate_rounds_towards_zero(a: int) -> None:
    expected = abs(a) // 4096 * (1 if a >= 0 else -1)
    assert truncate(array(a))[0] == expected
    assert truncate(array(-a))[0] == -expected


@given(WORD)
def test_wrap_turns_once(a: int) -> None:
    expected = a - 2**24 if a > 2**23 else a + 2**24 if a <= -(2**23) else a
    assert wrap(array(a))[0] == expected


@given(STATE)
def test_wrap_leaves_what_fits(a: int) -> None:
    assert wrap(array(a))[0] == a


@given(WORD)
def test_saturation_is_symmetric(a: int) -> None:
    assert saturate(array(a))[0] == max(-8388607, min(8388607, a)) == -saturate(array(-a))[0]


@given(
    STATE,
    STATE,
    st.integers(-(1 << 20), 1 << 20),
    st.integers(0, 4095),
    st.integers(0, 4096),
    st.integers(-(1 << 22), 1 << 22),
    st.integers(0, 1 << 16),
)
def test_one_step_is_the_specification(u: int, v: int, a: int, du: int, dv: int, bias: int, threshold: int) -> None:
    current = synapse_step(array(u), array(a), du)
    spikes, after, _ = lif_step(array(v), current, dv=dv, bias=array(bias), threshold=array(threshold))
    expected = neuron(u, v, a, du, dv, bias, threshold)
    assert (bool(spikes[0]), int(current[0]), int(after[0])) == expected


@pytest.mark.parametrize(("a", "fires"), [(31, False), (32, True)])
def test_threshold_minus_one_fires_at_equality(a: int, fires: bool) -> None:
    """θ << 5 less one, strictly: a membrane of exactly 64 · 32 fires."""
    spikes, _, _ = lif_step(array(0), array(a << 6), dv=2048, bias=array(0), threshold=array(31))
    assert bool(spikes[0]) is fires
