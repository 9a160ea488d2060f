"""STAtten attention: integer counts, equal to counting the spikes query by query."""

import math

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.ir import STAttenAttention
from tests.export.onnx.numpy_steps import attention
from tests.export.onnx.onnx_harness import checked, graph_of, run, spikes


def attention_graph(node: STAttenAttention, shape: tuple[int, int, int], kind: str = "frames") -> nir.NIRGraph:
    nodes = {port: nir.Input({"input": np.array(shape)}) for port in "qkv"}
    nodes |= {"att": node, "y": nir.Output({"output": np.array(shape)})}
    return graph_of(nodes, [*((port, f"att.{port}") for port in "qkv"), ("att", "y")], input=kind)


@st.composite
def cases(draw: st.DrawFn) -> tuple[STAttenAttention, tuple[int, int, int], int, int]:
    """(node, signal shape, time steps, batch)."""
    heads, d = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    height, width = groups * draw(st.integers(1, 2)), draw(st.integers(1, 3))
    mode = draw(st.sampled_from(["block", "sliding"]))
    window = draw(st.integers(1, 4))
    steps = window * draw(st.integers(1, 3)) if mode == "block" else draw(st.integers(1, 6))
    shape = (heads * d, height, width)
    return STAttenAttention(heads, window, mode, groups), shape, steps, draw(st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**31), rate=st.sampled_from([0.2, 0.5, 1.0]))
def test_counts_are_exact(
    case: tuple[STAttenAttention, tuple[int, int, int], int, int], seed: int, rate: float
) -> None:
    node, shape, steps, batch = case
    rng = np.random.default_rng(seed)
    feeds = {port: spikes(rng, batch, steps, *shape, rate=rate) for port in "qkv"}
    found = run(checked(attention_graph(node, shape), time_steps=steps), feeds)["y"]
    np.testing.assert_array_equal(found, attention(node, *feeds.values()))


@pytest.mark.parametrize("mode", ["block", "sliding"])
def test_constant_spikes(mode: str) -> None:
    """Queries, keys and values that are the same at every step (a thresholded image)."""
    node = STAttenAttention(2, 2, mode)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    feeds = {port: spikes(rng, 2, 8, 2, 2) for port in "qkv"}
    found = run(checked(attention_graph(node, (8, 2, 2), "image"), time_steps=4), feeds)["y"]
    repeated = [np.repeat(x[:, None], 4, axis=1) for x in feeds.values()]
    np.testing.assert_array_equal(found, attention(node, *repeated))


def test_largest_count_of_a_large_layer() -> None:
    """Every spike set: each count is tokens * window * channels per head, here 64 * 2 * 32."""
    shape, node = (256, 8, 8), STAttenAttention(8, 2)
    feeds = {port: np.ones((1, 4, *shape), dtype=np.float32) for port in "qkv"}
    assert np.all(run(checked(attention_graph(node, shape), time_steps=4), feeds)["y"] == math.prod((64, 2, 32)))


def test_few_operations_and_no_transposed_result() -> None:
    """The result needs no Transpose: one for K, in both window modes."""
    for mode in ("block", "sliding"):
        model = checked(attention_graph(STAttenAttention(2, 2, mode), (8, 2, 2), "image"), time_steps=4)  # type: ignore[arg-type]
        inside = [node.op_type for node in model.graph.node if node.name.startswith("att")]
        assert inside.count("MatMul") == (2 if mode == "block" else 3)
        assert inside.count("Transpose") == 1
