"""Shape inference: every node type, sizes as HDF5 gives them, loops, and what does not meet."""

from typing import Any

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import GraphError
from statten_deploy.ir import (
    EXTENSION_NODES,
    MaxPool2d,
    SpikeAnd,
    SpikeMaxPool2d,
    STAttenAttention,
    TemporalMean,
    TokenMaxPool,
    infer_shapes,
)
from statten_deploy.ir.integer import (
    QUANTISED,
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.shapes import RULES, explicit_padding, sizes
from tests.simulate.builders import affine, chain, conv, graph, inp, lif, out, pool

RNG = np.random.default_rng(0)
ONES = np.ones(4, dtype=np.float32)
SPREAD = pool(nir.SumPool2d, (4, 5), (1, 1), (3, 4))

CASES: list[tuple[nir.NIRNode, tuple[int, ...], tuple[int, ...]]] = [
    (affine(RNG, 4, 3), (4,), (3,)),
    (nir.Affine(np.zeros((2, 3, 4)), np.zeros((2, 3))), (2, 4), (2, 3)),
    (nir.Linear(np.zeros((3, 4))), (4,), (3,)),
    (nir.Conv1d(None, np.zeros((3, 2, 5)), 2, 1, 1, 1, np.zeros(3)), (2, 11), (3, 5)),
    (nir.Conv1d(None, np.zeros((3, 2, 5)), 1, "same", 2, 1, np.zeros(3)), (2, 11), (3, 11)),
    (conv(RNG, 2, 3, (3, 5), (2, 1), (1, 0), (1, 2)), (2, 9, 12), (3, 5, 4)),
    (conv(RNG, 4, 6, 3, 1, 1, 1, groups=2), (4, 5, 5), (6, 5, 5)),
    (conv(RNG, 2, 3, (2, 3), 1, "same"), (2, 7, 8), (3, 7, 8)),
    (conv(RNG, 2, 3, (2, 3), 2, "valid"), (2, 7, 8), (3, 3, 3)),
    (conv(RNG, 2, 3, 3, np.int64(2), np.array([1, 0]), np.array([1, 1])), (2, 8, 8), (3, 4, 3)),
    (pool(nir.SumPool2d, (2, 3), (2, 1), (0, 1)), (3, 6, 5), (3, 3, 5)),
    (pool(nir.AvgPool2d, 2, 2, 0), (3, 6, 5), (3, 3, 2)),
    (SPREAD, (3, 1, 1), (3, 4, 5)),
    (nir.Flatten(None, 0, -1), (2, 3, 4), (24,)),
    (nir.Flatten(None, 1, 2), (2, 3, 4), (2, 12)),
    (nir.Flatten(None, np.int64(-3), np.int64(-2)), (2, 3, 4), (6, 4)),
    (lif(2, 3, 3), (2, 3, 3), (2, 3, 3)),
    (nir.LIF(*[np.float32(1)] * 4), (2, 3, 3), (2, 3, 3)),
    (nir.IF(np.ones(1), np.ones(1)), (4,), (4,)),
    (nir.I(ONES), (4,), (4,)),
    (nir.LI(ONES, ONES, ONES), (4,), (4,)),
    (nir.CubaLI(ONES, ONES, ONES, ONES), (4,), (4,)),
    (nir.CubaLIF(ONES, ONES, ONES, ONES, ONES), (4,), (4,)),
    (nir.Threshold(ONES), (4,), (4,)),
    (nir.Scale(ONES), (4,), (4,)),
    (nir.Delay(ONES), (4,), (4,)),
    (SpikeMaxPool2d((3, 3), (2, 2), (1, 1)), (4, 7, 8), (4, 4, 4)),
    (MaxPool2d((3, 2), (2, 1), (1, 0)), (4, 7, 8), (4, 4, 7)),
    (TokenMaxPool(2), (4, 3, 3), (4, 3, 3)),
    (TemporalMean(), (4, 3), (4, 3)),
    (InputEncoder(np.ones(2), np.zeros(2)), (2, 5, 5), (2, 5, 5)),
    (IntegerConv2d(np.ones((6, 2, 3, 1)), np.zeros(6), np.ones(6), (2, 1), (1, 0), (1, 2), 2), (4, 9, 5), (6, 5, 5)),
    (IntegerLinear(np.ones((3, 4)), np.zeros(3), np.zeros(3), np.ones(3)), (4,), (3,)),
    (IntegerSumPool2d((2, 3), (2, 1), -2), (3, 6, 5), (3, 3, 3)),
    (IntegerLIF(np.ones((2, 1, 1)), 2048, np.zeros((2, 1, 1)), np.zeros((2, 1, 1)), (2, 3, 3)), (2, 3, 3), (2, 3, 3)),
    (IntegerLI(2048, np.zeros(4), np.zeros(4), np.ones(4), (4,)), (4,), (4,)),
    (TemporalSum(0.5), (4,), (4,)),
]


@pytest.mark.parametrize(("node", "given_shape", "expected"), CASES, ids=lambda value: type(value).__name__)
def test_every_node(node: nir.NIRNode, given_shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    shapes = infer_shapes(chain(("x", inp(*given_shape)), ("n", node), ("y", out(*expected))))
    assert shapes == {"x": given_shape, "n": expected, "y": expected}
    assert all(type(size) is int for shape in shapes.values() for size in shape)


def test_every_node_type_has_a_rule_and_a_case() -> None:
    stock = {getattr(nir, name) for name in nir.ir.__all__ if isinstance(getattr(nir, name), type)}
    assert set(RULES) == (stock | set(EXTENSION_NODES) | set(QUANTISED)) - {nir.NIRNode, nir.NIRGraph}
    tested = {type(node) for node, _, _ in CASES} | {nir.Input, nir.Output, STAttenAttention, SpikeAnd}
    assert tested == set(RULES)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.just("valid"), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_conv2d_as_torch_computes_it(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
    node = conv(RNG, 1, 2, kernel, stride, padding, dilation)
    real = F.conv2d(torch.zeros(1, 1, *size), torch.from_numpy(node.weight), None, stride, padding, dilation)
    found = infer_shapes(chain(("x", inp(1, *size)), ("c", node), ("y", nir.Output({"output": None}))))
    assert found["y"] == tuple(real.shape[1:])


def test_same_padding_is_explicit() -> None:
    assert explicit_padding(conv(RNG, 1, 1, (4, 3), 1, "same", (1, 2))) == ((1, 2), (2, 2))
    with pytest.raises(ValueError, match="'same' needs stride 1"):
        explicit_padding(conv(RNG, 1, 1, 3, 2, "same"))


def test_sizes() -> None:
    assert sizes(np.array([[2], [3]]), 2, "stride") == (2, 3)
    assert sizes(np.float32(2), 2, "stride") == (2, 2)
    with pytest.raises(ValueError, match="stride has 3 values, expected 2"):
        sizes((1, 2, 3), 2, "stride")


def test_several_ports() -> None:
    nodes = {"x": inp(4, 2, 2), "b": inp(4, 1, 1), "a": STAttenAttention(2, 1), "and": SpikeAnd(), "y": out(4, 2, 2)}
    edges = [*(("x", f"a.{port}") for port in "qkv"), ("a", "and.a"), ("b", "and.b"), ("and", "y")]
    assert infer_shapes(graph(nodes, edges))["and"] == (4, 2, 2)


def test_a_loop_takes_its_shape_from_parameter_arrays() -> None:
    nodes = {"x": inp(4), "in": affine(RNG, 4, 5), "l": lif(5), "d": nir.Delay(np.float32(1e-4)), "y": out(5)}
    edges = [("l", "d"), ("d", "l"), ("x", "in"), ("in", "l"), ("d", "y")]
    assert infer_shapes(graph(nodes, edges))["d"] == (5,)


def test_a_loop_that_nothing_determines() -> None:
    scalar = np.float32(1)
    nodes = {"x": inp(4), "y": out(4), "a": nir.Scale(scalar), "b": nir.Scale(scalar)}
    with pytest.raises(GraphError, match=r"'a' \(Scale\): nothing determines its shape.*'b'"):
        infer_shapes(graph(nodes, [("x", "y"), ("a", "b"), ("b", "a")]))


@pytest.mark.parametrize(
    ("node", "given_shape", "message"),
    [
        (affine(RNG, 4, 3), (5,), r"'n' \(Affine\): its weight \(3, 4\) takes \(4,\), got \(5,\) \(from 'x'\)"),
        (conv(RNG, 2, 3), (4, 5, 5), r"its weight \(3, 2, 3, 3\) with groups 1 takes 2 channels, got \(4, 5, 5\)"),
        (conv(RNG, 2, 3), (2, 5), r"takes a signal of 3 axes \(channels first\), got \(2, 5\)"),
        (conv(RNG, 2, 3, 7, 1, 0), (2, 5, 5), r"a window of 7 does not fit into 5 with padding \(0, 0\)"),
        (conv(RNG, 2, 3, 3, 2, "same"), (2, 5, 5), r"padding 'same' needs stride 1"),
        (conv(RNG, 2, 3, 3, 0), (2, 5, 5), r"stride 0"),
        (lif(2, 3, 3), (2, 4, 4), r"its parameters have shape \(2, 3, 3\), the signal has \(2, 4, 4\)"),
        (lif(2), (2, 4, 4), r"its parameters have shape \(2,\), the signal has \(2, 4, 4\)"),
        (pool(nir.SumPool2d, 2, 2, 0), (4,), r"takes a signal \(channels, height, width\), got \(4,\)"),
        (nir.Flatten(None, 1, 3), (2, 3), r"cannot flatten axes 1 to 3 of \(2, 3\)"),
        (TokenMaxPool(3), (4, 2, 2), r"num_heads 3 does not divide the 4 channels"),
        (IntegerSumPool2d(2, 2, 0), (4,), r"takes a signal \(channels, height, width\), got \(4,\)"),
        (
            IntegerLIF(np.ones(4), 2048, np.zeros(4), np.zeros(4), (4,)),
            (5,),
            r"its neurons have shape \(4,\), the signal has \(5,\)",
        ),
    ],
)
def test_what_does_not_fit(node: nir.NIRNode, given_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        infer_shapes(chain(("x", inp(*given_shape)), ("n", node), ("y", nir.Output({"output": None}))))


def test_edges_that_do_not_add_up() -> None:
    nodes = {"a": inp(4), "b": inp(5), "y": nir.Output({"output": None})}
    message = r"'y' \(Output\), port 'input': 'a' gives \(4,\) and 'b' gives \(5,\); edges into one port add up"
    with pytest.raises(GraphError, match=message):
        infer_shapes(graph(nodes, [("a", "y"), ("b", "y")]))


def test_all_disagreements_are_listed_and_none_follows_from_another() -> None:
    nodes = {"x": inp(4), "a": affine(RNG, 5, 3), "b": affine(RNG, 3, 2), "y": out(7)}
    with pytest.raises(GraphError) as caught:
        infer_shapes(graph(nodes, [("x", "a"), ("a", "b"), ("b", "y")]))
    assert "'a' (Affine)" in str(caught.value)
    assert "'y' (Output): declares shape (7,), got (2,)" in str(caught.value)
    assert "'b' (Affine)" not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (STAttenAttention(3, 1), "num_heads 3 does not divide the 4 channels"),
        (STAttenAttention(2, 1, "block", 3), "token_groups 3 does not divide the 2 rows"),
    ],
)
def test_attention_that_does_not_divide(node: STAttenAttention, message: str) -> None:
    nodes = {"x": inp(4, 2, 2), "a": node, "y": out(4, 2, 2)}
    with pytest.raises(GraphError, match=message):
        infer_shapes(graph(nodes, [*(("x", f"a.{port}") for port in "qkv"), ("a", "y")]))
