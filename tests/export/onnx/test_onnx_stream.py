"""The stream layout: calls in a row give what one call for all steps gives, and what NIR's equations give."""

import itertools
import json
from typing import Any

import nir
import numpy as np
import onnx
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx import build_onnx, spike_values
from statten_deploy.ir import STAttenAttention, TemporalMean
from tests.export.onnx.numpy_steps import run_steps
from tests.export.onnx.onnx_harness import (
    DT,
    F32,
    chain,
    chained,
    checked,
    graph_of,
    lif,
    network_input,
    run,
    small_network,
    spikes,
)
from tests.export.onnx.test_onnx_neurons import KINDS, random_neuron

VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "block": (2, {}),
    "sliding": (1, {"attention": {"window": 3, "mode": "sliding"}}),
    "token": (4, {"attention": {"window": 4, "token_groups": 2}}),
    "events": (2, {"dvs": True}),
    "events-sliding": (1, {"dvs": True, "attention": {"window": 2, "mode": "sliding"}}),
    "sdt": (1, {"sdt": True}),
    "sdt-events": (1, {"sdt": True, "dvs": True}),
}
"""Steps of one call, and the network."""


def told(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize("variant", VARIANTS)
def test_chained_calls_give_every_spike_of_the_sequence(variant: str) -> None:
    """Also with weights that are not exact: the float operations are the same, in the same order."""
    steps, options = VARIANTS[variant]
    for exact in (True, False):
        graph = small_network(**options, exact=exact)
        feeds = network_input(graph, 3, exact=exact)
        model = checked(graph, layout="stream", spike_counts=True)
        assert told(model)["steps_per_call"] == str(steps)
        layers = spike_values(model)
        for value in layers.values():
            model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
        calls = chained(model, feeds, 4)
        assert len(calls) == 4 // steps
        sequence = run(checked(graph, spike_counts=True), feeds)
        np.testing.assert_array_equal(calls[-1]["logits"], sequence["logits"])
        expected = run_steps(graph, feeds, 4)
        for layer, value in layers.items():
            found = np.concatenate([call[value] for call in calls]).reshape(4, 3, *expected[layer].shape[2:])
            if exact:
                np.testing.assert_array_equal(found.swapaxes(0, 1), expected[layer], err_msg=layer)
                assert 0.005 < expected[layer].mean() < 0.995, f"{layer} is silent or saturated"
            count = sum(call[f"spike_counts/{layer}"] for call in calls)
            np.testing.assert_array_equal(count, sequence[f"spike_counts/{layer}"], err_msg=layer)


@pytest.mark.parametrize("variant", ["block", "events-sliding", "sdt"])
def test_every_call_gives_the_answer_of_a_sample_that_ends_there(variant: str) -> None:
    """Anytime prediction: the mean over the steps so far, which is the sequence file's answer with fewer steps."""
    steps, options = VARIANTS[variant]
    graph = small_network(1, **options, time_steps=12, exact=False)
    feeds = network_input(graph, 2, exact=False)
    calls = chained(checked(graph, layout="stream"), feeds, 12)
    answers = []
    for index, call in enumerate(calls):
        so_far = steps * (index + 1)
        cut = {name: x if name == "image" else x[:, :so_far] for name, x in feeds.items()}
        answers.append(run(checked(graph, time_steps=so_far), cut)["logits"])
        np.testing.assert_allclose(call["logits"], answers[-1], rtol=1e-6, atol=1e-6)
        assert call["next/steps"].tolist() == [so_far] * 2
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(answers))


@pytest.mark.parametrize("uniform", [True, False], ids=["scalar", "per-neuron"])
@pytest.mark.parametrize("held", [False, True], ids=["frames", "image"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_neuron_carries_its_state(kind: type, held: bool, uniform: bool) -> None:
    """Also a membrane that rests at v_leak: states start as zeros all the same."""
    rng = np.random.default_rng(5)
    shape = (3, 2, 4)
    graph = chain(shape, random_neuron(kind, shape, rng, uniform), input="image" if held else "frames", time_steps=5)
    x = rng.normal(0.4, 0.8, (*((2,) if held else (2, 5)), *shape)).astype(F32)
    calls = chained(checked(graph, layout="stream"), {"x": x}, 5)
    found = np.concatenate([call["y"] for call in calls], axis=1)
    np.testing.assert_array_equal(found, run_steps(graph, {"x": x}, 5)["y"])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), window=st.integers(1, 3), longest=st.integers(0, 7), blocks=st.integers(1, 3))
def test_delays_are_carried(seed: int, window: int, longest: int, blocks: int) -> None:
    """Delays of single elements, also longer than a call and than the sample; a call takes `window` steps."""
    rng = np.random.default_rng(seed)
    shape = (2, 2, 2)
    steps = rng.integers(0, longest + 1, shape if seed % 2 else ())
    q, att = STAttenAttention(1, window), nir.Delay(np.broadcast_to(steps * DT, shape))
    nodes = {"x": nir.Input({"input": np.array(shape)}), "late": att, "att": q, "y": nir.Output({"output": None})}
    nodes["seen"] = nir.Output({"output": None})
    edges = [("x", "late"), ("late", "att.q"), ("x", "att.k"), ("x", "att.v"), ("att", "y"), ("late", "seen")]
    graph, total = graph_of(nodes, edges), window * blocks
    x = spikes(rng, 2, total, *shape)
    calls = chained(checked(graph, time_steps=total, layout="stream"), {"x": x}, total)
    expected = run_steps(graph, {"x": x}, total)
    for name in ("y", "seen"):
        np.testing.assert_array_equal(np.concatenate([call[name] for call in calls], axis=1), expected[name])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    block=st.integers(1, 3),
    window=st.integers(1, 5),
    groups=st.integers(1, 2),
    calls=st.integers(1, 4),
)
def test_sliding_windows_carry_their_history(seed: int, block: int, window: int, groups: int, calls: int) -> None:
    """Beside a block window, so that a call has several steps."""
    rng = np.random.default_rng(seed)
    shape = (4, 2, 2)
    nodes: dict[str, Any] = {port: nir.Input({"input": np.array(shape)}) for port in "qkv"}
    nodes |= {"slides": STAttenAttention(2, window, "sliding", groups), "blocks": STAttenAttention(2, block)}
    nodes |= {"y": nir.Output({"output": None}), "z": nir.Output({"output": None})}
    edges = [(port, f"{name}.{port}") for name in ("slides", "blocks") for port in "qkv"]
    graph = graph_of(nodes, [*edges, ("slides", "y"), ("blocks", "z")])
    total = block * calls
    feeds = {port: spikes(rng, 2, total, *shape, rate=0.6) for port in "qkv"}
    found = chained(checked(graph, time_steps=total, layout="stream"), feeds, total)
    expected = run_steps(graph, feeds, total)
    for name in ("y", "z"):
        np.testing.assert_array_equal(np.concatenate([call[name] for call in found], axis=1), expected[name])


def test_a_call_takes_whole_blocks_of_every_attention() -> None:
    shape = (4, 2, 2)
    nodes: dict[str, Any] = {port: nir.Input({"input": np.array(shape)}) for port in "qkv"}
    nodes |= {"two": STAttenAttention(2, 2), "three": STAttenAttention(2, 3), "y": nir.Output({"output": None})}
    edges = [*((p, f"two.{p}") for p in "qkv"), *((p, f"three.{p}") for p in "kv"), ("q", "three.q"), ("three", "y")]
    graph = graph_of({**nodes, "z": nir.Output({"output": None})}, [*edges, ("two", "z")])
    assert told(checked(graph, time_steps=12, layout="stream"))["steps_per_call"] == "6"
    with pytest.raises(UnsupportedError, match="8 time steps are not a multiple of its window of 3"):
        build_onnx(graph, time_steps=8, layout="stream")


def test_states_have_the_names_of_their_layers_and_start_as_zeros_outside_the_file() -> None:
    model = checked(small_network(depth=1, attention={"window": 3, "mode": "sliding"}), layout="stream")
    states = json.loads(told(model)["states"])
    inputs = {i.name: i.type.tensor_type for i in model.graph.input}
    outputs = {o.name: o.type.tensor_type for o in model.graph.output}
    assert list(inputs) == ["image", *(s["input"] for s in states)]
    assert list(outputs) == ["logits", *(s["output"] for s in states)]
    layers = [name for name, node in small_network(depth=1).nodes.items() if isinstance(node, nir.LIF)]
    by_name = {s["input"]: s for s in states}
    assert by_name.keys() == {
        *(f"state/{layer}.v" for layer in layers),
        *("state/block.0.attn.statten.kv", "state/head_mean.sum", "state/steps"),
    }
    assert by_name["state/block.0.attn.statten.kv"] == {
        "input": "state/block.0.attn.statten.kv",
        "output": "next/block.0.attn.statten.kv",
        "dtype": "float32",
        "shape": ["batch", 2, 2, 8, 8],
    }
    for state in states:
        for found in (inputs[state["input"]], outputs[state["output"]]):
            assert [d.dim_param or d.dim_value for d in found.shape.dim] == state["shape"]
            assert onnx.helper.tensor_dtype_to_np_dtype(found.elem_type) == np.dtype(state["dtype"])
    assert told(model)["layout"] == "stream"
    assert told(model)["time_steps"] == "4"
    constants = {i.name for i in model.graph.initializer}
    assert constants <= {i.name for i in checked(small_network(depth=1)).graph.initializer} | {
        name for name in constants if name.startswith("ints/") or name == "block.0.attn.statten.window"
    }


def test_samples_of_a_batch_do_not_mix() -> None:
    graph = small_network(depth=1, dvs=True, exact=False)
    model = checked(graph, layout="stream")
    feeds = network_input(graph, 4, exact=False)
    together = chained(model, feeds, 4)[-1]
    for index in range(4):
        alone = chained(model, {"frames": feeds["frames"][index : index + 1]}, 4)[-1]
        for name, value in alone.items():
            np.testing.assert_allclose(value[0], together[name][index], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("variant", ["block", "events-sliding", "sdt"])
def test_other_runtimes_agree(variant: str) -> None:
    """ONNX's reference evaluator, and OpenVINO, which knows no functions: they are written out first."""
    graph = small_network(depth=1, dim=8, size=4, **VARIANTS[variant][1])
    model = checked(graph, layout="stream", spike_counts=True)
    feeds = network_input(graph, 2)
    expected = chained(model, feeds, 4)
    evaluator = ReferenceEvaluator(model)
    names = [output.name for output in model.graph.output]
    plain = openvino.Core().read_model(inline_local_functions(model).SerializeToString())
    compiled = openvino.Core().compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def in_reference(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, evaluator.run(None, given), strict=True))

    def in_openvino(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {output.any_name: value.copy() for output, value in compiled(given).items()}

    for call in (in_reference, in_openvino):
        for found, wanted in zip(chained(model, feeds, 4, call), expected, strict=True):
            for name in names:
                np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_a_mean_without_memory_before_it() -> None:
    """An image network whose images change from call to call: each counts for the steps that it was shown."""
    model = checked(chain((3,), TemporalMean(), input="image", time_steps=6), layout="stream")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 2, 3)).astype(F32)
    ready = {"x": images[0]}
    state = {"state/n0.sum": np.zeros((2, 3), F32), "state/steps": np.zeros(2, np.int64)}
    for index, image in enumerate(images):
        found = run(model, {**ready, "x": image, **state})
        np.testing.assert_allclose(found["y"], images[: index + 1].mean(0), rtol=1e-5)
        state = {name: found[name.replace("state/", "next/")] for name in state}


def test_outputs_with_a_time_axis_are_named() -> None:
    nodes = {"x": nir.Input({"input": np.array([4])}), "n": lif((4,)), "mean": TemporalMean()}
    nodes |= {"rate": nir.Output({"output": np.array([4])}), "spikes": nir.Output({"output": np.array([4])})}
    graph = graph_of(nodes, [("x", "n"), ("n", "spikes"), ("n", "mean"), ("mean", "rate")], time_steps=6)
    assert json.loads(told(checked(graph, layout="stream"))["step_outputs"]) == ["spikes"]
    assert "step_outputs" not in told(checked(graph))
