"""Which part of a source a part of a layer listens to: receptive fields through any chain of weights and pools.

A part of a signal is one boolean array per axis (a product of index sets). Convolutions and pools map such products
onto products exactly, with stride and dilation; flattening takes the hull.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.energy.fanout import CONVOLUTIONS, LINEAR, WEIGHTED, WINDOWS, Int, fan_in, taps
from statten_deploy.energy.signals import FIRING, GATES, INTEGRATING, Kind
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool
from statten_deploy.ir.graph import Predecessors
from statten_deploy.ir.integer import TemporalSum
from statten_deploy.ir.shapes import Shape, sizes

Part = tuple[NDArray[np.bool_], ...]
"""Per axis, which indices belong to the part."""

ACCUMULATORS = (TemporalMean, TemporalSum)
"""A readout that sums over time takes one neuron per output."""
POPULATIONS = (*FIRING, *INTEGRATING, *GATES, *ACCUMULATORS)
"""Nodes that take neurons on a chip."""


TOKEN_WINDOW = 9
"""Taps of a TokenMaxPool."""


@dataclass(frozen=True)
class Step:
    """One node on the way back: how parts of its output map onto its input."""

    name: str
    node: Any
    shape: Shape
    out: Shape
    back: Callable[[Part], Part]

    @cached_property
    def kernel(self) -> Int:
        """Weights of every output channel of a convolution that are not zero."""
        weight = np.asarray(self.node.weight)
        return np.asarray(np.count_nonzero(weight.reshape(len(weight), -1), axis=1), dtype=np.int64)


class Path:
    """How a layer's neurons hear one source: through `steps`, nearest first."""

    def __init__(self, source: str, steps: tuple[Step, ...]) -> None:
        self.source = source
        self.steps = steps
        self.fan_in = _fan_in(steps[0]) if len(steps) == 1 else None
        """Sources of every neuron, where a single node lies between."""

    def field(self, part: Part) -> Part:
        """What `part` of the layer listens to at the source."""
        for step in self.steps:
            part = step.back(part)
        return part

    def kernels(self, part: Part) -> int:
        """Weights stored for `part` of the layer when all positions share a kernel."""
        found = 0
        for step in self.steps:
            found += _kernels(step, part)
            part = step.back(part)
        return found


def paths(
    name: str, graph: nir.NIRGraph, into: Predecessors, shapes: Mapping[str, Shape], kinds: Mapping[str, Kind]
) -> list[Path]:
    """All ways back from a layer to populations, event inputs and nodes that are computed elsewhere."""
    found: list[Path] = []

    def walk(node_name: str, steps: tuple[Step, ...]) -> None:
        node = graph.nodes[node_name]
        for port, sources in into[node_name].items():
            for source in sources:
                behind = graph.nodes[source]
                follow = steps
                if not isinstance(node, (*FIRING, *INTEGRATING, *ACCUMULATORS)):
                    shape, out = shapes[source], shapes[node_name]
                    follow = (*steps, Step(node_name, node, shape, out, _back(node, port, shape, out)))
                if isinstance(behind, nir.Input):
                    if kinds[source] is Kind.EVENTS:
                        found.append(Path(source, follow))
                elif isinstance(behind, POPULATIONS) or is_elsewhere(source, graph, kinds):
                    found.append(Path(source, follow))
                else:
                    walk(source, follow)

    walk(name, ())
    return found


def is_elsewhere(name: str, graph: nir.NIRGraph, kinds: Mapping[str, Kind]) -> bool:
    """Whether no neurons and synapses compute this node: attention, and the maximum of currents."""
    node = graph.nodes[name]
    return isinstance(node, STAttenAttention) or (isinstance(node, MaxPool2d) and kinds[name] is not Kind.EVENTS)


def whole(shape: Shape) -> Part:
    """Everything."""
    return tuple(np.ones(size, dtype=np.bool_) for size in shape)


def _fan_in(step: Step) -> Int | None:
    node = step.node
    if isinstance(node, SpikeAnd):
        return np.ones(step.out, dtype=np.int64)
    if isinstance(node, TokenMaxPool):
        plane = (node.num_heads, step.shape[0] // node.num_heads, prod(step.shape[1:]))
        return fan_in(SpikeMaxPool2d((3, 3), (1, 1), (1, 1)), plane, plane).reshape(step.out)
    return fan_in(node, step.shape, step.out) if isinstance(node, (*WEIGHTED, *WINDOWS)) else None


def _kernels(step: Step, part: Part) -> int:
    node = step.node
    if isinstance(node, CONVOLUTIONS):
        return int(step.kernel[part[0]].sum())
    if isinstance(node, LINEAR):
        return int(fan_in(node, step.shape, step.out)[np.ix_(*part)].sum())
    if isinstance(node, WINDOWS):
        return prod(sizes(node.kernel_size, 2, "kernel_size"))
    if isinstance(node, TokenMaxPool):
        return TOKEN_WINDOW
    return 1 if isinstance(node, SpikeAnd) else 0


def _back(node: Any, port: str, shape: Shape, out: Shape) -> Callable[[Part], Part]:
    if isinstance(node, CONVOLUTIONS):
        return _through_windows(node, shape, out, int(getattr(node, "groups", 1)))
    if isinstance(node, WINDOWS):
        return _through_windows(node, shape, out, shape[0])
    if isinstance(node, LINEAR):
        return lambda part: (*part[:-1], np.ones(shape[-1], dtype=np.bool_))
    if isinstance(node, nir.Flatten):
        return _through_flatten(node, shape)
    if isinstance(node, TokenMaxPool):
        return _through_token_pool(node, shape)
    if isinstance(node, SpikeAnd) and shape != out:
        return lambda part: (part[0], *(np.ones(1, dtype=np.bool_) for _ in shape[1:]))
    return lambda part: part


def _through_windows(node: Any, shape: Shape, out: Shape, groups: int) -> Callable[[Part], Part]:
    meets = [np.asarray(axis.any(0)) for axis in taps(node, shape, out)]  # [input, output]

    def back(part: Part) -> Part:
        per_group = np.asarray(part[0].reshape(groups, -1).any(1))
        spatial = (np.asarray(meet[:, axis].any(1)) for meet, axis in zip(meets, part[1:], strict=True))
        return (np.repeat(per_group, shape[0] // groups), *spatial)

    return back


def _through_flatten(node: nir.Flatten, shape: Shape) -> Callable[[Part], Part]:
    start, end = (int(d) % len(shape) for d in (node.start_dim, node.end_dim))

    def back(part: Part) -> Part:
        block = part[start].reshape(shape[start : end + 1])
        axes = range(block.ndim)
        hull = (np.asarray(block.any(tuple(other for other in axes if other != axis))) for axis in axes)
        return (*part[:start], *hull, *part[start + 1 :])

    return back


def _through_token_pool(node: TokenMaxPool, shape: Shape) -> Callable[[Part], Part]:
    def widened(axis: NDArray[np.bool_]) -> NDArray[np.bool_]:
        result = axis.copy()
        result[..., 1:] |= axis[..., :-1]
        result[..., :-1] |= axis[..., 1:]
        return result

    def back(part: Part) -> Part:
        channels = widened(part[0].reshape(node.num_heads, -1)).reshape(-1)
        tokens = widened(np.outer(part[1], part[2]).reshape(-1)).reshape(shape[1:])
        return channels, np.asarray(tokens.any(1)), np.asarray(tokens.any(0))

    return back
