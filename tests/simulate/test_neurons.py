"""Every neuron model against a loop over single neurons, written from the equations in nir's docstrings.

All numbers are multiples of powers of two, so both sides are exact and must be equal.
"""

from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.simulate import Simulator
from tests.simulate.builders import chain, eighths, inp, out

DT = 2.0**-13
MODELS = [nir.LIF, nir.CubaLIF, nir.IF, nir.LI, nir.CubaLI, nir.I]
FIELDS = {
    nir.LIF: ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    nir.CubaLIF: ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    nir.IF: ("r", "v_threshold", "v_reset"),
    nir.LI: ("tau", "r", "v_leak"),
    nir.CubaLI: ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    nir.I: ("r",),
}


def one_neuron(model: type[Any], p: dict[str, float], currents: list[float]) -> list[float]:
    """Forward Euler in double precision; the new synaptic current drives the membrane of the same step."""
    v, i, result = p.get("v_leak", 0.0), 0.0, []
    for x in currents:
        if model in (nir.CubaLIF, nir.CubaLI):
            i = i + DT / p["tau_syn"] * (-i + p["w_in"] * x)
            v = v + DT / p["tau_mem"] * ((p["v_leak"] - v) + p["r"] * i)
        elif model in (nir.LIF, nir.LI):
            v = v + DT / p["tau"] * ((p["v_leak"] - v) + p["r"] * x)
        else:
            v = v + DT * p["r"] * x
        if model in (nir.LIF, nir.CubaLIF, nir.IF):
            fired = v > p["v_threshold"]
            v = p["v_reset"] if fired else v
            result.append(1.0 if fired else 0.0)
        else:
            result.append(v)
    return result


def parameters(model: type[Any], rng: np.random.Generator, size: int, same: bool) -> dict[str, np.ndarray]:
    choices = {
        "tau": DT * np.array([1.0, 2.0, 4.0]),
        "tau_syn": DT * np.array([1.0, 2.0, 4.0]),
        "tau_mem": DT * np.array([1.0, 2.0]),
        "r": np.array([1.0, 0.5, 2.0]) if model not in (nir.IF, nir.I) else np.array([1.0, 2.0]) / DT,
        "v_leak": np.array([0.0, 0.25, -0.5]),
        "v_threshold": np.array([0.5, 0.75, 1.0]),
        "v_reset": np.array([0.0, -0.25, 0.125]),
        "w_in": np.array([1.0, 2.0]),
    }
    drawn = {field: rng.choice(choices[field], 1 if same else size) for field in FIELDS[model]}
    return {field: np.broadcast_to(values, size).astype(np.float32) for field, values in drawn.items()}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), same=st.booleans(), held=st.booleans())
def test_equals_single_neurons(model: type[Any], seed: int, same: bool, held: bool) -> None:
    rng = np.random.default_rng(seed)
    size, steps, batch = 5, 6, 3
    p = parameters(model, rng, size, same)
    x = eighths(rng, batch, size, largest=16) if held else eighths(rng, batch, steps, size, largest=16)
    simulator = Simulator(chain(("x", inp(size)), ("n", model(**p)), ("y", out(size))), dt=DT, time_steps=steps)
    found = simulator.run(x).outputs["y"]
    for b in range(batch):
        for j in range(size):
            currents = [float(x[b, j])] * steps if held else [float(value) for value in x[b, :, j]]
            expected = one_neuron(model, {field: float(values[j]) for field, values in p.items()}, currents)
            assert found[b, :, j].tolist() == expected


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_loop_fires_and_stays_silent(model: type[Any]) -> None:
    """The inputs above reach both outcomes, or equality would say little."""
    rng = np.random.default_rng(0)
    p = parameters(model, rng, 50, same=False)
    x = eighths(rng, 1, 6, 50, largest=16)
    y = Simulator(chain(("x", inp(50)), ("n", model(**p)), ("y", out(50))), dt=DT).run(x).outputs["y"]
    assert len(np.unique(y)) == 2 if "v_threshold" in p else len(np.unique(y)) > 10
    assert 0.05 < np.count_nonzero(y) / y.size < 1 or "v_threshold" not in p


def test_threshold_is_strict() -> None:
    one = np.ones(3, dtype=np.float32)
    node = nir.LIF(one * DT, one, one * 0, one * np.float32(1.0))
    x = np.array([[1.0, np.nextafter(np.float32(1), np.float32(2)), 0.5]], dtype=np.float32)
    y = Simulator(chain(("x", inp(3)), ("n", node), ("y", out(3))), dt=DT, time_steps=1).run(x).outputs["y"]
    assert y[0, 0].tolist() == [0.0, 1.0, 0.0]


def test_an_euler_step_rounds_as_written() -> None:
    """``v += (dt/tau) * ((v_leak - v) + r x)`` with every operation rounded to float32, dt/tau not a power of two."""
    rng = np.random.default_rng(3)
    size, steps = 64, 20
    tau = np.full(size, 3e-4, dtype=np.float32)
    one = np.ones(size, dtype=np.float32)
    x = rng.normal(size=(1, steps, size)).astype(np.float32) * 3
    y = (
        Simulator(chain(("x", inp(size)), ("n", nir.LIF(tau, one, one * 0, one)), ("y", out(size))), dt=1e-4)
        .run(x)
        .outputs["y"]
    )
    decay = np.float32(1e-4) / np.float32(3e-4)
    v = np.zeros(size, dtype=np.float32)
    for t in range(steps):
        v = v + decay * (x[0, t] - v)
        assert (y[0, t] == (v > 1)).all(), f"step {t}"
        v = np.where(v > 1, np.float32(0), v)
    assert 0.05 < y.mean() < 0.9


def test_cuba_lif_is_a_lif_of_the_synapse() -> None:
    """A membrane without memory behind the synapse fires where the synaptic current exceeds the threshold."""
    one = np.ones(4, dtype=np.float32)
    node = nir.CubaLIF(one * 4 * DT, one * DT, one, one * 0, one * np.float32(0.5), one * 0, one * 4)
    x = np.zeros((1, 5, 4), dtype=np.float32)
    x[0, 0] = [1.0, 0.5, 0.25, 0.0]
    y = Simulator(chain(("x", inp(4)), ("n", node), ("y", out(4))), dt=DT).run(x).outputs["y"][0]
    current = x[0, 0] * 0.75 ** np.arange(5)[:, None]
    np.testing.assert_array_equal(y, current > 0.5)
