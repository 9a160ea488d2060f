"""The graph of a network against the network: same spikes in every layer, same logits, names that lead back."""

import nir
import numpy as np
import pytest
import torch
from torch import nn

from statten_deploy.compare.executors import GraphExecutor, TorchExecutor, neuron_layers
from statten_deploy.frontend import build_graph, fire_at, folded_weights
from statten_deploy.frontend.statten import fold_batch_norm
from statten_deploy.ir import STAttenAttention, hints, infer_shapes, predecessors, topological_order, verify
from tests.conftest import Golden, lively_input, lively_model, small_config


def test_graph_equals_network(variant: str) -> None:
    model = lively_model(small_config(variant))
    x = lively_input(model.config).numpy()
    expected, found = TorchExecutor(model).run(x), GraphExecutor(build_graph(model)).run(x)
    assert found.spikes.keys() == expected.spikes.keys()
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
    np.testing.assert_allclose(found.outputs["logits"], expected.outputs["logits"], atol=1e-5)


def test_graph_reproduces_the_recordings(golden: Golden) -> None:
    found = GraphExecutor(build_graph(golden.model())).run(golden.x.numpy())
    logits = golden.logits.mean(0) if golden.config.tet else golden.logits
    np.testing.assert_allclose(found.outputs["logits"], logits, atol=1e-5)
    np.testing.assert_array_equal(found.spikes["head_lif"], golden.spikes["head_lif"] > 0)


def test_every_weighted_module_and_neuron_has_a_node_of_its_name(variant: str) -> None:
    model = lively_model(small_config(variant))
    graph = build_graph(model)
    modules = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)} | neuron_layers(
        model
    ).keys()
    assert modules <= graph.nodes.keys()
    paths = dict(model.named_modules())
    invented = {name for name in graph.nodes if name not in paths}
    kinds = ("image", "frames", "logits", "normalize", "head_pool", "head_flatten", "head_mean")
    inner = ("statten", "gate", "kv", "kv_sum", "kv_pool", "qkv", "qkv_pool")
    assert all(name in kinds or name.rsplit(".", 1)[-1] in inner for name in invented), invented


def test_residuals_are_edges_oldest_first() -> None:
    graph = build_graph(lively_model(small_config("static")))
    into = predecessors(graph)["block.1.mlp.fc1_lif"]["input"]
    assert into == [
        "patch_embed.rpe_conv",
        "patch_embed.maxpool3",
        "block.0.attn.proj_conv",
        "block.0.mlp.fc2_conv",
        "block.1.attn.proj_conv",
    ]


def test_batch_norm_is_folded_with_its_bias() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4).eval()
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    weight, bias = fold_batch_norm(conv, norm)
    x = torch.randn(2, 3, 8, 8)
    folded = nn.functional.conv2d(x, weight, bias)
    torch.testing.assert_close(folded, norm(conv(x)), atol=1e-5, rtol=0)
    assert bias.abs().min() > 0
    trained = [conv.weight, conv.bias, norm.weight, norm.bias]
    upstream = torch.randn_like(folded)
    for one, other in zip(*(torch.autograd.grad(y, trained, upstream) for y in (folded, norm(conv(x)))), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_folded_weights_are_those_of_the_graph(variant: str) -> None:
    model = lively_model(small_config(variant))
    graph = build_graph(model)
    folded = folded_weights(model)
    weighted = {name for name, node in graph.nodes.items() if isinstance(node, nir.Conv2d | nir.Affine)}
    assert folded.keys() == weighted - {"normalize"}
    for name, (weight, bias) in folded.items():
        np.testing.assert_array_equal(graph.nodes[name].weight, weight.detach().numpy())
        np.testing.assert_array_equal(graph.nodes[name].bias, bias.detach().numpy())


def test_thresholds_fire_at_equality() -> None:
    """NIR's v > threshold with the written threshold is the network's v >= theta."""
    for theta in (1.0, 0.5, 2.0, 7.0, 160.0):
        threshold = np.float32(fire_at(theta))
        assert np.float32(theta) > threshold
        assert not np.nextafter(np.float32(theta), np.float32(0)) > threshold


def test_attention_thresholds_are_counts() -> None:
    for variant, expected in (("static", 0.5 * 4), ("dvs", 0.5 * 4 * 4 * 2), ("token", 0.5 * 4)):
        graph = build_graph(lively_model(small_config(variant)))
        threshold = graph.nodes["block.0.attn.attn_lif"].v_threshold
        assert np.unique(threshold).tolist() == [np.float32(fire_at(expected))]


def test_metadata_and_shapes() -> None:
    model = lively_model(small_config("dvs"))
    graph = build_graph(model)
    assert (hints(graph)["time_steps"], hints(graph)["input"], hints(graph)["dt"]) == (4, "frames", 1e-4)
    verify(graph)
    shapes = infer_shapes(graph)
    assert shapes["block.0.attn.statten"] == (32, 4, 4)
    assert shapes["logits"] == (5,)
    assert topological_order(graph)[0] == "frames"


@pytest.mark.parametrize(
    ("variant", "mode", "window", "groups"),
    [("static", "block", 2, 1), ("sliding", "sliding", 2, 1), ("token", "block", 4, 2)],
)
def test_attention_parameters(variant: str, mode: str, window: int, groups: int) -> None:
    node = build_graph(lively_model(small_config(variant))).nodes["block.0.attn.statten"]
    assert isinstance(node, STAttenAttention)
    assert (node.mode, node.window, node.token_groups, node.num_heads) == (mode, window, groups, 4)


def test_neurons_are_full_arrays() -> None:
    graph = build_graph(lively_model(small_config("plif")))
    node = graph.nodes["block.0.mlp.fc2_lif"]
    assert isinstance(node, nir.LIF)
    assert node.tau.shape == node.v_threshold.shape == (64, 4, 4)
