"""ANDs, token pools, pools for everyone, sums of two, one order for all."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import UnsupportedError
from statten_deploy.ir import SpikeAnd, TemporalMean, TokenMaxPool, predecessors, topological_order, verify
from statten_deploy.passes import (
    pairwise_sums,
    portable_pools,
    spike_and_to_circuit,
    token_maxpool_to_circuit,
    topological_chain,
)
from statten_deploy.simulate import Simulator
from tests.passes.circuits import PROFILES
from tests.simulate.builders import affine, chain, conv, frames, graph, inp, lif, out, pool, residual_network

profiles = pytest.mark.parametrize("profile", PROFILES)
Lowering = Callable[[nir.NIRGraph], tuple[nir.NIRGraph, bool]]


def lowered_once(lower: Lowering, network: nir.NIRGraph, *gone: type[nir.NIRNode]) -> nir.NIRGraph:
    """The lowered graph, valid, without what was lowered, and the same when lowered again; the graph is untouched."""
    nodes, edges = dict(network.nodes), list(network.edges)
    lowered, modified = lower(network)
    assert modified
    assert (network.nodes, network.edges) == (nodes, edges)
    verify(lowered)
    assert not any(isinstance(node, gone) for node in lowered.nodes.values())
    again, modified = lower(lowered)
    assert again is lowered
    assert not modified
    return lowered


def outputs(network: nir.NIRGraph, x: np.ndarray) -> dict[str, np.ndarray]:
    return dict(Simulator(network).run(x).outputs)


# AND


def and_graph(shape: tuple[int, ...], single: bool) -> nir.NIRGraph:
    second = (shape[0], 1, 1) if single else shape
    grid = np.array(shape[1:])
    nodes: dict[str, nir.NIRNode] = {"x": inp(*shape), "a": lif(*shape, threshold=0.5, tau_steps=1.0)}
    edges = [("x", "a"), ("a", "and.a"), ("and", "y")]
    if single:
        nodes["s"] = nir.SumPool2d(grid, grid, np.zeros(2, dtype=np.int64))
        edges.append(("x", "s"))
    nodes |= {"b": lif(*second, threshold=1.5, tau_steps=1.0), "and": SpikeAnd(), "y": out(*shape)}
    return graph(nodes, [*edges, ("s" if single else "x", "b"), ("b", "and.b")])


@profiles
def test_and_truth_table(profile: Any) -> None:
    network = graph(
        {"x": inp(4), "w": inp(4), "a": lif(4, tau_steps=1), "b": lif(4, tau_steps=1), "g": SpikeAnd(), "y": out(4)},
        [("x", "a"), ("w", "b"), ("a", "g.a"), ("b", "g.b"), ("g", "y")],
    )
    lowered = lowered_once(lambda g: spike_and_to_circuit(g, profile), network, SpikeAnd)
    x = {"x": np.array([[[0, 0, 1, 1]]]), "w": np.array([[[0, 1, 0, 1]]])}
    np.testing.assert_array_equal(Simulator(lowered).run(x).outputs["y"], [[[0, 0, 0, 1]]])
    assert lowered.edges[2:4] == [("a", "g.gate"), ("b", "g.gate")]


@profiles
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 4, 5), (2, 3, 3), (2, 1, 4)])
@pytest.mark.parametrize("single", [True, False])
def test_and_with_one_value_for_all_tokens(profile: Any, shape: tuple[int, ...], single: bool) -> None:
    network = and_graph(shape, single)
    lowered = lowered_once(lambda g: spike_and_to_circuit(g, profile), network, SpikeAnd)
    x = frames(np.random.default_rng(0), 3, 6, *shape)
    found = outputs(lowered, x)["y"]
    np.testing.assert_array_equal(found, outputs(network, x)["y"])
    assert 0 < found.mean() < 0.9


@profiles
def test_and_of_a_spike_with_itself(profile: Any) -> None:
    network = graph(
        {"x": inp(4), "a": lif(4), "g": SpikeAnd(), "y": out(4)},
        [("x", "a"), ("a", "g.a"), ("a", "g.b"), ("g", "y")],
    )
    lowered = lowered_once(lambda g: spike_and_to_circuit(g, profile), network, SpikeAnd)
    x = frames(np.random.default_rng(0), 2, 5, 4)
    np.testing.assert_array_equal(outputs(lowered, x)["y"], outputs(network, x)["y"])


# token pool


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    width=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    profile=st.sampled_from(PROFILES),
)
def test_token_pool_spike_by_spike(heads: int, width: int, grid: tuple[int, int], profile: Any) -> None:
    """One spike at a time: every neighbour is reached and no other."""
    shape = (heads * width, *grid)
    size = int(np.prod(shape))
    network = chain(("x", inp(*shape)), ("l", lif(*shape)), ("p", TokenMaxPool(heads)), ("y", out(*shape)))
    lowered = lowered_once(lambda g: token_maxpool_to_circuit(g, profile), network, TokenMaxPool)
    x = 4 * np.eye(size, dtype=np.float32).reshape(size, 1, *shape)
    found = outputs(lowered, x)["y"]
    np.testing.assert_array_equal(found, outputs(network, x)["y"])
    x = frames(np.random.default_rng(0), 2, 4, *shape)
    np.testing.assert_array_equal(outputs(lowered, x)["y"], outputs(network, x)["y"])


# pools


@pytest.mark.parametrize("kind", [nir.AvgPool2d, nir.SumPool2d])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), ((4, 2), (2, 1), 0), (3, 1, 0), (2, 2, 1)])
def test_pools_for_every_importer(kind: Any, kernel: Any, stride: Any, padding: Any) -> None:
    pair = [np.broadcast_to(value, 2) for value in (kernel, stride, padding)]
    network = chain(
        ("x", inp(3, 6, 6)), ("l", lif(3, 6, 6)), ("p", pool(kind, *pair)), ("y", nir.Output({"output": None}))
    )
    plain = int(np.prod(pair[0])) in (2, 4, 8) and padding == 0
    x = frames(np.random.default_rng(0), 2, 4, 3, 6, 6)
    if plain and kind is nir.SumPool2d:
        assert portable_pools(network) == (network, False)
        return
    lowered = lowered_once(portable_pools, network, nir.AvgPool2d)
    kinds = [type(node).__name__ for node in lowered.nodes.values()][3:]
    assert kinds == (["SumPool2d", "Conv2d"] if plain else ["Conv2d"])
    expected = outputs(network, x)["y"]
    np.testing.assert_allclose(outputs(lowered, x)["y"], expected, rtol=2e-7)
    if plain or kind is nir.SumPool2d:
        np.testing.assert_array_equal(outputs(lowered, x)["y"], expected)


# sums


def test_sums_of_two() -> None:
    """Real weights: the order of a sum shows in its last bits, and it stays."""
    rng = np.random.default_rng(0)
    shape = (4, 3, 3)
    nodes: dict[str, nir.NIRNode] = {"x": inp(*shape)}
    edges = []
    for name in "abcd":
        weight = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
        nodes[name] = nir.Conv2d(None, weight, 1, 1, 1, 1, rng.normal(size=4).astype(np.float32))
        edges.append(("x", name))
    nodes |= {"l": lif(*shape), "m": lif(*shape), "y": out(*shape), "z": out(*shape), "w": out(*shape)}
    edges += [(name, "l") for name in "abc"] + [(name, "m") for name in "abcd"] + [(name, "z") for name in "abc"]
    network = graph(nodes, [*edges, ("l", "y"), ("m", "w")])
    lowered = lowered_once(pairwise_sums, network)
    into = predecessors(lowered)
    assert into["l"]["input"] == ["b.total", "c"]
    assert into["m"]["input"] == ["c.total", "d"]
    assert into["z"]["input"] == ["c.total"]
    assert all(len(sources) <= 2 for ports in into.values() for sources in ports.values())
    x = rng.normal(size=(3, 5, *shape)).astype(np.float32)
    for name, value in outputs(network, x).items():
        np.testing.assert_array_equal(outputs(lowered, x)[name], value)


def test_flat_sums() -> None:
    rng = np.random.default_rng(0)
    nodes: dict[str, nir.NIRNode] = {"x": inp(5), "y": out(3)}
    nodes |= {name: affine(rng, 5, 3) for name in "abc"}
    network = graph(nodes, [*(("x", name) for name in "abc"), *((name, "y") for name in "abc")])
    lowered = lowered_once(pairwise_sums, network)
    x = frames(rng, 2, 3, 5)
    np.testing.assert_array_equal(outputs(lowered, x)["y"], outputs(network, x)["y"])
    assert predecessors(lowered)["y"]["input"] == ["c.total"]


# order


def assert_one_order(network: nir.NIRGraph) -> None:
    order = [n for n in topological_order(network) if not isinstance(network.nodes[n], nir.Output | TemporalMean)]
    assert all(pair in set(network.edges) for pair in pairwise(order))


def test_a_graph_that_has_a_path_is_left_alone() -> None:
    network = residual_network(np.random.default_rng(0))
    assert_one_order(network)
    assert topological_chain(network) == (network, False)


def test_a_path_through_all_nodes() -> None:
    network = residual_network(np.random.default_rng(0))
    branch = {"d.conv": conv(np.random.default_rng(1), 4, 6), "d.lif": lif(6, 4, 4)}
    edges = [*network.edges, ("stem.pool", "d.conv"), ("d.conv", "d.lif"), ("d.lif", "c.conv")]
    network = graph({**branch, **network.nodes}, edges)
    lowered = lowered_once(topological_chain, network)
    assert_one_order(lowered)
    assert any(name.startswith("link") for name in lowered.nodes)
    x = frames(np.random.default_rng(0), 2, 5, 2, 16, 16)
    a, b = (Simulator(g).run(x, record=["b.lif", "head_lif"]) for g in (network, lowered))
    np.testing.assert_array_equal(a.outputs["logits"], b.outputs["logits"])
    for name, value in a.recorded.items():
        np.testing.assert_array_equal(value, b.recorded[name])


@pytest.mark.parametrize(
    ("first", "second"), [((40, 3, 3), (120, 6, 5)), ((3, 6, 4), (2, 2, 3)), ((2, 3, 3), (2, 4, 6))]
)
def test_links_between_all_shapes(first: Any, second: Any) -> None:
    """Two branches: the path leads from the end of one to the start of the other, over grids and to flat signals."""
    nodes: dict[str, nir.NIRNode] = {"x": inp(2, 8, 8)}
    rng = np.random.default_rng(0)
    edges = []
    for name, (c, h, w) in (("a", first), ("b", second)):
        nodes |= {
            f"{name}.c": conv(rng, 2, c, (9 - h, 9 - w), 1, 0),
            f"{name}.l": lif(c, h, w),
            f"{name}.y": out(c, h, w),
        }
        edges += [("x", f"{name}.c"), (f"{name}.c", f"{name}.l"), (f"{name}.l", f"{name}.y")]
        nodes |= {f"{name}.p": conv(rng, c, 3), f"{name}.m": lif(3, h, w), f"{name}.z": out(3, h, w)}
        edges += [(f"{name}.l", f"{name}.p"), (f"{name}.p", f"{name}.m"), (f"{name}.m", f"{name}.z")]
    nodes |= {"flat": nir.Flatten({"input": np.array((2, 8, 8))}, 0, -1), "h": affine(rng, 128, 4), "v": out(4)}
    nodes |= {"i": affine(rng, 128, 4), "u": lif(4), "t": out(4)}
    edges += [("x", "flat"), ("flat", "h"), ("h", "v"), ("flat", "i"), ("i", "u"), ("u", "t")]
    network = graph(nodes, edges)
    lowered = lowered_once(topological_chain, network)
    assert_one_order(lowered)
    x = frames(rng, 2, 3, 2, 8, 8)
    for name, value in outputs(network, x).items():
        np.testing.assert_array_equal(outputs(lowered, x)[name], value)


def test_two_ways_off_the_grid_have_no_path() -> None:
    rng = np.random.default_rng(0)
    nodes: dict[str, nir.NIRNode] = {"x": inp(2, 2, 2), "y": out(4)}
    edges = []
    for name in "ab":
        nodes[f"{name}.f"] = nir.Flatten({"input": np.array((2, 2, 2))}, 0, -1)
        nodes[f"{name}.h"] = affine(rng, 8, 4)
        edges += [("x", f"{name}.f"), (f"{name}.f", f"{name}.h"), (f"{name}.h", "y")]
    with pytest.raises(UnsupportedError, match="no stock node leads back to a grid"):
        topological_chain(graph(nodes, edges))
