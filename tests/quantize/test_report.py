"""The report against numbers worked out by hand."""

import json
from itertools import pairwise

import nir
import numpy as np

from statten_deploy.fixed_point.observe import observe
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir.integer import IntegerLIF, IntegerLinear
from statten_deploy.quantize import QuantizeOptions, quantisation_report, quantize
from statten_deploy.simulate import Simulator
from tests.conftest import lively_input, lively_model, small_config
from tests.quantize.test_limits import DT, dense


def integer_chain(weight: list[list[int]], exponent: list[int], threshold: list[int], **neuron: object) -> nir.NIRGraph:
    """The integer graph of `dense`, written by hand."""
    size = len(weight)
    values = {"bias_mantissa": np.zeros(size), "bias_exponent": np.zeros(size), "dv": 2048, **neuron}
    nodes: dict[str, nir.NIRNode] = {
        **quantize(dense(np.ones((size, len(weight[0]))), np.zeros(size))).nodes,
        "dense": IntegerLinear(np.array(weight), np.array(exponent), np.zeros(size), np.full(size, 64.0)),
        "neuron": IntegerLIF(np.array(threshold), shape=(size,), **values),
    }
    edges = list(pairwise(["input", "input.encoder", "dense", "neuron", "spikes"]))
    metadata = {"statten": {"dt": DT, "time_steps": 4, "bits": 4, "granularity": "channel"}}
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)


def test_numbers_by_hand() -> None:
    """K = 64, exponents 3 and 2: the largest weights are 7 · 8 / 64 = 0.875 and 7 · 4 / 64 = 0.4375."""
    real = dense(np.array([[0.875, 0.9, -0.5], [0.4375, -0.5, 0.125]]), np.array([0.0, 0.25]))
    integers = integer_chain(
        [[7, 7, -4], [7, -7, 2]], [3, 2], [99, 17], bias_mantissa=np.array([0, 1023]), bias_exponent=np.array([0, 0])
    )
    x = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    report = quantisation_report(real, integers, x)
    (weights,) = report.weights
    assert (weights.clipped, weights.weights, weights.kind) == (2, 6, "Affine")  # 0.9 and -0.5
    assert (weights.exponent_min, weights.exponent_max, weights.scale_min, weights.scale_max) == (2, 3, 64, 64)
    (layer,) = report.neurons
    assert (layer.threshold_min, layer.threshold_max) == (17, 99)
    # bias 0.25 · 64 = 16 was written as 1023 / 64, of a limit of 18
    assert np.isclose(layer.bias_error, (16 - 1023 / 64) / 18)
    # inputs are bytes: at most 255 · (7 + 7) · 8 and at least -255 · 4 · 8; second row 255 · 9 · 4
    assert layer.input_bound == 255 * 14 * 8
    assert layer.bound == "proved"
    # a = (7 + 7) · 8 = 112 and 0; (14 - 4) · 8 = 80 and (-14 + 2) · 4 = -48
    assert layer.largest_input == 112
    assert np.isclose(layer.margin, 2**17 / 112)
    # first neuron: 112 > 99 at every step; 80, then 120 > 99, 80, 120. Second: 16, then 24 > 17
    assert (layer.wraps, layer.saturations, layer.dead_channels, layer.channels) == (0, 0, 0, 2)
    assert observe(integers, x).neurons["neuron"].spikes.tolist() == [4 + 2, 2]
    assert layer.spikes == 8
    assert layer.spike_drift is None


def test_wraps_and_saturations_are_counted() -> None:
    """a = ±7 · 2^15 exceeds 2^17 once and wraps at every step; without leak, -2^16 a step saturates at the second."""
    real = dense(np.ones((2, 1)), np.zeros(2))
    x = np.array([[1.0]])
    wrapping = quantisation_report(real, integer_chain([[7], [-7]], [15, 15], [9, 9]), x).neurons[0]
    assert (wrapping.wraps, wrapping.largest_input) == (8, 7 << 15)
    assert np.isclose(wrapping.margin, 2**17 / (7 << 15))
    assert wrapping.bound == "unproved"
    piling = quantisation_report(real, integer_chain([[1], [-1]], [16, 16], [2**16 - 1, 2**16 - 1], dv=0), x).neurons[0]
    # membranes move by 2^22: the first fires at every step, the second is held at -2^23 + 1 from its second step on
    assert (piling.wraps, piling.saturations, piling.kind) == (0, 3, "IF")
    assert piling.dead_channels == 1


def test_observed_spikes_are_those_of_the_runner(variant: str) -> None:
    """The replay of every layer from its inputs, and the activity of inputs."""
    model = lively_model(small_config(variant, depth=1))
    graph, x = quantize(build_graph(model)), lively_input(model.config, batch=2).numpy()
    seen, run = observe(graph, x, spikes=True), IntegerRunner(graph).run(x, spikes=True)
    for name, spikes in run.spikes.items():
        np.testing.assert_array_equal(seen.spikes[name], spikes, err_msg=name)
        assert seen.neurons[name].spikes.sum() == spikes.sum()
        assert seen.neurons[name].count == spikes.size
    head = run.spikes["head_lif"].mean((0, 1))
    np.testing.assert_allclose(seen.inputs["head"].mean, head)
    np.testing.assert_allclose(seen.inputs["head"].square, head)


def test_a_report_of_a_network_is_plain_data() -> None:
    model = lively_model(small_config("static", depth=1))
    graph, x = build_graph(model), lively_input(model.config, batch=2).numpy()
    spikes = {name: value > 0 for name, value in Simulator(graph).run(x, record="spikes").recorded.items()}
    report = quantisation_report(graph, quantize(graph, QuantizeOptions(4, "tensor")), x, spikes)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert {layer.name for layer in report.neurons} == set(spikes)
    assert all(layer.spike_drift is not None and 0 <= layer.spike_drift < 0.5 for layer in report.neurons)
    assert any(layer.spike_drift for layer in report.neurons)
    assert report.summary().startswith("4-bit weights per tensor, ")
    assert "\n" not in report.summary()
    assert f"ranges of {len(spikes)} neuron layers: " in report.summary()
