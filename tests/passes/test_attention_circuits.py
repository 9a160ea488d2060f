"""STAtten attention as a circuit: integers A[t], not only spikes, equal the reference at every step."""

from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import GraphError, UnsupportedError
from statten_deploy.frontend import build_graph
from statten_deploy.ir import STAttenAttention
from statten_deploy.models.checkpoint import load_model
from statten_deploy.passes import statten_to_circuit
from statten_deploy.simulate import Simulator
from tests.passes.circuits import PROFILES, assert_same, attention_graph
from tests.passes.strangers import ZOO, digits
from tests.simulate.builders import chain, conv, frames, graph, inp, lif, out

profiles = pytest.mark.parametrize("profile", PROFILES)
CASES = [("sliding", 1, 1), ("sliding", 2, 1), ("sliding", 3, 2), ("block", 1, 1), ("block", 2, 1), ("block", 4, 2)]


@profiles
@pytest.mark.parametrize(("mode", "window", "groups"), CASES)
def test_counts_are_the_reference_s(profile: Any, mode: Any, window: int, groups: int) -> None:
    rng = np.random.default_rng(window)
    steps = 2 * window if mode == "block" else 5
    network = attention_graph(rng, STAttenAttention(2, window, mode, groups), (6, 4, 3), steps)
    lowered, modified = statten_to_circuit(network, profile)
    assert modified
    assert not any(isinstance(node, STAttenAttention) for node in lowered.nodes.values())
    found = assert_same(network, lowered, frames(rng, 3, steps, 6, 4, 3), steps)
    assert 0.05 < found["spikes"].mean() < 0.95
    assert found["counts"].max() > 5
    delays = any(isinstance(node, nir.Delay) for node in lowered.nodes.values())
    assert delays == (profile == "core" and window > 1)
    again, modified = statten_to_circuit(lowered, profile)
    assert again is lowered
    assert not modified


@settings(max_examples=30, deadline=None)
@given(
    profile=st.sampled_from(PROFILES),
    heads=st.integers(1, 3),
    width=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    mode=st.sampled_from(["block", "sliding"]),
    window=st.integers(1, 5),
    split=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_random_shapes(
    profile: Any, heads: int, width: int, grid: tuple[int, int], mode: Any, window: int, split: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = grid[0] if split else 1
    shape = (heads * width, *grid)
    steps = 2 * window
    network = attention_graph(rng, STAttenAttention(heads, window, mode, groups), shape, steps)
    lowered, _ = statten_to_circuit(network, profile)
    assert_same(network, lowered, frames(rng, 2, steps, *shape), steps)


@profiles
def test_every_pair_counts(profile: Any) -> None:
    """All spikes at once: the largest count there is, and the next smaller one."""
    shape, window = (4, 3, 3), 2
    for silent in (0, 1):
        nodes: dict[str, nir.NIRNode] = {"x": inp(*shape), "one": lif(*shape, threshold=0.25)}
        nodes |= {"a": STAttenAttention(1, window, "sliding"), "y": out(*shape)}
        network = graph(nodes, [("x", "one"), *(("one", f"a.{port}") for port in "qkv"), ("a", "y")])
        lowered, _ = statten_to_circuit(network, profile)
        x = np.ones((1, 3, *shape), dtype=np.float32)
        x[:, 1, :silent, 0, 0] = -8
        found = assert_same(network, lowered, x, 3)["y"]
        assert found.max() == 4 * 9 * 2 - silent


@profiles
def test_latency_of_blocks_in_a_row(profile: Any) -> None:
    """Two block windows with a residual around each, biases everywhere, and an output that is not late."""
    rng = np.random.default_rng(3)
    shape, steps = (4, 2, 3), 6
    nodes: dict[str, nir.NIRNode] = {"x": inp(*shape), "stem": conv(rng, 4, 4), "s": lif(*shape), "r": conv(rng, 4, 4)}
    edges = [("x", "stem"), ("stem", "s"), ("s", "r")]
    stream = ["r"]
    for i, window in enumerate((3, 2)):
        nodes[f"{i}.l"] = lif(*shape)
        edges += [(source, f"{i}.l") for source in stream]
        for port in "qkv":
            nodes |= {f"{i}.{port}c": conv(rng, 4, 4), f"{i}.{port}": lif(*shape)}
            edges += [(f"{i}.l", f"{i}.{port}c"), (f"{i}.{port}c", f"{i}.{port}"), (f"{i}.{port}", f"{i}.a.{port}")]
        nodes |= {f"{i}.a": STAttenAttention(2, window, "block"), f"{i}.n": lif(*shape, threshold=2.0)}
        nodes[f"{i}.p"] = conv(rng, 4, 4)
        edges += [(f"{i}.a", f"{i}.n"), (f"{i}.n", f"{i}.p")]
        stream.append(f"{i}.p")
    nodes |= {"last": lif(*shape), "late": out(*shape), "early": out(*shape), "currents": out(*shape)}
    edges += [(source, target) for source in stream for target in ("last", "currents")]
    network = graph(nodes, [*edges, ("last", "late"), ("0.l", "early")], time_steps=steps)
    lowered, _ = statten_to_circuit(network, profile)
    told = lowered.metadata["statten"]
    assert told["latency"] == {"late": 3, "currents": 3}
    assert told["latency_steps"] == 3
    found = assert_same(network, lowered, frames(rng, 2, steps, *shape), steps)
    assert 0.05 < found["late"].mean() < 0.95
    assert all(lowered.nodes[name] is node for name, node in nodes.items() if not isinstance(node, STAttenAttention))


# what the comparison is worth: faults in the circuit show


@profiles
@pytest.mark.parametrize("change", [{"window": 1}, {"window": 3}, {"mode": "block"}, {"num_heads": 4}], ids=str)
def test_another_attention_is_noticed(profile: Any, change: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    network = attention_graph(rng, STAttenAttention(2, 2, "sliding"), (8, 4, 4), 6)
    wrong = graph({**network.nodes, "a": replace(network.nodes["a"], **change)}, network.edges, time_steps=6)
    lowered, _ = statten_to_circuit(wrong, profile)
    lowered.metadata = network.metadata
    with pytest.raises(AssertionError):
        assert_same(network, lowered, frames(rng, 2, 6, 8, 4, 4), 6)


@profiles
@pytest.mark.parametrize("kind", ["a dropped head", "a dead attention", "a digit without weight", "no memory"])
def test_a_broken_circuit_is_noticed(profile: Any, kind: str) -> None:
    rng = np.random.default_rng(0)
    network = attention_graph(rng, STAttenAttention(2, 2, "sliding"), (8, 4, 4), 6)
    lowered, _ = statten_to_circuit(network, profile)
    nodes: dict[str, Any] = dict(lowered.nodes)
    for name, node in lowered.nodes.items():
        if name.startswith("a.out"):
            dead = {"a dropped head": slice(4, 8), "a dead attention": slice(None)}.get(kind, slice(0))
            weight = np.array(node.weight)
            weight[dead] = 0
            nodes[name] = replace(node, weight=weight * (kind != "a digit without weight" or name != "a.out1"))
        if kind == "no memory" and name in ("a.count.was1", "a.count1"):
            nodes[name] = nir.Scale(np.zeros((32, 1, 1), dtype=np.float32))
            if profile == "portable":  # a pool cannot be silenced in place: silence the gate before it
                nodes[name] = node
                nodes["a.pair1"] = replace(lowered.nodes["a.pair1"], v_threshold=np.full((32, 4, 4), np.float32(9)))
    broken = nir.NIRGraph(nodes, lowered.edges, metadata=lowered.metadata, type_check=False)
    with pytest.raises(AssertionError):
        assert_same(network, broken, frames(rng, 2, 6, 8, 4, 4), 6)


def test_why_counts_are_compared() -> None:
    """The trained network with a window of one step instead of two: the classes hide it, the counts do not."""
    network, x = build_graph(load_model(ZOO / "digits-stream.ckpt")), digits()
    attention, neurons = "block.0.attn.statten", "block.0.attn.attn_lif"
    nodes = {**network.nodes, attention: replace(network.nodes[attention], window=1)}
    wrong = nir.NIRGraph(nodes, network.edges, metadata=network.metadata, type_check=False)
    a, b = (Simulator(g).run(x, record=[attention, neurons]) for g in (network, wrong))
    counts, spikes = (np.sum(a.recorded[name] != b.recorded[name]) for name in (attention, neurons))
    assert a.recorded[attention].size == a.recorded[neurons].size == 65_536
    assert (counts, spikes) == pytest.approx((5_525, 1_588), rel=0.01)  # other machines round other currents
    np.testing.assert_array_equal(a.outputs["logits"].argmax(1), b.outputs["logits"].argmax(1))


# refusals


def test_windows_and_counts_that_are_too_large() -> None:
    rng = np.random.default_rng(0)
    network = attention_graph(rng, STAttenAttention(1, 21, "block"), (1, 2, 2), 21)
    with pytest.raises(UnsupportedError, match="a window of 21 steps: its clock tells at most 20 steps apart"):
        statten_to_circuit(network)
    network = attention_graph(rng, STAttenAttention(1, 16, "sliding"), (1, 32, 32), 16)
    with pytest.raises(UnsupportedError, match=r"'a' \(STAttenAttention\): a pair counts up to 16384"):
        statten_to_circuit(network)


def behind_a_block(node: nir.NIRNode) -> nir.NIRGraph:
    network = attention_graph(np.random.default_rng(0), STAttenAttention(1, 2, "block"), (2, 2, 2), 4)
    return graph({**network.nodes, "n": node}, network.edges, time_steps=4)


def test_neurons_that_cannot_restart() -> None:
    ones = np.ones((2, 2, 2), dtype=np.float32)
    leaky = nir.LIF(ones * np.float32(2e-4), ones, ones, ones, ones * 0)
    synaptic = nir.CubaLIF(*(ones * np.float32(2e-4),) * 2, ones, ones * 0, ones)
    for node in (leaky, synaptic, nir.LI(ones * np.float32(2e-4), ones, ones * 0)):
        with pytest.raises(UnsupportedError, match=r"behind a block window, 'n' \(\w+\) cannot be brought to rest"):
            statten_to_circuit(behind_a_block(node))
    network = attention_graph(np.random.default_rng(0), STAttenAttention(1, 2, "block"), (2, 2, 2), 4)
    more = {**network.nodes, "b": STAttenAttention(1, 2, "sliding"), "z": out(2, 2, 2)}
    edges = [*network.edges, *(("n", f"b.{port}") for port in "qkv"), ("b", "z")]
    with pytest.raises(UnsupportedError, match=r"'b' \(STAttenAttention\) cannot be brought to rest"):
        statten_to_circuit(graph(more, edges, time_steps=4))


def test_real_currents_cannot_wait_in_portable() -> None:
    network = attention_graph(np.random.default_rng(0), STAttenAttention(1, 2, "block"), (2, 2, 2), 4)
    bypass = graph(network.nodes, [*network.edges, ("x", "n")], time_steps=4)
    with pytest.raises(UnsupportedError, match=r"'x' \(Input\) would have to wait 1 steps for a block window"):
        statten_to_circuit(bypass, "portable")
    x = frames(np.random.default_rng(1), 2, 4, 2, 2, 2)
    assert_same(bypass, statten_to_circuit(bypass, "core")[0], x, 4)


def test_integrate_and_fire_behind_a_block() -> None:
    ones = np.ones((2, 2, 2), dtype=np.float32)
    network = behind_a_block(nir.IF(ones * 1e4, ones * np.float32(2.5)))
    for profile in PROFILES:
        lowered, _ = statten_to_circuit(network, profile)
        assert assert_same(network, lowered, frames(np.random.default_rng(1), 3, 4, 2, 2, 2), 4)["spikes"].any()


def test_a_name_in_the_way() -> None:
    network = attention_graph(np.random.default_rng(0), STAttenAttention(1, 1), (2, 2, 2), 4)
    taken = graph({**network.nodes, "a.pair": out(2, 2, 2)}, [*network.edges, ("n", "a.pair")], time_steps=4)
    with pytest.raises(GraphError, match=r"node 'a.pair' is in the way of a circuit; rename it"):
        statten_to_circuit(taken)


def test_a_graph_without_attention_is_left_alone() -> None:
    network = chain(("x", inp(2, 4, 4)), ("l", lif(2, 4, 4)), ("y", out(2, 4, 4)))
    assert statten_to_circuit(network) == (network, False)
