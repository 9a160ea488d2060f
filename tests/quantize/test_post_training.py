"""Post-training quantisation: accuracy on the shipped checkpoints, structure, and the integers against slow loops."""

from pathlib import Path

import nir
import numpy as np
import pytest
import torch

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir.integer import IntegerConv2d, IntegerLIF
from statten_deploy.models.checkpoint import load_model
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate import Simulator
from statten_deploy.train.data import load_arrays
from tests.conftest import lively_input, lively_model, small_config
from tests.fixed_point.slow_network import run_slowly
from tests.quantize.test_other_graphs import conv, eighths, graph, inp, lif, out

ZOO = Path(__file__).resolve().parents[2] / "models/zoo"


@pytest.mark.parametrize("name", ["digits", "digits-stream"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_eight_bits_cost_at_most_one_image(name: str, granularity: str) -> None:
    model = load_model(ZOO / f"{name}.ckpt")
    x, y = load_arrays("digits", "test", model.config)
    with torch.no_grad():
        reference = model(torch.from_numpy(x)).numpy()
    logits = IntegerRunner(quantize(build_graph(model), QuantizeOptions(8, granularity))).run(x).outputs["logits"]
    assert (logits.argmax(1) == y).sum() >= (reference.argmax(1) == y).sum() - 1
    assert (logits.argmax(1) == reference.argmax(1)).mean() > 0.98


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_equal_slow_loops(variant: str, bits: int) -> None:
    """Every spike, every membrane and the logits, against a second implementation that knows no arrays tricks."""
    model = lively_model(small_config(variant, depth=1))
    graph = quantize(build_graph(model), QuantizeOptions(bits))
    x = lively_input(model.config, batch=1).numpy()
    result = IntegerRunner(graph).run(x, spikes=True, membranes=True)
    spikes, membranes, logits = run_slowly(graph, x)
    assert spikes.keys() == result.spikes.keys()
    for name, expected in spikes.items():
        np.testing.assert_array_equal(result.spikes[name], expected, err_msg=name)
        np.testing.assert_array_equal(result.membranes[name], membranes[name], err_msg=name)
    np.testing.assert_array_equal(result.outputs["logits"], logits)


def test_registers_hold_what_is_written(variant: str) -> None:
    """Weights in their bits, thresholds in 17, bias mantissas in 13, everything whole."""
    graph = quantize(build_graph(lively_model(small_config(variant))), QuantizeOptions(4))
    convolutions = [node for node in graph.nodes.values() if isinstance(node, IntegerConv2d)]
    neurons = [node for node in graph.nodes.values() if isinstance(node, IntegerLIF)]
    assert len(convolutions) > 5
    assert len(neurons) > 5
    assert max(np.abs(node.weight).max() for node in convolutions) == 7
    for node in neurons:
        assert node.threshold.min() >= 0
        assert node.threshold.max() < 1 << 16
        assert np.abs(node.bias_mantissa).max() < 1 << 12


@pytest.mark.parametrize("time_steps", [1, 4, 16])
def test_halved_membranes_stay_whole(time_steps: int) -> None:
    """As far as the registers go: ``a << 6`` can be halved six times."""
    model = lively_model(small_config("static", time_steps=time_steps, chunk_size=1))
    graph, x = build_graph(model), lively_input(model.config).numpy()
    exact, halvings = quantize(graph), min(time_steps - 1, 6)
    neurons = {name: node for name, node in exact.nodes.items() if isinstance(node, IntegerLIF)}
    assert all(node.dv == 2048 for node in neurons.values())
    for name, node in neurons.items():
        bias = node.bias_mantissa << node.bias_exponent
        assert not np.any(bias % (1 << halvings)), name
    assert any(np.any(node.bias_mantissa) for node in neurons.values())
    membranes = IntegerRunner(exact).run(x, membranes=True).membranes
    for name in neurons:
        for step in range(min(time_steps, halvings + 1)):
            assert not np.any(membranes[name][step] % (1 << (halvings - step))), name


@pytest.mark.parametrize(("threshold", "multiple"), [(1.0, 8), (0.004, 4), (0.002, 2), (0.001, 1)])
def test_biases_stay_near_beside_small_thresholds(threshold: float, multiple: int) -> None:
    """Four steps ask for multiples of 8, but biases may move by 1/1024 of the threshold only."""
    rng = np.random.default_rng(0)
    weight, bias = eighths(rng, 16, 2, 3, 3), rng.uniform(-threshold, threshold, 16).astype(np.float32)
    nodes = {"x": inp(2, 4, 4), "conv": conv(weight, bias), "lif": lif((16, 4, 4), threshold=threshold)}
    exact = quantize(graph({**nodes, "y": out(16, 4, 4)}), QuantizeOptions(8, "tensor"))
    (neurons,) = (node for node in exact.nodes.values() if isinstance(node, IntegerLIF))
    found = (neurons.bias_mantissa << neurons.bias_exponent).reshape(-1)
    assert not np.any(found % multiple)
    assert np.any(found % (2 * multiple))
    assert np.abs(found - bias * np.median(found / bias)).max() <= 0.8 * multiple


def test_eight_bits_fire_like_the_float_network(variant: str) -> None:
    """The first layers, before small differences add up."""
    model = lively_model(small_config(variant))
    graph, x = build_graph(model), lively_input(model.config).numpy()
    x = x / max(1.0, x.max()) if model.config.input == "image" else x
    expected = Simulator(graph).run(x, record="spikes").recorded
    found = IntegerRunner(quantize(graph)).run(x, spikes=True).spikes
    for name in list(expected)[:3]:
        assert (found[name] != (expected[name] > 0)).mean() < 0.03, name


def test_without_calibration_only_the_weights_count() -> None:
    model = lively_model(small_config("static"))
    first, second = (quantize(build_graph(model), QuantizeOptions(4)) for _ in range(2))
    for name, node in first.nodes.items():
        for field in ("weight", "exponent", "threshold", "bias_mantissa", "bias_exponent"):
            np.testing.assert_array_equal(getattr(node, field, 0), getattr(second.nodes[name], field, 0))


def test_options_and_nodes_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="--bits 9: expected 2 to 8"):
        QuantizeOptions(9)
    with pytest.raises(InputError, match="--granularity layer: expected channel or tensor"):
        QuantizeOptions(8, "layer")
    graph = build_graph(lively_model(small_config("static")))
    graph.nodes["head_lif"] = nir.Delay(np.ones(32))
    graph.nodes["block.0.attn.q_lif"].v_leak += 1
    with pytest.raises(UnsupportedError, match=r"q_lif \(v_leak and v_reset must be 0\); .*head_lif \(Delay: "):
        quantize(graph)
