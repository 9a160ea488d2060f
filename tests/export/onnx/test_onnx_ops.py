"""Every operation without a membrane, alone, in onnxruntime against its definition; values that make sums exact."""

from typing import Any

import nir
import numpy as np
import pytest

from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, TemporalMean, TokenMaxPool
from tests.export.onnx.onnx_harness import DT, F32, agree, chain, checked, conv, eighths, graph_of, lif, run, spikes


def everywhere(node: Any, shape: tuple[int, ...], *, rtol: float = 0.0, binary: bool = False) -> None:
    """The node on a static image and on frames, at batch 1 and 3."""
    rng = np.random.default_rng(0)
    for batch, kind in ((1, "frames"), (3, "frames"), (3, "image")):
        lead = (batch, 4) if kind == "frames" else (batch,)
        x = spikes(rng, *lead, *shape) if binary else eighths(rng, *lead, *shape)
        assert np.any(agree(chain(shape, node, input=kind), {"x": x}, 4, rtol=rtol)["y"])


CONVOLUTIONS = {
    "pointwise": {"kernel": (1, 1)},
    "padded": {"kernel": (3, 3), "padding": 1},
    "non-square": {"kernel": (3, 2), "padding": (2, 0), "stride": (2, 1)},
    "dilated": {"kernel": (2, 3), "dilation": (3, 2), "padding": (1, 2)},
    "grouped": {"kernel": (3, 3), "groups": 2, "padding": (1, 1)},
    "depthwise": {"kernel": (3, 3), "groups": 4},
    "same": {"kernel": (2, 4), "padding": "same", "dilation": (1, 2)},
    "valid": {"kernel": (3, 3), "padding": "valid", "stride": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d(name: str) -> None:
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **CONVOLUTIONS[name]}
    kernel = options.pop("kernel")
    rng = np.random.default_rng(1)
    weight, bias = (
        eighths(rng, 6 if options["groups"] < 4 else 8, 4 // options["groups"], *kernel),
        eighths(rng, 8, low=1),
    )
    everywhere(nir.Conv2d(input_shape=None, weight=weight, bias=bias[: len(weight)], **options), (4, 7, 6))


@pytest.mark.parametrize("padding", [2, "same", "valid"])
def test_conv1d(padding: int | str) -> None:
    rng = np.random.default_rng(2)
    weight, bias = eighths(rng, 6, 2, 3), eighths(rng, 6, low=1)
    stride = 2 if padding == 2 else 1
    everywhere(nir.Conv1d(None, weight, stride, padding, 2, 2, bias), (4, 9))


def test_conv_without_bias() -> None:
    node = nir.Conv2d(None, eighths(np.random.default_rng(3), 2, 3, 3, 3), 1, 1, 1, 1, None)
    everywhere(node, (3, 5, 5))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("biased", [True, False], ids=["Affine", "Linear"])
def test_linear_maps(lead: tuple[int, ...], biased: bool) -> None:
    rng = np.random.default_rng(4)
    weight = eighths(rng, *lead, 5, 4)
    everywhere(nir.Affine(weight, eighths(rng, *lead, 5, low=1)) if biased else nir.Linear(weight), (*lead, 4))


def test_scale() -> None:
    rng = np.random.default_rng(5)
    everywhere(nir.Scale(eighths(rng, 3, 2, 2)), (3, 2, 2))
    everywhere(nir.Scale(np.full((3, 2, 2), 1.5, dtype=F32)), (3, 2, 2))


@pytest.mark.parametrize(("start", "end"), [(0, -1), (1, -1), (0, 1), (-2, 2), (1, 1)])
def test_flatten_leaves_batch_and_time_alone(start: int, end: int) -> None:
    everywhere(nir.Flatten({"input": np.array([3, 2, 4])}, start, end), (3, 2, 4))


WINDOWS = [((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 1), (1, 1)), ((3, 3), (1, 1), (1, 1)), ((6, 5), (6, 5), (0, 0))]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [*WINDOWS, ((2, 2), (1, 1), (2, 3))], ids=str)
def test_sum_and_average_pooling(kernel: Any, stride: Any, padding: Any) -> None:
    settings = [np.array(v) for v in (kernel, stride, padding)]
    everywhere(nir.SumPool2d(*settings), (3, 6, 5))
    everywhere(nir.AvgPool2d(*settings), (3, 6, 5), rtol=1e-6)


def test_sum_pool_counts_spikes_exactly() -> None:
    """A mean times 9 would not give back the integers."""
    for kernel in (3, 7):
        settings = np.array([kernel, kernel]), np.array([1, 1]), np.array([0, 0])
        graph = chain((2, 7, 7), nir.SumPool2d(*settings))
        x = spikes(np.random.default_rng(6), 2, 4, 2, 7, 7, rate=0.7)
        assert np.all(agree(graph, {"x": x}, 4)["y"] % 1 == 0)


@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS[:3], ids=str)
def test_max_pooling(kernel: Any, stride: Any, padding: Any) -> None:
    everywhere(SpikeMaxPool2d(kernel, stride, padding), (3, 6, 5), binary=True)
    everywhere(MaxPool2d(kernel, stride, padding), (3, 6, 5))


def test_padding_does_not_win_against_negative_currents() -> None:
    found = run(checked(chain((1, 2, 2), MaxPool2d(3, 2, 1)), time_steps=1), {"x": np.full((1, 1, 1, 2, 2), -2, F32)})
    np.testing.assert_array_equal(found["y"].ravel(), [-2])


def test_token_max_pool() -> None:
    everywhere(TokenMaxPool(2), (8, 2, 3), binary=True)


@pytest.mark.parametrize("small", [False, True], ids=["same", "broadcast"])
@pytest.mark.parametrize("kind", ["image", "frames"])
def test_spike_and(small: bool, kind: str) -> None:
    """`b` may be [C, 1, 1]; either side may be constant in time while the other is not."""
    other = (3, 1, 1) if small else (3, 2, 4)
    nodes = {
        "a": nir.Input({"input": np.array([3, 2, 4])}),
        "b": nir.Input({"input": np.array(other)}),
        "b_if": lif(other, 0.5),
        "and": SpikeAnd(),
        "y": nir.Output({"output": None}),
    }
    graph = graph_of(nodes, [("a", "and.a"), ("b", "b_if"), ("b_if", "and.b"), ("and", "y")], input=kind)
    rng = np.random.default_rng(7)
    lead = (2,) if kind == "image" else (2, 4)
    agree(graph, {"a": spikes(rng, *lead, 3, 2, 4), "b": 2 * spikes(rng, *lead, *other)}, 4)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 9])
def test_delay(steps: int) -> None:
    for kind in ("frames", "image"):
        x = eighths(np.random.default_rng(8), *((2, 4) if kind == "frames" else (2,)), 3, 2)
        graph = chain((3, 2), nir.Delay(np.full((3, 2), steps * DT)), input=kind)
        agree(graph, {"x": x}, 4)
        if steps >= 4:  # no more can be cut off than there is
            assert "ints/4,-4" in {i.name for i in checked(graph, time_steps=4).graph.initializer}


def test_delays_of_single_elements() -> None:
    steps = np.array([[0, 1, 2], [1, 7, 0]])
    x = eighths(np.random.default_rng(9), 2, 5, 2, 3)
    agree(chain((2, 3), nir.Delay(steps * DT)), {"x": x}, 5)


def test_temporal_mean_ends_the_time_axis() -> None:
    rng = np.random.default_rng(10)
    for kind in ("frames", "image"):
        graph = chain((4,), TemporalMean(), nir.Affine(eighths(rng, 3, 4), eighths(rng, 3, low=1)), input=kind)
        x = eighths(rng, *((2, 4) if kind == "frames" else (2,)), 4)
        assert agree(graph, {"x": x}, 4)["y"].shape == (2, 3)


def test_temporal_mean_of_steps_that_do_not_divide() -> None:
    x = eighths(np.random.default_rng(11), 2, 6, 3)
    agree(chain((3,), TemporalMean()), {"x": x}, 6, rtol=1e-6)


def test_contributions_are_summed_left_to_right() -> None:
    """In float32, (1e8 + 1) - 1e8 is 0 and (1e8 - 1e8) + 1 is 1."""
    nodes: dict[str, Any] = {"x": nir.Input({"input": np.array([1])})}
    for name, factor in (("big", 1e8), ("one", 1.0), ("minus", -1e8)):
        nodes[name] = nir.Scale(np.array([factor], dtype=F32))
    nodes |= {"y": nir.Output({"output": None}), "z": nir.Output({"output": None})}
    edges = [("x", "big"), ("x", "one"), ("x", "minus"), ("big", "y"), ("one", "y"), ("minus", "y")]
    graph = graph_of(nodes, [*edges, ("big", "z"), ("minus", "z"), ("one", "z")])
    found = run(checked(graph, time_steps=1), {"x": np.ones((1, 1, 1), dtype=F32)})
    assert (found["y"].item(), found["z"].item()) == (0.0, 1.0)


def test_sums_that_end_alike_are_not_mixed_up() -> None:
    """a + c + d and b + c + d share their last terms, but no beginning."""
    nodes: dict[str, Any] = {"x": nir.Input({"input": np.array([1])})}
    nodes |= {
        name: nir.Scale(np.array([factor], dtype=F32)) for name, factor in zip("abcd", (1, 10, 100, 1000), strict=True)
    }
    nodes |= {"y": nir.Output({"output": None}), "z": nir.Output({"output": None})}
    edges = [*(("x", name) for name in "abcd"), *((name, "y") for name in "acd"), *((name, "z") for name in "bcd")]
    found = run(checked(graph_of(nodes, edges), time_steps=1), {"x": np.ones((1, 1, 1), dtype=F32)})
    assert (found["y"].item(), found["z"].item()) == (1101.0, 1110.0)


def test_constant_and_changing_contributions_add_up() -> None:
    nodes = {
        "x": nir.Input({"input": np.array([3, 2])}),
        "scaled": nir.Scale(np.array([[2.0]], dtype=F32)),
        "lif": lif((3, 2)),
        "y": nir.Output({"output": None}),
    }
    for order in (["scaled", "lif", "x"], ["lif", "x", "scaled"], ["x", "scaled", "lif"]):
        edges = [("x", "scaled"), ("x", "lif"), *((source, "y") for source in order)]
        agree(graph_of(nodes, edges, input="image"), {"x": 2 * eighths(np.random.default_rng(12), 2, 3, 2)}, 4)


def test_input_straight_to_output() -> None:
    for kind, lead in (("image", (2,)), ("frames", (2, 3))):
        agree(chain((2, 2), input=kind), {"x": eighths(np.random.default_rng(13), *lead, 2, 2)}, 3)


def test_several_inputs_and_outputs() -> None:
    rng = np.random.default_rng(14)
    nodes = {
        "left": nir.Input({"input": np.array([2, 4, 4])}),
        "right": nir.Input({"input": np.array([3, 4, 4])}),
        "a": conv(rng, 5, 2),
        "b": conv(rng, 5, 3),
        "lif": lif((5, 4, 4)),
        "spikes": nir.Output({"output": None}),
        "current": nir.Output({"output": None}),
    }
    edges = [("left", "a"), ("right", "b"), ("a", "lif"), ("b", "lif"), ("lif", "spikes"), ("b", "current")]
    feeds = {"left": eighths(rng, 2, 3, 2, 4, 4), "right": eighths(rng, 2, 3, 3, 4, 4)}
    assert agree(graph_of(nodes, edges), feeds, 3)["spikes"].any()


def test_a_node_that_feeds_two_outputs_keeps_both() -> None:
    graph = chain((3,), TemporalMean())
    graph.nodes["z"] = nir.Output({"output": None})
    graph.edges.append(("n0", "z"))
    agree(graph, {"x": eighths(np.random.default_rng(15), 2, 4, 3)}, 4)


def test_an_output_that_sums_two_results() -> None:
    graph = chain((3,), TemporalMean())
    graph.nodes["double"] = nir.Scale(np.array([2.0], dtype=F32))
    graph.edges += [("n0", "double"), ("double", "y")]
    agree(graph, {"x": eighths(np.random.default_rng(16), 2, 4, 3)}, 4)
