"""Whole networks: onnxruntime, ONNX's own reference evaluator, the simulator and the numpy run agree."""

from typing import Any

import nir
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from statten_deploy.export.onnx import spike_values
from statten_deploy.simulate import Simulator
from tests.export.onnx.numpy_steps import run_steps
from tests.export.onnx.onnx_harness import F32, chain, checked, lif, network_input, run, small_network

VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "sliding": {"attention": {"window": 3, "mode": "sliding"}},
    "token": {"attention": {"window": 4, "token_groups": 2}},
    "events": {"dvs": True},
    "sdt": {"sdt": True},
    "sdt-events": {"sdt": True, "dvs": True},
}


def layers(graph: nir.NIRGraph) -> list[str]:
    return [name for name, node in graph.nodes.items() if isinstance(node, nir.LIF)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_spike_equals_the_numpy_run(variant: str, batch: int) -> None:
    graph = small_network(**VARIANTS[variant])
    feeds = network_input(graph, batch)
    expected = run_steps(graph, feeds, 4)
    model = checked(graph)
    for name, value in spike_values(model).items():
        assert name in layers(graph)
        model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    for optimise in (True, False):
        found = run(model, feeds, optimise)
        for name in layers(graph):
            spikes = found[name].reshape(4, batch, *found[name].shape[1:]).swapaxes(0, 1)
            np.testing.assert_array_equal(spikes, expected[name], err_msg=name)
            assert 0.005 < expected[name].mean() < 0.995, f"{name} is silent or saturated"
        np.testing.assert_array_equal(found["logits"], expected["logits"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_the_simulator(variant: str) -> None:
    graph = small_network(**VARIANTS[variant], exact=False)
    feeds = network_input(graph, 4, exact=False)
    result = Simulator(graph).run(next(iter(feeds.values())))
    found = run(checked(graph, spike_counts=True), feeds)
    np.testing.assert_allclose(found["logits"], result.outputs["logits"], atol=1e-5)
    assert {f"spike_counts/{name}" for name in result.spike_counts} == set(found) - {"logits"}
    for name, count in result.spike_counts.items():
        np.testing.assert_array_equal(found[f"spike_counts/{name}"], count, err_msg=name)


@pytest.mark.parametrize("variant", ["static", "events"])
def test_the_onnx_reference_evaluator_agrees(variant: str) -> None:
    """An implementation of ONNX that shares no code with onnxruntime."""
    graph = small_network(depth=1, dim=8, size=4, **VARIANTS[variant])
    feeds = network_input(graph, 2)
    model = checked(graph, spike_counts=True)
    evaluator = ReferenceEvaluator(model)
    expected = run(model, feeds)
    for name, value in zip(evaluator.output_names, evaluator.run(None, feeds), strict=True):
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_batch_is_free_and_samples_do_not_mix() -> None:
    graph = small_network(depth=1)
    model = checked(graph)
    feeds = network_input(graph, 5)
    together = run(model, feeds)["logits"]
    for index in range(5):
        alone = run(model, {"image": feeds["image"][index : index + 1]})["logits"]
        np.testing.assert_array_equal(alone[0], together[index])


@pytest.mark.parametrize("time_steps", [1, 2, 6])
def test_time_steps_may_be_chosen_at_export(time_steps: int) -> None:
    graph = small_network(depth=1, attention={"window": 1})
    feeds = network_input(graph, 2)
    expected = run_steps(graph, feeds, time_steps)
    found = run(checked(graph, time_steps=time_steps), feeds)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-6)


def test_dt_changes_the_dynamics() -> None:
    graph = chain((6,), lif((6,), tau_steps=4))
    x = np.random.default_rng(0).normal(1.2, 0.5, (2, 8, 6)).astype(F32)
    coarse = run(checked(graph, time_steps=8, dt=2e-4), {"x": x})["y"]
    np.testing.assert_array_equal(coarse, run_steps(graph, {"x": x}, 8, 2e-4)["y"])
    assert not np.array_equal(coarse, run(checked(graph, time_steps=8), {"x": x})["y"])


def test_nested_graphs_are_inlined() -> None:
    inner = chain((4,), lif((4,)), lif((4,), 0.5))
    graph = nir.NIRGraph(
        {
            "in": nir.Input({"input": np.array([4])}),
            "stage": inner,
            "out": nir.Output({"output": np.array([4])}),
        },
        [("in", "stage"), ("stage", "out")],
        type_check=False,
    )
    x = np.random.default_rng(1).normal(1, 1, (2, 5, 4)).astype(F32)
    flat = chain((4,), lif((4,)), lif((4,), 0.5))
    model = checked(graph, time_steps=5)
    assert [node.name for node in model.graph.node if node.domain] == ["stage.n0", "stage.n1"]
    np.testing.assert_array_equal(run(model, {"in": x})["out"], run_steps(flat, {"x": x}, 5)["y"])


def test_spike_counts_are_integers_per_sample() -> None:
    graph = small_network(depth=1)
    feeds = network_input(graph, 3)
    expected = run_steps(graph, feeds, 4)
    model = checked(graph, spike_counts=True)
    found = run(model, feeds)
    assert [o.name for o in model.graph.output] == ["logits", *(f"spike_counts/{name}" for name in layers(graph))]
    for name in layers(graph):
        count = found[f"spike_counts/{name}"]
        assert count.dtype == np.int64
        np.testing.assert_array_equal(count, expected[name].sum(axis=tuple(range(1, expected[name].ndim))))


def test_spike_counts_beyond_what_float32_can_hold() -> None:
    """20 020 005 spikes: above 2^24 and odd, so a float32 sum could not even store it."""
    size, steps = 2001, 5
    node = nir.Threshold(np.array(0.5, dtype=F32))
    for kind, lead in (("frames", (1, steps)), ("image", (1,))):
        graph = chain((1, size, size), node, nir.SumPool2d(*np.array([[size] * 2, [size] * 2, [0, 0]])), input=kind)
        model = checked(graph, time_steps=steps, spike_counts=True)
        found = run(model, {"x": np.ones((*lead, 1, size, size), dtype=F32)})
        assert found["spike_counts/n0"].tolist() == [steps * size * size]
    assert int(np.float32(steps * size * size)) != steps * size * size


def test_third_party_graph_without_hints() -> None:
    """What another tool writes: no metadata, Conv2d with shapes, Flatten with its default axes, stock neurons."""
    rng = np.random.default_rng(2)
    full = np.ones((4, 3, 3), dtype=F32)
    dense = np.ones(5, dtype=F32)
    graph = nir.NIRGraph.from_list(
        nir.Conv2d((6, 6), rng.normal(0, 0.5, (4, 2, 3, 3)).astype(F32), 2, 1, 1, 1, np.full(4, 0.2, dtype=F32)),
        nir.IF(full * F32(1e4), full * F32(0.7)),
        nir.Flatten({"input": np.array([4, 3, 3])}, 0, -1),
        nir.Affine(rng.normal(0, 0.5, (5, 36)).astype(F32), np.full(5, 0.1, dtype=F32)),
        nir.CubaLIF(dense * F32(3e-4), dense * F32(2e-4), dense, 0 * dense, dense * F32(0.3)),
    )
    assert graph.metadata == {}
    feeds = {"input": rng.poisson(0.6, (2, 6, 2, 6, 6)).astype(F32)}
    found = run(checked(graph, time_steps=6), feeds)["output"]
    assert found.shape == (2, 6, 5)
    np.testing.assert_array_equal(found, run_steps(graph, feeds, 6)["output"])
    assert 0 < found.mean() < 1
