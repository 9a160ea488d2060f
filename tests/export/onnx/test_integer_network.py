"""Whole networks in integers: every spike, membrane and logit is the integer runner's."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import nir
import numpy as np
import pytest
import torch

from statten_deploy.export.onnx.integer import FLAVOURS, Flavour, build_integer_onnx
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import STAttenAttention
from statten_deploy.models.checkpoint import load_model
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train.data import load_arrays
from tests.export.onnx.integer_harness import (
    ALL,
    OFF,
    agree,
    conv,
    counts,
    in_onnxruntime,
    in_openvino,
    in_reference,
    integer_graph,
    lif,
    quantised,
    with_hints,
)

ZOO = Path(__file__).resolve().parents[3] / "models/zoo"


@pytest.mark.parametrize(("bits", "granularity"), [(2, "channel"), (4, "tensor"), (8, "channel"), (8, "tensor")])
def test_every_variant(variant: str, bits: int, granularity: str) -> None:
    graph, x = quantised(variant, bits, granularity)
    result = agree(graph, x)
    assert sum(int(spikes.sum()) for spikes in result.spikes.values()) > 1000


@pytest.mark.parametrize("shared", ["qk", "kv", "qkv"])
def test_a_layer_on_several_ports_of_an_attention(shared: str) -> None:
    rng, shape = np.random.default_rng(1), (4, 4, 4)
    nodes = {**integer_graph((2, 4, 4)).nodes, "conv": conv(rng, 4, 2), "spikes": lif(rng, shape, 20000)}
    nodes |= {"attention": STAttenAttention(2, 2), "last": lif(rng, shape, 10)}
    edges = [("x", "encoder"), ("encoder", "conv"), ("conv", "spikes"), ("attention", "last"), ("last", "y")]
    for port in "qkv":
        layer = shared if port in shared else port
        if layer not in nodes:
            nodes |= {f"{layer}_conv": conv(rng, 4, 4, 1), layer: lif(rng, shape)}
            edges += [("spikes", f"{layer}_conv"), (f"{layer}_conv", layer)]
        edges.append((layer, f"attention.{port}"))
    graph = with_hints(nodes, edges)
    result = agree(graph, counts(rng, graph))
    assert 0 < result.spikes["last"].mean() < 1


@pytest.mark.parametrize("change", [{"dv": 1000}, {"input_exponent": 1}], ids=str)
def test_heads_of_other_neurons_stay_apart(change: dict[str, int]) -> None:
    graph, x = quantised("static", image_size=(8, 8), embed_dim=16)
    graph.nodes["block.0.attn.k_lif"] = replace(graph.nodes["block.0.attn.k_lif"], **change)
    assert agree(graph, x).spikes["block.0.attn.k_lif"].any()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("mode", ["block", "sliding"])
def test_coincidences_that_a_byte_cannot_hold(mode: Literal["block", "sliding"], joint: bool) -> None:
    """144 tokens over two steps, nearly all of them with a spike."""
    rng, shape = np.random.default_rng(2), (4, 12, 12)
    nodes = {**integer_graph((2, 12, 12)).nodes, "conv": conv(rng, 4, 2), "spikes": lif(rng, shape, 2000)}
    edges = [("x", "encoder"), ("encoder", "conv"), ("conv", "spikes"), ("attention", "last"), ("last", "y")]
    nodes |= {"attention": STAttenAttention(2, 2, mode), "last": lif(rng, shape, 1100)}
    for port in "qkv":
        nodes |= {f"{port}_conv": conv(rng, 4, 4, 1), port: lif(rng, shape, 20, bias_exponent=np.full((4, 1, 1), 4))}
        nodes[port].bias_mantissa[:] = 4000
        edges += [("spikes", f"{port}_conv"), (f"{port}_conv", port), (port, f"attention.{port}")]
    if not joint:
        nodes["also"] = nir.Output({"output": None})
        edges.append(("k", "also"))
    graph = with_hints(nodes, edges)
    x = counts(rng, graph, batch=2)
    k, v = (IntegerRunner(graph).run(x, spikes=True).spikes[name].reshape(4, 2, 4, -1).astype(int) for name in "kv")
    coincidences = k @ v.swapaxes(2, 3)
    assert (coincidences[:2].sum(0) > 255).any()
    assert 0 < agree(graph, x).spikes["last"].mean() < 1


@pytest.mark.parametrize("variant", ["static", "sliding", "plif", "normalised", "dvs", "dvs-sdt"])
def test_no_optimisation_and_the_reference_evaluator_give_the_same(variant: str) -> None:
    graph, x = quantised(variant, image_size=(8, 8), embed_dim=16)
    agree(graph, x, in_onnxruntime(OFF), in_onnxruntime(ALL, threads=2), in_reference)


@pytest.mark.parametrize("variant", ["static", "token", "plif", "normalised", "dvs", "dvs-strided-sliding", "dvs-sdt"])
def test_openvino_gives_the_same(variant: str) -> None:
    """It has no float64, and makes other kernels of the same graph."""
    graph, x = quantised(variant, image_size=(8, 8), embed_dim=16)
    agree(graph, x, in_openvino)


@pytest.mark.parametrize("variant", ["static", "dvs", "plif", "sliding"])
def test_sixteen_steps_truncate(variant: str) -> None:
    graph, x = quantised(variant, time_steps=16, chunk_size=4)
    agree(graph, x, in_onnxruntime(), in_openvino)


@pytest.mark.parametrize("variant", ["static", "frames"])
def test_one_step(variant: str) -> None:
    graph, x = quantised(variant, time_steps=1, chunk_size=1)
    agree(graph, x)


@pytest.mark.parametrize(("name", "bits"), [("digits", 8), ("digits", 4), ("digits-stream", 8), ("digits-stream", 4)])
def test_shipped_networks(name: str, bits: int) -> None:
    model = load_model(ZOO / f"{name}.ckpt")
    graph = quantize(build_graph(model), QuantizeOptions(bits))
    x, _ = load_arrays("digits", "test", model.config)
    result = agree(graph, x[:64], in_onnxruntime(ALL), in_onnxruntime(OFF), in_onnxruntime(ALL, threads=2))
    with torch.no_grad():
        floats = model(torch.from_numpy(x[:64])).numpy()
    assert (result.outputs["logits"].argmax(1) == floats.argmax(1)).mean() > 0.9


def test_the_batch_is_free() -> None:
    graph, _ = quantised("static")
    model = build_integer_onnx(graph)
    x = np.random.default_rng(0).random((5, 3, 16, 16), dtype=np.float32)
    together = in_onnxruntime()(model, {"image": x})["logits"]
    for i in range(5):
        np.testing.assert_array_equal(in_onnxruntime()(model, {"image": x[i : i + 1]})["logits"], together[i : i + 1])


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("variant", ["static", "dvs", "dvs-sdt"])
def test_spike_counts(variant: str, flavour: Flavour) -> None:
    graph, x = quantised(variant)
    model = build_integer_onnx(graph, spike_counts=True, flavour=flavour)
    expected = IntegerRunner(graph).run(x).spike_counts
    for run in (in_onnxruntime(), in_openvino):
        found = run(model, {model.graph.input[0].name: x})
        assert found.keys() == {"logits"} | {f"spike_counts/{name}" for name in expected}
        for name, count in expected.items():
            assert found[f"spike_counts/{name}"].dtype == np.int64
            np.testing.assert_array_equal(found[f"spike_counts/{name}"], count, err_msg=name)
