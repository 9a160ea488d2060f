"""The verification itself: a correct artefact passes, every kind of wrong one is refused and named."""

from dataclasses import replace
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

from statten_deploy.compare.executors import Execution, GraphExecutor, OnnxExecutor, TorchExecutor
from statten_deploy.compare.tolerances import TOLERANCES
from statten_deploy.compare.verify import predicted_classes, verify_against
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.frontend import build_graph
from tests.conftest import lively_input, lively_model, small_config


@pytest.fixture(scope="module")
def network():
    return lively_model(small_config("static"))


@pytest.fixture(scope="module")
def samples(network) -> np.ndarray:
    return lively_input(network.config, batch=6).numpy()


def check(network, graph: nir.NIRGraph, samples: np.ndarray):
    yardstick = TorchExecutor(network, torch.float64)
    return verify_against(TorchExecutor(network), GraphExecutor(graph), samples, yardstick)


def test_a_correct_graph_passes(network, samples) -> None:
    agreement = check(network, build_graph(network), samples)
    assert agreement.passed, agreement.problems
    assert agreement.samples == 6
    assert agreement.sites > 100_000
    assert agreement.summary()["prediction_agreement"] == 1.0


def test_a_correct_onnx_file_passes_spike_for_spike(network, samples, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    save_onnx(build_onnx(build_graph(network)), path)
    agreement = verify_against(TorchExecutor(network), OnnxExecutor(path, spikes=True), samples)
    assert agreement.passed, agreement.problems
    assert agreement.layers.keys() == {
        name for name in build_graph(network).nodes if name.endswith(("lif", "lif1", "lif2", "lif3"))
    }


def scale_weight(graph: nir.NIRGraph) -> None:
    graph.nodes["block.1.attn.v_conv"].weight *= np.float32(1.05)


def drop_bias(graph: nir.NIRGraph) -> None:
    graph.nodes["block.0.mlp.fc1_conv"].bias[:] = 0


def raise_threshold(graph: nir.NIRGraph) -> None:
    graph.nodes["block.1.mlp.fc2_lif"].v_threshold *= np.float32(1.02)


def widen_window(graph: nir.NIRGraph) -> None:
    graph.nodes["block.0.attn.statten"].window = 4


def merge_heads(graph: nir.NIRGraph) -> None:
    graph.nodes["block.0.attn.statten"].num_heads = 2


def lose_residual(graph: nir.NIRGraph) -> None:
    graph.edges.remove(("block.0.attn.proj_conv", "block.1.attn.shortcut_lif"))


def swap_keys_and_values(graph: nir.NIRGraph) -> None:
    swap = {"block.0.attn.statten.k": "block.0.attn.statten.v", "block.0.attn.statten.v": "block.0.attn.statten.k"}
    graph.edges[:] = [(source, swap.get(target, target)) for source, target in graph.edges]


def slow_down(graph: nir.NIRGraph) -> None:
    graph.nodes["patch_embed.proj_lif1"].tau *= np.float32(1.1)


def change_head(graph: nir.NIRGraph) -> None:
    graph.nodes["head"].bias[2] += 0.01


DAMAGE = [
    scale_weight,
    drop_bias,
    raise_threshold,
    widen_window,
    merge_heads,
    lose_residual,
    swap_keys_and_values,
    slow_down,
    change_head,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_wrong_graph_is_refused_and_the_place_is_named(network, samples, damage) -> None:
    graph = build_graph(network)
    damage(graph)
    agreement = check(network, graph, samples)
    assert not agreement.passed
    first = agreement.problems[0]
    expected = {
        "scale_weight": "block.1.attn.v_lif",
        "drop_bias": "block.0.mlp.fc2_lif",
        "raise_threshold": "block.1.mlp.fc2_lif",
        "widen_window": "block.0.attn.attn_lif",
        "merge_heads": "block.0.attn.attn_lif",
        "lose_residual": "block.1.attn.shortcut_lif",
        "swap_keys_and_values": "block.0.attn.attn_lif",
        "slow_down": "patch_embed.proj_lif1",
        "change_head": "logits",
    }[damage.__name__]
    assert repr(expected) in first


class Fixed:
    """An executor that answers with what it was given, batch after batch."""

    def __init__(self, execution: Execution) -> None:
        self.name = "fixed"
        self.execution = execution
        self.seen = 0

    def run(self, x: np.ndarray) -> Execution:
        part = slice(self.seen, self.seen + len(x))
        self.seen += len(x)
        return Execution(
            {name: value[part] for name, value in self.execution.outputs.items()},
            {name: value[:, part] for name, value in self.execution.spikes.items()},
        )


@pytest.fixture(scope="module")
def execution(network, samples) -> Execution:
    return TorchExecutor(network).run(samples)


def test_names_and_shapes_come_first(network, samples, execution) -> None:
    spikes = dict(execution.spikes)
    head = spikes.pop("head_lif")
    spikes["block.0.attn.q_lif"] = spikes["block.0.attn.q_lif"][:, :, :-1]
    spikes["surprise"] = head
    logits = execution.outputs["logits"]
    candidate = Fixed(Execution({"scores": logits}, spikes))
    problems = verify_against(TorchExecutor(network), candidate, samples).problems
    assert any("output 'logits' is missing" in text for text in problems)
    assert any("'head_lif' is missing" in text for text in problems)
    assert any("'block.0.attn.q_lif': shape" in text for text in problems)
    assert len(problems) == 3


def test_nan_is_never_agreement(network, samples, execution) -> None:
    logits = execution.outputs["logits"].copy()
    logits[3, 1] = np.nan
    candidate = Fixed(replace(execution, outputs={"logits": logits}))
    assert any("NaN" in text for text in verify_against(TorchExecutor(network), candidate, samples).problems)


def test_one_flip_far_from_the_threshold_is_named_with_step_and_neuron(network, samples, execution) -> None:
    margins = TorchExecutor(network).margins(samples[:1], "head_lif")[:, 0]
    step, neuron = np.unravel_index(int(margins.argmax()), margins.shape)
    spikes = {name: value.copy() for name, value in execution.spikes.items()}
    spikes["head_lif"][step, 0, neuron] ^= True
    candidate = Fixed(replace(execution, spikes=spikes))
    problems = verify_against(TorchExecutor(network), candidate, samples).problems
    assert len(problems) == 1
    assert f"layer 'head_lif', step {step}, neuron ({neuron},)" in problems[0]


def test_a_flip_at_the_threshold_is_counted_and_allowed(network, samples) -> None:
    """A weight moved by one unit in the last place flips at most neurons whose membrane is at the threshold."""
    graph = build_graph(network)
    weight = graph.nodes["patch_embed.proj_conv"].weight
    weight[...] = np.nextafter(weight, np.float32(np.inf))
    agreement = check(network, graph, samples)
    assert agreement.passed, agreement.problems
    assert (agreement.largest_first_flip_margin or 0.0) < TOLERANCES["margin"].limit


def test_margins_are_distances_from_the_threshold(network, samples, execution) -> None:
    """A neuron fires exactly where its membrane is not below the threshold; recomputed here from its input."""
    captured = {}
    layer = network.get_submodule("block.0.attn.attn_lif")
    handle = layer.register_forward_pre_hook(lambda _module, inputs: captured.update(x=inputs[0].numpy()))
    with torch.no_grad():
        network(torch.from_numpy(samples))
    handle.remove()
    first = captured["x"][0] / 2
    expected = np.abs(first - layer.threshold) / layer.threshold
    np.testing.assert_allclose(TorchExecutor(network).margins(samples, "block.0.attn.attn_lif")[0], expected, atol=1e-6)


def test_predicted_classes_of_a_sequence_are_those_of_its_mean() -> None:
    output = np.array([[[0.0, 3.0], [5.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])  # [B, T, classes]
    assert predicted_classes(output).tolist() == [0, 1]


def test_every_tolerance_has_a_reason() -> None:
    for name, tolerance in TOLERANCES.items():
        assert len(tolerance.reason) > 40, name
        assert 0 < tolerance.limit < 10, name
