"""What every node of a quantised graph becomes in Lava: an operation of the bundle, its options and its arrays."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.ranges import Interval
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)

Array = NDArray[Any]


class Ranges(Protocol):
    """How large the numbers of the network get."""

    results: dict[str, Interval]

    def input_magnitude(self, name: str) -> int:
        """Largest magnitude of what a node reads."""


@dataclass
class Planned:
    """An operation of `statten_lava.network`; `latency` in steps."""

    op: str
    options: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    latency: int = 0


def _float_for(name: str, largest: int) -> str:
    """The narrowest float whose whole numbers reach `largest`."""
    for kind, bits in (("float32", 24), ("float64", 53)):
        if largest < 1 << bits:
            return kind
    raise UnsupportedError(f"{name}: sums up to {largest} are not exact in 64-bit floats")


def _sums(planner: Ranges, name: str, weight: Array) -> str:
    rows = np.abs(weight).reshape(len(weight), -1).sum(1).max(initial=0)
    return _float_for(name, int(rows) * max(planner.input_magnitude(name), 1))


def _conv(planner: Ranges, name: str, node: IntegerConv2d) -> Planned:
    geometry = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": int(node.groups)}
    arrays = {"weight": node.weight, "exponent": node.exponent, "bias": node.bias}
    return Planned("conv", {**geometry, "dtype": _sums(planner, name, node.weight)}, arrays)


def _linear(planner: Ranges, name: str, node: IntegerLinear) -> Planned:
    arrays = {"weight": node.weight, "exponent": node.exponent, "bias": node.bias}
    return Planned("linear", {"dtype": _sums(planner, name, node.weight)}, arrays)


def _sum_pool(planner: Ranges, name: str, node: IntegerSumPool2d) -> Planned:
    options = {"kernel": node.kernel_size, "stride": node.stride, "exponent": node.exponent}
    return Planned("sum_pool", options)


def _max_pool(planner: Ranges, name: str, node: MaxPool2d | SpikeMaxPool2d) -> Planned:
    return Planned("max_pool", {"kernel": node.kernel_size, "stride": node.stride, "padding": node.padding})


def _token_pool(planner: Ranges, name: str, node: TokenMaxPool) -> Planned:
    return Planned("token_max_pool", {"heads": int(node.num_heads)})


def _lif(planner: Ranges, name: str, node: IntegerLIF) -> Planned:
    shared = int(node.threshold.flat[0]) if np.ptp(node.threshold) == 0 else None
    arrays = {"bias_mantissa": node.bias_mantissa, "bias_exponent": node.bias_exponent}
    if shared is None:
        arrays["threshold"] = node.threshold
    return Planned("lif", {"du": node.du, "dv": node.dv, "threshold": shared}, arrays)


def _li(planner: Ranges, name: str, node: IntegerLI) -> Planned:
    arrays = {"bias_mantissa": node.bias_mantissa, "bias_exponent": node.bias_exponent}
    return Planned("li", {"du": node.du, "dv": node.dv}, arrays)


def _attention(planner: Ranges, name: str, node: STAttenAttention) -> Planned:
    window = int(node.window)
    options = {
        "mode": node.mode,
        "window": window,
        "heads": int(node.num_heads),
        "groups": int(node.token_groups),
        "dtype": _float_for(name, planner.results[name].magnitude),
    }
    return Planned("attention", options, latency=window - 1 if node.mode == "block" else 0)


def _flatten(planner: Ranges, name: str, node: nir.Flatten) -> Planned:
    return Planned("flatten")


def _and(planner: Ranges, name: str, node: SpikeAnd) -> Planned:
    return Planned("and")


def _temporal_sum(planner: Ranges, name: str, node: TemporalSum) -> Planned:
    return Planned("temporal_sum")


PLANNERS: dict[type[nir.NIRNode], Callable[..., Planned]] = {
    IntegerConv2d: _conv,
    IntegerLinear: _linear,
    IntegerSumPool2d: _sum_pool,
    IntegerLIF: _lif,
    IntegerLI: _li,
    MaxPool2d: _max_pool,
    SpikeMaxPool2d: _max_pool,
    STAttenAttention: _attention,
    SpikeAnd: _and,
    TokenMaxPool: _token_pool,
    TemporalSum: _temporal_sum,
    nir.Flatten: _flatten,
}
"""Every node that becomes a Lava process."""

OUTSIDE: dict[type[nir.NIRNode], str] = {
    nir.Input: "frames",
    InputEncoder: "encoded before the simulation; the integers come from Lava's RingBuffer",
    nir.Output: "recorded",
}
"""Nodes that are the run's surroundings."""

PORTS = {"input": "a_in"}
"""Names of ports in a graph and in Lava, where they differ."""
