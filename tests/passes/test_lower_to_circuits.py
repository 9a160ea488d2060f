"""Whole networks as circuits: values, cost, refusals, and the way back."""

import json
from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.frontend import build_graph
from statten_deploy.ir import EXTENSION_NODES, STAttenAttention, TemporalMean
from statten_deploy.passes import circuit_cost, lower_to_circuits, raise_circuits, raise_lowered
from statten_deploy.simulate import Simulator
from tests.conftest import VARIANTS, lively_input, lively_model, small_config
from tests.passes.circuits import PROFILES, assert_same, attention_graph, neurons, per_step, same_graph
from tests.simulate.builders import chain, frames, graph, inp, lif, out

profiles = pytest.mark.parametrize("profile", PROFILES)
VARIANT = pytest.mark.parametrize("kind", list(VARIANTS))


def small_network(kind: str, **changes: Any) -> tuple[Any, nir.NIRGraph]:
    """A variant narrow enough to be quick, and without a pool of currents."""
    values = {"pooling": "strided", "embed_dim": 24, "num_heads": 2, **changes}
    config = small_config(kind, **values)
    return config, build_graph(lively_model(config))


@profiles
@VARIANT
def test_networks(kind: str, profile: Any) -> None:
    """Every spike and every output of every variant; the cost told beforehand is what is there."""
    config, network = small_network(kind)
    lowered, modified = lower_to_circuits(network, profile)
    assert modified
    assert not any(isinstance(n, EXTENSION_NODES) and not isinstance(n, TemporalMean) for n in lowered.nodes.values())
    x = lively_input(config, batch=2).numpy()
    assert_same(network, lowered, x, config.time_steps)
    rates = Simulator(network).run(x, record="spikes").recorded
    live = [name for name in rates if name.endswith(("attn_lif", "talking_heads_lif"))]
    assert all(0.01 < rates[name].mean() < 0.95 for name in live)
    assert len(live) == config.depth
    cost = circuit_cost(network, profile)
    assert sum(entry.neurons for entry in cost.values()) == neurons(lowered) - neurons(network)
    if profile == "portable":
        allowed = (nir.Input, nir.Output, nir.Conv2d, nir.Affine, nir.LIF, nir.Flatten, nir.SumPool2d, TemporalMean)
        assert all(isinstance(node, allowed) for node in lowered.nodes.values())
        assert not any(np.any(node.padding) for node in lowered.nodes.values() if isinstance(node, nir.SumPool2d))
        assert all(len(np.unique(n.v_threshold)) == 1 for n in lowered.nodes.values() if isinstance(n, nir.LIF))
    again, modified = lower_to_circuits(lowered, profile)
    assert again is lowered
    assert not modified


@settings(max_examples=12, deadline=None)
@given(
    profile=st.sampled_from(PROFILES),
    kind=st.sampled_from(["static", "sliding", "token", "sdt", "dvs", "dvs-sdt", "frames", "plif"]),
    shape=st.sampled_from([(8, 1), (8, 4), (16, 4), (24, 8)]),
    grid=st.sampled_from([((8, 8), "0011"), ((16, 8), "0111"), ((12, 4), "0001"), ((8, 16), "1001")]),
    depth=st.integers(1, 2),
    chunk=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**32),
)
def test_random_networks(
    profile: Any, kind: str, shape: tuple[int, int], grid: Any, depth: int, chunk: int, seed: int
) -> None:
    """Of any width, heads, grid, depth and window, with random weights, against the float runner."""
    values = {"embed_dim": shape[0], "num_heads": shape[1], "depth": depth, "chunk_size": chunk}
    config = small_config(kind, pooling="strided", image_size=grid[0], pooling_stat=grid[1], **values)
    network = build_graph(lively_model(config, seed))
    lowered, _ = lower_to_circuits(network, profile)
    assert_same(network, lowered, lively_input(config, 2, seed).numpy(), config.time_steps)
    raised, modified = raise_lowered(lowered)
    assert modified
    assert same_graph(raised, network)


# cost


def connections(network: nir.NIRGraph) -> int:
    """Pairs (source, delay, neuron) without a neuron between, by sending single spikes through what is linear."""
    total = 0
    spiking = [name for name, node in network.nodes.items() if isinstance(node, nir.LIF)]
    targets = [name for name in [*spiking, "sum"] if name in network.nodes]
    shapes = Simulator(network).shapes
    for source in spiking:
        nodes: dict[str, nir.NIRNode] = {}
        for name, node in network.nodes.items():
            if isinstance(node, nir.LIF | nir.Input):
                nodes[name] = nir.Input({"input": np.array(shapes[name])})
            elif not isinstance(node, nir.Output):
                bare = isinstance(node, nir.Conv2d | nir.Affine)
                nodes[name] = replace(node, bias=np.zeros_like(node.bias)) if bare else node
        into: dict[str, list[str]] = {}
        for a, b in network.edges:
            into.setdefault(b, []).append(a)
        edges = [(a, b) for a, b in network.edges if b in nodes and not isinstance(nodes[b], nir.Input)]
        for name in targets:
            shape = shapes[into[name][0]]
            nodes[f"to {name}"] = nir.Scale(np.ones(shape, dtype=np.float32))
            nodes[f"at {name}"] = out(*shape)
            edges += [*((a, f"to {name}") for a in into[name]), (f"to {name}", f"at {name}")]
        fed = {a for a, _ in edges}
        nodes = {name: node for name, node in nodes.items() if not isinstance(node, nir.Input) or name in fed}
        if source not in nodes:
            continue
        size = int(np.prod(shapes[source]))
        steps = 8
        x = {
            name: np.zeros((size, steps, *shapes[name])) for name, node in nodes.items() if isinstance(node, nir.Input)
        }
        x[source][np.arange(size), 0] = np.eye(size).reshape(size, *shapes[source])
        for value in Simulator(graph(nodes, edges)).run(x).outputs.values():
            total += int(np.count_nonzero(value))
    return total


@profiles
@pytest.mark.parametrize(
    ("mode", "window", "groups"), [("sliding", 1, 1), ("sliding", 2, 1), ("block", 2, 1), ("block", 3, 2)]
)
def test_synapses_by_counting(profile: Any, mode: Any, window: int, groups: int) -> None:
    node = STAttenAttention(2, window, mode, groups)
    network = attention_graph(np.random.default_rng(0), node, (4, 2, 2), 2 * window)
    # Count the circuit alone: random convolutions and the neurons behind it do not belong to it.
    nodes: dict[str, nir.NIRNode] = {"x": inp(4, 2, 2), **{port: lif(4, 2, 2) for port in "qkv"}, "a": node}
    edges = [*(("x", port) for port in "qkv"), *((port, f"a.{port}") for port in "qkv"), ("a", "y")]
    network = graph({**nodes, "y": out(4, 2, 2)}, edges, time_steps=2 * window)
    lowered, _ = lower_to_circuits(network, profile)
    links = {name for name in lowered.nodes if name.startswith("link")}
    plain = [(a, b) for a, b in lowered.edges if not {a, b} & links]
    counted = graph(
        {name: node for name, node in lowered.nodes.items() if name not in links}, plain, time_steps=2 * window
    )
    counted.nodes["sum"] = nir.Scale(np.ones((4, 2, 2), dtype=np.float32))
    edges = [(a, "sum" if b == "y" else b) for a, b in counted.edges]
    counted = nir.NIRGraph(counted.nodes, [*edges, ("sum", "y")], metadata=counted.metadata, type_check=False)
    cost = circuit_cost(network, profile)
    assert sum(entry.synapses for entry in cost.values()) == connections(counted)


def test_what_released_sizes_cost() -> None:
    """CIFAR, two blocks: formulas only, nothing is built."""
    for channels, expected in ((256, 4_784_128), (512, 19_136_512)):
        shape = (channels, 8, 8)
        nodes: dict[str, nir.NIRNode] = {"x": inp(*shape), "l": lif(*shape), "m": lif(*shape)}
        nodes |= {"a": STAttenAttention(8, 2, "sliding"), "y": out(*shape)}
        edges = [("x", "l"), ("x", "m"), ("l", "a.q"), ("l", "a.k"), ("m", "a.v"), ("a", "y")]
        cost = circuit_cost(graph(nodes, edges, time_steps=4))
        assert cost["a"].neurons == expected
        assert cost["a"].formula.startswith(f"P N (1 + n) + P G n, P = {channels * channels // 8}, N = 64, n = 8")


# refusals


def test_above_the_budget() -> None:
    _, network = small_network("sliding")
    total = sum(entry.neurons for entry in circuit_cost(network).values())
    assert lower_to_circuits(network, max_neurons=total)[1]
    message = rf"would have {total:,} neurons, more than the budget of {total - 1:,} .*; the largest is 'block.0.attn"
    with pytest.raises(UnsupportedError, match=message):
        lower_to_circuits(network, max_neurons=total - 1)


def test_real_valued_pools_are_refused_with_the_remedy() -> None:
    _, network = small_network("static", pooling="maxpool")
    with pytest.raises(UnsupportedError, match=r"'patch_embed.maxpool3' \(MaxPool2d\).*train with pooling: strided"):
        lower_to_circuits(network)


def test_all_nodes_outside_the_portable_profile_are_named() -> None:
    one = np.ones(4, dtype=np.float32)
    neuron = nir.LIF(one * np.float32(2e-4), one, one * 0, np.arange(1, 5, dtype=np.float32), one * 0)
    network = chain(
        ("x", inp(4)), ("s", nir.Scale(one)), ("l", neuron), ("i", nir.LI(one, one, one * 0)), ("y", out(4))
    )
    with pytest.raises(UnsupportedError, match=r"'s' \(Scale\).*'l' \(LIF\).*one threshold.*'i' \(LI\)"):
        lower_to_circuits(network, "portable")
    assert lower_to_circuits(network) == (network, False)


# the way back


def written(network: nir.NIRGraph, tmp_path: Any) -> nir.NIRGraph:
    report = write_nir(network, tmp_path / "n.nir")
    assert report.type_checked
    assert not report.warnings
    return read_nir(tmp_path / "n.nir")


@profiles
@pytest.mark.parametrize("kind", ["static", "sliding", "token", "dvs", "dvs-sdt"])
def test_a_file_of_circuits_becomes_the_network_again(kind: str, profile: Any, tmp_path: Any) -> None:
    config, network = small_network(kind, depth=1)
    lowered, _ = lower_to_circuits(network, profile)
    in_memory, modified = raise_lowered(lowered)
    assert modified
    assert same_graph(in_memory, network)
    found = written(lowered, tmp_path)
    assert list(found.nodes) == list(network.nodes)
    assert sorted(found.edges) == sorted(network.edges)
    assert found.metadata == network.metadata
    x = lively_input(config, batch=1).numpy()
    a, b = (Simulator(g).run(x, record="spikes") for g in (network, found))
    for name, value in a.recorded.items():
        np.testing.assert_array_equal(b.recorded[name], value)
    np.testing.assert_array_equal(a.outputs["logits"], b.outputs["logits"])
    assert raise_circuits(found)[0] is found


def touched(node: Any, field: str) -> nir.NIRNode:
    value = np.array(getattr(node, field), dtype=np.float32)
    value.flat[0] += np.float32(0.125)
    return replace(node, **{field: value})


TOUCHED = {
    "a threshold": ("block.0.attn.statten.and1", "v_threshold"),
    "a weight": ("block.0.attn.statten.out0", "weight"),
    "a bias": ("block.0.attn.statten.key", "bias"),
    "a time constant": ("timing.every2", "tau"),
    "a start": ("timing.start", "v_threshold"),
}


@pytest.mark.parametrize("what", list(TOUCHED))
@profiles
def test_a_circuit_that_was_touched_stays_a_circuit(what: str, profile: Any) -> None:
    _, network = small_network("static", depth=1)
    lowered, _ = lower_to_circuits(network, profile)
    name, field = TOUCHED[what]
    nodes = {**lowered.nodes, name: touched(lowered.nodes[name], field)}
    changed = nir.NIRGraph(nodes, lowered.edges, metadata=lowered.metadata, type_check=False)
    assert raise_lowered(changed) == (changed, False)


def test_weights_of_the_network_may_change() -> None:
    """A network that was trained on as a circuit: raised with its new weights."""
    _, network = small_network("static", depth=1)
    lowered, _ = lower_to_circuits(network)
    nodes = {**lowered.nodes, "head": touched(lowered.nodes["head"], "weight")}
    raised, modified = raise_lowered(nir.NIRGraph(nodes, lowered.edges, metadata=lowered.metadata, type_check=False))
    assert modified
    assert raised.nodes["head"] is nodes["head"]


def remarked(lowered: nir.NIRGraph, **changes: Any) -> nir.NIRGraph:
    told = json.loads(lowered.metadata["statten"]["circuits"])
    hints = {**lowered.metadata["statten"], "circuits": json.dumps({**told, **changes})}
    return nir.NIRGraph(lowered.nodes, lowered.edges, metadata={"statten": hints}, type_check=False)


def test_markers_that_lie() -> None:
    _, network = small_network("static", depth=1)
    lowered, _ = lower_to_circuits(network)
    told = json.loads(lowered.metadata["statten"]["circuits"])
    assert raise_lowered(remarked(lowered))[1]
    attention = told["replaced"]["block.0.attn.statten"]
    lies: list[dict[str, Any]] = [
        {"version": 2},
        {"profile": "portable"},
        {"profile": "none"},
        {"nodes": told["nodes"][:-1]},
        {"nodes": 3},
        {"edges": told["edges"][1:]},
        {"edges": [[0, 999, ""]]},
        {"replaced": {"block.0.attn.statten": {**attention, "window": 4}}},
        {"replaced": {"block.0.attn.statten": {**attention, "num_heads": 1, "window": 2**40}}},
        {"replaced": {"block.0.attn.statten": {**attention, "op": "Sum"}}},
        {"replaced": {"block.0.attn.statten": {**attention, "more": 1}}},
    ]
    for lie in lies:
        changed = remarked(lowered, **lie)
        assert raise_lowered(changed) == (changed, False), lie
    for text in ("", "{", "[]", "null", 3, "{}"):
        changed = remarked(lowered)
        changed.metadata["statten"]["circuits"] = text
        assert raise_lowered(changed) == (changed, False), text
    late = remarked(lowered)
    late.metadata["statten"]["latency_steps"] = 0
    assert raise_lowered(late) == (late, False)


def test_an_edge_that_was_swapped() -> None:
    _, network = small_network("static", depth=1)
    lowered, _ = lower_to_circuits(network)
    q, k = ("block.0.attn.q_lif", "block.0.attn.k_lif")
    swap = {(k, "block.0.attn.statten.key"): (q, "block.0.attn.statten.key")}
    edges = [swap.get(edge, edge) for edge in lowered.edges]
    assert edges != lowered.edges
    changed = nir.NIRGraph(lowered.nodes, edges, metadata=lowered.metadata, type_check=False)
    assert raise_lowered(changed) == (changed, False)


def test_per_step_outputs_of_a_late_graph_average_to_the_network_s() -> None:
    """What a reader of the file does: run T + latency steps, leave out the first, average."""
    config, network = small_network("static")
    lowered, _ = lower_to_circuits(network)
    late = lowered.metadata["statten"]["latency_steps"]
    assert late == 2
    x = lively_input(config, batch=2).numpy()
    steps = Simulator(per_step(lowered), time_steps=config.time_steps + late).run(x).outputs["logits"]
    expected = Simulator(network).run(x).outputs["logits"]
    np.testing.assert_array_equal(steps[:, late:].mean(1, dtype=np.float32), expected)
    assert frames(np.random.default_rng(0), 1, 1, 2).shape == (1, 1, 2)
