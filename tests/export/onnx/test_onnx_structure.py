"""What the file looks like: names, shapes, how often things are computed, metadata, bytes."""

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest

from statten_deploy.errors import ConfigError, UnsupportedError
from statten_deploy.export.onnx import EMITTERS, build_onnx, files, save_onnx
from statten_deploy.export.onnx.integer import EMITTERS as INTEGER_EMITTERS
from statten_deploy.ir import TemporalMean
from statten_deploy.ir.shapes import RULES
from tests.export.onnx.onnx_harness import (
    F32,
    agree,
    chain,
    checked,
    conv,
    eighths,
    graph_of,
    lif,
    network_input,
    session,
    small_network,
)


def dims(info: onnx.ValueInfoProto) -> list[Any]:
    return [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_inputs_and_outputs() -> None:
    image, events = checked(small_network()), checked(small_network(dvs=True))
    assert {i.name: dims(i) for i in image.graph.input} == {"image": ["batch", 3, 8, 8]}
    assert {i.name: dims(i) for i in events.graph.input} == {"frames": ["batch", 4, 3, 8, 8]}
    for model in (image, events):
        assert {o.name: dims(o) for o in model.graph.output} == {"logits": ["batch", 5]}
    counted = checked(small_network(depth=1), spike_counts=True).graph.output
    assert dims(counted[1]) == ["batch"]
    assert counted[1].type.tensor_type.elem_type == onnx.TensorProto.INT64


def test_time_axis_of_an_output_without_temporal_mean() -> None:
    model = checked(chain((3, 2), lif((3, 2))), time_steps=5)
    assert dims(model.graph.output[0]) == ["batch", 5, 3, 2]


def test_nodes_and_values_carry_the_names_of_the_graph() -> None:
    graph = small_network()
    model = checked(graph)
    written = {node.name: list(node.output) for node in model.graph.node}
    merged = {name for name in graph.nodes if name[-7:] in (".q_conv", ".k_conv", ".v_conv")}
    for name in set(graph.nodes) - merged - {"image", "logits"}:
        assert written[name] == ["logits" if name == "head_mean" else name]
    assert written["block.0.attn.q_conv+k_conv+v_conv/split"] == [f"block.0.attn.{p}_conv" for p in "qkv"]
    assert {i.name for i in model.graph.initializer} >= {"head.weight", "head.bias", "patch_embed.proj_lif.v_threshold"}


def test_only_standard_operators_and_our_functions() -> None:
    model = checked(small_network(), spike_counts=True)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 20), ("statten", 1)}
    assert [f.name for f in model.functions] == ["LIFHeld", "LIF", "SpikeCount"]
    for function in model.functions:
        assert {n.domain for n in function.node} == {""}
        assert function.doc_string
    assert {n.op_type for n in model.graph.node if n.domain} == {"LIFHeld", "LIF", "SpikeCount"}
    assert [o.domain for o in checked(chain((4,), nir.Scale(np.ones(4, F32))), time_steps=2).opset_import] == [""]


def test_every_layer_is_annotated_with_its_shape() -> None:
    model = checked(small_network())
    known = {info.name: dims(info) for info in model.graph.value_info}
    assert known["patch_embed.proj_conv"] == ["batch", 8, 8, 8]  # a static image: computed once
    assert known["patch_embed.proj_lif"] == ["4*batch", 8, 8, 8]
    assert known["block.1.mlp.fc2_lif"] == ["4*batch", 32, 4, 4]


def test_first_layer_of_an_image_runs_once_and_of_frames_once_per_step() -> None:
    model = checked(small_network(depth=1))
    reads = {node.name: list(node.input) for node in model.graph.node}
    assert reads["patch_embed.proj_conv"][0] == "image"
    assert "Tile" not in operators(model)
    assert reads["patch_embed.proj_lif"][0] == "patch_embed.proj_conv"
    events = checked(small_network(depth=1, dvs=True))
    assert {node.name: list(node.input) for node in events.graph.node}["patch_embed.proj_conv"][0] == "frames/steps"


def test_q_k_and_v_are_one_convolution() -> None:
    found = operators(checked(small_network(depth=2)))
    assert found["Conv"] == 3 + 2 * 4  # patch embedding; qkv, proj, fc1, fc2
    assert found["Split"] == 2


def test_unlike_convolutions_stay_apart() -> None:
    rng = np.random.default_rng(0)
    readers = {
        "plain": conv(rng, 4, 4),
        "kernel": conv(rng, 4, 4, 3),
        "stride": conv(rng, 4, 4, 1, stride=2),
        "dilation": conv(rng, 4, 4, 3, dilation=2, padding=2),
        "grouped": conv(rng, 4, 1, 1, groups=4),
        "grouped_twin": conv(rng, 4, 1, 1, groups=4),
        "twin": conv(rng, 2, 4),
    }
    readers["unbiased"] = nir.Conv2d(None, readers["plain"].weight, 1, 0, 1, 1, None)
    outputs = {f"{name}_out": nir.Output({"output": None}) for name in readers}
    edges = [("x", name) for name in readers] + [(name, f"{name}_out") for name in readers]
    graph = graph_of({"x": nir.Input({"input": np.array([4, 6, 6])}), **readers, **outputs}, edges)
    written = sorted(n.name for n in checked(graph, time_steps=2).graph.node if n.op_type == "Conv")
    assert written == ["dilation", "grouped", "grouped_twin", "kernel", "plain+twin", "stride", "unbiased"]
    agree(graph, {"x": eighths(rng, 2, 2, 4, 6, 6)}, 2)


def test_additions_grow_linearly_with_depth() -> None:
    """Block i reads a sum of 2 + 2i terms; sharing prefixes makes that two additions per block."""
    adds = [operators(checked(small_network(depth=depth)))["Add"] for depth in (1, 2, 5)]
    assert adds == [3, 5, 11]


def test_a_result_behind_the_mean_is_the_output_itself() -> None:
    model = checked(chain((4,), TemporalMean(), nir.Scale(np.array([2.0], F32))), time_steps=2)
    assert [node.op_type for node in model.graph.node][-2:] == ["ReduceMean", "Mul"]
    assert list(model.graph.node[-1].output) == ["y"]


def test_scalars_and_no_zero_states() -> None:
    model = checked(small_network())
    sizes = {i.name: list(i.dims) for i in model.graph.initializer}
    assert sizes["block.0.attn.q_lif.decay"] == sizes["block.0.attn.q_lif.v_threshold"] == []
    weights = sum(np.size(n.weight) + np.size(n.bias) for n in small_network().nodes.values() if hasattr(n, "weight"))
    floats = sum(int(np.prod(i.dims)) for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
    assert floats == weights + 2 * sum(isinstance(n, nir.LIF) for n in small_network().nodes.values())


def test_names_that_collide_are_numbered() -> None:
    """A third-party graph may call its nodes what we would call our weights and auxiliary values."""
    names = ["conv", "conv.weight", "conv/time_first", "y/time_first", "ints/-1,2"]
    nodes: dict[str, Any] = {"x": nir.Input({"input": np.array([2])})}
    nodes |= {name: nir.Linear(np.eye(2, dtype=F32)) for name in names}
    nodes["y"] = nir.Output({"output": None})
    graph = graph_of(nodes, [("x", names[0]), *zip(names, [*names[1:], "y"], strict=True)])
    model = checked(graph, time_steps=3)
    produced = [v for node in model.graph.node for v in node.output] + [i.name for i in model.graph.initializer]
    assert len(produced) == len(set(produced))
    assert "conv.weight_2" in produced
    x = np.arange(12, dtype=F32).reshape(2, 3, 2)
    np.testing.assert_array_equal(session(model).run(None, {"x": x})[0], x)


# metadata


def test_metadata_describes_the_file_and_is_readable_at_run_time() -> None:
    graph = small_network(depth=1)
    graph.metadata["statten"] |= {"classes": np.int64(5), "mean": np.array([0.5, 0.25]), "labels": {"a": [1, "b"]}}
    model = build_onnx(graph, metadata={"source_sha256": "ab" * 32, "name": "renamed"})
    found = session(model).get_modelmeta().custom_metadata_map
    assert found == {
        "layout": "sequence",
        "flavour": "float32",
        "format": "1",
        "name": "renamed",
        "time_steps": "4",
        "dt": "0.0001",
        "input": "image",
        "classes": "5",
        "mean": "[0.5, 0.25]",
        "labels": '{"a": [1, "b"]}',
        "source_sha256": "ab" * 32,
    }
    assert json.loads(found["mean"]) == [0.5, 0.25]
    assert [p.key for p in model.metadata_props] == sorted(found)


def test_metadata_says_what_the_model_was_built_with() -> None:
    model = build_onnx(small_network(depth=1), time_steps=2, dt=2e-4)
    found = {p.key: p.value for p in model.metadata_props}
    assert (found["time_steps"], found["dt"]) == ("2", "0.0002")
    with pytest.raises(ConfigError, match="'time_steps' is '7', but the model was built with '4'"):
        build_onnx(small_network(depth=1), metadata={"time_steps": "7"})
    with pytest.raises(ConfigError, match="ONNX metadata is text"):
        build_onnx(small_network(depth=1), metadata={"classes": 5})  # type: ignore[dict-item]


# files


def test_same_graph_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        save_onnx(build_onnx(small_network(depth=1), spike_counts=True, metadata={"b": "1", "a": "2"}), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    assert stat.S_IMODE((tmp_path / "a.onnx").stat().st_mode) & 0o600 == 0o600
    graph = small_network(depth=1)
    feeds = network_input(graph, 2)
    loaded = onnx.load(tmp_path / "a.onnx")
    np.testing.assert_array_equal(session(loaded).run(None, feeds)[0], session(build_onnx(graph)).run(None, feeds)[0])


def test_an_invalid_model_is_not_written(tmp_path: Path) -> None:
    model = build_onnx(small_network(depth=1))
    model.graph.node[3].op_type = "Convolve"
    target = tmp_path / "net.onnx"
    target.write_bytes(b"what was there before")
    with pytest.raises(onnx.checker.ValidationError):
        save_onnx(model, target)
    assert target.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_wrong_shape_annotation_is_found_when_saving(tmp_path: Path) -> None:
    """The declared shapes come from our own inference; saving holds them against ONNX's."""
    model = build_onnx(small_network(depth=1))
    info = next(v for v in model.graph.value_info if v.name == "patch_embed.proj_conv")
    info.type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.raises(Exception, match="proj_conv"):
        save_onnx(model, tmp_path / "net.onnx")


def test_models_too_large_for_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_FILE", 1000 + (1 << 24))
    with pytest.raises(UnsupportedError, match="do not fit into one ONNX file"):
        save_onnx(build_onnx(small_network(depth=1)), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_every_node_type_has_an_emitter() -> None:
    """Shape rules exist for every node of the graph; the two flavours of the export cover them all."""
    assert set(EMITTERS) | set(INTEGER_EMITTERS) | {nir.Input, nir.Output} == set(RULES)
