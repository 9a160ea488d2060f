"""The corners of the arithmetic against the integer runner: wraps, saturation, decays, shifts, ties, wide numbers."""

from typing import Any

import nir
import numpy as np
import onnx
import pytest

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx.integer import FLAVOURS, build_integer_onnx
from statten_deploy.export.onnx.integer.bounds import plan_neuron
from statten_deploy.fixed_point.arithmetic import STATE_MAX, lif_step, synapse_step
from statten_deploy.fixed_point.ranges import Interval, integer_ranges
from statten_deploy.ir import MaxPool2d
from statten_deploy.ir.integer import IntegerLIF, IntegerSumPool2d, TemporalSum
from tests.export.onnx.integer_harness import (
    OFF,
    agree,
    conv,
    counts,
    in_onnxruntime,
    in_reference,
    integer_graph,
    lif,
    linear,
    takes_float64,
    with_hints,
)

EVERYWHERE = (in_onnxruntime(), in_onnxruntime(OFF), in_reference)


def operators(graph: nir.NIRGraph) -> set[str]:
    """Every standard operator of the model, those inside its functions too."""
    model = build_integer_onnx(graph)
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    return {node.op_type for nodes in bodies for node in nodes if not node.domain}


# neurons


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("du", [4095, 3000])
def test_wraps_and_saturations(du: int, held: bool) -> None:
    """Currents of up to 2^20, far beyond the register, and membranes at both ends of theirs."""
    rng = np.random.default_rng(du)
    neurons = lif(rng, (6,), threshold=(1 << 17) - 1, du=du, bias_exponent=np.full(6, 10), dv=40)
    graph = integer_graph(
        (8,), linear(rng, 6, 8, exponent=np.array([0, 1, 2, 3, 4, 2])), neurons, time_steps=6, held=held
    )
    x = counts(rng, graph, batch=200)
    result = agree(graph, x, *EVERYWHERE)
    assert int(np.abs(result.membranes["n1"]).max()) == STATE_MAX
    assert {"Greater", "Clip"} <= operators(graph)
    u, v, wraps = 0, np.zeros((200, 6), dtype=np.int64), 0
    frames = np.broadcast_to(x[:, None], (200, 6, 8)) if held else x
    node = graph.nodes["n0"]
    for t in range(6):  # the wrap happens where the register, not the sum, is left behind
        a = (frames[:, t].astype(np.int64) @ node.weight.T) << node.exponent
        u = synapse_step(u, a, du)
        bias = neurons.bias_mantissa << neurons.bias_exponent
        _, v, _ = lif_step(v, u, dv=40, bias=bias, threshold=neurons.threshold)
        wraps += int((np.abs(a << 6) > 1 << 23).sum())
        np.testing.assert_array_equal(v, result.membranes["n1"][t])
    assert wraps > 500


@pytest.mark.parametrize("weight", [64, 20])
@pytest.mark.parametrize("exponent", [0, 1, -1])
def test_a_bias_does_not_wrap_or_shift_with_its_current(exponent: int, weight: int) -> None:
    """Currents of one layer alone: 64 · 16 · 128 is the turn of the register, both ways; 20 · 16 · 255 is inside."""
    rng = np.random.default_rng(1)
    layer = linear(rng, 6, 2, exponent=np.full(6, 4 - exponent))
    layer.weight[:] = weight * np.array([[1, 0], [-1, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    neurons = lif(rng, (6,), threshold=60000, input_exponent=exponent, bias_exponent=np.full(6, 4))
    graph = integer_graph((2,), layer, neurons)
    x = np.stack(np.meshgrid([0, 127, 128, 129, 255], [0, 127, 128, 129, 255]), -1).reshape(-1, 1, 2).repeat(4, 1)
    agree(graph, x.astype(np.float32), *EVERYWHERE)
    before = "n0" if weight == 20 and exponent == 0 else "n1"
    assert f"{before}.bias" in {tensor.name for tensor in build_integer_onnx(graph).graph.initializer}


@pytest.mark.parametrize(
    ("low", "high", "wraps"), [(1 - (1 << 17), 1 << 17, 0), (-(1 << 17), 0, 1), (0, (1 << 17) + 1, 1)]
)
def test_the_register_is_half_open(low: int, high: int, wraps: int) -> None:
    neurons = lif(np.random.default_rng(0), (1,))
    assert plan_neuron("n", neurons, Interval(np.array([low]), np.array([high])), 4).wraps == bool(wraps)


@pytest.mark.parametrize("du", [4095, 0, 1000, 4094])
@pytest.mark.parametrize("dv", [2048, 0, 4096, 1024, 3072, 1365, 1, 4095])
def test_decays(dv: int, du: int) -> None:
    """Any product of 24 and 12 bits, truncated towards zero; 16 steps; both signs."""
    rng = np.random.default_rng(dv + du)
    neurons = lif(rng, (5,), threshold=9000, dv=dv, du=du)
    graph = integer_graph((4,), linear(rng, 5, 4, exponent=np.array([0, -3, -1, 1, -6])), neurons, time_steps=16)
    result = agree(graph, counts(rng, graph, batch=40), *EVERYWHERE)
    assert result.membranes["n1"].min() < 0 < result.membranes["n1"].max()


@pytest.mark.parametrize("du", [2047, 4095])
def test_a_membrane_without_memory_is_the_current(du: int) -> None:
    """dv = 4096, no bias, small weights: what is left of a step is one addition, or none."""
    rng = np.random.default_rng(1)
    neurons = lif(rng, (5,), threshold=9000, dv=4096, du=du, bias_mantissa=np.zeros(5), bias_exponent=np.zeros(5))
    graph = integer_graph((4,), linear(rng, 5, 4), neurons)
    result = agree(graph, counts(rng, graph, batch=20), *EVERYWHERE)
    assert np.abs(result.membranes["n1"]).max() > 0


@pytest.mark.parametrize("exponent", [0, -1])
def test_a_graph_without_weights(exponent: int) -> None:
    rng = np.random.default_rng(4)
    pool = IntegerSumPool2d((2, 2), (2, 2), 0)
    neurons = lif(rng, (3, 2, 2), threshold=300, input_exponent=exponent)
    graph = integer_graph((3, 4, 4), pool, neurons)
    assert agree(graph, counts(rng, graph, batch=10), *EVERYWHERE).spikes["n1"].any()


@pytest.mark.parametrize("exponent", [4, 1, -1, -7])
def test_input_exponent_shifts_the_sum_of_all_inputs(exponent: int) -> None:
    rng = np.random.default_rng(3)
    nodes = {
        "x": nir.Input({"input": np.array([4])}),
        "encoder": integer_graph((4,)).nodes["encoder"],
        "a": linear(rng, 6, 4),
        "b": linear(rng, 6, 4, exponent=np.arange(-3, 3)),
        "n1": lif(rng, (6,), threshold=3000, input_exponent=exponent),
        "y": nir.Output({"output": None}),
    }
    edges = [("x", "encoder"), ("encoder", "a"), ("encoder", "b"), ("a", "n1"), ("b", "n1"), ("n1", "y")]
    graph = with_hints(nodes, edges)
    agree(graph, counts(rng, graph, batch=30), *EVERYWHERE)


def test_nothing_is_left_out_that_can_happen() -> None:
    """Random small neurons by brute force: what the plan denies does not occur, and its type holds every number."""
    rng = np.random.default_rng(0)
    denied = {"wrap": 0, "saturate": 0, "truncate": 0, "split": 0}
    for _ in range(300):
        low, high = sorted(rng.integers(-(1 << rng.integers(4, 21)), 1 << rng.integers(4, 21), 2).tolist())
        node = IntegerLIF(
            threshold=rng.integers(0, 1 << rng.integers(1, 18), (1,)),
            dv=int(rng.choice([2048, 1024, 0, 4096, rng.integers(0, 4097)])),
            du=int(rng.choice([4095, rng.integers(0, 4096)])),
            bias_mantissa=rng.integers(-4095, 4096, (1,)),
            bias_exponent=rng.integers(0, 9, (1,)),
            shape=(1,),
        )
        plan = plan_neuron("n", node, Interval(np.array([low]), np.array([high])), 8)
        limit = 1 << 24 if plan.dtype is np.float32 else 1 << 53
        bias = node.bias_mantissa << node.bias_exponent
        u, v = np.zeros(64, dtype=np.int64), np.zeros(64, dtype=np.int64)
        for step in range(8):
            a = np.where(rng.random(64) < 0.5, rng.choice([low, high], 64), rng.integers(low, high + 1, 64))
            share = v * (4096 - node.dv)
            before, total = u * (4095 - node.du), a << 6
            u = synapse_step(u, a, node.du)
            if not plan.wraps:
                unwrapped = np.sign(before) * (np.abs(before) >> 12) + total
                np.testing.assert_array_equal(u, unwrapped)
                denied["wrap"] += 1
            if 1 <= step <= plan.whole:
                assert not np.any(share % 4096)
                denied["truncate"] += 1
            left = np.sign(share) * (np.abs(share) >> 12)
            unclipped = left + u + bias
            if not plan.saturates:
                assert unclipped.min() >= -STATE_MAX
                assert np.all((unclipped <= STATE_MAX) | (unclipped > node.threshold << 6))  # then it fires anyway
                denied["saturate"] += 1
            assert np.abs(left).max() < limit
            drive = u + bias
            assert np.array_equal(u.astype(plan.dtype).astype(np.int64), u)
            assert np.all((np.abs(drive) < limit) | (np.abs(drive + left) > STATE_MAX))
            for product, split in zip((share, before), plan.splits, strict=True):  # exact in a float of so many bits
                if split:
                    denied["split"] += 1
                else:
                    assert np.array_equal(product.astype(plan.dtype).astype(np.int64), product)
            _, v, _ = lif_step(v, u, dv=node.dv, bias=bias, threshold=node.threshold)
    assert min(denied.values()) > 50


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4])
def test_terms_that_do_nothing_are_left_out(exponent: int) -> None:
    """Small currents neither wrap nor saturate; a bias that is a multiple of 2^e leaves e halvings without a rest."""
    rng = np.random.default_rng(0)
    layer = linear(rng, 6, 4, exponent=np.full(6, -4))
    neurons = lif(rng, (6,), bias_mantissa=np.full(6, 777), bias_exponent=np.full(6, exponent))
    graph = integer_graph((4,), layer, neurons)
    agree(graph, counts(rng, graph, batch=30), *EVERYWHERE)
    mine = [node for node in build_integer_onnx(graph).graph.node if node.output[0].startswith("n1/")]
    kinds = [node.op_type for node in mine]
    assert not {"LessOrEqual", "Clip"} & set(kinds)
    assert kinds.count("Cast") == 4 + 2 * max(0, 3 - exponent)  # spikes of four steps, and truncations


def test_biases_travel_with_the_currents() -> None:
    """A residual stream: every product adds what the next layer's bias has more, the readout's pool sees none of it."""
    rng = np.random.default_rng(3)
    shape = (4, 3, 3)
    nodes = {
        "x": nir.Input({"input": np.array([2, 3, 3])}),
        "encoder": integer_graph((2,)).nodes["encoder"],
        "in": conv(rng, 4, 2, largest=20),
        "first": lif(rng, shape, 5000),
        "a": conv(rng, 4, 4, 1),
        "second": lif(rng, shape, 5000),
        "b": conv(rng, 4, 4, 1),
        "pool": IntegerSumPool2d((3, 3), (3, 3), -2),
        "third": lif(rng, (4, 1, 1), 5000),
        "y": nir.Output({"output": None}),
    }
    edges = [("x", "encoder"), ("encoder", "in"), ("in", "first"), ("first", "a"), ("second", "b"), ("third", "y")]
    edges += [(source, "second") for source in ("in", "a")] + [(source, "pool") for source in ("in", "a", "b")]
    graph = with_hints(nodes, [*edges, ("pool", "third")])
    result = agree(graph, counts(rng, graph), *EVERYWHERE)
    assert all(0 < result.spikes[name].mean() < 1 for name in ("first", "second", "third"))
    bias = {
        name: (node.bias_mantissa << node.bias_exponent).ravel() for name, node in nodes.items() if name[-1] in "td"
    }
    for flavour in FLAVOURS:
        model = build_integer_onnx(graph, flavour=flavour)
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor).ravel() for tensor in model.graph.initializer}
        np.testing.assert_array_equal(stored["in.bias"], bias["first"])
        np.testing.assert_array_equal(stored["a.bias"], bias["second"] - bias["first"])
        np.testing.assert_array_equal(stored["b.bias"], -bias["second"])


@pytest.mark.parametrize("exponent", [0, 3])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_large_residual_stream_stays_in_float32(order: str, exponent: int) -> None:
    """With the biases that were added early it goes beyond 2^24 at `second`, whose neurons wrap and take none.

    `ab`: the product b takes the biases of a out again; `ba`: b is read without any before, so a sum has to.
    """
    rng = np.random.default_rng(exponent)
    shape = (4, 3, 3)
    biases = {
        "bias_mantissa": 2 * rng.integers(-2000, 2000, (4, 1, 1)) + 1,
        "bias_exponent": np.full((4, 1, 1), exponent),
    }
    nodes = {
        "x": nir.Input({"input": np.array([1, 3, 3])}),
        "encoder": integer_graph((1,)).nodes["encoder"],
        "a": conv(rng, 4, 1, largest=50),
        "b": conv(rng, 4, 1, exponent=np.full(4, 1)),
        "first": lif(rng, shape, 20000, **biases),
        "second": lif(rng, shape, 90000, **biases),
        "third": lif(rng, shape, 20000, **biases),
        "c": conv(rng, 4, 4, 1),
        "last": lif(rng, shape, 100, bias_mantissa=np.zeros((4, 1, 1))),
        "y": nir.Output({"output": None}),
    }
    edges = [("x", "encoder"), ("encoder", "a"), ("encoder", "b"), ("a", "first"), ("c", "last"), ("last", "y")]
    alone = [("b", "third")] if order == "ba" else [("a", "third")]
    edges += [*alone, ("a", "second"), ("b", "second"), *((source, "c") for source in ("first", "second", "third"))]
    if order == "ba":
        nodes = {name: nodes[name] for name in ("x", "encoder", "a", "b", "first", "third", "second", "c", "last", "y")}
    graph = with_hints(nodes, edges)
    result = agree(graph, counts(rng, graph), *EVERYWHERE)
    assert all(0 < result.spikes[name].mean() < 1 for name in ("first", "second", "third", "last"))
    assert not takes_float64(build_integer_onnx(graph))


# products


@pytest.mark.parametrize("zero_point", [0, 100, 255])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bytes_of_an_image(zero_point: int, bits: int) -> None:
    """The largest products of a byte: two of them must not meet in 16 bits."""
    rng = np.random.default_rng(bits)
    largest = (1 << (bits - 1)) - 1
    layer = conv(rng, 8, 3, largest=largest, exponent=rng.integers(-2, 3, 8))
    layer.weight[0], layer.weight[1] = largest, -largest
    neurons = lif(rng, (8, 5, 6), threshold=1 << 16)
    graph = integer_graph((3, 5, 6), layer, neurons, held=True, zero_point=np.array([zero_point, 0, 60]))
    x = counts(rng, graph)
    x[0], x[1] = 255, 0
    agree(graph, x, *EVERYWHERE)
    model = build_integer_onnx(graph)
    (product,) = (node for node in model.graph.node if node.op_type == "MatMulInteger")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(product.input[0]))
    parts = in_onnxruntime()(model, {"x": x})[product.input[0]]
    assert parts.dtype == np.uint8
    assert 2 * int(parts.max()) * largest < 1 << 15
    assert "MatMul" not in operators(graph)
    assert [t.data_type for t in model.graph.initializer if t.name.endswith(".weight")] == [3]  # int8


@pytest.mark.parametrize("largest", [127, 63, 7])
def test_inputs_that_are_never_positive(largest: int) -> None:
    """Bytes from a zero point of 255: one part of them, or several, all with weights of the other sign."""
    rng = np.random.default_rng(largest)
    neurons = lif(rng, (4, 5, 6), threshold=3000)
    graph = integer_graph((2, 5, 6), conv(rng, 4, 2, largest=largest), neurons, zero_point=np.full(2, 255))
    assert 0 < agree(graph, counts(rng, graph), *EVERYWHERE).spikes["n1"].mean() < 1


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (2, 1)},
        {"padding": (0, 2)},
        {"dilation": (2, 1), "padding": (2, 0)},
        {"groups": 2},
        {"groups": 4, "stride": (2, 2)},
        {"kernel": (1, 3)},
        {"kernel": 1, "stride": (2, 2)},
        {"kernel": 1, "groups": 4},
    ],
    ids=str,
)
def test_convolutions(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    first = lif(rng, (4, 6, 7), threshold=9000)
    second = conv(rng, 8, 4, exponent=rng.integers(-2, 4, 8), **{"kernel": 3, **options})
    graph = integer_graph((2, 6, 7), conv(rng, 4, 2), first, second, TemporalSum(0.25))
    agree(graph, counts(rng, graph), *EVERYWHERE)


def test_currents_into_weights_are_multiplied_as_whole_floats() -> None:
    """Two weighted layers without neurons in between: numbers beyond 2^24, and beyond bytes."""
    rng = np.random.default_rng(2)
    layers = (conv(rng, 4, 2), conv(rng, 3, 4, groups=1), conv(rng, 6, 3, groups=3), lif(rng, (6, 5, 5)))
    graph = integer_graph((2, 5, 5), *layers, time_steps=2)
    layers[-1].input_exponent = -14
    result = agree(graph, counts(rng, graph), *EVERYWHERE)
    assert 0 < result.spikes["n3"].mean() < 1
    larger = (*layers[:2], conv(rng, 4, 3, exponent=np.full(4, 24)), *layers[1:])
    with pytest.raises(UnsupportedError, match=r"'n2': its numbers can reach \d+, expected less than 2\^53"):
        build_integer_onnx(integer_graph((2, 5, 5), *larger))


# pools, and what else stands between


@pytest.mark.parametrize(
    "window", [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (1, 0)), ((2, 2), (2, 2), (0, 0))], ids=str
)
def test_max_pools_of_currents_and_their_bias(window: tuple[Any, ...]) -> None:
    """Currents of both signs; padding never wins; the bias is added before the pool."""
    rng = np.random.default_rng(4)
    pool = MaxPool2d(*window)
    layer = conv(rng, 5, 2, exponent=np.full(5, -3))
    layer.weight[0] = -np.abs(layer.weight[0])
    shape = np.pad(np.zeros((6, 7)), [(p, p) for p in window[2]])
    grid = [(n - k) // s + 1 for n, k, s in zip(shape.shape, window[0], window[1], strict=True)]
    graph = integer_graph((2, 6, 7), layer, pool, lif(rng, (5, *grid), threshold=4000))
    result = agree(graph, counts(rng, graph), *EVERYWHERE)
    assert 0 < result.spikes["n2"].mean() < 1
    calls = [node for node in build_integer_onnx(graph).graph.node if node.name == "n0"]
    assert list(calls[0].input)[-1] == "n0.bias"


@pytest.mark.parametrize(("kernel", "exponent"), [((6, 7), -5), ((6, 7), 0), ((2, 3), -2), ((3, 2), 3)])
def test_sum_pools(kernel: tuple[int, int], exponent: int) -> None:
    rng = np.random.default_rng(5)
    pool = IntegerSumPool2d(kernel, (2, 1), exponent)
    grid = ((6 - kernel[0]) // 2 + 1, 7 - kernel[1] + 1)
    currents = integer_graph((2, 6, 7), conv(rng, 4, 2, exponent=np.array([0, -1, 1, 0])), pool, lif(rng, (4, *grid)))
    agree(currents, counts(rng, currents, high=30), *EVERYWHERE)
    spikes = integer_graph((2, 6, 7), conv(rng, 4, 2), lif(rng, (4, 6, 7), 30000), pool, lif(rng, (4, *grid), 10))
    agree(spikes, counts(rng, spikes), *EVERYWHERE)


@pytest.mark.parametrize(("kernel", "up", "down"), [((4, 4), 3, -4), ((2, 2), 5, -2), ((4, 4), 3, -6)])
def test_sums_beyond_float32_are_taken_apart(kernel: tuple[int, int], up: int, down: int) -> None:
    rng = np.random.default_rng(up)
    grid = (4, 4 // kernel[0], 4 // kernel[1])
    pool = IntegerSumPool2d(kernel, kernel, down)
    graph = integer_graph(
        (2, 4, 4), conv(rng, 4, 2, exponent=np.full(4, up)), pool, lif(rng, grid, 100000 if down > -6 else 10000)
    )
    assert integer_ranges(graph)[0]["n0"].magnitude * kernel[0] * kernel[1] >= 1 << 24
    assert not takes_float64(build_integer_onnx(graph))
    result = agree(graph, counts(rng, graph), *EVERYWHERE)
    assert 0 < result.spikes["n2"].mean() < 1


def test_flatten_keeps_the_order_of_the_graph() -> None:
    rng = np.random.default_rng(6)
    flat = nir.Flatten({"input": np.array([4, 2, 3])}, 0, -1)
    for layer in (conv(rng, 4, 2), conv(rng, 24, 2, (2, 3), padding=(0, 0))):  # the second leaves a plane of 1 x 1
        graph = integer_graph((2, 2, 3), layer, flat, lif(rng, (24,), threshold=60000))
        agree(graph, counts(rng, graph), *EVERYWHERE)


@pytest.mark.parametrize(("dims", "shape"), [((1, 2), (4, 6)), ((0, 1), (8, 3))])
def test_flatten_of_some_axes(dims: tuple[int, int], shape: tuple[int, int]) -> None:
    """Equal neurons fire alike in any shape."""
    rng = np.random.default_rng(6)
    layer = conv(rng, 4, 2)
    same = {"dv": 2048, "bias_mantissa": 30, "bias_exponent": 0}

    def neurons(size: tuple[int, ...]) -> IntegerLIF:
        column = np.ones((size[0], *(1,) * (len(size) - 1)), dtype=np.int64)
        terms = {key: value * column if key != "dv" else value for key, value in same.items()}
        return IntegerLIF(threshold=60000 * column, shape=size, **terms)

    flat = nir.Flatten({"input": np.array([4, 2, 3])}, *dims)
    graph = integer_graph((2, 2, 3), layer, flat, neurons(shape))
    x = counts(rng, graph)
    plain = integer_graph((2, 2, 3), layer, neurons((4, 2, 3)))
    expected = in_onnxruntime()(build_integer_onnx(plain), {"x": x})["y"]
    found = in_onnxruntime()(build_integer_onnx(graph), {"x": x})["y"]
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(found, expected.reshape(*expected.shape[:2], *shape))


# third-party chains


@pytest.mark.parametrize("held", [False, True])
def test_linear_chains_end_in_spikes_currents_or_a_sum(held: bool) -> None:
    rng = np.random.default_rng(7)
    chain = [linear(rng, 7, 9), lif(rng, (7,), 20000, du=3500, dv=700), linear(rng, 5, 7), lif(rng, (5,), 300)]
    readout = linear(rng, 3, 5, exponent=np.array([1, -2, 0]), bias=np.array([5, -3, 900]))
    for nodes in (chain, [*chain, readout], [*chain, readout, TemporalSum(1 / 700)]):
        graph = integer_graph((9,), *nodes, held=held)
        result = agree(graph, counts(rng, graph, batch=20), *EVERYWHERE)
        assert result.outputs["y"].any()


# the encoder


@pytest.mark.parametrize("scale", [1 / 255, 0.1, 1.0, 0.5, 2 / 255])
def test_ties_of_the_encoder(scale: float) -> None:
    """float32 values next to every half of the scale, where a division in float32 would often round the other way."""
    halves = (np.arange(-3, 260, dtype=np.float64)[:, None] + np.array([0.5, 0.0])).ravel() * scale
    near = halves.astype(np.float32)
    x = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf)), -near])
    x = np.concatenate([x, np.float32([np.inf, -np.inf, 0.0, -0.0, 1e30, 1e-40])])
    rng = np.random.default_rng(8)
    layer = linear(rng, 3, 1)
    layer.weight[:] = [[1], [2], [-1]]
    end = (lif(rng, (3,), 2), linear(rng, 2, 3), TemporalSum(1.0))
    graph = integer_graph((1,), layer, *end, scale=np.array([scale]), zero_point=np.array([7]))
    frames = np.repeat(x[:, None, None], 4, axis=1)
    result = agree(graph, frames, in_onnxruntime(), in_onnxruntime(OFF))
    assert result.membranes["n1"].any()
    single = np.rint(x[:-6] / np.float32(scale)) != np.rint(x[:-6].astype(np.float64) / scale)
    assert single.any() or scale in (1.0, 0.5)
