"""Currents stay inside the state: by proof below 2^24, and clear of the wrap by proof or on calibration data."""

from itertools import pairwise
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.observe import observe
from statten_deploy.fixed_point.ranges import CURRENT_LIMIT
from statten_deploy.frontend import build_graph
from statten_deploy.ir.integer import IntegerLIF
from statten_deploy.quantize import QuantizeOptions, quantisation_report, quantize
from statten_deploy.quantize.limits import current_bounds, input_bounds
from tests.conftest import lively_input, lively_model, small_config

DT = 1e-4


def dense(
    weight: np.ndarray, bias: np.ndarray, *, threshold: Any = 1.0, tau_syn: float = 0, tau: float = 2
) -> nir.NIRGraph:
    """Input, one dense layer, one layer of neurons."""
    ones = np.ones(len(weight), dtype=np.float32)
    limits = ones * np.float32(threshold)
    neuron: Any = nir.LIF(ones * np.float32(tau * DT), ones, 0 * ones, limits, 0 * ones)
    if tau_syn:
        neuron = nir.CubaLIF(ones * np.float32(tau_syn * DT), neuron.tau, ones, 0 * ones, limits, 0 * ones, ones)
    nodes: dict[str, nir.NIRNode] = {
        "input": nir.Input({"input": np.array([weight.shape[1]])}),
        "dense": nir.Affine(weight.astype(np.float32), bias.astype(np.float32)),
        "neuron": neuron,
        "spikes": nir.Output({"output": np.array([len(weight)])}),
    }
    metadata = {"statten": {"dt": DT, "time_steps": 4}}
    return nir.NIRGraph(nodes, list(pairwise(nodes)), metadata=metadata, type_check=False)


def assert_registers(graph: nir.NIRGraph, bits: int) -> None:
    for node in graph.nodes.values():
        if isinstance(node, IntegerLIF):
            assert 0 <= node.threshold.min() <= node.threshold.max() < 1 << 16
            assert np.abs(node.bias_mantissa).max() < 1 << 12
            assert 0 <= node.bias_exponent.min() <= node.bias_exponent.max() <= 7
        elif hasattr(node, "weight"):
            assert np.abs(node.weight).max() < 1 << (bits - 1)


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 8),
    st.sampled_from(["channel", "tensor"]),
    st.booleans(),
    st.floats(-12, 12),
    st.floats(-12, 12),
    st.sampled_from([0, 1, 7.5]),
)
def test_registers_and_inputs_hold_for_any_weights(
    seed: int, bits: int, granularity: Any, shifts: bool, size: float, bias_size: float, tau_syn: float
) -> None:
    """Weights and biases between 10^-4 and 10^4 thresholds, or so."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(3, 40)) * 2.0 ** (size + rng.normal(size=(3, 1)) * 3)
    bias = rng.normal(size=3) * 2.0**bias_size * (not tau_syn or tau_syn == 1)
    graph = quantize(dense(weight, bias, tau_syn=tau_syn), QuantizeOptions(bits, granularity, shifts))
    assert_registers(graph, bits)
    assert input_bounds(graph)["neuron"].max() < 1 << 24
    worst = np.where(graph.nodes["dense"].weight > 0, 255.0, 0.0)
    seen = observe(graph, np.concatenate([worst, 255 - worst])).neurons["neuron"]
    assert seen.largest_input.max() <= input_bounds(graph)["neuron"].max()
    assert seen.largest_current.max() <= current_bounds(graph)["neuron"].max() + 1


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_huge_weights_keep_what_matters(granularity: Any) -> None:
    """A sum of 10^5 thresholds in the worst case: scales come down, and single weights still fire or do not."""
    weight = np.full((2, 4000), 40.0)
    weight[:, :2] = [[1.5, 0.5], [3.0, 1.0]]
    weight[1, 2:] *= -1
    graph = quantize(dense(weight, np.zeros(2), tau=1), QuantizeOptions(8, granularity))
    bound = input_bounds(graph)["neuron"].max()
    assert bound < 1 << 24
    assert bound * 2 > 1 << 24  # not lower than needed
    x = np.zeros((1, 4000), dtype=np.float32)
    x[0, 2] = 1
    assert observe(graph, x).neurons["neuron"].spikes.tolist() == [4, 0]


def test_a_large_bias_lowers_the_scale_before_it_is_clipped() -> None:
    weight = np.full((3, 2), 0.5)
    graph = quantize(dense(weight, np.array([0.25, -100.0, 5000.0])))
    node = graph.nodes["neuron"]
    scale = graph.nodes["dense"].scale
    written = (node.bias_mantissa << node.bias_exponent) / 64 / scale
    np.testing.assert_allclose(written[:2], [0.25, -100], rtol=1e-3)
    assert node.threshold[0] >= 1023 > node.threshold[1] >= 63
    assert node.bias_exponent[2] == 7
    assert node.bias_mantissa[2] == 4095
    report = quantisation_report(dense(weight, np.array([0.25, -100.0, 5000.0])), graph, np.ones((1, 2)))
    assert report.neurons[0].bias_error > 100


def busy(count: int, size: int = 300) -> np.ndarray:
    """Two samples, one silent, one with so many events on every input."""
    x = np.zeros((2, size), dtype=np.float32)
    x[0] = count
    return x


def test_currents_without_a_proof_are_bounded_on_calibration_data() -> None:
    graph = dense(np.full((2, 300), 0.5), np.zeros(2))
    plain = quantize(graph)
    assert current_bounds(plain)["neuron"].max() > CURRENT_LIMIT
    assert "calibrated" not in plain.metadata["statten"]
    assert quantisation_report(graph, plain, busy(1)).neurons[0].bound == "unproved"
    assert quantisation_report(graph, plain, busy(20)).neurons[0].wraps > 0
    quiet, loud = quantize(graph, calibration=busy(1)), quantize(graph, calibration=busy(20))
    np.testing.assert_array_equal(quiet.nodes["neuron"].threshold, plain.nodes["neuron"].threshold)
    assert loud.nodes["neuron"].threshold.max() < plain.nodes["neuron"].threshold.max()
    for quantised, count in ((quiet, 1), (loud, 20)):
        layer = quantisation_report(graph, quantised, busy(count)).neurons[0]
        assert (layer.bound, layer.wraps) == ("calibrated", 0)
        assert layer.margin is not None
        assert layer.margin >= 2
        assert quantised.metadata["statten"]["calibrated"] == {"neuron": layer.largest_input}
    assert layer.margin < 4  # no lower than needed


def test_a_proof_needs_no_calibration() -> None:
    graph = dense(np.full((2, 1), 0.5), np.zeros(2))
    quantised = quantize(graph, calibration=busy(255, 1))
    assert "calibrated" not in quantised.metadata["statten"]
    assert quantisation_report(graph, quantised, busy(255, 1)).neurons[0].bound == "proved"


def test_synaptic_memory_counts_in_the_bound() -> None:
    """With a time constant of 8 steps inputs pile up to eight times as much; here that makes the difference."""
    weight = np.full((1, 60), 0.5)
    plain, slow = (dense(weight, np.zeros(1), tau_syn=tau, threshold=theta) for tau, theta in ((0, 1), (8, 0.125)))
    bounds = [current_bounds(quantize(graph))["neuron"].max() for graph in (plain, slow)]
    assert input_bounds(quantize(plain))["neuron"] == input_bounds(quantize(slow))["neuron"]
    assert bounds[1] == 8 * bounds[0]
    loud = quantize(slow, calibration=busy(60, 60))
    report = quantisation_report(slow, loud, busy(60, 60)).neurons[0]
    assert report.margin is not None
    assert report.margin >= 2 or report.bound == "proved"
    assert report.wraps == 0


def test_attention_counts_come_down_only_where_calibration_asks() -> None:
    """Counts have exponents instead of scales: they keep theirs, and refuse beyond 24 bits."""
    sums = nir.SumPool2d(np.array([600, 600]), np.array([600, 600]), np.array([0, 0]))
    ones = np.ones((1, 1, 1), dtype=np.float32)
    nodes: dict[str, nir.NIRNode] = {
        "input": nir.Input({"input": np.array([1, 600, 600])}),
        "sum": sums,
        "neuron": nir.LIF(ones * np.float32(2 * DT), ones, 0 * ones, ones, 0 * ones),
        "spikes": nir.Output({"output": np.array([1, 1, 1])}),
    }
    metadata = {"statten": {"dt": DT, "time_steps": 2}}
    with pytest.raises(UnsupportedError, match=r"neuron \(its counts can exceed 24 bits\)"):
        quantize(nir.NIRGraph(nodes, list(pairwise(nodes)), metadata=metadata, type_check=False))
    nodes["input"] = nir.Input({"input": np.array([1, 100, 100])})
    nodes["sum"] = nir.SumPool2d(np.array([100, 100]), np.array([100, 100]), np.array([0, 0]))
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), metadata=metadata, type_check=False)
    assert quantize(graph).nodes["neuron"].input_exponent < 4  # 255 · 10^4 · 16 exceeds 2^24
    x = np.full((1, 1, 100, 100), 2.0)
    quantised = quantize(graph, calibration=x)
    assert quantised.nodes["neuron"].input_exponent == 1
    assert quantisation_report(graph, quantised, x).neurons[0].margin > 2


def test_thresholds_that_do_not_fit_lower_the_scale() -> None:
    """Weights of a 2000th of the threshold: it takes 2000 events, in integers too."""
    quantised = quantize(dense(np.full((1, 4), 5e-4), np.zeros(1), tau=1))
    weights, neuron = quantised.nodes["dense"], quantised.nodes["neuron"]
    assert neuron.threshold[0] > 1 << 14
    np.testing.assert_allclose(neuron.threshold[0] / weights.scale[0], 1, rtol=1e-4)


def test_calibration_corrects_the_mean_current() -> None:
    rng = np.random.default_rng(0)
    real, bias = rng.normal(size=(6, 80)), rng.normal(size=6)
    x = (rng.random((200, 80)) < rng.random(80)).astype(np.float32)
    graph = dense(real, bias, tau=1)
    errors = []
    for calibration in (None, x):
        nodes = quantize(graph, QuantizeOptions(2), calibration).nodes
        layer, neuron = nodes["dense"], nodes["neuron"]
        currents = (layer.weight @ x.T.astype(int)).mean(1) * 2.0**layer.exponent
        found = (currents + (neuron.bias_mantissa << neuron.bias_exponent) / 64) / layer.scale
        errors.append(np.abs(found - (real @ x.mean(0) + bias)).max())
    assert errors[1] < 0.01
    assert errors[0] > 0.3


def test_calibration_weighs_errors_by_activity() -> None:
    """One large weight, two small ones, two bits: who fires is rounded well."""
    graph = dense(np.array([[1.0, 0.2, 0.2]]), np.zeros(1))
    for active, weight in ((0, 1.0), (1, 0.2)):
        x = np.zeros((1, 3))
        x[0, active] = 1
        layer = quantize(graph, QuantizeOptions(2), x).nodes["dense"]
        assert abs(layer.weight[0, active] * 2.0 ** layer.exponent[0] / layer.scale[0] - weight) < 0.08


def test_calibration_moves_biases_of_every_variant(variant: str) -> None:
    """And registers hold."""
    model = lively_model(small_config(variant, depth=1))
    graph, x = build_graph(model), lively_input(model.config, batch=4).numpy()
    plain, calibrated = quantize(graph, QuantizeOptions(3)), quantize(graph, QuantizeOptions(3), x)
    assert_registers(calibrated, 3)
    first, second = (
        np.concatenate(
            [n.bias_mantissa.ravel() << n.bias_exponent.ravel() for n in g.nodes.values() if hasattr(n, "du")]
        )
        for g in (plain, calibrated)
    )
    assert (first != second).mean() > 0.3
