"""Graphs of other tools: CubaLIF, IF, gains, dense chains, pools. Where weights fit their bits nothing may differ."""

from itertools import pairwise
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.ir import MaxPool2d, SpikeMaxPool2d
from statten_deploy.ir.integer import IntegerLIF
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate import Simulator
from tests.fixed_point.slow_network import run_slowly

STEPS, DT = 4, 1e-4


def graph(nodes: dict[str, nir.NIRNode], edges: list[tuple[str, str]] | None = None) -> nir.NIRGraph:
    edges = list(pairwise(nodes)) if edges is None else edges
    return nir.NIRGraph(nodes, edges, metadata={"statten": {"dt": DT, "time_steps": STEPS}}, type_check=False)


def inp(*shape: int) -> nir.Input:
    return nir.Input({"input": np.array(shape)})


def out(*shape: int) -> nir.Output:
    return nir.Output({"output": np.array(shape)})


def full(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Per channel or one number to all elements."""
    column = np.asarray(values, dtype=np.float32).reshape(-1, *(1,) * (len(shape) - 1))
    return np.broadcast_to(column, shape).copy()


def lif(shape: tuple[int, ...], tau: float = 2, r: Any = 1, threshold: Any = 1) -> nir.LIF:
    zeros = full(0, shape)
    return nir.LIF(full(tau * DT, shape), full(r, shape), zeros, full(threshold, shape), zeros)


def cuba(shape: tuple[int, ...], synapse: float = 2, membrane: float = 2, **values: Any) -> nir.CubaLIF:
    zeros = full(0, shape)
    r, w_in, threshold = (full(values.get(key, 1), shape) for key in ("r", "w_in", "threshold"))
    return nir.CubaLIF(full(synapse * DT, shape), full(membrane * DT, shape), r, zeros, threshold, zeros, w_in)


def conv(weight: np.ndarray, bias: np.ndarray | None = None, padding: int = 1) -> nir.Conv2d:
    zeros = np.zeros(len(weight), dtype=np.float32)
    return nir.Conv2d(None, weight.astype(np.float32), 1, padding, 1, 1, zeros if bias is None else bias)


def eighths(rng: np.random.Generator, *shape: int, largest: int = 7) -> np.ndarray:
    return (rng.integers(-largest, largest + 1, size=shape) / 8).astype(np.float32)


def powers(rng: np.random.Generator, size: int) -> np.ndarray:
    return 2.0 ** rng.integers(-2, 3, size=size)


CURRENT_POOLS = {
    "mean of currents": (nir.AvgPool2d, 2),
    "mean of nine currents": (nir.AvgPool2d, 3),
    "sum of currents": (nir.SumPool2d, 2),
}
POOLS = [*CURRENT_POOLS, "maximum of currents", "mean of spikes", "sum of spikes"]


def network(rng: np.random.Generator, neuron: str, pool: str) -> nir.NIRGraph:
    """Two branches that add up, a pool of currents or of spikes, a dense layer; all weights multiples of 1/8."""
    shape = (3, 4, 4)
    kind, size = CURRENT_POOLS.get(pool, (None, 1))
    form = {
        "lif": lambda: lif(shape, r=powers(rng, 3), threshold=rng.integers(2, 12, 3) / 8),
        "cuba": lambda: cuba(shape, r=powers(rng, 3), w_in=powers(rng, 3), threshold=rng.integers(1, 8, 3) / 8),
        "fast cuba": lambda: cuba(shape, synapse=1, threshold=0.25),
        "if": lambda: nir.IF(full(powers(rng, 3) / np.float32(DT), shape), full(1.25, shape), full(0, shape)),
    }[neuron]()
    nodes: dict[str, nir.NIRNode] = {
        "input": inp(2, 4 * size, 4 * size),
        "left": conv(eighths(rng, 3, 2, 3, 3), eighths(rng, 3)),
        "right": conv(eighths(rng, 3, 2, 1, 1, largest=3) / 16, padding=0),
        "neuron": form,
        "flat": nir.Flatten({"input": np.array([3, 2, 2])}, 0, -1),
        "dense": nir.Affine(eighths(rng, 5, 12), eighths(rng, 5)),
        "last": lif((5,)),
        "spikes": out(5),
        "readout": nir.Linear(eighths(rng, 4, 12)),
        "logits": out(4),
    }
    edges = [("input", "left"), ("input", "right"), ("flat", "dense"), ("dense", "last"), ("last", "spikes")]
    edges += [("flat", "readout"), ("readout", "logits")]
    two = np.array([2, 2])
    if kind is not None:
        window = np.array([size, size])
        nodes["pool"], nodes["or"] = kind(window, window, 0 * window), SpikeMaxPool2d((2, 2), (2, 2), (0, 0))
        edges += [("left", "pool"), ("right", "pool"), ("pool", "neuron"), ("neuron", "or"), ("or", "flat")]
    elif pool == "maximum of currents":
        nodes["most"] = MaxPool2d((3, 3), (1, 1), (1, 1))
        nodes["or"] = SpikeMaxPool2d((2, 2), (2, 2), (0, 0))
        edges += [("left", "most"), ("right", "most"), ("most", "neuron"), ("neuron", "or"), ("or", "flat")]
    else:
        nodes["pool"] = (nir.AvgPool2d if pool == "mean of spikes" else nir.SumPool2d)(two, two, 0 * two)
        edges += [("left", "neuron"), ("right", "neuron"), ("neuron", "pool"), ("pool", "flat")]
    return graph(nodes, edges)


def assert_equal_to_float(subject: nir.NIRGraph, options: QuantizeOptions, x: np.ndarray) -> nir.NIRGraph:
    """Every spike, and every readout to float32."""
    quantised = quantize(subject, options)
    expected, found = Simulator(subject).run(x, record="spikes"), IntegerRunner(quantised).run(x, spikes=True)
    for name, spikes in expected.recorded.items():
        np.testing.assert_array_equal(found.spikes[name], spikes > 0, err_msg=name)
    for name, value in real_outputs(quantised, found.outputs).items():
        np.testing.assert_allclose(value, expected.outputs[name], atol=1e-6, err_msg=name)
    return quantised


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["lif", "cuba", "fast cuba", "if"]),
    st.sampled_from(POOLS),
    st.sampled_from([QuantizeOptions(4), QuantizeOptions(8), QuantizeOptions(8, "tensor")]),
)
def test_weights_that_fit_give_the_spikes_of_the_float_network(
    seed: int, neuron: str, pool: str, options: QuantizeOptions
) -> None:
    rng = np.random.default_rng(seed)
    subject = network(rng, neuron, pool)
    x = rng.poisson(0.6, size=(2, STEPS, *subject.nodes["input"].input_type["input"])).clip(0, 3).astype(np.float32)
    assert_equal_to_float(subject, options, x)


def test_the_float_network_above_is_alive() -> None:
    """Equal spikes mean nothing where there are none."""
    rng = np.random.default_rng(7)
    for neuron in ("lif", "cuba", "fast cuba", "if"):
        subject = network(rng, neuron, "sum of spikes")
        x = rng.poisson(0.6, size=(4, STEPS, 2, 4, 4)).astype(np.float32)
        result = Simulator(subject).run(x, record="spikes")
        assert all(0.02 < spikes.mean() < 0.98 for spikes in result.recorded.values()), neuron


def test_a_dense_chain_without_exponents_is_exact_too() -> None:
    """1-D inputs; a threshold that is met exactly fires or does not, as it is written."""
    rng = np.random.default_rng(5)
    first, second, bias = eighths(rng, 6, 9), eighths(rng, 5, 6), eighths(rng, 5)
    x = rng.integers(0, 3, size=(40, STEPS, 9)).astype(np.float32)
    counts = []
    for threshold in (np.float32(1), np.nextafter(np.float32(1), np.float32(0))):
        nodes = {"input": inp(9), "first": nir.Linear(first), "hidden": cuba((6,), threshold=0.25)}
        nodes |= {"second": nir.Affine(second, bias), "last": lif((5,), tau=1, threshold=threshold), "spikes": out(5)}
        quantised = assert_equal_to_float(graph(nodes), QuantizeOptions(4, shifts=False), x)
        counts.append(IntegerRunner(quantised).run(x).spike_counts["last"].sum())
        for node in quantised.nodes.values():
            assert not np.any(getattr(node, "exponent", 0))
            assert not getattr(node, "input_exponent", 0)
    assert 0 < counts[0] < counts[1]


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_synaptic_decay_equals_slow_loops(bits: int, granularity: Any) -> None:
    rng = np.random.default_rng(bits)
    shape = (3, 4, 4)
    subject = graph(
        {
            "input": inp(2, 4, 4),
            "conv": conv(rng.normal(size=(3, 2, 3, 3))),
            "neuron": cuba(
                shape, synapse=3.3, membrane=5.7, r=[1, 2, 0.7], w_in=[1.5, 1, 2], threshold=[0.1, 0.2, 0.3]
            ),
            "flat": nir.Flatten({"input": np.array(shape)}, 0, -1),
            "dense": nir.Linear(rng.normal(size=(5, 48)).astype(np.float32)),
            "last": cuba((5,), synapse=1.5, threshold=0.3),
            "logits": out(5),
        }
    )
    quantised = quantize(subject, QuantizeOptions(bits, granularity))
    assert (quantised.nodes["neuron"].du, quantised.nodes["neuron"].dv) == (round(4096 / 3.3) - 1, round(4096 / 5.7))
    x = rng.poisson(0.8, size=(1, STEPS, 2, 4, 4)).astype(np.float32)
    result = IntegerRunner(quantised).run(x, spikes=True, membranes=True)
    spikes, membranes, _ = run_slowly(quantised, x)
    for name in ("neuron", "last"):
        assert 0 < spikes[name].mean() < 1
        np.testing.assert_array_equal(result.spikes[name], spikes[name])
        np.testing.assert_array_equal(result.membranes[name], membranes[name])


def test_eight_bits_stay_near_real_weights() -> None:
    """Scales with r and w_in per channel and time constants that are no powers of two: hardly a spike differs."""
    rng = np.random.default_rng(0)
    hidden = cuba((40,), 3.3, 5.7, r=rng.uniform(0.5, 2, 40), w_in=rng.uniform(0.5, 2, 40), threshold=0.1)
    weight = rng.normal(size=(40, 30)).astype(np.float32)
    subject = graph({"input": inp(30), "dense": nir.Linear(weight), "hidden": hidden, "spikes": out(40)})
    x = rng.poisson(0.5, size=(50, STEPS, 30)).astype(np.float32)
    expected = Simulator(subject).run(x, record="spikes").recorded["hidden"] > 0
    found = IntegerRunner(quantize(subject)).run(x, spikes=True).spikes["hidden"]
    assert 0.1 < expected.mean() < 0.9
    assert (found != expected).mean() < 0.005


def test_neurons_that_count_spikes_compare_exactly() -> None:
    """No weights in front: the mean of four spikes against 0.5."""
    rng = np.random.default_rng(1)
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    subject = graph(
        {"input": inp(2, 4, 4), "pool": pool, "neuron": lif((2, 2, 2), threshold=0.5), "spikes": out(2, 2, 2)}
    )
    x = rng.integers(0, 2, size=(20, STEPS, 2, 4, 4)).astype(np.float32)
    quantised = assert_equal_to_float(subject, QuantizeOptions(), x)
    assert isinstance(quantised.nodes["neuron"], IntegerLIF)
    assert quantised.nodes["neuron"].input_exponent == 4


@pytest.mark.parametrize("calibrated", [False, True])
def test_groups_see_their_own_channels(calibrated: bool) -> None:
    """A grouped convolution of unequal inputs is the dense one with zeros."""
    rng = np.random.default_rng(8)
    small = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    wide = np.zeros((4, 4, 3, 3), dtype=np.float32)
    wide[:2, :2], wide[2:, 2:] = small[:2], small[2:]
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    x = rng.poisson(np.array([0.1, 0.3, 1, 3])[:, None, None], size=(4, STEPS, 4, 8, 8)).astype(np.float32)
    found = []
    for weight, groups in ((small, 2), (wide, 1)):
        layer = conv(weight)
        layer.groups = groups
        nodes = {"input": inp(4, 8, 8), "pool": pool, "conv": layer, "neuron": lif((4, 4, 4)), "spikes": out(4, 4, 4)}
        found.append(quantize(graph(nodes), QuantizeOptions(3), x if calibrated else None))
    grouped, dense = (IntegerRunner(each).run(x, spikes=True).spikes["neuron"] for each in found)
    assert 0.1 < grouped.mean() < 0.9
    np.testing.assert_array_equal(grouped, dense)
    np.testing.assert_array_equal(found[0].nodes["neuron"].bias_mantissa, found[1].nodes["neuron"].bias_mantissa)


def test_everything_without_a_form_is_named_at_once() -> None:
    rng = np.random.default_rng(2)
    shape = (3, 4, 4)
    mixed = lif(shape)
    mixed.v_threshold[0, 0, 0] = 2
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1]))
    subject = graph(
        {
            "input": inp(2, 4, 4),
            "conv": conv(eighths(rng, 3, 2, 3, 3)),
            "mixed": mixed,
            "pool": pool,
            "again": conv(eighths(rng, 3, 3, 3, 3)),
            "leaky": nir.LI(full(DT, (3, 3, 3)), full(1, (3, 3, 3)), full(0, (3, 3, 3))),
            "scale": nir.Scale(full(2, (3, 3, 3))),
            "late": nir.Delay(full(DT, (3, 3, 3))),
            "step": nir.Threshold(full(1, (3, 3, 3))),
            "slow": lif((3, 3, 3), tau=0.5, r=-1),
            "spikes": out(3, 3, 3),
        }
    )
    with pytest.raises(UnsupportedError) as caught:
        quantize(subject)
    for part in (
        "mixed (one v_threshold per channel)",
        "pool (padding must be 0)",
        "scale (Scale: fold its factors into the weights next to it)",
        "late (Delay: train without delays; --target onnx takes them)",
        "step (Threshold: use IF neurons, or --target onnx)",
        "slow (tau must be at least one step, 0.0001 s)",
        "slow (r must be positive)",
    ):
        assert part in str(caught.value)


def refused(nodes: dict[str, nir.NIRNode], edges: list[tuple[str, str]] | None = None, **options: Any) -> str:
    with pytest.raises(UnsupportedError) as caught:
        quantize(graph(nodes, edges), QuantizeOptions(**options))
    return str(caught.value)


def test_currents_without_a_common_scale_are_refused() -> None:
    rng = np.random.default_rng(4)
    first, second = (conv(eighths(rng, 2, 2, 3, 3), eighths(rng, 2) + 1) for _ in range(2))
    base = {"input": inp(2, 4, 4), "first": first, "second": second}
    plain = {**base, "neuron": lif((2, 4, 4)), "spikes": out(2, 4, 4)}
    assert "second (a current reaches it: put neurons in between)" in refused(plain)
    edges = [("input", "first"), ("input", "neuron"), ("first", "neuron"), ("neuron", "spikes"), ("neuron", "second")]
    assert "neuron (spikes or counts and weighted currents add up there" in refused(plain, edges)
    both = {"input": inp(2, 4, 4), "first": first, "neuron": lif((2, 4, 4)), "spikes": out(2, 4, 4), "y": out(2, 4, 4)}
    edges = [("input", "first"), ("first", "neuron"), ("neuron", "spikes"), ("first", "y")]
    assert "y (its current also reaches neurons" in refused(both, edges)
    pooled = {"input": inp(2, 4, 4), "pool": SpikeMaxPool2d((2, 2), (2, 2), (0, 0)), "first": first}
    pooled |= {"or": SpikeMaxPool2d((2, 2), (2, 2), (0, 0)), "neuron": lif((2, 1, 1)), "spikes": out(2, 1, 1)}
    assert "or (a current reaches it: it takes spikes)" in refused(pooled)


def test_what_needs_exponents_is_refused_without_them() -> None:
    rng = np.random.default_rng(6)
    two = np.array([2, 2])
    nodes = {
        "input": inp(2, 4, 4),
        "conv": conv(eighths(rng, 2, 2, 3, 3)),
        "mean": nir.AvgPool2d(two, two, 0 * two),
        "neuron": lif((2, 2, 2)),
        "sum": nir.SumPool2d(two, two, 0 * two),
        "count": lif((2, 1, 1)),
        "spikes": out(2, 1, 1),
    }
    message = refused(nodes, shifts=False)
    assert "no fixed-point form without exponents for: mean (the mean of a current)" in message
    assert "count (neurons that compare counts)" in message
    quantize(graph(nodes))
