"""Loops and integrators in the stream layout: what they remember goes from call to call."""

import json
from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from statten_deploy.export.onnx import build_onnx, save_onnx, spike_values
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.runtime import load
from statten_deploy.simulate import Simulator
from tests.export.onnx.integer_harness import conv as integer_conv
from tests.export.onnx.integer_harness import in_reference, integer_graph, lif, linear
from tests.export.onnx.onnx_harness import chained, checked, run
from tests.export.onnx.test_integer_loops import integrators, loop
from tests.export.onnx.test_integer_stream import agree
from tests.export.onnx.test_onnx_loops import NEURONS
from tests.export.onnx.test_onnx_loops import recurrent as small_loop
from tests.quantize.recurrent_graphs import events, readout, recurrent, rough, tangled
from tests.simulate.builders import DT, affine, frames, graph, inp, out

LONG = 24
"""Steps: many times those of a sample."""


def stream_equals_simulator(subject: nir.NIRGraph, x: np.ndarray) -> onnx.ModelProto:
    """Every output and every spike of chained calls, in onnxruntime and in onnx's interpreter; returns the model."""
    steps = x.shape[1]
    expected = Simulator(subject, time_steps=steps).run(x, record="spikes")
    model = checked(subject, time_steps=steps, dt=DT, layout="stream", spike_counts=True)
    (name,) = (name for name, node in subject.nodes.items() if isinstance(node, nir.Input))
    layers = spike_values(model)
    for value in layers.values():
        model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    evaluator = ReferenceEvaluator(model)
    names = [output.name for output in model.graph.output]
    for call in (None, lambda feeds: dict(zip(names, evaluator.run(None, feeds), strict=True))):
        calls = chained(model, {name: x}, steps, call)
        assert len(calls) == steps
        for output, values in expected.outputs.items():
            found = np.concatenate([each[output] for each in calls], axis=1)
            np.testing.assert_array_equal(found, values, err_msg=output)
        for layer, value in layers.items():
            found = np.stack([each[value] for each in calls])
            np.testing.assert_array_equal(found, expected.recorded[layer], err_msg=layer)
            assert 0.02 < found.mean() < 0.98
    return model


@pytest.mark.parametrize("kind", NEURONS)
def test_a_recurrent_layer(kind: str) -> None:
    """Leak, reset and resistance are not neutral, and the bias of the recurrent weights acts at the first step."""
    rng = np.random.default_rng(0)
    model = stream_equals_simulator(small_loop(rng, NEURONS[kind]()), frames(rng, 3, 8, 4))
    states = json.loads({entry.key: entry.value for entry in model.metadata_props}["states"])
    assert "state/l/v" in {state["input"] for state in states}
    assert all(state["shape"][0] == "batch" for state in states)


@pytest.mark.parametrize("neuron", ["lif", "if", "cuba"])
@pytest.mark.parametrize("spatial", [False, True])
def test_float_networks_with_loops(neuron: str, spatial: bool) -> None:
    rng = np.random.default_rng(6)
    subject = recurrent(rng, neuron, spatial=spatial)
    stream_equals_simulator(subject, events(rng, subject))


@pytest.mark.parametrize("neuron", ["lif", "cuba"])
def test_weights_between_two_recurrent_edges(neuron: str) -> None:
    """What such weights read a step ago was a step old already: two steps go from call to call."""
    rng = np.random.default_rng(1)
    subject = tangled(rng, neuron)
    stream_equals_simulator(subject, events(rng, subject))


@pytest.mark.parametrize("kind", ["LI", "CubaLI"])
def test_integrators_in_a_loop_start_at_their_rest(kind: str) -> None:
    """Their rest is not zero, and comes back over weights at the first step."""
    rng = np.random.default_rng(4)
    full = [np.full(5, value, np.float32) for value in (3e-4, 1.5, 0.4)]
    kinds = {"LI": nir.LI(*full), "CubaLI": nir.CubaLI(full[0] / 2, *full, full[1])}
    nodes = {"x": inp(4), "in": affine(rng, 4, 5), "l": kinds[kind], "back": affine(rng, 5, 5), "y": out(5)}
    subject = graph(nodes, [("x", "in"), ("in", "l"), ("l", "back"), ("back", "l"), ("l", "y")])
    x = frames(rng, 2, 7, 4) * np.float32(0.1)
    calls = chained(checked(subject, time_steps=7, dt=DT, layout="stream"), {"x": x}, 7)
    found = np.concatenate([call["y"] for call in calls], axis=1)
    # no spikes round these sums, and calls of one step add them up in another order
    np.testing.assert_allclose(found, Simulator(subject, time_steps=7).run(x).outputs["y"], rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), longest=st.integers(1, 4))
def test_delays_in_a_loop(seed: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    late = nir.Delay(rng.integers(1, longest + 1, 5) * DT)
    nodes = {"x": inp(4), "in": affine(rng, 4, 5), "l": NEURONS["LIF"](), "late": late, "back": affine(rng, 5, 5)}
    edges = [("x", "in"), ("in", "l"), ("l", "late"), ("late", "back"), ("back", "l"), ("l", "y")]
    subject, x = graph({**nodes, "y": out(5)}, edges), frames(rng, 2, 9, 4)
    calls = chained(checked(subject, time_steps=9, dt=DT, layout="stream"), {"x": x}, 9)
    found = np.concatenate([call["y"] for call in calls], axis=1)
    np.testing.assert_array_equal(found, Simulator(subject, time_steps=9).run(x).outputs["y"])


def test_samples_of_a_batch_do_not_mix() -> None:
    rng = np.random.default_rng(3)
    model = checked(recurrent(rng, "cuba"), layout="stream")
    x = events(rng, recurrent(rng, "cuba"))
    together = chained(model, {"input": x}, 4)[-1]
    for index in range(len(x)):
        for name, value in chained(model, {"input": x[index : index + 1]}, 4)[-1].items():
            np.testing.assert_array_equal(value[0], together[name][index], err_msg=name)


# integers


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("neuron", ["lif", "if", "cuba"])
@pytest.mark.parametrize("spatial", [False, True])
def test_integer_networks_with_loops_and_a_leaky_readout(neuron: str, bits: int, spatial: bool) -> None:
    """Every spike, membrane and integer of far more steps than a sample has."""
    rng = np.random.default_rng(bits + 3)
    subject = rough(rng, recurrent(rng, neuron, spatial=spatial))
    x = np.concatenate([events(rng, subject) for _ in range(LONG // 4)], axis=1)
    calls = agree(quantize(subject, QuantizeOptions(bits)), x, LONG)
    assert np.stack([call["spikes/a"] for call in calls]).any()


def test_integer_weights_between_two_recurrent_edges() -> None:
    rng = np.random.default_rng(2)
    subject = tangled(rng, "cuba")
    x = np.concatenate([events(rng, subject) for _ in range(LONG // 4)], axis=1)
    for engine in (None, in_reference):
        agree(quantize(subject), x[:2], LONG, engine)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ["LI", "I", "CubaLI"])
def test_integrators_as_readouts(kind: str, flat: bool, mean: bool) -> None:
    rng = np.random.default_rng(3)
    subject = rough(rng, readout(rng, kind, mean=mean, flat=flat))
    x = np.concatenate([events(rng, subject) for _ in range(LONG // 4)], axis=1)
    for flavour in ("integer", "qdq"):
        agree(quantize(subject), x, LONG, flavour=flavour)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dv=st.sampled_from([0, 1, 700, 2048, 4095, 4096]),
    du=st.sampled_from([0, 1000, 2047, 4095]),
    exponent=st.sampled_from([-3, 0, 6, 10]),
)
def test_integrators_that_wrap_and_saturate(seed: int, dv: int, du: int, exponent: int) -> None:
    """The sample has two steps; what stays inside the register for so long does not stay there for ever."""
    rng = np.random.default_rng(seed)
    node = integrators(rng, (3,), dv=dv, du=du, input_exponent=min(exponent, 0))
    weights = linear(rng, 3, 4, exponent=np.full(3, max(exponent, 0)), bias=rng.integers(-999, 999, 3))
    subject = integer_graph((4,), weights, node, time_steps=2)
    agree(subject, rng.integers(0, 256, (2, LONG, 4)).astype(np.float32), LONG)


def test_an_integrator_without_leak_ends_at_the_bound_of_the_register() -> None:
    rng = np.random.default_rng(2)
    weights = integer_conv(rng, 2, 1, 1)
    weights.weight[:] = 4
    node = integrators(rng, (2, 3, 3), dv=0, bias_mantissa=np.zeros((2, 1, 1), np.int64))
    calls = agree(
        integer_graph((1, 3, 3), weights, node, time_steps=2), np.full((1, 140, 1, 3, 3), 250, np.float32), 140
    )
    (membranes,) = {name for name in calls[0] if name.startswith("membranes/")}
    assert calls[129][membranes].max() < calls[130][membranes].max() < 2**23
    assert np.all(calls[139][membranes] == 2**23 - 1)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dv=st.sampled_from([0, 700, 4096]),
    du=st.sampled_from([1000, 2047, 4095]),
    exponent=st.sampled_from([-2, 0, 9]),
)
def test_neurons_in_loops_that_wrap_and_saturate(seed: int, dv: int, du: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    subject = loop(rng, lif(rng, (3,), threshold=1000, dv=dv, du=du), max(exponent, -2))
    agree(subject, rng.integers(0, 256, (2, LONG, 4)).astype(np.float32), LONG)


# in the runtime


@pytest.mark.parametrize("integers", [False, True], ids=["float", "integer"])
def test_the_runtime_pushes_frames_through_a_loop(integers: bool, tmp_path: Path) -> None:
    """Frame by frame, with the state saved and restored on the way: what the sequence file gives at once."""
    rng = np.random.default_rng(8)
    subject = recurrent(rng, "cuba")
    x = events(rng, subject)
    build = (lambda g, **o: build_integer_onnx(quantize(g), **o)) if integers else build_onnx
    whole = run(build(subject), {"input": x})
    path = tmp_path / "loop.onnx"
    save_onnx(build(subject, layout="stream"), path)
    stream = load(path, threads=1).stream(batch=len(x))
    found = []
    for step in range(x.shape[1]):
        found.append(stream.push(x[:, step]))
        saved = stream.state()
        stream = load(path, threads=1).stream(batch=len(x))
        stream.restore(saved)
    np.testing.assert_array_equal(
        np.stack([result.outputs["logits"] for result in found], 1).reshape(whole["logits"].shape), whole["logits"]
    )
