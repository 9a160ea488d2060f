"""What an integer model looks like: names, types, operators, metadata, size, refusals."""

import json
from pathlib import Path

import nir
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from statten_deploy.errors import ConfigError, GraphError, UnsupportedError
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import (
    EMITTERS,
    FLAVOURS,
    Flavour,
    build_integer_onnx,
    integer_values,
    spike_values,
    with_probes,
)
from statten_deploy.fixed_point.runner import OPERATIONS
from statten_deploy.frontend import build_graph
from statten_deploy.ir.integer import IntegerConv2d, IntegerLIF, IntegerLinear
from statten_deploy.models.checkpoint import load_model
from statten_deploy.quantize import quantize
from tests.conftest import lively_model, small_config
from tests.export.onnx.integer_harness import (
    conv,
    counts,
    in_onnxruntime,
    integer_graph,
    lif,
    linear,
    quantised,
    with_hints,
)

ZOO = Path(__file__).resolve().parents[3] / "models/zoo"
ENCODER = {"Mul", "Add", "Floor", "Round", "Clip", "Gather", "GreaterOrEqual", "Cast", "Sub", "Transpose", "Reshape"}
"""What makes bytes of real numbers."""
SHARED = {
    *("Add", "Cast", "Clip", "Concat", "DequantizeLinear", "Floor", "Greater", "Identity", "LessOrEqual", "MatMul"),
    *("Max", "MaxPool", "Mul", "ReduceSum", "Reshape", "Slice", "Split", "Sub", "Transpose"),
}
ALLOWED = {
    "integer": SHARED | {"And", "Gather", "MatMulInteger", "Min", "Neg", "Not", "Pad", "Shape"},
    "qdq": SHARED | {"Ceil", "Conv", "Min", "QuantizeLinear", "Round", "Where"},
}
"""Exact on whole numbers of the types they are used in."""


def test_the_runner_and_the_export_know_the_same_nodes() -> None:
    assert set(EMITTERS) | {nir.Input, nir.Output} == set(OPERATIONS)


def short(name: str) -> str:
    """What a joint layer is called after."""
    return name.rpartition(".")[2]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_layer_keeps_its_name(variant: str, flavour: Flavour) -> None:
    graph, _ = quantised(variant)
    model = build_integer_onnx(graph, flavour=flavour)
    values = {output for node in model.graph.node for output in node.output}
    layers = [name for name, node in graph.nodes.items() if isinstance(node, IntegerLIF)]
    found = spike_values(model)
    assert found.keys() == set(layers)
    for name, steps in found.items():
        assert len(steps) == 4
        assert values >= {*steps, *(f"{value}/v" for value in steps)}
        assert all(value.rpartition("/")[0].startswith(name.rpartition(".")[0]) for value in steps)
        assert any(short(name) in value for value in steps)
    assert integer_values(model).keys() == {"logits"}
    joint = {part for value in values if "+" in value for part in value.partition("/")[0].rpartition(".")[2].split("+")}
    for name in set(graph.nodes) - set(layers) - {model.graph.input[0].name}:
        assert {name, f"{name}/0"} & values or short(name) in joint
    for node in model.graph.node:
        assert not node.name or node.name == node.output[0]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_operators_are_standard_and_exact(variant: str, flavour: Flavour) -> None:
    graph, _ = quantised(variant)
    model = build_integer_onnx(graph, flavour=flavour, spike_counts=True)
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 20)}
    assert not model.functions  # some runtimes do not know them
    encoder = f"{model.graph.input[0].name}.encoder"
    inside = {node.op_type for node in model.graph.node if node.output[0].startswith(encoder)}
    assert inside <= ENCODER | ({"QuantizeLinear", "DequantizeLinear"} if flavour == "qdq" else {"Concat", "Neg"}) | (
        {"Slice", "Pad", "Split"} if flavour == "integer" else set()
    )
    for node in model.graph.node:
        if node.output[0].startswith(encoder):
            continue
        assert node.op_type in ALLOWED[flavour], node.op_type
        if node.op_type == "MatMul" and flavour == "integer":
            assert "attn" in node.output[0] or node.input[0].startswith("ones/")


def test_every_product_is_joined_to_its_scaling(variant: str, tmp_path: Path) -> None:
    """onnxruntime must make one kernel of every MatMulInteger, Cast, Mul and Add; nothing says if it does not."""
    graph, _ = quantised(variant, time_steps=4, depth=2)
    model = build_integer_onnx(graph)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    bare = sum(node.op_type == "MatMulInteger" and node.output[0].endswith("/kv") for node in model.graph.node)
    products = sum(node.op_type == "MatMulInteger" for node in model.graph.node) - bare
    assert products > 10
    assert found.count("MatMulInteger") == bare
    assert found.count("MatMulIntegerToFloat") == products


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("bits", [2, 8])
def test_weights_are_stored_as_they_are(bits: int, flavour: Flavour) -> None:
    graph, _ = quantised("oblong", bits)
    model = build_integer_onnx(graph, flavour=flavour)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {name: n for name, n in graph.nodes.items() if isinstance(n, IntegerConv2d | IntegerLinear)}
    stored = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items() if name.endswith(".weight")}
    assert all(tensor.data_type == TensorProto.INT8 for tensor in stored.values())
    assert sum(len(tensor.raw_data) for tensor in stored.values()) == sum(node.weight.size for node in weights.values())
    for name, node in weights.items():
        if name in stored:
            np.testing.assert_array_equal(np.unique(numpy_helper.to_array(stored[name])), np.unique(node.weight))
    neurons = [node for node in graph.nodes.values() if isinstance(node, IntegerLIF)]
    channels = sum(len(node.weight) for node in weights.values()) + sum(node.shape[0] for node in neurons)
    floats = [tensor for tensor in tensors.values() if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)]
    assert sum(len(tensor.raw_data) for tensor in floats) < 8 * channels + 2048


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_files_are_a_fraction_of_the_float_ones(flavour: Flavour, tmp_path: Path) -> None:
    """A quarter for the weights; in a network as small as digits the steps that are written out count as much."""
    large = build_graph(lively_model(small_config("static", depth=1, embed_dim=192)))
    for graph, most in ((build_graph(load_model(ZOO / "digits.ckpt")), 0.4), (large, 0.3)):
        save_onnx(build_onnx(graph), tmp_path / "float.onnx")
        save_onnx(build_integer_onnx(quantize(graph), flavour=flavour), tmp_path / "integer.onnx")
        assert (tmp_path / "integer.onnx").stat().st_size < most * (tmp_path / "float.onnx").stat().st_size


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_same_graph_same_bytes(flavour: Flavour) -> None:
    graphs = [quantised("dvs")[0] for _ in range(2)]
    first, second = (build_integer_onnx(graph, flavour=flavour, metadata={"b": "1"}) for graph in graphs)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_metadata_says_what_kind_of_model_it_is(flavour: Flavour) -> None:
    graph, _ = quantised("static", 4, "tensor")
    model = build_integer_onnx(graph, flavour=flavour, metadata={"source_sha256": "ab"})
    found = {entry.key: entry.value for entry in model.metadata_props}
    told = {"flavour": flavour, "bits": "4", "granularity": "tensor", "layout": "sequence", "time_steps": "4"}
    assert found.items() >= {**told, "input": "image", "source_sha256": "ab", "name": "static"}.items()
    assert {layer["name"] for layer in json.loads(found["neurons"])} == spike_values(model).keys()
    with pytest.raises(ConfigError, match="'flavour' is 'float32', but the model was built with"):
        build_integer_onnx(graph, flavour=flavour, metadata={"flavour": "float32"})


def test_a_saved_model_can_still_be_probed(tmp_path: Path) -> None:
    graph, x = quantised("static")
    save_onnx(build_integer_onnx(graph), tmp_path / "net.onnx")
    loaded = onnx.load(tmp_path / "net.onnx")
    before = loaded.SerializeToString()
    probed, probes = with_probes(loaded)
    assert loaded.SerializeToString() == before
    found = in_onnxruntime()(probed, {"image": x})
    np.testing.assert_array_equal(found["logits"], in_onnxruntime()(loaded, {"image": x})["logits"])
    assert found[probes.spikes["head_lif"]].shape == (4, 2, 32)
    assert found[probes.membranes["patch_embed.proj_lif"]].shape == (4, 2, 4, 16, 16)
    with pytest.raises(GraphError, match="not an integer model of this package"):
        with_probes(onnx.ModelProto())


def test_names_of_another_tool_may_look_like_ours() -> None:
    """A node called like a step of a layer: its values are found all the same."""
    rng = np.random.default_rng(2)
    chain = integer_graph((3,), linear(rng, 4, 3), lif(rng, (4,), 20000), linear(rng, 2, 4), lif(rng, (2,), 200))
    names = {"n0": "a", "n1": "b", "n2": "b/0", "n3": "b/0/v"}
    nodes = {names.get(name, name): node for name, node in chain.nodes.items()}
    graph = with_hints(nodes, [(names.get(a, a), names.get(b, b)) for a, b in chain.edges])
    model = build_integer_onnx(graph)
    probed, probes = with_probes(model)
    found = in_onnxruntime()(probed, {"x": counts(rng, graph)})
    assert found[probes.spikes["b"]].shape == (4, 3, 4)
    assert found[probes.spikes["b/0/v"]].shape == (4, 3, 2)
    np.testing.assert_array_equal(found["y"], found[probes.spikes["b/0/v"]].swapaxes(0, 1))


# refusals


def test_float_graphs_are_refused_by_name() -> None:
    graph = build_graph(lively_model(small_config("static", depth=1)))
    with pytest.raises(UnsupportedError, match=r"'patch_embed.proj_conv' \(Conv2d\), .*'head_mean' \(TemporalMean\)"):
        build_integer_onnx(graph)


def test_qdq_refuses_what_float32_cannot_hold() -> None:
    rng = np.random.default_rng(0)
    graph = integer_graph((4,), linear(rng, 3, 4, exponent=np.full(3, 8)), lif(rng, (3,)))
    with pytest.raises(UnsupportedError, match=r"'n0': .* 2\^24; use --flavour integer"):
        build_integer_onnx(graph, flavour="qdq")


def test_real_numbers_need_an_encoder() -> None:
    rng = np.random.default_rng(0)
    nodes = {"x": nir.Input({"input": np.array([4])}), "n": linear(rng, 3, 4), "y": nir.Output({"output": None})}
    with pytest.raises(UnsupportedError, match=r"'n' \(IntegerLinear\) takes real numbers from 'x'; expected an Input"):
        build_integer_onnx(with_hints(nodes, [("x", "n"), ("n", "y")]))
    two = integer_graph((4,), linear(rng, 3, 4), lif(rng, (3,)))
    two.nodes |= {"z": nir.Input({"input": np.array([4])}), "e": two.nodes["encoder"]}
    more = nir.NIRGraph(two.nodes, [*two.edges, ("z", "e"), ("e", "n0")], metadata=two.metadata, type_check=False)
    with pytest.raises(UnsupportedError, match="the graph has 2 inputs, expected 1"):
        build_integer_onnx(more)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_outputs_have_a_time_axis(flavour: Flavour) -> None:
    rng = np.random.default_rng(0)
    graph = integer_graph((2, 5, 6), conv(rng, 3, 2, largest=20), lif(rng, (3, 5, 6)), time_steps=3)
    model = build_integer_onnx(graph, flavour=flavour)
    assert [dim.dim_value or dim.dim_param for dim in model.graph.output[0].type.tensor_type.shape.dim] == [
        *("batch", 3),
        *(3, 5, 6),
    ]
    assert in_onnxruntime()(model, {"x": counts(rng, graph)})["y"].shape == (3, 3, 3, 5, 6)
