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


def crossed(rng: np.random.Generator) -> nir.NIRGraph:
    """Recurrent edges into weights and out of the same weights: l1[t] reads W (l1[t-1] + l2[t-2]) + b."""
    nodes = {"x": inp(3), "in": affine(rng, 3, 3), "l1": lif(3, threshold=0.375), "a2": affine(rng, 3, 3)}
    nodes |= {"l2": lif(3, threshold=0.375), "y": out(3), "current": out(3)}
    edges = [("x", "in"), ("in", "l1"), ("l1", "a2"), ("a2", "l2"), ("l2", "a2"), ("a2", "l1"), ("l2", "y")]
    return graph(nodes, [*edges, ("a2", "current")])


@pytest.mark.parametrize("seed", range(4))
def test_weights_between_two_recurrent_edges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert_equal(crossed(rng), frames(rng, 3, 8, 3), 8, rates=False)


def test_what_arrives_two_steps_late() -> None:
    """By hand: l2 fires at step 0 only and reaches l1 through two recurrent edges, at step 2."""
    one = {"l1": lif(1, threshold=0.75, tau_steps=1.0), "l2": lif(1, threshold=0.75, tau_steps=1.0)}
    weights = nir.Affine(ones(1, 1), ones(1) * 0)
    nodes = {"x": inp(1), "l1": one["l1"], "a2": weights, "l2": one["l2"], "y": out(1)}
    edges = [("x", "l1"), ("l1", "a2"), ("a2", "l2"), ("l2", "a2"), ("a2", "l1"), ("l1", "y")]
    x = np.array([1, -1, 0, 0], dtype=F32).reshape(1, 4, 1)
    model = assert_equal(graph(nodes, edges), x, 4, rates=False)
    # a2 = l1[t] + l2[t-1]: 1, 1, 2, 2; l1 = x[t] + a2[t-1] > 0.75: 1, 0, 1, 1
    assert run(model, {"x": x})["y"].ravel().tolist() == [1, 0, 1, 1]


def closed_by(node: nir.NIRNode, bias: float, threshold: float) -> nir.NIRGraph:
    """A neuron, weights that are nothing but a bias, and a node behind them that closes the loop."""
    nodes = {"x": inp(2), "l": lif(2, threshold=threshold, tau_steps=1.0), "y": out(2), "z": out(2)}
    nodes |= {"b": nir.Affine(ones(2, 2) * 0, ones(2) * F32(bias)), "last": node}
    edges = [("x", "l"), ("l", "b"), ("b", "last"), ("last", "l"), ("l", "y"), ("last", "z")]
    return graph(nodes, edges)


def leaky(v_leak: float) -> nir.LI:
    return nir.LI(ones(2) * F32(2e-4), ones(2), ones(2) * F32(v_leak))


def current_based(v_leak: float) -> nir.CubaLI:
    return nir.CubaLI(ones(2) * F32(2e-4), ones(2) * F32(2e-4), ones(2), ones(2) * F32(v_leak))


def delay(*steps: int) -> nir.Delay:
    return nir.Delay(np.array(steps, dtype=F32) * F32(DT))


CLOSING = {
    "LI": (leaky(0), [[0, 0], [1, 1], [1, 1]]),
    "LI at rest": (leaky(0.5), [[1, 1], [1, 1], [1, 1]]),
    "CubaLI": (current_based(0), [[0, 0], [0, 0], [1, 1]]),
    "CubaLI at rest": (current_based(0.5), [[1, 1], [1, 1], [1, 1]]),
    "I": (nir.I(ones(2) * F32(0.5 / DT)), [[0, 0], [1, 1], [1, 1]]),
    "Delay": (delay(1, 2), [[0, 0], [0, 0], [1, 0]]),
    "Delay of no steps": (delay(0, 0), [[1, 1], [1, 1], [1, 1]]),
    "Delay of some steps": (delay(0, 1), [[1, 0], [1, 0], [1, 1]]),
}


@pytest.mark.parametrize("kind", CLOSING)
def test_what_closes_a_loop_starts_at_rest(kind: str) -> None:
    """The bias in front of it decides about spikes from the step on at which it has passed, never sooner."""
    node, expected = CLOSING[kind]
    x = np.zeros((1, 3, 2), dtype=F32)
    model = assert_equal(closed_by(node, 1.0, 0.3125), x, 3, rates=False)
    assert run(model, {"x": x})["y"][0].tolist() == expected


def test_a_loop_of_delays_that_do_not_delay_is_refused() -> None:
    network = graph({"x": inp(2), "d": delay(0, 1), "y": out(2)}, [("x", "d"), ("d", "d"), ("d", "y")])
    with pytest.raises(UnsupportedError, match=r"d \(a loop without neurons: put neurons into it\)"):
        build_onnx(network, time_steps=4, dt=DT)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), layers=st.integers(1, 4), steps=st.integers(1, 6))
def test_random_loops(seed: int, layers: int, steps: int) -> None:
    """Layers with all kinds of edges between them: through weights of several inputs and outputs and chains of them."""
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
        for other in rng.choice([*(f"l{index}" for index in range(layers)), *(f"w{i}" for i in range(number))], 2):
            edges.append((str(other), f"w{number}"))  # from neurons and from weights before: no loop without neurons
            if other[0] == "l" and rng.random() < 0.5:
                edges.append((f"w{number}", str(other)))
        if rng.random() < 0.5:  # its current is read outside: a wrong one is seen without a spike
            nodes[f"z{number}"] = out(3)
            edges.append((f"w{number}", f"z{number}"))
    edges = list(dict.fromkeys(edges))
    edges = [edges[index] for index in rng.permutation(len(edges))]  # their order decides which are recurrent
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
