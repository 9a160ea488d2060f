"""Integers in the stream layout: calls in a row equal the integer runner in every spike, membrane and logit."""

import json
from typing import Any

import nir
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.export.onnx.integer import Flavour, Probes, build_integer_onnx, with_probes
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.ir import input_names
from statten_deploy.ir.integer import IntegerLIF
from tests.export.onnx.integer_harness import (
    Run,
    conv,
    counts,
    in_onnxruntime,
    in_reference,
    integer_graph,
    lif,
    quantised,
)
from tests.export.onnx.onnx_harness import chained

VARIANTS = {
    "static": 2,
    "sliding": 1,
    "token": 4,
    "normalised": 2,
    "dvs": 2,
    "dvs-strided-sliding": 1,
    "dvs-sdt": 1,
}
"""Network -> steps of one call."""


def long(graph: nir.NIRGraph, steps: int) -> nir.NIRGraph:
    """The same graph over more steps."""
    metadata = {"statten": {**graph.metadata["statten"], "time_steps": steps}}
    return nir.NIRGraph(graph.nodes, graph.edges, metadata=metadata, type_check=False)


def agree(
    graph: nir.NIRGraph, x: np.ndarray, steps: int, run: Run | None = None, flavour: Flavour = "integer"
) -> list[dict[str, np.ndarray]]:
    """Calls over `steps` steps, which may be more than the graph says, against the runner. Returns the calls."""
    model = build_integer_onnx(graph, layout="stream", flavour=flavour)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    probed, probes = with_probes(model)
    onnx.checker.check_model(probed, full_check=True)
    expected = IntegerRunner(long(graph, steps)).run(x, spikes=True, membranes=True)
    name = input_names(graph)[0]
    calls = chained(probed, {name: x}, steps, None if run is None else lambda feeds: run(probed, feeds))
    shown: list[tuple[dict[str, str], dict[str, Any]]] = [
        (probes.spikes, expected.spikes),
        (probes.membranes, expected.membranes),
    ]
    for kind, reference in shown:
        assert kind.keys() == reference.keys()
        for layer, values in reference.items():
            found = np.concatenate([call[kind[layer]] for call in calls])
            np.testing.assert_array_equal(found, values, err_msg=kind[layer])
    for output, values in expected.outputs.items():
        parts = [call[probes.integers[output]] for call in calls]
        # a running sum, or every step
        found = parts[-1] if parts[-1].shape == values.shape else np.concatenate(parts, axis=1)
        np.testing.assert_array_equal(found, values, err_msg=output)
    return calls


@pytest.mark.parametrize(
    ("flavour", "granularity"), [("integer", "channel"), ("integer", "tensor"), ("qdq", "channel")]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_are_the_integer_runner(variant: str, flavour: Flavour, granularity: str) -> None:
    graph, x = quantised(variant, granularity=granularity)
    calls = agree(graph, x, 4, flavour=flavour)
    assert len(calls) == 4 // VARIANTS[variant]
    expected = real_outputs(graph, IntegerRunner(graph).run(x).outputs)["logits"]
    np.testing.assert_array_equal(calls[-1]["logits"], expected)
    model = build_integer_onnx(graph, spike_counts=True, flavour=flavour)
    sequence = in_onnxruntime()(model, {input_names(graph)[0]: x})
    np.testing.assert_array_equal(calls[-1]["logits"], sequence["logits"])
    model = build_integer_onnx(graph, spike_counts=True, layout="stream", flavour=flavour)
    counted = chained(model, {input_names(graph)[0]: x}, 4)
    for name in sequence.keys() - {"logits"}:
        np.testing.assert_array_equal(sum(call[name] for call in counted), sequence[name], err_msg=name)


def test_the_answer_of_every_call_is_the_mean_so_far() -> None:
    graph, x = quantised("dvs-strided-sliding")
    probed, probes = with_probes(build_integer_onnx(graph, layout="stream"))
    calls = chained(probed, {"frames": x}, 4)
    unit = real_outputs(graph, {"logits": np.ones((1, 1), np.int64)})["logits"].item()
    seen = set()
    for steps, call in enumerate(calls, 1):
        sums = IntegerRunner(long(graph, steps)).run(np.ascontiguousarray(x[:, :steps])).outputs["logits"]
        np.testing.assert_array_equal(call[probes.integers["logits"]], sums)
        np.testing.assert_allclose(call["logits"], sums * unit * (4 / steps), rtol=1e-6)
        seen.add(call["logits"].tobytes())
    assert len(seen) == 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dv": 0},
        {"dv": 4096},
        {"dv": 100},
        {"dv": 2048, "du": 1000},
        {"dv": 300, "du": 0},
        {"dv": 2048, "input_exponent": -3},
        {"dv": 1024, "input_exponent": 5},
        {"dv": 0, "input_exponent": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("held", [False, True], ids=["frames", "image"])
def test_neurons_go_on_far_beyond_the_steps_of_a_sample(options: dict[str, Any], held: bool) -> None:
    """A membrane without a leak drifts to its bound, a synaptic current wraps, decays round: 120 steps of each."""
    rng = np.random.default_rng(11)
    graph = integer_graph((2, 5, 5), conv(rng, 3, 2), lif(rng, (3, 5, 5), 90000, **options), time_steps=4, held=held)
    x = rng.integers(0, 256, ((2,) if held else (2, 120)) + (2, 5, 5)).astype(np.float32)
    agree(graph, x, 120)


def test_a_slow_drift_ends_at_the_bound_of_the_register() -> None:
    """1000 a step without a leak: half way after the 64 steps that bounds are followed for, at -2^23 after 131."""
    rng = np.random.default_rng(2)
    weights = conv(rng, 2, 1, 1)
    weights.weight[:] = -4
    neuron = lif(rng, (2, 3, 3), 90000, dv=0, bias_mantissa=np.zeros((2, 1, 1), np.int64))
    x = np.full((1, 200, 1, 3, 3), 250, np.float32)
    calls = agree(integer_graph((1, 3, 3), weights, neuron, time_steps=2), x, 200)
    (membranes,) = {name for name in calls[0] if name.startswith("membranes/")}
    assert calls[129][membranes].max() > calls[130][membranes].max() > -(2**23)
    assert np.all(calls[131][membranes] == -(2**23) + 1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dv=st.integers(0, 4096),
    du=st.integers(0, 4095),
    exponent=st.integers(-6, 7),
    threshold=st.integers(2, 100000),
)
def test_any_neuron(seed: int, dv: int, du: int, exponent: int, threshold: int) -> None:
    rng = np.random.default_rng(seed)
    neuron = lif(rng, (2, 3, 3), threshold, dv=dv, du=du, input_exponent=exponent)
    graph = integer_graph((1, 3, 3), conv(rng, 2, 1), neuron, time_steps=2)
    agree(graph, rng.integers(0, 256, (2, 20, 1, 3, 3)).astype(np.float32), 20)


@pytest.mark.parametrize("variant", ["static", "dvs-strided-sliding"])
def test_the_reference_evaluator_agrees(variant: str) -> None:
    graph, x = quantised(variant, embed_dim=16, num_heads=2)
    agree(graph, x, 4, in_reference)


def test_states_are_named_and_described() -> None:
    graph, _ = quantised("sliding")
    model = build_integer_onnx(graph, layout="stream")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["layout"], told["flavour"], told["steps_per_call"]) == ("stream", "integer", "1")
    layers = {name for name, node in graph.nodes.items() if isinstance(node, IntegerLIF)}
    states = {state["input"]: state for state in json.loads(told["states"])}
    attention = "state/block.0.attn.statten.kv"
    readout = next(name for name in states if name.endswith(".sum"))
    joint = {f"block.0.attn.{port}_lif" for port in "qkv"}
    layers = (layers - joint) | {"block.0.attn.q_lif+k_lif+v_lif"}
    assert states.keys() == {*(f"state/{layer}.v" for layer in layers), attention, readout, "state/steps"}
    assert states[attention]["shape"] == ["batch", 1, 4, 8, 8]
    assert states[readout]["dtype"] == states["state/steps"]["dtype"] == "int64"
    assert states["state/head_lif.v"]["shape"] == ["batch", 1, 32]


def test_probes_of_a_stream_have_the_steps_of_a_call() -> None:
    graph = integer_graph((2, 4, 4), lif(np.random.default_rng(0), (2, 4, 4)), time_steps=6)
    probed, probes = with_probes(build_integer_onnx(graph, layout="stream"))
    assert isinstance(probes, Probes)
    calls = chained(probed, {"x": counts(np.random.default_rng(1), graph)}, 6)
    assert len(calls) == 6
    assert calls[0][probes.spikes["n0"]].shape == (1, 3, 2, 4, 4)
