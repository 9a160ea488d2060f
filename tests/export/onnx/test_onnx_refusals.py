"""What cannot be written is refused by name, before anything is built."""

from dataclasses import dataclass

import nir
import numpy as np
import pytest

from statten_deploy.errors import ConfigError, GraphError, UnsupportedError
from statten_deploy.export.onnx import build_onnx
from statten_deploy.ir import STAttenAttention
from tests.export.onnx.onnx_harness import DT, chain, graph_of, lif, small_network


@dataclass(eq=False)
class Resonator(nir.NIRNode):
    """A node type nobody here knows."""

    def __post_init__(self) -> None:
        self.input_type = {"input": np.array([4])}
        self.output_type = {"output": np.array([4])}


@dataclass(eq=False)
class Dendrite(Resonator):
    """Another one."""


def test_unknown_nodes_are_all_named_at_once() -> None:
    graph = chain((4,), Resonator(), lif((4,)), Dendrite())
    with pytest.raises(UnsupportedError) as caught:
        build_onnx(graph, time_steps=2)
    assert str(caught.value) == (
        "2 of 5 nodes cannot be written as ONNX: 'n0' (Resonator), 'n2' (Dendrite). "
        "The node types that can are listed in docs/onnx.md; replace these nodes or choose another target"
    )


def test_time_steps_must_be_known() -> None:
    with pytest.raises(ConfigError, match=r"no hint `time_steps`; pass time_steps=T"):
        build_onnx(chain((4,), lif((4,))))
    with pytest.raises(ConfigError, match="time_steps must be at least 1, got 0"):
        build_onnx(chain((4,), lif((4,))), time_steps=0)


@pytest.mark.parametrize("dt", [0.0, -1e-4, float("nan")])
def test_dt_must_be_positive(dt: float) -> None:
    with pytest.raises(ConfigError, match="dt must be a positive number of seconds"):
        build_onnx(chain((4,), lif((4,))), time_steps=2, dt=dt)


def test_window_must_divide_the_steps() -> None:
    with pytest.raises(UnsupportedError, match=r"'block.0.attn.statten' \(STAttenAttention\): 5 time steps are not"):
        build_onnx(small_network(depth=1), time_steps=5)


def test_delay_between_two_steps() -> None:
    graph = chain((2,), nir.Delay(np.array([DT, 1.5 * DT])))
    with pytest.raises(UnsupportedError, match=r"'n0' \(Delay\): a delay of 0.00015 s is not a whole number"):
        build_onnx(graph, time_steps=2)


def test_counts_beyond_float32() -> None:
    shape = (64, 1024, 64)
    nodes = {p: nir.Input({"input": np.array(shape)}) for p in "qkv"}
    nodes |= {"att": STAttenAttention(1, 4), "out": nir.Output({"output": None})}
    graph = graph_of(nodes, [*((p, f"att.{p}") for p in "qkv"), ("att", "out")])
    with pytest.raises(GraphError, match="16777216"):
        build_onnx(graph, time_steps=4)


def test_input_without_a_shape() -> None:
    graph = chain((4,), lif((4,)))
    graph.nodes["x"] = nir.Input({"input": None})
    with pytest.raises(GraphError, match="Input 'x' has no shape"):
        build_onnx(graph, time_steps=2)


def test_malformed_graphs_are_refused() -> None:
    graph = chain((4,), lif((4,)))
    graph.edges.append(("nowhere", "n0"))
    with pytest.raises(GraphError, match="nowhere"):
        build_onnx(graph, time_steps=2)
