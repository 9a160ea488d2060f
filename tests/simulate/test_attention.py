"""STAtten attention against loops over steps, tokens and channels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.ir import STAttenAttention
from statten_deploy.simulate import Simulator
from tests.simulate.builders import graph, inp, lif, out, spikes


def seen(t: int, window: int, mode: str) -> range:
    """The steps whose keys and values a query of step t sees."""
    if mode == "block":
        return range(t // window * window, t // window * window + window)
    return range(max(0, t - window + 1), t + 1)


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, window: int, mode: str, groups: int) -> np.ndarray:
    """[T, C, H, W] each; ``A[t, n] = sum over seen (s, m) of (q[t, n] · k[s, m]) v[s, m]`` per head and group."""
    T, C, H, W = q.shape
    d = C // heads
    flat = [x.reshape(T, heads, d, H * W) for x in (q, k, v)]
    Q, K, V = flat
    size = H * W // groups
    A = np.zeros_like(Q)
    for t in range(T):
        for h in range(heads):
            for n in range(H * W):
                for s in seen(t, window, mode):
                    for m in range(n // size * size, n // size * size + size):
                        A[t, h, :, n] += (Q[t, h, :, n] * K[s, h, :, m]).sum() * V[s, h, :, m]
    return A.reshape(T, C, H, W)


def simulate(q: np.ndarray, k: np.ndarray, v: np.ndarray, node: STAttenAttention) -> np.ndarray:
    shape = q.shape[-3:]
    nodes = {name: inp(*shape) for name in ("q", "k", "v")}
    edges = [(name, f"a.{name}") for name in nodes] + [("a", "y")]
    result = Simulator(graph({**nodes, "a": node, "y": out(*shape)}, edges), time_steps=len(q)).run(
        {"q": q[None], "k": k[None], "v": v[None]}
    )
    return result.outputs["y"][0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, tuple[int, int, int, int], STAttenAttention]:
    heads, d = draw(st.sampled_from([(1, 3), (2, 2), (4, 1), (3, 2)]))
    groups, rows = draw(st.sampled_from([(1, 2), (2, 2), (2, 4), (3, 3), (1, 1)]))
    window = draw(st.integers(1, 4))
    mode = draw(st.sampled_from(["block", "sliding"]))
    steps = window * draw(st.integers(1, 2)) if mode == "block" else draw(st.integers(1, 5))
    shape = (steps, heads * d, rows, draw(st.integers(1, 3)))
    return draw(st.integers(0, 2**32)), shape, STAttenAttention(heads, window, mode, groups)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_equals_loops(case: tuple[int, tuple[int, int, int, int], STAttenAttention]) -> None:
    seed, shape, node = case
    rng = np.random.default_rng(seed)
    q, k, v = (spikes(rng, *shape, rate=0.6) for _ in range(3))
    expected = by_hand(q, k, v, node.num_heads, node.window, node.mode, node.token_groups)
    np.testing.assert_array_equal(simulate(q, k, v, node), expected)


@pytest.mark.parametrize("mode", ["block", "sliding"])
def test_counts_are_exact_at_imagenet_size(mode: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (spikes(rng, 4, 384, 14, 14, rate=0.5) for _ in range(3))
    found = simulate(q, k, v, STAttenAttention(4, 2, mode))  # type: ignore[arg-type]
    Q, K, V = (x.reshape(4, 4, 96, 196).astype(np.int64) for x in (q, k, v))
    kv = [sum(K[s] @ V[s].transpose(0, 2, 1) for s in seen(t, 2, mode)) for t in range(4)]
    expected = np.stack([kv[t].transpose(0, 2, 1) @ Q[t] for t in range(4)]).reshape(4, 384, 14, 14)
    assert expected.max() > 2**12
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("mode", "groups"), [("block", 1), ("sliding", 1), ("block", 2)])
def test_held_inputs_equal_repeated_ones(mode: str, groups: int) -> None:
    """Spikes that never change (an Input held over time) take a shorter way through the operator."""
    rng = np.random.default_rng(1)
    x = spikes(rng, 2, 4, 2, 2)
    node = STAttenAttention(2, 2, mode, groups)  # type: ignore[arg-type]
    nodes = {"x": inp(4, 2, 2), "a": node, "y": out(4, 2, 2)}
    simulator = Simulator(graph(nodes, [*(("x", f"a.{p}") for p in "qkv"), ("a", "y")]), time_steps=4)
    held, repeated = simulator.run(x), simulator.run(np.repeat(x[:, None], 4, axis=1))
    np.testing.assert_array_equal(held.outputs["y"], repeated.outputs["y"])
    assert held.outputs["y"].any()


def test_sliding_attention_keeps_its_state_inside_a_loop() -> None:
    """Inside a cycle the same operator runs step by step; a silent recurrent branch must not change the counts."""
    rng = np.random.default_rng(2)
    x = spikes(rng, 1, 5, 4, 2, 2, rate=0.6)
    node = STAttenAttention(2, 3, "sliding")
    straight = {"x": inp(4, 2, 2), "l": lif(4, 2, 2, threshold=0.25), "a": node, "y": out(4, 2, 2)}
    edges = [("x", "l"), *(("l", f"a.{p}") for p in "qkv"), ("a", "y")]
    expected = Simulator(graph(straight, edges)).run(x).outputs["y"]
    silent = {**straight, "back": lif(4, 2, 2, threshold=1e6)}
    found = Simulator(graph(silent, [*edges, ("a", "back"), ("back", "l")])).run(x).outputs["y"]
    np.testing.assert_array_equal(found, expected)
    assert expected[0, -1].max() > 4
