"""The verifier: sound graphs pass, and each kind of damage is named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest

from statten_deploy.errors import GraphError
from statten_deploy.frontend import build_graph
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, verify
from tests.conftest import lively_model, small_config
from tests.simulate.builders import affine, chain, conv, graph, inp, lif, out, pool, residual_network

RNG = np.random.default_rng(0)


def attention_graph(node: STAttenAttention, **hints: Any) -> nir.NIRGraph:
    nodes = {"x": inp(4, 2, 2), "l": lif(4, 2, 2), "a": node, "y": out(4, 2, 2)}
    return graph(nodes, [("x", "l"), *(("l", f"a.{port}") for port in "qkv"), ("a", "y")], **hints)


def test_sound_graphs_pass(variant: str) -> None:
    verify(build_graph(lively_model(small_config(variant))))


def test_hand_made_graphs_pass() -> None:
    verify(residual_network(RNG))
    verify(attention_graph(STAttenAttention(2, 2, "block", 2), time_steps=4))
    nodes = {"x": inp(3), "l": lif(3), "w": affine(RNG, 3, 3), "y": out(3)}
    verify(graph(nodes, [("x", "l"), ("l", "w"), ("w", "l"), ("l", "y")]))


def changed(**nodes: Any) -> nir.NIRGraph:
    """x [3] -> l -> w -> y with some nodes replaced."""
    return chain(*{"x": inp(3), "l": lif(3), "w": affine(RNG, 3, 3), "y": out(3), **nodes}.items())


def with_edges(*edges: tuple[str, str], drop: tuple[tuple[str, str], ...] = ()) -> nir.NIRGraph:
    network = changed()
    return graph(network.nodes, [edge for edge in network.edges if edge not in drop] + list(edges))


def array(value: float, at: int = 0) -> np.ndarray:
    result = np.ones(3, dtype=np.float32)
    result[at] = value
    return result


class Foreign(nir.NIRNode):
    def __init__(self) -> None:
        self.input_type, self.output_type = {"input": None}, {"output": None}


DAMAGE: dict[str, tuple[Callable[[], nir.NIRGraph], str]] = {
    "edge from nowhere": (lambda: with_edges(("z", "w")), r"edge \('z', 'w'\): the graph has no node 'z'"),
    "edge to nowhere": (lambda: with_edges(("l", "z")), r"edge into 'z': the graph has no such node"),
    "unknown port": (lambda: with_edges(("l", "w.q")), r"node 'w' has no port 'q' \(it has input\)"),
    "edge twice": (lambda: with_edges(("l", "w")), r"edge \('l', 'w'\) exists twice"),
    "edge twice, once by port": (lambda: with_edges(("l", "w.input")), r"edge \('l', 'w.input'\) exists twice"),
    "no input": (lambda: graph({"l": lif(3), "y": out(3)}, [("l", "y")]), r"it has no Input node"),
    "no output": (lambda: graph({"x": inp(3), "l": lif(3)}, [("x", "l")]), r"it has no Output node"),
    "edge into an input": (lambda: with_edges(("l", "x")), r"Input 'x' has an edge into it"),
    "edge out of an output": (lambda: with_edges(("y", "w")), r"Output 'y' has an edge out of it, to 'w'"),
    "open port": (
        lambda: with_edges(drop=(("l", "w"),)),
        r"'w' \(Affine\): no edge leads into its port 'input'.*Output 'y' cannot be reached from any Input",
    ),
    "nested": (lambda: changed(l=changed()), r"'l' is a nested graph; inline it first"),
    "foreign type": (lambda: changed(l=Foreign()), r"'l' has the unknown type Foreign; known are Affine, AvgPool2d"),
    "shape": (lambda: changed(w=affine(RNG, 4, 3)), r"'w' \(Affine\): its weight \(3, 4\) takes \(4,\), got \(3,\)"),
    "NaN": (lambda: changed(w=nir.Affine(np.full((3, 3), np.nan), np.zeros(3))), r"weight holds 9 NaN or infinite"),
    "infinite": (
        lambda: changed(l=replace(lif(3), v_threshold=array(np.inf))),
        r"'l' \(LIF\): v_threshold holds 1 NaN or infinite value",
    ),
    "parameter shapes": (
        lambda: changed(l=_raw_lif(v_reset=np.zeros(2, dtype=np.float32))),
        r"'l' \(LIF\): its parameters differ in shape: tau \(3,\).*v_reset \(2,\)",
    ),
    "tau zero": (lambda: changed(l=replace(lif(3), tau=array(0, 2))), r"'l' \(LIF\): tau must be positive, found 0 s"),
    "tau_syn negative": (
        lambda: changed(l=nir.CubaLIF(array(-1), array(1), array(1), array(1), array(1))),
        r"tau_syn must be positive, found -1 s",
    ),
    "negative delay": (lambda: changed(l=nir.Delay(array(-1))), r"delay must not be negative, found -1 s"),
    "bias": (lambda: changed(w=nir.Affine(np.ones((3, 3)), np.ones(2))), r"its bias has shape \(2,\), expected \(3,\)"),
    "pool padding": (
        lambda: chain(("x", inp(2, 6, 6)), ("p", MaxPool2d((2, 2), (2, 2), (2, 1))), ("y", out(2, 5, 4))),
        r"'p' \(MaxPool2d\): padding 2 is more than half of the kernel 2",
    ),
    "heads": (
        lambda: attention_graph(STAttenAttention(3, 1)),
        r"'a' \(STAttenAttention\): num_heads 3 does not divide",
    ),
    "token groups": (
        lambda: attention_graph(STAttenAttention(2, 1, "block", 4)),
        r"token_groups 4 does not divide the 2 rows",
    ),
    "window": (lambda: attention_graph(STAttenAttention(2, 0)), r"window must be at least 1 step, found 0"),
    "mode": (
        lambda: attention_graph(STAttenAttention(2, 2, "both")),  # type: ignore[arg-type]
        r"mode 'both' is neither 'block' nor 'sliding'",
    ),
    "chunks": (
        lambda: attention_graph(STAttenAttention(2, 2), time_steps=5),
        r"its chunks of 2 steps do not divide the 5 time steps",
    ),
    "counts": (lambda: attention_graph(STAttenAttention(2, 2**22)), r"its counts can reach 33554432"),
    "pooled currents": (
        lambda: chain(("x", inp(2, 6, 6)), ("c", conv(RNG, 2, 2)), ("p", SpikeMaxPool2d(2, 2, 0)), ("y", out(2, 3, 3))),
        r"'p' \(SpikeMaxPool2d\), port 'input': takes one signal of 0/1, but 'c' \(Conv2d\) gives real values",
    ),
    "summed spikes": (
        lambda: graph(
            {"x": inp(3), "l": lif(3), "k": lif(3), "and": SpikeAnd(), "y": out(3)},
            [("x", "l"), ("x", "k"), ("l", "and.a"), ("k", "and.a"), ("l", "and.b"), ("and", "y")],
        ),
        r"port 'a': takes one signal of 0/1, but 2 edges add up there: 'l', 'k'",
    ),
    "neuron without time": (
        lambda: chain(("x", inp(3)), ("m", TemporalMean()), ("l", lif(3)), ("y", out(3))),
        r"'l' \(LIF\) needs a time axis, but stands behind a TemporalMean",
    ),
    "mixed time": (
        lambda: graph({"x": inp(3), "m": TemporalMean(), "y": out(3)}, [("x", "m"), ("m", "y"), ("x", "y")]),
        r"'y' \(Output\): 'x' has a time axis and the signal behind a TemporalMean has none",
    ),
    "chunks in a loop": (
        lambda: graph(
            {"x": inp(4, 2, 2), "l": lif(4, 2, 2), "a": STAttenAttention(2, 2), "y": out(4, 2, 2)},
            [("x", "l"), *(("l", f"a.{port}") for port in "qkv"), ("a", "l"), ("a", "y")],
        ),
        r"'a' \(STAttenAttention\) needs several steps at once, so it cannot be part of a loop",
    ),
}


def _raw_lif(**fields: Any) -> nir.LIF:
    """A LIF whose arrays do not fit each other, as no constructor allows."""
    node = lif(3)
    for field, value in fields.items():
        setattr(node, field, value)
    return node


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damage_is_named(kind: str) -> None:
    make, message = DAMAGE[kind]
    with pytest.raises(GraphError, match=message):
        verify(make())


def test_everything_is_listed() -> None:
    network = changed(l=replace(lif(3), tau=array(-1)), w=affine(RNG, 4, 3))
    network.edges += [("l", "nowhere")]
    with pytest.raises(GraphError, match=r"the graph is not valid: 3 problems: .*'nowhere'.*tau must.*'w' \(Affine\)"):
        verify(network)


def test_time_constants_are_held_against_a_known_step_only() -> None:
    short = changed(l=lif(3, tau_steps=0.5))
    verify(short)
    message = r"'l' \(LIF\): tau 5e-05 s is shorter than the time step 0.0001 s"
    with pytest.raises(GraphError, match=message):
        verify(short, dt=1e-4)
    with pytest.raises(GraphError, match=message):
        verify(graph(short.nodes, short.edges, time_steps=4))
    verify(changed(l=lif(3, tau_steps=1.0)), dt=1e-4)


def test_broadcast_padding_is_allowed_for_sums() -> None:
    spread = pool(nir.SumPool2d, (4, 4), (1, 1), (3, 3))
    verify(chain(("x", inp(3, 1, 1)), ("s", spread), ("y", out(3, 4, 4))))


def test_nothing_is_changed() -> None:
    network = residual_network(RNG)
    before = ({name: dict(vars(node)) for name, node in network.nodes.items()}, list(network.edges))
    verify(network)
    after = ({name: dict(vars(node)) for name, node in network.nodes.items()}, list(network.edges))
    np.testing.assert_equal(after, before)
