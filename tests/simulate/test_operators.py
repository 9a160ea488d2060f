"""The stateless operations and Delay against loops and against what their equations say."""

from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import GraphError
from statten_deploy.ir import EXTENSION_NODES, MaxPool2d, SpikeAnd, SpikeMaxPool2d, TokenMaxPool, infer_shapes
from statten_deploy.simulate import OPERATORS, Simulator
from tests.simulate.builders import affine, chain, conv, eighths, graph, inp, out, pool, spikes


def run_node(node: Any, x: np.ndarray) -> np.ndarray:
    """One node on one sample [C, ...] at one step."""
    shape = x.shape
    nodes = {"x": inp(*shape), "n": node, "y": nir.Output({"output": None})}
    result = Simulator(graph(nodes, [("x", "n"), ("n", "y")]), time_steps=1).run(x[None]).outputs["y"][0, 0]
    assert result.shape == infer_shapes(graph(nodes, [("x", "n"), ("n", "y")]))["y"]
    return result


def windows(x: np.ndarray, kernel: Any, stride: Any, pad: Any, dilation: Any, fill: float) -> np.ndarray:
    """[C, H', W', kh, kw]; pad is ((top, bottom), (left, right))."""
    x = np.pad(x, ((0, 0), *pad), constant_values=fill)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    rows = range(0, x.shape[1] - reach[0] + 1, stride[0])
    columns = range(0, x.shape[2] - reach[1] + 1, stride[1])
    return np.stack(
        [
            np.stack([x[:, i : i + reach[0] : dilation[0], j : j + reach[1] : dilation[1]] for j in columns], 1)
            for i in rows
        ],
        1,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2]),
)
def test_conv2d(seed: int, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    rng = np.random.default_rng(seed)
    node = conv(rng, 4, 6, kernel, stride, padding, dilation, groups)
    x = eighths(rng, 4, 7, 8)
    patches = windows(x, kernel, stride, [(p, p) for p in padding], dilation, 0)
    size_in, size_out = 4 // groups, 6 // groups
    parts = [
        np.einsum("chwij,ocij->ohw", patches[g * size_in :][:size_in], node.weight[g * size_out :][:size_out])
        for g in range(groups)
    ]
    expected = np.concatenate(parts) + node.bias[:, None, None]
    np.testing.assert_array_equal(run_node(node, x), expected)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (4, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_puts_the_odd_one_after(kernel: tuple[int, int], dilation: int) -> None:
    rng = np.random.default_rng(0)
    node = conv(rng, 2, 3, kernel, 1, "same", dilation)
    x = eighths(rng, 2, 9, 9)
    total = [dilation * (k - 1) for k in kernel]
    patches = windows(x, kernel, (1, 1), [(t // 2, t - t // 2) for t in total], (dilation,) * 2, 0)
    expected = np.einsum("chwij,ocij->ohw", patches, node.weight) + node.bias[:, None, None]
    np.testing.assert_array_equal(run_node(node, x), expected)


def test_valid_padding_and_numpy_sizes() -> None:
    """As HDF5 gives them back: arrays, numpy scalars, bytes."""
    rng = np.random.default_rng(0)
    plain = conv(rng, 2, 3, 3, (2, 1), (0, 0))
    x = eighths(rng, 2, 9, 9)
    for stride, padding in ((np.array([2, 1]), "valid"), (np.array([2, 1]), b"valid"), ((2, np.int64(1)), np.int64(0))):
        other = nir.Conv2d(None, plain.weight, stride, padding, np.int64(1), np.int64(1), plain.bias)
        np.testing.assert_array_equal(run_node(other, x), run_node(plain, x))


def test_conv1d() -> None:
    rng = np.random.default_rng(0)
    node = nir.Conv1d(None, eighths(rng, 3, 2, 3), 2, 1, 1, 1, eighths(rng, 3))
    x = eighths(rng, 2, 8)
    padded = np.pad(x, ((0, 0), (1, 1)))
    expected = np.stack([(padded[:, i : i + 3] * node.weight).sum((1, 2)) for i in range(0, 8, 2)], 1)
    np.testing.assert_array_equal(run_node(node, x), expected + node.bias[:, None])


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1), (3, 0)])
@pytest.mark.parametrize("kind", [nir.SumPool2d, nir.AvgPool2d])
def test_sum_and_average_count_the_padding_as_zeros(kind: type[Any], padding: tuple[int, int]) -> None:
    x = eighths(np.random.default_rng(0), 3, 7, 6)
    total = windows(x, (4, 2), (2, 1), [(p, p) for p in padding], (1, 1), 0).sum((3, 4))
    expected = total / 8 if kind is nir.AvgPool2d else total
    np.testing.assert_array_equal(run_node(pool(kind, (4, 2), (2, 1), padding), x), expected)


def test_sum_pool_broadcasts() -> None:
    """Kernel H, stride 1, padding H - 1 turns one value per channel into a plane: the broadcast of NIR circuits."""
    x = eighths(np.random.default_rng(0), 3, 1, 1)
    y = run_node(pool(nir.SumPool2d, (4, 5), (1, 1), (3, 4)), x)
    np.testing.assert_array_equal(y, np.broadcast_to(x, (3, 4, 5)))


@pytest.mark.parametrize("kind", [SpikeMaxPool2d, MaxPool2d])
def test_max_pool(kind: type[Any]) -> None:
    rng = np.random.default_rng(0)
    x = spikes(rng, 3, 7, 6) if kind is SpikeMaxPool2d else eighths(rng, 3, 7, 6) - 2
    fill = 0 if kind is SpikeMaxPool2d else -np.inf
    expected = windows(x, (3, 2), (2, 1), [(1, 1), (1, 1)], (1, 1), fill).max((3, 4))
    np.testing.assert_array_equal(run_node(kind((3, 2), (2, 1), (1, 1)), x), expected)
    assert kind is SpikeMaxPool2d or expected.max() < 0  # padding with zeros would have won


def test_token_max_pool() -> None:
    """Per head the plane is [token, channel in head], tokens row-major."""
    x = spikes(np.random.default_rng(0), 6, 2, 3, rate=0.1)
    plane = x.reshape(2, 3, 6).swapaxes(1, 2)  # two heads of three channels: [head, token, j]
    expected = windows(plane, (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 0).max((3, 4))
    np.testing.assert_array_equal(run_node(TokenMaxPool(2), x), expected.swapaxes(1, 2).reshape(6, 2, 3))
    assert 0 < expected.mean() < 1


@pytest.mark.parametrize("b_shape", [(4, 3, 2), (4, 1, 1)])
def test_spike_and(b_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b = spikes(rng, 4, 3, 2), spikes(rng, *b_shape)
    nodes = {"a": inp(4, 3, 2), "b": inp(*b_shape), "and": SpikeAnd(), "y": out(4, 3, 2)}
    simulator = Simulator(graph(nodes, [("a", "and.a"), ("b", "and.b"), ("and", "y")]), time_steps=2)
    found = simulator.run({"a": a[None], "b": b[None]}).outputs["y"]
    np.testing.assert_array_equal(found[0, 1], a * b)


def test_affine_linear_scale_threshold_flatten() -> None:
    rng = np.random.default_rng(0)
    node = affine(rng, 5, 3)
    x = eighths(rng, 5)
    np.testing.assert_array_equal(run_node(node, x), node.weight @ x + node.bias)
    np.testing.assert_array_equal(run_node(nir.Linear(node.weight), x), node.weight @ x)
    np.testing.assert_array_equal(run_node(nir.Scale(x + 1), x), x * (x + 1))
    np.testing.assert_array_equal(run_node(nir.Threshold(np.full(5, 0.125, np.float32)), x), x > 0.125)
    plane = eighths(rng, 2, 3, 4)
    np.testing.assert_array_equal(run_node(nir.Flatten(None, 0, -1), plane), plane.reshape(-1))
    np.testing.assert_array_equal(run_node(nir.Flatten(None, 1, 2), plane), plane.reshape(2, 12))
    np.testing.assert_array_equal(run_node(nir.Flatten(None, -3, -2), plane), plane.reshape(6, 4))


def test_affine_with_leading_axes() -> None:
    rng = np.random.default_rng(0)
    node = nir.Affine(eighths(rng, 2, 3, 5), eighths(rng, 2, 3))
    x = eighths(rng, 2, 5)
    np.testing.assert_array_equal(run_node(node, x), np.einsum("goi,gi->go", node.weight, x) + node.bias)


@pytest.mark.parametrize("steps", [[2, 2, 2], [0, 1, 3], [0, 0, 0], [9, 1, 0]])
@pytest.mark.parametrize("held", [True, False])
def test_delay(steps: list[int], held: bool) -> None:
    rng = np.random.default_rng(0)
    node = nir.Delay(np.array(steps, dtype=np.float32) * np.float32(1e-4))
    x = eighths(rng, 2, 3) if held else eighths(rng, 2, 6, 3)
    y = Simulator(chain(("x", inp(3)), ("d", node), ("y", out(3))), time_steps=6).run(x).outputs["y"]
    for j, delay in enumerate(steps):
        for t in range(6):
            past = 0 if t < delay else (x[:, j] if held else x[:, t - delay, j])
            np.testing.assert_array_equal(y[:, t, j], np.broadcast_to(past, 2))


def test_delay_must_be_whole_steps() -> None:
    node = nir.Delay(np.full(3, 2.5e-4, dtype=np.float32))
    with pytest.raises(GraphError, match=r"'d': Delay of 0.00025 s is not a whole number of time steps of 0.0001 s"):
        Simulator(chain(("x", inp(3)), ("d", node), ("y", out(3))), time_steps=6)


def test_every_node_type_has_an_operator() -> None:
    stock = {getattr(nir, name) for name in nir.ir.__all__ if isinstance(getattr(nir, name), type)}
    assert set(OPERATORS) == (stock | set(EXTENSION_NODES)) - {nir.Input, nir.NIRNode, nir.NIRGraph}
