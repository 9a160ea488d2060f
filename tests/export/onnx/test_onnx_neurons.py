"""Every neuron type in onnxruntime against the NIR equations, step by step, bit for bit."""

from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.export.onnx import SPIKING_FUNCTIONS, spike_values
from tests.export.onnx.onnx_harness import DT, F32, agree, chain, checked, lif, run

SHAPE = (3, 2, 4)


def random_neuron(kind: type, shape: tuple[int, ...], rng: np.random.Generator, uniform: bool) -> Any:
    """A neuron with nothing left at its neutral value."""

    def values(low: float, high: float) -> np.ndarray:
        drawn = rng.uniform(low, high, () if uniform else shape)
        return np.broadcast_to(drawn, shape).astype(F32)

    leak = {"r": values(0.5, 2), "v_leak": values(-0.3, 0.3)}
    fire = {"v_threshold": values(0.2, 0.7), "v_reset": values(-0.2, 0.1)}
    cuba = {"tau_syn": values(1.5, 4) * F32(DT), "tau_mem": values(1.5, 4) * F32(DT), "w_in": values(0.5, 3)}
    gain = {"r": values(0.5, 2) / F32(DT)}
    fields: dict[type, dict[str, np.ndarray]] = {
        nir.LIF: {"tau": values(1.5, 4) * F32(DT), **leak, **fire},
        nir.LI: {"tau": values(1.5, 4) * F32(DT), **leak},
        nir.IF: {**gain, **fire},
        nir.I: gain,
        nir.CubaLIF: {**cuba, **leak, **fire},
        nir.CubaLI: {**cuba, **leak},
        nir.Threshold: {"threshold": values(-0.2, 0.5)},
    }
    return kind(**fields[kind])


KINDS = [nir.LIF, nir.LI, nir.IF, nir.I, nir.CubaLIF, nir.CubaLI, nir.Threshold]
SPIKING = (nir.LIF, nir.IF, nir.CubaLIF, nir.Threshold)


@pytest.mark.parametrize("uniform", [True, False], ids=["scalar", "per-neuron"])
@pytest.mark.parametrize("held", [False, True], ids=["frames", "image"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_neuron_equals_its_equation(kind: type, held: bool, uniform: bool) -> None:
    for time_steps, batch in ((5, 1), (4, 3), (1, 2)):
        rng = np.random.default_rng([time_steps, batch])
        node = random_neuron(kind, SHAPE, rng, uniform)
        graph = chain(SHAPE, node, input="image" if held else "frames", time_steps=time_steps)
        lead = (batch,) if held else (batch, time_steps)
        out = agree(graph, {"x": rng.normal(0.4, 0.8, (*lead, *SHAPE)).astype(F32)}, time_steps)["y"]
        if kind in SPIKING and time_steps > 1:
            assert 0.05 < out.mean() < 0.95  # neither silent nor saturated, or the comparison says nothing


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    time_steps=st.integers(1, 6),
    held=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_neuron_of_any_shape(kind: type, shape: tuple[int, ...], time_steps: int, held: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = chain(shape, random_neuron(kind, shape, rng, bool(seed % 2)), input="image" if held else "frames")
    lead = (2,) if held else (2, time_steps)
    agree(graph, {"x": rng.normal(0.4, 0.8, (*lead, *shape)).astype(F32)}, time_steps)


def test_a_membrane_at_the_threshold_does_not_fire() -> None:
    """NIR fires on v > v_threshold; the first step of this neuron puts v exactly on it."""
    node = lif((2,))
    node.v_threshold = np.array([0.5, np.nextafter(F32(0.5), F32(0))], dtype=F32)
    found = run(checked(chain((2,), node), time_steps=1), {"x": np.ones((1, 1, 2), dtype=F32)})
    np.testing.assert_array_equal(found["y"], [[[0.0, 1.0]]])


def test_parameters_shrink_to_the_axes_they_vary_on() -> None:
    node = lif((3, 2, 4))
    node.tau = node.tau * np.array([1, 2, 3], dtype=F32)[:, None, None]
    node.v_threshold = node.v_threshold * np.arange(1, 9, dtype=F32).reshape(2, 4) / 4
    graph = chain((3, 2, 4), node)
    sizes = {i.name: tuple(i.dims) for i in checked(graph, time_steps=2).graph.initializer}
    assert sizes["n0.decay"] == (3, 1, 1)
    assert sizes["n0.v_threshold"] == (1, 2, 4)
    agree(graph, {"x": np.random.default_rng(0).normal(1, 1, (2, 4, 3, 2, 4)).astype(F32)}, 4)


def test_one_function_per_type_and_only_the_terms_in_use() -> None:
    plain = checked(chain((4,), lif((4,)), lif((4,), 0.5), lif((4,))), time_steps=3)
    assert [(f.name, list(f.input)) for f in plain.functions] == [("LIF", ["x", "decay", "v_threshold"])]
    other = lif((4,))
    other.v_leak = other.v_leak + F32(0.1)
    other.r = other.r * 2
    mixed = chain((4,), lif((4,)), other)
    assert list(checked(mixed, time_steps=3).functions[0].input) == ["x", "decay", "r", "v_leak", "v_threshold"]
    agree(mixed, {"x": np.random.default_rng(0).normal(0.5, 1, (2, 6, 4)).astype(F32)}, 6)


def test_a_constant_current_has_its_own_function_and_is_scaled_once() -> None:
    node = lif((4,))
    node.r = node.r * 3
    model = checked(chain((4,), node, lif((4,)), input="image", time_steps=4))
    assert [f.name for f in model.functions] == ["LIFHeld", "LIF"]
    held, stepped = model.functions
    # 4 decays per neuron; r * x once where the current is held, once per step otherwise; 3 resets
    assert [n.op_type for n in held.node].count("Mul") == 4 + 1 + 3
    assert [n.op_type for n in stepped.node].count("Mul") == 4 + 4 + 3
    assert "Split" not in {n.op_type for n in held.node}


def test_spike_values_names_the_spiking_layers_only() -> None:
    rng = np.random.default_rng(0)
    nodes = [random_neuron(kind, (4,), rng, False) for kind in KINDS]
    model = checked(chain((4,), *nodes), time_steps=2, spike_counts=True)
    spiking = [f"n{i}" for i, kind in enumerate(KINDS) if kind in SPIKING]
    assert spike_values(model) == {name: name for name in spiking}
    kinds = {f"{kind}{form}" for kind in ("LIF", "IF", "CubaLIF") for form in ("", "Held", "Step")}
    assert {*kinds, "Threshold"} == SPIKING_FUNCTIONS
