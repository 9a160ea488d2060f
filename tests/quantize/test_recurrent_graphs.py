"""Loops, integrators and biased synapses in integers, against the float simulator."""

from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.arithmetic import STATE_MAX
from statten_deploy.fixed_point.observe import observe
from statten_deploy.fixed_point.ranges import integer_ranges
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.ir import TemporalMean
from statten_deploy.ir.integer import InputEncoder, IntegerLI, IntegerLinear
from statten_deploy.quantize import QuantizeOptions, quantisation_report, quantize
from statten_deploy.simulate import Simulator
from tests.fixed_point.slow_network import run_loops_slowly
from tests.quantize.recurrent_graphs import LATE, STEPS, events, integrator, readout, recurrent, rough
from tests.quantize.test_other_graphs import (
    assert_equal_to_float,
    conv,
    cuba,
    eighths,
    full,
    graph,
    inp,
    lif,
    out,
    refused,
)

EIGHT = QuantizeOptions(8)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", ["LI", "I", "CubaLI"])
def test_integrators_are_the_membranes_of_the_float_network(kind: str, flat: bool, mean: bool) -> None:
    rng = np.random.default_rng(3)
    subject = readout(rng, kind, mean=mean, flat=flat)
    x = events(rng, subject)
    for options in (EIGHT, QuantizeOptions(8, "tensor")):
        quantised = quantize(subject, options)
        expected, found = Simulator(subject).run(x, record="spikes"), IntegerRunner(quantised).run(x, spikes=True)
        np.testing.assert_array_equal(found.spikes["hidden"], expected.recorded["hidden"] > 0)
        (value,) = real_outputs(quantised, found.outputs).values()
        np.testing.assert_allclose(value, expected.outputs["logits"], rtol=0, atol=1e-6)
        assert np.ptp(quantised.nodes["membrane"].scale) == 0  # integers can be compared with each other
    assert 0.1 < expected.recorded["hidden"].mean() < 0.9
    assert len(np.unique(value)) > 8


def test_membranes_are_recorded_and_named_as_such() -> None:
    rng = np.random.default_rng(4)
    subject = readout(rng, "LI", mean=True)
    x = events(rng, subject, 2)
    quantised = quantize(subject)
    found = IntegerRunner(quantised).run(x, spikes=True, membranes=True)
    expected = Simulator(subject).run(x, record=["membrane"]).recorded["membrane"]
    assert found.spikes.keys() == found.spike_counts.keys() == {"hidden"}
    np.testing.assert_allclose(found.membranes["membrane"] / quantised.nodes["membrane"].scale, expected, atol=1e-6)


def test_integrators_count_spikes_without_weights() -> None:
    """What reaches them is shifted left, so that halvings stay exact."""
    rng = np.random.default_rng(5)
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    for kind in ("LI", "I", "CubaLI"):
        nodes = {"input": inp(2, 4, 4), "pool": pool, "li": integrator(kind, (2, 2, 2), r=3.0), "y": out(2, 2, 2)}
        quantised = assert_equal_to_float(graph(nodes), EIGHT, events(rng, graph(nodes)))
        assert quantised.nodes["li"].input_exponent == 4


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("neuron", ["lif", "if", "cuba"])
def test_recurrent_networks_give_the_spikes_of_the_float_network(neuron: str, spatial: bool) -> None:
    """Two loops that share a layer, biases everywhere, also at the first step; readouts by spikes and membranes."""
    alive = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        subject = recurrent(rng, neuron, spatial=spatial)
        x = events(rng, subject)
        for options in (EIGHT, QuantizeOptions(8, "tensor"), QuantizeOptions(4)):
            assert_equal_to_float(subject, options, x)
        rates = [spikes.mean() for spikes in Simulator(subject).run(x, record="spikes").recorded.values()]
        alive += all(0.03 < rate < 0.95 for rate in rates)
    assert alive >= 3


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("neuron", ["lif", "if", "cuba"])
def test_loops_and_integrators_equal_slow_loops(neuron: str, bits: int) -> None:
    """Real weights and decays, truncations and floors, a convolution with a bias; every spike and every membrane."""
    rates = []
    for spatial in (False, True):
        rng = np.random.default_rng(bits + 1)
        subject = rough(rng, recurrent(rng, neuron, spatial=spatial))
        quantised = quantize(subject, QuantizeOptions(bits))
        x = events(rng, subject, 1)
        found = IntegerRunner(quantised).run(x, spikes=True, membranes=True)
        values, membranes = run_loops_slowly(quantised, x, LATE)
        assert found.membranes.keys() == membranes.keys() == {"a", "b", "li"}
        for name, expected in membranes.items():
            np.testing.assert_array_equal(found.membranes[name][:, 0], expected, err_msg=name)
        for name in ("a", "b"):
            np.testing.assert_array_equal(found.spikes[name][:, 0], values[name].astype(bool), err_msg=name)
        for name in ("spikes", "logits"):
            np.testing.assert_array_equal(found.outputs[name][0], values[name].astype(np.int64), err_msg=name)
        rates.append(found.spikes["a"].mean())
    assert max(rates) > 0.1


class Arrived:
    """What arrives at every node, micro-batch after micro-batch."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {}

    def __call__(self, name: str, x: np.ndarray) -> None:
        self.parts.setdefault(name, []).append(x)

    @property
    def calls(self) -> dict[str, int]:
        return {name: len(parts) for name, parts in self.parts.items()}

    def whole(self, name: str) -> np.ndarray:
        return np.concatenate(self.parts[name], axis=1)


def test_a_loop_in_micro_batches_and_from_a_held_image(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    subject = recurrent(rng, "lif")
    subject.metadata["statten"]["input"] = "image"
    quantised = quantize(subject)
    x = rng.random((5, 5)).astype(np.float32)
    arrived, arrived_in_parts = Arrived(), Arrived()
    whole = IntegerRunner(quantised).run(x, spikes=True, membranes=True, watch=arrived)
    monkeypatch.setattr("statten_deploy.fixed_point.runner.SIGNAL_BYTES", 1)
    parts = IntegerRunner(quantised).run(x, spikes=True, membranes=True, watch=arrived_in_parts)
    for kind in ("outputs", "spikes", "membranes", "spike_counts"):
        for name, value in getattr(whole, kind).items():
            np.testing.assert_array_equal(getattr(parts, kind)[name], value, err_msg=f"{kind} {name}")
    assert arrived.calls["a"] == 1
    assert arrived_in_parts.calls["a"] == 5
    for name in ("a", "back"):
        np.testing.assert_array_equal(arrived_in_parts.whole(name), arrived.whole(name), err_msg=name)
    assert arrived.whole("a").shape == (STEPS, 5, 6)
    assert 0.02 < whole.spikes["a"].mean() < 0.98


def test_what_a_loop_carries_is_watched_and_bounded() -> None:
    """Observed currents are the real ones, and no current is beyond what the ranges say."""
    rng = np.random.default_rng(2)
    subject = recurrent(rng, "cuba")
    x = events(rng, subject, 6)
    quantised = quantize(subject, QuantizeOptions(6), x)
    arrived = Arrived()
    IntegerRunner(quantised).run(x, watch=arrived)
    seen, (_, bounds) = observe(quantised, x), integer_ranges(quantised)
    for name in ("a", "b", "li"):
        value = arrived.whole(name)
        peak = np.abs(value).max((0, 1))
        np.testing.assert_array_equal(seen.neurons[name].largest_input, peak)
        assert (value >= bounds[name].low).all()
        assert (value <= bounds[name].high).all()
    assert seen.neurons["a"].spikes.sum() > 0
    report = quantisation_report(subject, quantised, x)
    assert {layer.name: layer.kind for layer in report.neurons} == {"a": "LIF", "b": "LIF", "li": "LI"}


def test_membranes_stay_inside_their_bounds_or_are_said_to_saturate() -> None:
    """A sum without a leak over many steps: proved where it fits, calibrated or unproved where it does not."""

    def summing(size: int, steps: int) -> nir.NIRGraph:
        head = nir.Linear(np.full((2, size), 0.5, dtype=np.float32))
        nodes = {"input": inp(size), "n": lif((size,), tau=1), "head": head, "sum": integrator("I", (2,))}
        subject = graph({**nodes, "logits": out(2)})
        subject.metadata["statten"]["time_steps"] = steps
        return subject

    x = np.full((1, 40, 300), 3, dtype=np.float32)
    x[..., 100:] = 0
    small, large, calibrated = quantize(summing(4, 8)), quantize(summing(300, 40)), quantize(summing(300, 40), None, x)
    assert integer_ranges(small)[0]["sum"].magnitude < STATE_MAX
    for graph_ in (large, calibrated):
        assert integer_ranges(graph_)[0]["sum"].magnitude == STATE_MAX
    layers = {
        "proved": quantisation_report(summing(4, 8), small, x[:, :8, :4]).neurons[1],
        "unproved": quantisation_report(summing(300, 40), large, np.full_like(x, 3)).neurons[1],
        "calibrated": quantisation_report(summing(300, 40), calibrated, x).neurons[1],
    }
    assert {name: layer.bound for name, layer in layers.items()} == {name: name for name in layers}
    assert layers["unproved"].saturations > 0
    assert layers["calibrated"].saturations == 0
    value = real_outputs(calibrated, IntegerRunner(calibrated).run(x).outputs)["logits"]
    np.testing.assert_allclose(value[0, :, 0], 50 * np.arange(1, 41), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dv=st.sampled_from([0, 1000, 2048, 4096]),
    du=st.sampled_from([500, 2047, 4095]),
    bias=st.sampled_from([0, 1 << 14, 1 << 17, -(1 << 18)]),
)
def test_no_membrane_is_beyond_its_range(seed: int, dv: int, du: int, bias: int) -> None:
    """Also where every current is so large that it wraps to the other sign."""
    rng = np.random.default_rng(seed)
    zeros = np.zeros(3, dtype=np.int64)
    weights = IntegerLinear(rng.integers(-127, 128, (3, 4)), zeros, zeros + bias, np.ones(3))
    node = IntegerLI(dv, rng.integers(-4095, 4096, 3), zeros + 5, np.ones(3), (3,), du=du)
    nodes = {"x": inp(4), "e": InputEncoder(np.ones(4), np.zeros(4)), "w": weights, "li": node, "y": out(3)}
    subject = graph(nodes)
    bounds = integer_ranges(subject)[0]["li"]
    found = IntegerRunner(subject).run(rng.integers(0, 256, (4, STEPS, 4)).astype(np.float32)).outputs["y"]
    assert (bounds.low <= found.min((0, 1))).all()
    assert (found.max((0, 1)) <= bounds.high).all()


def test_biases_in_front_of_synaptic_memories_belong_to_the_weights() -> None:
    """A plain layer that reads the same current does not get the bias twice."""
    rng = np.random.default_rng(9)
    zeros = np.zeros(3, dtype=np.float32)
    nodes = {
        "input": inp(2, 4, 4),
        "conv": conv(eighths(rng, 3, 2, 3, 3), eighths(rng, 3) + 1),
        "slow": cuba((3, 4, 4), r=2, w_in=2, threshold=0.75),
        "fast": lif((3, 4, 4), threshold=0.5),
        "slow_out": out(3, 4, 4),
        "fast_out": out(3, 4, 4),
    }
    edges = [("input", "conv"), ("conv", "slow"), ("conv", "fast"), ("slow", "slow_out"), ("fast", "fast_out")]
    quantised = assert_equal_to_float(graph(nodes, edges), EIGHT, events(rng, graph(nodes, edges)))
    assert quantised.nodes["conv"].bias.all()
    for name in ("slow", "fast"):
        assert not quantised.nodes[name].bias_mantissa.any()
    nodes["conv"].bias = zeros
    silent = assert_equal_to_float(graph(nodes, edges), EIGHT, events(rng, graph(nodes, edges)))
    assert not silent.nodes["conv"].bias.any()


def test_a_convolution_with_a_bias_can_be_the_readout() -> None:
    rng = np.random.default_rng(10)
    head = conv(eighths(rng, 2, 2, 3, 3), eighths(rng, 2) + 1)
    nodes = {"input": inp(2, 4, 4), "head": head, "mean": TemporalMean(), "logits": out(2, 4, 4)}
    assert_equal_to_float(graph(nodes), EIGHT, events(rng, graph(nodes)))


def test_what_integrators_and_loops_cannot_do_is_named_at_once() -> None:
    rng = np.random.default_rng(6)

    def weights() -> nir.Linear:
        return nir.Linear(eighths(rng, 3, 3))

    nodes: dict[str, Any] = {"input": inp(3), "w": weights(), "li": integrator("LI", (3,)), "next": weights()}
    nodes |= {"n": lif((3,)), "other": integrator("I", (3,)), "y": out(3), "both": out(3)}
    edges = [("input", "w"), ("w", "li"), ("li", "next"), ("next", "n"), ("li", "n"), ("n", "y"), ("w", "other")]
    message = refused(nodes, [*edges, ("li", "both"), ("other", "both")])
    assert "next (it reads the membranes of li: integrators can only be read out)" in message
    assert "both (membranes are added there: give each integrator an Output of its own)" in message
    looping = {"input": inp(3), "a": weights(), "b": weights(), "n": lif((3,)), "d": nir.Delay(full(1e-4, (3,)))}
    looping |= {"li": integrator("LI", (3,)), "c": weights(), "y": out(3)}
    edges = [("input", "a"), ("a", "b"), ("b", "a"), ("b", "n"), ("n", "d"), ("d", "y")]
    message = refused(looping, [*edges, ("n", "li"), ("li", "c"), ("c", "li")])
    for part in ("a, b (a loop without neurons that fire: ", "li, c (a loop without", "d (Delay: "):
        assert part in message
    uneven = {"input": inp(3), "w": weights(), "li": integrator("LI", (3,), r=[1, 2, 3]), "m": TemporalMean()}
    message = refused({**uneven, "y": out(3)})
    assert "li (one r and w_in per layer in front of a mean over time)" in message


def test_integrators_per_channel_have_their_own_scale() -> None:
    rng = np.random.default_rng(11)
    nodes = {
        "input": inp(3),
        "w": nir.Linear(eighths(rng, 3, 3)),
        "li": integrator("LI", (3,), r=[1, 2, 4]),
        "y": out(3),
    }
    quantised = assert_equal_to_float(graph(nodes), EIGHT, events(rng, graph(nodes)))
    assert isinstance(quantised.nodes["li"], IntegerLI)
    assert len(set(quantised.nodes["li"].scale)) == 3


def test_loops_that_only_weights_close_are_refused_by_the_runner_too() -> None:
    rng = np.random.default_rng(12)
    quantised = quantize(recurrent(rng, "lif"))
    nodes = {name: node for name, node in quantised.nodes.items() if name != "a"}
    edges = [(s, t) for s, t in quantised.edges if "a" not in (s, t)] + [("in", "forth"), ("b", "self"), ("self", "b")]
    x = events(rng, quantised)
    broken = nir.NIRGraph(nodes, edges, metadata=quantised.metadata, type_check=False)
    assert IntegerRunner(broken).run(x).outputs.keys() == {"spikes", "logits"}  # `b` still closes every loop
    with pytest.raises(UnsupportedError, match="no integer operation for late"):
        IntegerRunner(
            nir.NIRGraph({**nodes, "late": nir.Delay(np.ones(6))}, edges, metadata=quantised.metadata, type_check=False)
        )
