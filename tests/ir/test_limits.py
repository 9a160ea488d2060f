"""What the verifier says about quantised graphs: sound ones pass, every number out of range is named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest

from statten_deploy.errors import GraphError
from statten_deploy.frontend import build_graph
from statten_deploy.ir import SpikeAnd, verify
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.quantize import QuantizeOptions, quantize
from tests.conftest import lively_model, small_config
from tests.simulate.builders import graph, inp, out

THREE = (3, 1, 1)
NODES: dict[str, Any] = {
    "x": inp(2, 4, 4),
    "encoder": InputEncoder(np.ones(2), np.array([0, 255])),
    "conv": IntegerConv2d(np.full((3, 2, 1, 1), -127), np.array([-24, 0, 24]), np.ones(3), 1, 0),
    "lif": IntegerLIF(np.full(THREE, 2**17 - 1), 4096, np.full(THREE, -4095), np.full(THREE, 11), (3, 4, 4)),
    "pool": IntegerSumPool2d(4, 4, -4),
    "flat": nir.Flatten({"input": np.array([3, 1, 1])}, 0, -1),
    "head_lif": IntegerLIF(np.zeros(3), 0, np.zeros(3), np.zeros(3), (3,), -24, 0),
    "head": IntegerLinear(np.full((5, 3), 127), np.zeros(5), np.full(5, -4000), np.ones(5)),
    "sum": TemporalSum(0.25),
    "y": out(5),
}
EDGES = list(zip(NODES, list(NODES)[1:], strict=False))


def network(hints: Any = None, **changes: Any) -> nir.NIRGraph:
    """A network at the limits, with some nodes replaced."""
    return graph({**NODES, **changes}, EDGES, **{"time_steps": 4, "bits": 8, **(hints or {})})


def test_networks_at_the_limits_pass() -> None:
    verify(network())


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 8])
def test_quantised_networks_pass(variant: str, bits: int, granularity: Any) -> None:
    verify(quantize(build_graph(lively_model(small_config(variant))), QuantizeOptions(bits, granularity)))


def changed(name: str, **fields: Any) -> Callable[[], nir.NIRGraph]:
    return lambda: network(**{name: replace(NODES[name], **fields)})


DAMAGE: dict[str, tuple[Callable[[], nir.NIRGraph], str]] = {
    "encoder scale": (
        changed("encoder", scale=np.array([1, 0])),
        r"'encoder' \(InputEncoder\): scale must be positive",
    ),
    "encoder NaN": (changed("encoder", scale=np.array([1, np.nan])), r"scale holds 1 NaN"),
    "zero point": (changed("encoder", zero_point=np.array([0, 256])), r"zero_point holds 256, .* from 0 to 255"),
    "encoder size": (changed("encoder", scale=np.ones(3)), r"scale has shape \(3,\), expected \(2,\)"),
    "weight": (changed("conv", weight=np.full((3, 2, 1, 1), -128)), r"weight holds -128, .* from -127 to 127"),
    "exponent": (changed("conv", exponent=np.array([0, 25, 0])), r"exponent holds 25, .* from -24 to 24"),
    "exponents": (changed("conv", exponent=np.zeros(2)), r"exponent has shape \(2,\), expected \(3,\)"),
    "scale": (changed("conv", scale=np.array([1, -1, 1])), r"'conv' \(IntegerConv2d\): scale must be positive"),
    "linear weight": (changed("head", weight=np.full((5, 3), 128)), r"weight holds 128"),
    "linear bias": (changed("head", bias=np.full(5, 2**23)), r"bias holds 8388608"),
    "linear biases": (changed("head", bias=np.zeros(4)), r"bias has shape \(4,\), expected \(5,\)"),
    "pool": (changed("pool", exponent=-25), r"'pool' \(IntegerSumPool2d\): exponent holds -25"),
    "dv": (changed("lif", dv=4097), r"'lif' \(IntegerLIF\): dv holds 4097, expected whole numbers from 0 to 4096"),
    "dv negative": (changed("lif", dv=-1), r"dv holds -1"),
    "du": (changed("lif", du=4096), r"du holds 4096, expected whole numbers from 0 to 4095"),
    "input exponent": (changed("lif", input_exponent=30), r"input_exponent holds 30"),
    "threshold": (changed("lif", threshold=np.full(THREE, 2**17)), r"threshold holds 131072, .* from 0 to 131071"),
    "threshold negative": (changed("lif", threshold=np.full(THREE, -1)), r"threshold holds -1"),
    "thresholds": (changed("lif", threshold=np.ones(3)), r"threshold has shape \(3,\), expected \(3, 1, 1\)"),
    "one threshold": (changed("lif", threshold=np.ones((1, 1, 1))), r"threshold has shape \(1, 1, 1\)"),
    "mantissa": (changed("lif", bias_mantissa=np.full(THREE, 4096)), r"bias_mantissa holds 4096"),
    "bias exponent": (changed("lif", bias_exponent=np.full(THREE, -1)), r"bias_exponent holds -1"),
    "bias": (changed("lif", bias_exponent=np.full(THREE, 12)), r"its bias reaches 16773120, expected at most 8388607"),
    "readout": (changed("sum", scale=0.0), r"'sum' \(TemporalSum\): scale must be positive"),
    "width": (lambda: network({"bits": 4}), r"'conv' \(IntegerConv2d\): weight holds -127, .* from -7 to 7"),
    "bits": (lambda: network({"bits": 9}), r"metadata 'bits' is 9, expected a whole number from 2 to 8"),
    "bits text": (lambda: network({"bits": "eight"}), r"metadata 'bits' is 'eight'"),
    "granularity": (
        lambda: network({"granularity": 3}),
        r"metadata 'granularity' is 3, expected 'channel' or 'tensor'",
    ),
    "time steps": (lambda: network({"time_steps": None}), r"a quantised graph needs 'time_steps' in its metadata"),
    "neuron behind the sum": (
        lambda: graph(
            {"x": inp(3), "s": TemporalSum(1), "l": replace(NODES["head_lif"], dv=1), "y": out(3)},
            [("x", "s"), ("s", "l"), ("l", "y")],
            time_steps=2,
        ),
        r"'l' \(IntegerLIF\) needs a time axis, but stands behind a TemporalSum",
    ),
    "currents into an AND": (
        lambda: graph(
            {**NODES, "and": SpikeAnd(), "z": out(3, 4, 4)},
            [*EDGES, ("conv", "and.a"), ("lif", "and.b"), ("and", "z")],
            time_steps=2,
        ),
        r"'and' \(SpikeAnd\), port 'a': takes one signal of 0/1, but 'conv' \(IntegerConv2d\) gives real values",
    ),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_numbers_out_of_range_are_named(kind: str) -> None:
    make, message = DAMAGE[kind]
    with pytest.raises(GraphError, match=message):
        verify(make())


def test_everything_is_listed() -> None:
    damaged = network(conv=replace(NODES["conv"], exponent=np.full(3, 99)), lif=replace(NODES["lif"], dv=9999, du=9999))
    with pytest.raises(GraphError, match=r"3 problems: 'conv'.*99.*'lif'.*dv holds 9999.*du holds 9999"):
        verify(damaged)
