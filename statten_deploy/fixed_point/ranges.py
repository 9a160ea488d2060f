"""How large the integers of a quantised graph can get, whatever the input: interval arithmetic per channel.

An emitter that computes in a narrower type, or leaves out a wrap or a saturation, does so by these bounds; the
quantiser proves with them that currents stay inside the 24-bit state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from statten_deploy.fixed_point.arithmetic import (
    CURRENT_SHIFT,
    DECAY_BITS,
    NO_SYNAPTIC_MEMORY,
    STATE_BITS,
    STATE_MAX,
    Int,
    shift,
    truncate,
)
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool, predecessors
from statten_deploy.ir.graph import hints, order_from
from statten_deploy.ir.integer import (
    INTEGER_NEURONS,
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.shapes import Shape, infer_shapes

CURRENT_LIMIT = 1 << (STATE_BITS - 1 - CURRENT_SHIFT)
"""Inputs of a neuron without synaptic memory stay clear of the wrap while ``-2^17 < a <= 2^17``."""


@dataclass(frozen=True)
class Interval:
    """``low <= value <= high`` per channel [C], the leading axis of a signal."""

    low: Int
    high: Int

    @property
    def magnitude(self) -> int:
        """Largest absolute value."""
        return int(np.maximum(np.abs(self.low), np.abs(self.high)).max(initial=0))

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.low + other.low, self.high + other.high)

    def shifted(self, exponent: int | Int) -> "Interval":
        """Both ends shifted: floor is monotonic."""
        return Interval(shift(self.low, exponent), shift(self.high, exponent))

    def times(self, count: int) -> "Interval":
        """A sum of up to `count` such values; some may be padding, which is 0."""
        return Interval(count * np.minimum(self.low, 0), count * np.maximum(self.high, 0))


def integer_ranges(graph: nir.NIRGraph, *, endless: bool = False) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """(of the result of every node, of the input sum ``a`` of every neuron layer, after its `input_exponent`).

    Neurons give 0 or 1 whatever reaches them, which bounds every loop with neurons; a current is bounded by its
    positive and its negative weights. `endless`: integrators go on beyond the steps of a sample.

    Raises:
        GraphError: a loop without neurons that fire.
    """
    shapes, into = infer_shapes(graph), predecessors(graph)
    steps = int(hints(graph).get("time_steps", 1))
    results: dict[str, Interval] = {}
    currents: dict[str, Interval] = {}
    fires = {name: node for name, node in graph.nodes.items() if isinstance(node, IntegerLIF)}
    for name, node in fires.items():
        results[name] = _lif(node, [], (), shapes[name], steps)
    for name in order_from(graph, fires):
        node = graph.nodes[name]
        ports = [_total([results[source] for source in sources]) for sources in into[name].values()]
        if isinstance(node, INTEGER_NEURONS):
            currents[name] = ports[0].shifted(node.input_exponent)
        given = shapes[next(iter(into[name].values()))[0]] if into[name] else ()
        results[name] = RANGES[type(node)](node, ports, given, shapes[name], steps)
        if endless and isinstance(node, IntegerLI):  # saturation bounds them
            results[name] = Interval(np.full(node.shape[0], -STATE_MAX), np.full(node.shape[0], STATE_MAX))
    return results, currents


def _total(intervals: list[Interval]) -> Interval:
    total = intervals[0]
    for interval in intervals[1:]:
        total = total + interval
    return total


def _same(node: Any, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    return ports[0]


def _input(node: Any, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    return Interval(np.zeros(gives[0], dtype=np.int64), np.zeros(gives[0], dtype=np.int64))  # real: see the encoder


def _encoder(node: InputEncoder, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    return Interval(-node.zero_point, 255 - node.zero_point)


def _weighted(weight: Int, inputs: Interval, groups: int) -> Interval:
    out, per_group = weight.shape[:2]
    flat = weight.reshape(groups, out // groups, per_group, -1)
    low, high = (np.asarray(end).reshape(groups, 1, per_group, 1) for end in (inputs.low, inputs.high))
    low, high = np.minimum(low, 0), np.maximum(high, 0)  # padding is 0
    positive, negative = np.maximum(flat, 0), np.minimum(flat, 0)
    least = (positive * low + negative * high).sum((2, 3)).reshape(out)
    most = (positive * high + negative * low).sum((2, 3)).reshape(out)
    return Interval(least, most)


def _conv(node: IntegerConv2d, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    inputs = _weighted(node.weight, ports[0], node.groups).shifted(node.exponent)
    return Interval(inputs.low + node.bias, inputs.high + node.bias)


def _linear(node: IntegerLinear, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    inputs = _weighted(node.weight, _spread(ports[0], node.weight.shape[1]), 1).shifted(node.exponent)
    return Interval(inputs.low + node.bias, inputs.high + node.bias)


def _spread(interval: Interval, size: int) -> Interval:
    """One interval per element of a flattened signal, channel by channel."""
    each = size // len(interval.low)
    return Interval(np.repeat(interval.low, each), np.repeat(interval.high, each))


def _lif(node: IntegerLIF, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    return Interval(np.zeros(gives[0], dtype=np.int64), np.ones(gives[0], dtype=np.int64))


def _li(node: IntegerLI, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    return membranes(node, ports[0].shifted(node.input_exponent), steps)


def membranes(node: IntegerLI, a: Interval, steps: int) -> Interval:
    """Bounds of the membranes of integrators over so many steps; saturation bounds them in any case."""
    bias = shift(node.bias_mantissa, node.bias_exponent).reshape(-1)
    kept, recalled = (1 << DECAY_BITS) - node.dv, NO_SYNAPTIC_MEMORY - node.du
    zeros = np.zeros(node.shape[0], dtype=np.int64)
    v = u = seen = Interval(zeros, zeros)
    for _ in range(steps):
        u = Interval(truncate(u.low * recalled), truncate(u.high * recalled)) + a.shifted(CURRENT_SHIFT)
        u = wrapped(u)
        low, high = truncate(v.low * kept) + u.low + bias, truncate(v.high * kept) + u.high + bias
        v = Interval(np.clip(low, -STATE_MAX, STATE_MAX), np.clip(high, -STATE_MAX, STATE_MAX))
        seen = Interval(np.minimum(seen.low, v.low), np.maximum(seen.high, v.high))
    return seen


def wrapped(u: Interval) -> Interval:
    """Bounds after one turn of the register, which may not be enough; channels that stay inside it keep theirs."""
    half, full = 1 << (STATE_BITS - 1), 1 << STATE_BITS
    over = (u.high > half) | (u.low <= -half)
    low, high = np.minimum(u.low + full, 1 - half), np.maximum(u.high - full, half)
    return Interval(np.where(over, low, u.low), np.where(over, high, u.high))


def _sum_pool(node: IntegerSumPool2d, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    return ports[0].times(int(np.prod(node.kernel_size))).shifted(node.exponent)


def _attention(node: STAttenAttention, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    """``A = Q KV``: d products of at most window · n coincidences."""
    C, H, W = gives
    most = (C // node.num_heads) * node.window * (H * W // node.token_groups)
    peak = int(np.prod([port.magnitude for port in ports]))
    return Interval(np.zeros(C, dtype=np.int64), np.full(C, most * peak))


def _and(node: SpikeAnd, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    low, high = ([getattr(port, end) for port in ports] for end in ("low", "high"))
    corners = np.stack([a * b for a in (low[0], high[0]) for b in (low[1], high[1])])
    return Interval(corners.min(0), corners.max(0))


def _token_pool(node: TokenMaxPool, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    """The pool crosses channels: one interval for all."""
    return Interval(np.full(gives[0], ports[0].low.min()), np.full(gives[0], ports[0].high.max()))


def _flatten(node: nir.Flatten, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    return _spread(ports[0], gives[0])


def _temporal_sum(node: TemporalSum, ports: list[Interval], given: Shape, gives: Shape, steps: int) -> Interval:
    return ports[0].times(steps)


RANGES: dict[type[nir.NIRNode], Callable[..., Interval]] = {
    nir.Input: _input,
    nir.Output: _same,
    nir.Flatten: _flatten,
    InputEncoder: _encoder,
    IntegerConv2d: _conv,
    IntegerLinear: _linear,
    IntegerLIF: _lif,
    IntegerLI: _li,
    IntegerSumPool2d: _sum_pool,
    MaxPool2d: _same,
    SpikeMaxPool2d: _same,
    STAttenAttention: _attention,
    SpikeAnd: _and,
    TokenMaxPool: _token_pool,
    TemporalSum: _temporal_sum,
}
"""Every node of a quantised graph."""
