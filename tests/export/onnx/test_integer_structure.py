"""What an integer model looks like: names, types, operators, metadata, size, refusals."""

from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from statten_deploy.errors import ConfigError, GraphError, UnsupportedError
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import (
    EMITTERS,
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
REAL = {"Div", "Round"}
"""Operators that make real numbers of integers or the other way round; only the encoder has them."""
ALLOWED = {
    *("Add", "And", "Cast", "Clip", "Concat", "Constant", "Floor", "Gather", "Greater", "LessOrEqual", "MatMul"),
    *("MatMulInteger", "MaxPool", "Min", "Mul", "Neg", "Not", "Pad", "ReduceSum", "Reshape", "Shape", "Split", "Sub"),
    "Transpose",
}
"""Exact on whole numbers of the types they are used in."""


def test_the_runner_and_the_export_know_the_same_nodes() -> None:
    assert set(EMITTERS) | {nir.Input, nir.Output} == set(OPERATIONS)


def test_every_layer_keeps_its_name(variant: str) -> None:
    graph, _ = quantised(variant)
    model = build_integer_onnx(graph)
    layers = [name for name, node in graph.nodes.items() if isinstance(node, IntegerLIF)]
    assert spike_values(model) == {name: name for name in layers}
    assert integer_values(model) == {"logits": "head_mean"}
    named = {node.name for node in model.graph.node if node.name}
    assert named == set(graph.nodes) - {model.graph.input[0].name}
    for node in model.graph.node:
        assert not node.name or node.name == node.output[0]


def test_operators_are_standard_and_exact(variant: str) -> None:
    graph, _ = quantised(variant)
    model = build_integer_onnx(graph, spike_counts=True)
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 20), ("statten", 1)}
    functions = {function.name: function for function in model.functions}
    real = [node.output[0] for node in model.graph.node if node.op_type in REAL]
    assert all(value.startswith(f"{model.graph.input[0].name}.encoder/") for value in real)
    used = {node.op_type for node in model.graph.node if not node.domain}
    for function in functions.values():
        used |= {node.op_type for node in function.node if not node.domain}
        if "MatMul" in {node.op_type for node in function.node}:
            assert function.name.startswith("IntegerSTAtten")
    assert used <= ALLOWED | REAL | {"Flatten"}


@pytest.mark.parametrize("bits", [2, 8])
def test_weights_are_stored_as_they_are(bits: int) -> None:
    graph, _ = quantised("oblong", bits)
    model = build_integer_onnx(graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, node in graph.nodes.items():
        if isinstance(node, IntegerConv2d | IntegerLinear):
            stored = tensors[f"{name}.weight"]
            assert stored.data_type == TensorProto.INT8
            np.testing.assert_array_equal(np.unique(numpy_helper.to_array(stored)), np.unique(node.weight))
            assert stored.raw_data.__len__() == node.weight.size
        elif isinstance(node, IntegerLIF):
            stored = tensors[f"{name}.threshold"]
            assert stored.data_type in (TensorProto.INT8, TensorProto.INT16, TensorProto.INT32)
            np.testing.assert_array_equal(numpy_helper.to_array(stored), np.squeeze(node.threshold))
    floats = [tensor for tensor in tensors.values() if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)]
    assert sum(len(tensor.raw_data) for tensor in floats) < 200


@pytest.mark.parametrize("name", ["digits", "digits-stream"])
def test_files_are_less_than_a_third_of_the_float_ones(name: str, tmp_path: Path) -> None:
    graph = build_graph(load_model(ZOO / f"{name}.ckpt"))
    save_onnx(build_onnx(graph), tmp_path / "float.onnx")
    save_onnx(build_integer_onnx(quantize(graph)), tmp_path / "integer.onnx")
    assert (tmp_path / "integer.onnx").stat().st_size < 0.3 * (tmp_path / "float.onnx").stat().st_size


def test_same_graph_same_bytes() -> None:
    first, second = (build_integer_onnx(quantised("dvs")[0], metadata={"b": "1"}) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_metadata_says_that_it_is_an_integer_model() -> None:
    graph, _ = quantised("static", 4, "tensor")
    model = build_integer_onnx(graph, metadata={"source_sha256": "ab"})
    found = {entry.key: entry.value for entry in model.metadata_props}
    told = {"flavour": "integer", "bits": "4", "granularity": "tensor", "layout": "sequence", "time_steps": "4"}
    assert found.items() >= {**told, "input": "image", "source_sha256": "ab", "name": "static"}.items()
    with pytest.raises(ConfigError, match="'flavour' is 'qdq', but the model was built with 'integer'"):
        build_integer_onnx(graph, metadata={"flavour": "qdq"})


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


# refusals


def test_float_graphs_are_refused_by_name() -> None:
    graph = build_graph(lively_model(small_config("static", depth=1)))
    with pytest.raises(UnsupportedError, match=r"'patch_embed.proj_conv' \(Conv2d\), .*'head_mean' \(TemporalMean\)"):
        build_integer_onnx(graph)


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


def test_values_that_are_read_have_shapes() -> None:
    rng = np.random.default_rng(0)
    graph = integer_graph((2, 5, 6), conv(rng, 3, 2), lif(rng, (3, 5, 6)), time_steps=3)
    model = build_integer_onnx(graph)
    (info,) = (info for info in model.graph.value_info if info.name == "n1")
    assert [dim.dim_value or dim.dim_param for dim in info.type.tensor_type.shape.dim] == ["3*batch", 5, 6, 3]
    found = in_onnxruntime()(model, {"x": counts(rng, graph)})
    assert found["y"].shape == (3, 3, 3, 5, 6)
