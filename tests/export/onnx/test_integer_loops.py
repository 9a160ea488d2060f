"""Loops and integrators in integer models, bit for bit, in onnxruntime (optimised or not) and in onnx's own runtime."""

from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.ir.integer import IntegerLI, IntegerLIF
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate.integer import TorchIntegerRunner
from tests.export.onnx.integer_harness import (
    INTEGER,
    OFF,
    agree,
    conv,
    counts,
    in_onnxruntime,
    in_reference,
    integer_graph,
    lif,
    linear,
    with_hints,
)
from tests.quantize.recurrent_graphs import events, readout, recurrent, rough, tangled

RUNS = (in_onnxruntime(), in_onnxruntime(OFF), in_reference)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("neuron", ["lif", "if", "cuba"])
@pytest.mark.parametrize("spatial", [False, True])
def test_recurrent_networks(neuron: str, bits: int, spatial: bool) -> None:
    rng = np.random.default_rng(bits + 3)
    subject = rough(rng, recurrent(rng, neuron, spatial=spatial))
    found = agree(quantize(subject, QuantizeOptions(bits)), events(rng, subject), *RUNS, flavours=INTEGER)
    assert found.spikes["a"].any()
    assert found.membranes["li"].any()


@pytest.mark.parametrize("neuron", ["lif", "cuba"])
@pytest.mark.parametrize("seed", range(3))
def test_weights_between_two_recurrent_edges(neuron: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    subject = tangled(rng, neuron)
    quantised = quantize(subject)
    x = events(rng, subject)
    found = agree(quantised, x, *RUNS, flavours=INTEGER)
    assert found.spikes["a"].any()
    other = TorchIntegerRunner(quantised).run(x, spikes=True)
    for name, spikes in found.spikes.items():
        np.testing.assert_array_equal(other.spikes[name], spikes)


def test_an_image_held_over_all_steps() -> None:
    rng = np.random.default_rng(1)
    subject = recurrent(rng, "lif", spatial=True)
    subject.metadata["statten"]["input"] = "image"
    agree(quantize(subject), rng.random((3, 2, 3, 3)).astype(np.float32), *RUNS, flavours=INTEGER)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ["LI", "I", "CubaLI"])
def test_integrators_as_readouts(kind: str, flat: bool, mean: bool) -> None:
    rng = np.random.default_rng(3)
    subject = rough(rng, readout(rng, kind, mean=mean, flat=flat))
    found = agree(quantize(subject), events(rng, subject), *RUNS)
    assert found.membranes["membrane"].any()


def integrators(rng: np.random.Generator, shape: tuple[int, ...], **options: Any) -> IntegerLI:
    column = (shape[0], *(1,) * (len(shape) - 1))
    settings = {"dv": 2048, "bias_mantissa": rng.integers(-4095, 4096, column)}
    settings |= {"bias_exponent": rng.integers(0, 8, column), "scale": rng.uniform(1, 3, shape[0])}
    return IntegerLI(shape=shape, **{**settings, **options})


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dv=st.sampled_from([0, 1, 700, 2048, 4095, 4096]),
    du=st.sampled_from([0, 1000, 2047, 4095]),
    exponent=st.sampled_from([-3, 0, 6, 10]),
)
def test_integrators_that_wrap_and_saturate(seed: int, dv: int, du: int, exponent: int) -> None:
    """Every decay, currents beyond the 24 bits, biases, right shifts; alone and behind a bias of the weights."""
    rng = np.random.default_rng(seed)
    node = integrators(rng, (3,), dv=dv, du=du, input_exponent=min(exponent, 0))
    weights = linear(rng, 3, 4, exponent=np.full(3, max(exponent, 0)), bias=rng.integers(-999, 999, 3))
    graph = integer_graph((4,), weights, node)
    agree(graph, counts(rng, graph), *RUNS)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dv=st.sampled_from([0, 700, 2048, 4096]),
    du=st.sampled_from([1000, 2047, 4095]),
    exponent=st.sampled_from([-2, 0, 9]),
)
def test_neurons_in_loops_that_wrap_and_saturate(seed: int, dv: int, du: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    graph = loop(rng, lif(rng, (3,), threshold=1000, dv=dv, du=du), max(exponent, -2))
    agree(graph, counts(rng, graph), *RUNS, flavours=INTEGER)


def loop(rng: np.random.Generator, neurons: IntegerLIF, exponent: int) -> nir.NIRGraph:
    """Weights in front and back, both with biases of their own; what comes back is read outside as well."""
    chain = integer_graph((4,), linear(rng, 3, 4, exponent=np.full(3, exponent)), neurons)
    back = linear(rng, 3, 3, exponent=np.full(3, exponent), bias=rng.integers(-2000, 2000, 3))
    nodes = {**chain.nodes, "back": back, "current": nir.Output({"output": None})}
    edges = [*chain.edges, ("n1", "back"), ("back", "n0sum"), ("back", "current")]
    return with_hints(nodes, [(a, "n1" if b == "n0sum" else b) for a, b in edges])


@pytest.mark.parametrize("dv", [0, 4096])
@pytest.mark.parametrize("du", [2047, 4095])
def test_neurons_in_loops_without_bias(dv: int, du: int) -> None:
    """Terms that do nothing are left out, down to a membrane that is the synaptic current."""
    rng = np.random.default_rng(7)
    none = np.zeros(3, dtype=np.int64)
    graph = loop(rng, lif(rng, (3,), threshold=1000, dv=dv, du=du, bias_mantissa=none), 0)
    agree(graph, counts(rng, graph), *RUNS, flavours=INTEGER)
    chain = integer_graph((4,), linear(rng, 3, 4), integrators(rng, (3,), dv=dv, du=du, bias_mantissa=none))
    agree(chain, counts(rng, chain), *RUNS)


def test_convolutions_with_biases_of_their_own() -> None:
    rng = np.random.default_rng(4)
    for exponent in (0, -2):
        node = conv(rng, 3, 2, exponent=np.full(3, exponent), bias=rng.integers(-5000, 5000, 3), largest=20)
        graph = integer_graph((2, 4, 4), node, lif(rng, (3, 4, 4), du=2047, threshold=3000))
        assert agree(graph, counts(rng, graph), *RUNS).spikes["n1"].any()


def test_weights_stand_in_the_file_once() -> None:
    rng = np.random.default_rng(5)
    model = build_integer_onnx(quantize(recurrent(rng, "lif", spatial=True)))
    names = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".weight")]
    assert sorted(names) == ["back.weight", "forth.weight", "head.weight", "in.weight", "self.weight"]
    body = next(node for node in model.graph.node if node.op_type == "Scan").attribute[0].g
    assert not body.initializer
    changing = {value.name for value in body.input}
    for node in body.node:  # nothing constant is computed at every step, but for what onnxruntime joins to a product
        if changing & set(node.input):
            changing.update(node.output)
        else:
            assert node.op_type == "Mul"
            assert any(name.startswith("one") for name in node.input)


def test_qdq_has_no_loops() -> None:
    graph = quantize(recurrent(np.random.default_rng(6), "lif"))
    with pytest.raises(
        UnsupportedError, match=r"\(a loop\): --flavour qdq has no loops; export with --flavour integer"
    ):
        build_integer_onnx(graph, flavour="qdq")


def test_integrators_inside_loops_are_refused() -> None:
    rng = np.random.default_rng(6)
    chain = loop(rng, lif(rng, (3,)), 0)
    edges = [("n1", "li") if edge == ("n1", "back") else edge for edge in chain.edges]
    graph = with_hints({**chain.nodes, "li": integrators(rng, (3,))}, [*edges, ("li", "back")])
    with pytest.raises(UnsupportedError, match=r"'li' \(IntegerLI\): an integrator inside a loop"):
        build_integer_onnx(graph)
