"""Recurrent graphs as a Scan, against the simulator bit for bit, in onnxruntime and in onnx's own interpreter."""

from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx import build_onnx, spike_values
from statten_deploy.ir import STAttenAttention
from statten_deploy.simulate import Simulator
from tests.export.onnx.onnx_harness import checked, run
from tests.simulate.builders import DT, affine, conv, frames, graph, inp, lif, out, pool

F32 = np.float32


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=F32)


def assert_equal(network: nir.NIRGraph, x: np.ndarray, steps: int, rates: bool = True) -> Any:
    """Outputs and spike counts in three executions; returns the model."""
    expected = Simulator(network, time_steps=steps).run(x, record="spikes")
    model = checked(network, time_steps=steps, dt=DT, spike_counts=True)
    (name,) = (name for name, node in network.nodes.items() if isinstance(node, nir.Input))
    reference = ReferenceEvaluator(model).run(None, {name: x})
    interpreted = dict(zip([output.name for output in model.graph.output], reference, strict=True))
    for found in (run(model, {name: x}), run(model, {name: x}, optimise=False), interpreted):
        for output, values in expected.outputs.items():
            np.testing.assert_array_equal(found[output], values, err_msg=output)
        for layer, counts in expected.spike_counts.items():
            np.testing.assert_array_equal(found[f"spike_counts/{layer}"], counts, err_msg=layer)
    if rates:
        assert all(0.02 < spikes.mean() < 0.98 for spikes in expected.recorded.values())
    return model


def recurrent(rng: np.random.Generator, neuron: nir.NIRNode | None = None) -> nir.NIRGraph:
    nodes = {"x": inp(4), "in": affine(rng, 4, 5), "l": neuron or lif(5, threshold=0.5)}
    nodes |= {"back": affine(rng, 5, 5), "y": out(5)}
    return graph(nodes, [("x", "in"), ("in", "l"), ("l", "back"), ("back", "l"), ("l", "y")])


NEURONS = {
    "LIF": lambda: nir.LIF(ones(5) * F32(2e-4), ones(5), ones(5) / 4, ones(5) * F32(0.6), ones(5) / 8),
    "IF": lambda: nir.IF(ones(5) * F32(1e4), ones(5) * F32(1.55), ones(5) / 4),
    "CubaLIF": lambda: nir.CubaLIF(
        ones(5) * F32(2e-4), ones(5) * F32(4e-4), ones(5) * 2, ones(5) / 4, ones(5) * F32(0.6), ones(5) / 8, ones(5) * 2
    ),
}


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("steps", [1, 6])
def test_a_recurrent_layer(kind: str, steps: int) -> None:
    """Leak, reset and resistance are not neutral, and the recurrent weights have a bias: it acts at the first step."""
    rng = np.random.default_rng(0)
    network = recurrent(rng, NEURONS[kind]())
    model = assert_equal(network, frames(rng, 3, steps, 4), steps, rates=steps > 1)
    assert spike_values(model) == {"l": "l"}
    weights = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".weight")]
    assert weights == ["in.weight", "back.weight"]  # once


def test_the_bias_of_recurrent_weights_acts_at_the_first_step() -> None:
    nodes = {
        "x": inp(1),
        "n": lif(1, threshold=0.5, tau_steps=1.0),
        "w": nir.Affine(ones(1, 1) * 0, ones(1)),
        "y": out(1),
    }
    network = graph(nodes, [("x", "n"), ("n", "w"), ("w", "n"), ("n", "y")])
    model = assert_equal(network, np.zeros((1, 3, 1), dtype=F32), 3, rates=False)
    assert run(model, {"x": np.zeros((1, 3, 1), dtype=F32)})["y"].ravel().tolist() == [1, 1, 1]


def test_an_image_held_over_all_steps() -> None:
    rng = np.random.default_rng(1)
    network = recurrent(rng)
    network.metadata["statten"] = {"input": "image", "dt": DT}
    assert_equal(network, frames(rng, 3, 1, 4)[:, 0], 5)


def test_a_recurrent_convolution_behind_a_pool() -> None:
    rng = np.random.default_rng(2)
    nodes = {
        "x": inp(2, 4, 4),
        "in": conv(rng, 2, 3),
        "l": lif(3, 4, 4, threshold=0.5),
        "pool": pool(nir.SumPool2d, (1, 1), (1, 1), (0, 0)),
        "back": conv(rng, 3, 3),
        "y": out(3, 4, 4),
    }
    edges = [("x", "in"), ("in", "l"), ("l", "pool"), ("pool", "back"), ("back", "l"), ("l", "y")]
    model = assert_equal(graph(nodes, edges), frames(rng, 2, 5, 2, 4, 4), 5)
    assert not any("again" in tensor.name for tensor in model.graph.initializer)


def test_everything_that_can_stand_in_a_loop() -> None:
    """Two layers, delays of several lengths, an integrator that feeds back, a current that is read outside as well."""
    rng = np.random.default_rng(5)
    nodes = {
        "x": inp(4),
        "in": affine(rng, 4, 5),
        "l": NEURONS["CubaLIF"](),
        "forth": affine(rng, 5, 6),
        "m": lif(6, threshold=0.25),
        "back": affine(rng, 6, 5),
        "late": nir.Delay(np.array([0, 1, 2, 3, 1], dtype=F32) * F32(DT)),
        "li": nir.LI(ones(6) * F32(2e-4), ones(6), ones(6) / 4),
        "half": nir.Scale(ones(6) / 2),
        "sense": affine(rng, 6, 5),
        "y": out(6),
        "membrane": out(6),
        "current": out(5),
    }
    edges = [("x", "in"), ("in", "l"), ("l", "forth"), ("forth", "m"), ("m", "back"), ("back", "late"), ("late", "l")]
    edges += [("m", "li"), ("li", "half"), ("half", "sense"), ("sense", "l"), ("m", "y"), ("li", "membrane")]
    assert_equal(graph(nodes, [*edges, ("back", "current")]), frames(rng, 3, 8, 4), 8)


def test_a_current_of_the_loop_read_by_others() -> None:
    """The recurrent weights are computed for the present step and, from silence on, for the step before."""
    rng = np.random.default_rng(3)
    plain = recurrent(rng)
    network = graph({**plain.nodes, "z": out(5)}, [*plain.edges, ("back", "z")])
    assert_equal(network, frames(rng, 3, 6, 4), 6)


def test_a_neuron_that_feeds_itself_and_layers_around_the_loop() -> None:
    rng = np.random.default_rng(4)
    nodes = {
        "x": inp(4),
        "in": affine(rng, 4, 5),
        "first": lif(5, threshold=0.25),
        "n": nir.IF(ones(5) * F32(1e4), ones(5) * F32(1.55), ones(5) / 8),
        "head": affine(rng, 5, 3),
        "last": lif(3, threshold=0.25),
        "y": out(3),
    }
    edges = [("x", "in"), ("in", "first"), ("first", "n"), ("n", "n"), ("n", "head"), ("head", "last"), ("last", "y")]
    assert_equal(graph(nodes, edges), frames(rng, 3, 6, 4), 6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), layers=st.integers(1, 4), steps=st.integers(1, 5))
def test_random_loops(seed: int, layers: int, steps: int) -> None:
    """Layers with all kinds of edges between them, forward and back, through weights and directly."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, nir.NIRNode] = {"x": inp(3), "y": out(3)}
    edges = [("x", "l0"), (f"l{layers - 1}", "y")]
    for index in range(layers):
        nodes[f"l{index}"] = lif(3, threshold=float(rng.choice([0.25, 0.5, 1])))
        if index:
            edges.append((f"l{index - 1}", f"l{index}"))
    for number in range(int(rng.integers(1, 5))):
        source, target = (f"l{rng.integers(layers)}" for _ in range(2))
        nodes[f"w{number}"] = affine(rng, 3, 3)
        edges += [(source, f"w{number}"), (f"w{number}", target)]
    assert_equal(graph(nodes, edges), frames(rng, 2, steps, 3), steps, rates=False)


def test_what_a_loop_cannot_hold_is_named_at_once() -> None:
    rng = np.random.default_rng(6)
    nodes = {
        "x": inp(4, 2, 2),
        "l": lif(4, 2, 2),
        "a": STAttenAttention(2, 3, "sliding"),
        "m": lif(4, 2, 2),
        "c": conv(rng, 4, 4),
        "d": conv(rng, 4, 4),
        "y": out(4, 2, 2),
    }
    edges = [("x", "l"), *(("l", f"a.{port}") for port in "qkv"), ("a", "m"), ("m", "l"), ("m", "y")]
    edges += [("m", "c"), ("c", "d"), ("d", "c"), ("d", "y")]
    with pytest.raises(UnsupportedError) as caught:
        build_onnx(graph(nodes, edges), time_steps=4)
    assert "c, d (a loop without neurons: put neurons into it)" in str(caught.value)
    assert "a (STAttenAttention: a window of 3 steps in a loop; use one of 1)" in str(caught.value)


def test_loops_have_no_stream_layout() -> None:
    with pytest.raises(
        UnsupportedError, match=r"no stream layout for l, back \(a loop\): export with --layout sequence"
    ):
        build_onnx(recurrent(np.random.default_rng(0)), time_steps=4, layout="stream")
