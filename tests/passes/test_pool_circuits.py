"""Spike max-pools as circuits of stock nodes, and back."""

from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import GraphError
from statten_deploy.frontend import build_graph
from statten_deploy.ir import MaxPool2d, SpikeMaxPool2d, verify
from statten_deploy.passes import raise_circuits, spike_maxpool_to_circuit
from statten_deploy.simulate import Simulator
from tests.conftest import lively_input, lively_model, small_config
from tests.simulate.builders import DT, chain, conv, frames, graph, inp, lif, out


def pooled(kernel: Any = 3, stride: Any = 2, padding: Any = 1, **hints: Any) -> nir.NIRGraph:
    node = SpikeMaxPool2d(kernel, stride, padding)
    return chain(("x", inp(2, 7, 6)), ("l", lif(2, 7, 6)), ("p", node), ("y", nir.Output({"output": None})), **hints)


def same_graph(a: nir.NIRGraph, b: nir.NIRGraph) -> bool:
    return list(a.nodes) == list(b.nodes) and a.edges == b.edges and a.metadata == b.metadata


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    half=st.tuples(st.booleans(), st.booleans()),
    dt=st.sampled_from([1e-4, 1e-3, 2.0**-10]),
    seed=st.integers(0, 2**32),
)
def test_the_circuit_gives_the_same_spikes(kernel: Any, stride: Any, half: Any, dt: float, seed: int) -> None:
    padding = tuple(k // 2 if h else 0 for k, h in zip(kernel, half, strict=True))
    network = pooled(kernel, stride, padding)
    network.metadata["statten"] = {"dt": dt}
    network.nodes["l"] = replace(network.nodes["l"], tau=np.full((2, 7, 6), np.float32(2 * dt)))
    lowered, modified = spike_maxpool_to_circuit(network)
    assert modified
    verify(lowered)
    x = frames(np.random.default_rng(seed), 2, 6, 2, 7, 6)
    a, b = (Simulator(g).run(x).outputs["y"] for g in (network, lowered))
    np.testing.assert_array_equal(a, b)
    assert a.any()
    assert (a == 0).any()
    raised, modified = raise_circuits(lowered)
    assert modified
    assert same_graph(raised, network)
    pool: Any = raised.nodes["p"]
    assert (pool.kernel_size, pool.stride, pool.padding) == (kernel, stride, padding)


def test_only_stock_nodes_are_left(variant: str) -> None:
    network = build_graph(lively_model(small_config(variant)))
    lowered, modified = spike_maxpool_to_circuit(network)
    assert modified == any(isinstance(node, SpikeMaxPool2d) for node in network.nodes.values())
    assert not any(isinstance(node, SpikeMaxPool2d) for node in lowered.nodes.values())
    verify(lowered)
    raised, _ = raise_circuits(lowered)
    assert same_graph(raised, network)


def test_networks_compute_the_same() -> None:
    model = lively_model(small_config("dvs"))
    network = build_graph(model)
    lowered, _ = spike_maxpool_to_circuit(network)
    x = lively_input(model.config).numpy()
    a, b = (Simulator(g).run(x, record=["block.1.mlp.fc2_lif", "head"]) for g in (network, lowered))
    for name, value in a.recorded.items():
        np.testing.assert_array_equal(value, b.recorded[name])


def test_passes_are_idempotent_and_change_nothing_in_place() -> None:
    network = pooled()
    nodes, edges = dict(network.nodes), list(network.edges)
    lowered, _ = spike_maxpool_to_circuit(network)
    assert (network.nodes, network.edges) == (nodes, edges)
    again, modified = spike_maxpool_to_circuit(lowered)
    assert again is lowered
    assert not modified
    raised, _ = raise_circuits(lowered)
    again, modified = raise_circuits(raised)
    assert again is raised
    assert not modified


def test_pools_in_a_row_and_with_several_readers() -> None:
    node = SpikeMaxPool2d(2, 2, 0)
    nodes = {"x": inp(2, 8, 8), "l": lif(2, 8, 8), "p": node, "q": node, "c": conv(np.random.default_rng(0), 2, 3)}
    nodes |= {"k": lif(3, 4, 4), "y": out(2, 2, 2), "z": out(3, 4, 4)}
    edges = [("x", "l"), ("l", "p"), ("p", "c"), ("p", "q.input"), ("c", "k"), ("q", "y"), ("k", "z")]
    network = graph(nodes, edges)
    lowered, _ = spike_maxpool_to_circuit(network)
    assert list(lowered.nodes)[:6] == ["x", "l", "p.or", "p.gate", "q.or", "q.gate"]
    assert lowered.edges[:4] == [("x", "l"), ("l", "p.or"), ("p.or", "p.gate"), ("p.gate", "c")]
    raised, _ = raise_circuits(lowered)
    assert raised.edges == [(a, b.removesuffix(".input")) for a, b in edges]
    x = frames(np.random.default_rng(0), 1, 5, 2, 8, 8)
    for name in "yz":
        values = [Simulator(g).run(x).outputs[name] for g in (network, lowered, raised)]
        np.testing.assert_array_equal(values[0], values[1])
        np.testing.assert_array_equal(values[0], values[2])


def test_real_valued_pools_stay() -> None:
    network = chain(("x", inp(2, 6, 6)), ("p", MaxPool2d(2, 2, 0)), ("y", out(2, 3, 3)))
    assert spike_maxpool_to_circuit(network) == (network, False)


def test_a_name_in_the_way() -> None:
    network = pooled()
    network.nodes["p.gate"] = lif(2, 4, 3)
    network.edges.append(("p", "p.gate"))
    with pytest.raises(GraphError, match=r"node 'p.gate' is in the way of a pool's circuit; rename it"):
        spike_maxpool_to_circuit(network)


def test_circuits_with_other_names_are_raised_too() -> None:
    lowered, _ = spike_maxpool_to_circuit(pooled())
    renamed = {"p.or": "c1", "p.gate": "s1"}
    nodes = {renamed.get(name, name): node for name, node in lowered.nodes.items()}
    edges = [(renamed.get(a, a), renamed.get(b, b)) for a, b in lowered.edges]
    raised, modified = raise_circuits(graph(nodes, edges))
    assert modified
    assert list(raised.nodes) == ["x", "l", "s1", "y"]
    assert raised.edges == [("x", "l"), ("l", "s1"), ("s1", "y")]


def _edit_conv(**fields: Any) -> dict[str, Any]:
    return {"p.or": fields}


def _edit_gate(**fields: float) -> dict[str, Any]:
    return {"p.gate": {key: np.full((2, 4, 3), value, dtype=np.float32) for key, value in fields.items()}}


def _weight(at: tuple[int, ...], value: float) -> np.ndarray:
    weight = np.zeros((2, 2, 3, 3), dtype=np.float32)
    weight[[0, 1], [0, 1]] = 1
    weight[at] = value
    return weight


NEARLY = {
    "a weight of 2": _edit_conv(weight=_weight((0, 0, 1, 1), 2)),
    "a missing weight": _edit_conv(weight=_weight((0, 0, 1, 1), 0)),
    "mixed channels": _edit_conv(weight=_weight((0, 1, 1, 1), 1)),
    "a bias": _edit_conv(bias=np.array([0, 0.25], dtype=np.float32)),
    "a threshold above one": _edit_gate(v_threshold=1.5),
    "a threshold at zero": _edit_gate(v_threshold=0.0),
    "memory": _edit_gate(tau=2 * DT),
    "another gain": _edit_gate(r=2.0),
    "a leak": _edit_gate(v_leak=0.125),
    "a reset": _edit_gate(v_reset=-1.0),
}


@pytest.mark.parametrize("kind", list(NEARLY))
def test_nearly_a_circuit_is_left_alone(kind: str) -> None:
    lowered, _ = spike_maxpool_to_circuit(pooled(time_steps=4))
    ((name, fields),) = NEARLY[kind].items()
    lowered.nodes[name] = replace(lowered.nodes[name], **fields)
    assert raise_circuits(lowered) == (lowered, False)


def test_real_input_and_side_exits_are_left_alone() -> None:
    lowered, _ = spike_maxpool_to_circuit(pooled())
    real = {**lowered.nodes, "l": nir.Scale(np.ones((2, 7, 6), dtype=np.float32))}
    assert not raise_circuits(graph(real, lowered.edges))[1]
    tapped = graph({**lowered.nodes, "z": out(2, 4, 3)}, [*lowered.edges, ("p.or", "z")])
    assert not raise_circuits(tapped)[1]
    fed = graph({**lowered.nodes, "k": nir.Input({"input": np.array([2, 4, 3])})}, [*lowered.edges, ("k", "p.gate")])
    assert not raise_circuits(fed)[1]
    summed = graph({**lowered.nodes, "k": lif(2, 7, 6)}, [*lowered.edges, ("x", "k"), ("k", "p.or")])
    assert not raise_circuits(summed)[1]


def test_another_time_step_makes_it_no_gate() -> None:
    lowered, _ = spike_maxpool_to_circuit(pooled())
    lowered.metadata["statten"] = {"dt": 2e-5}
    assert not raise_circuits(lowered)[1]
