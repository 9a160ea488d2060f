"""What travels on every edge: spikes that can be counted, or currents that can only be multiplied.

A neuron's output and what gates and pools make of it are *events*: a site that is not zero is one event, whatever its
value (a graded spike counts once). Everything behind a weight is a *current*.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import nir
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool
from statten_deploy.ir.graph import Predecessors
from statten_deploy.ir.integer import InputEncoder, IntegerLI, IntegerLIF, IntegerSumPool2d, TemporalSum
from statten_deploy.ir.shapes import Shape, sizes
from statten_deploy.ir.verify import SPIKING, delay_steps

Values = NDArray[Any]
"""[T, B, *shape]: bool for spikes, whole numbers for graded events."""

FIRING = (*SPIKING, IntegerLIF)
"""Neurons whose spikes are recorded."""
INTEGRATING = (nir.LI, nir.CubaLI, nir.I, IntegerLI)
"""Neurons that put out their membrane."""
GATES = (SpikeMaxPool2d, SpikeAnd, TokenMaxPool)
"""Boolean operations on spikes. A chip computes them with one neuron per output and weights of one."""


class Kind(Enum):
    """What a node puts out."""

    EVENTS = "events"
    HELD = "the same currents at every step"
    CURRENTS = "currents"
    RESULT = "one value per sample"


def kinds(graph: nir.NIRGraph, into: Predecessors, inputs: Kind) -> dict[str, Kind]:
    """The kind of every node's output. A loop without a neuron that fires carries currents."""
    found: dict[str, Kind] = {}

    def settle(name: str, path: tuple[str, ...]) -> Kind:
        if name in found:
            return found[name]
        if name in path:
            return Kind.CURRENTS
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            kind = inputs
        elif isinstance(node, FIRING):
            kind = Kind.EVENTS
        elif isinstance(node, TemporalMean | TemporalSum):
            kind = Kind.RESULT
        elif isinstance(node, (*INTEGRATING, STAttenAttention)):
            kind = Kind.CURRENTS
        else:
            sources = [settle(source, (*path, name)) for ports in into[name].values() for source in ports]
            kind = _passed_on(node, joined(sources))
        found[name] = kind
        return kind

    for name in graph.nodes:
        settle(name, ())
    return found


def joined(found: list[Kind]) -> Kind:
    """What several edges into one port add up to."""
    for kind in (Kind.EVENTS, Kind.HELD, Kind.RESULT):
        if found and all(other is kind for other in found):
            return kind
    return Kind.CURRENTS


def _passed_on(node: nir.NIRNode, kind: Kind) -> Kind:
    if kind is not Kind.EVENTS:
        return kind
    offset = isinstance(node, InputEncoder) and bool(np.any(node.zero_point))  # then silence is not zero
    return Kind.EVENTS if type(node) in EVENT_OPERATIONS and not offset else Kind.CURRENTS


# what nodes make of events: (node, shape of the output, values per port) -> values


def _windows(x: Values, node: Any, outside: float = 0) -> Values:
    """Every window of the last two axes: [..., H', W', kh, kw]."""
    kernel, stride = sizes(node.kernel_size, 2, "kernel_size"), sizes(node.stride, 2, "stride")
    (ph, pw) = sizes(getattr(node, "padding", 0), 2, "padding")
    padded = np.pad(x, ((0, 0),) * (x.ndim - 2) + ((ph, ph), (pw, pw)), constant_values=outside)
    views = np.asarray(sliding_window_view(padded, kernel, axis=(-2, -1)))  # type: ignore[call-overload]
    return views[..., :: stride[0], :: stride[1], :, :]


def _largest(node: Any, shape: Shape, x: Values) -> Values:
    lowest = 0 if x.dtype.kind == "b" else np.iinfo(np.int64).min if x.dtype.kind == "i" else -np.inf
    windows = _windows(x, node, lowest)  # padding never wins
    result = windows[..., 0, 0].copy()
    for i, j in np.ndindex(*windows.shape[-2:]):
        np.maximum(result, windows[..., i, j], out=result)
    return result


def _sum(node: Any, shape: Shape, x: Values) -> Values:
    return np.asarray(_windows(widened(x), node).sum((-2, -1)))


def widened(x: Values) -> Values:
    """Spikes as numbers that add up; values that a Scale made are numbers already, fractions among them."""
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.int64)


def _integer_sum(node: IntegerSumPool2d, shape: Shape, x: Values) -> Values:
    total = _sum(node, shape, x)
    return total << node.exponent if node.exponent >= 0 else total >> -node.exponent


def _and(node: SpikeAnd, shape: Shape, a: Values, b: Values) -> Values:
    return np.logical_and(a, b)


def _token_max(node: TokenMaxPool, shape: Shape, x: Values) -> Values:
    planes = x.reshape(*x.shape[:2], node.num_heads, shape[0] // node.num_heads, -1)
    return _largest(SpikeMaxPool2d((3, 3), (1, 1), (1, 1)), shape, planes).reshape(x.shape)


def _encode(node: InputEncoder, shape: Shape, x: Values) -> Values:
    scale = node.scale.reshape(-1, *(1,) * (x.ndim - 3))
    return np.clip(np.rint(x / scale), 0, 255).astype(np.int64)


def _flatten(node: nir.Flatten, shape: Shape, x: Values) -> Values:
    return x.reshape(*x.shape[:2], *shape)


def _scale(node: nir.Scale, shape: Shape, x: Values) -> Values:
    return np.asarray(x * np.asarray(node.scale))


def _delay(node: nir.Delay, shape: Shape, x: Values, dt: float) -> Values:
    """What would arrive after the last step never arrives."""
    late, result = np.broadcast_to(delay_steps(node.delay, dt), shape), np.zeros_like(x)
    for steps in np.unique(late[late < len(x)]):
        result[steps:, :, late == steps] = x[: len(x) - steps, :, late == steps]
    return result


def _same(node: nir.NIRNode, shape: Shape, x: Values) -> Values:
    return x


EVENT_OPERATIONS: Mapping[type[nir.NIRNode], Callable[..., Values]] = {
    InputEncoder: _encode,
    nir.Output: _same,
    nir.Flatten: _flatten,
    nir.Scale: _scale,
    nir.Delay: _delay,
    nir.SumPool2d: _sum,
    nir.AvgPool2d: _sum,
    IntegerSumPool2d: _integer_sum,
    SpikeMaxPool2d: _largest,
    MaxPool2d: _largest,
    SpikeAnd: _and,
    TokenMaxPool: _token_max,
}
"""Nodes that turn events into events; a Delay takes `dt`, too. A mean is a sum: only which sites are zero matters."""

PER_EDGE = (nir.Flatten, nir.Scale, nir.Delay)
"""Nodes behind which the spikes of different sources are still apart."""
