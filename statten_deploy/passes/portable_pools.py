"""AvgPool2d and SumPool2d -> what every importer computes alike."""

from math import prod
from typing import Any

import nir
import numpy as np

from statten_deploy.ir.shapes import sizes
from statten_deploy.passes.circuit_parts import Parts, squared
from statten_deploy.passes.rewiring import replace_nodes


def portable_pools(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, bool]:
    """Replace pools that importers drop or read differently: Norse has no AvgPool2d, and none pads a SumPool2d.

    All three compute a SumPool2d as an average times the window's size, which is exact for windows of 2^k values.
    Those, without padding, stay; an average becomes ``p.sum``, a SumPool2d, and ``p.scale``, a 1x1 convolution by
    2^-k. Every other pool becomes one convolution ``p.window`` with equal weights on the channel diagonal.

    Requires: a valid, acyclic graph. Ensures: every pool is a SumPool2d without padding over 2^k values. The values are
    the same where they are sums or averages over 2^k values; other averages may differ in the last bit. Idempotent.
    Returns (graph, whether anything changed).

    Raises:
        GraphError: a cyclic graph, a node that has one of these names already.
    """
    kept = {id(node) for node in graph.nodes.values() if isinstance(node, nir.SumPool2d) and _plain(node)}
    if not any(isinstance(node, POOLS) and id(node) not in kept for node in graph.nodes.values()):
        return graph, False
    return replace_nodes(graph, POOLS, _build, "portable")


POOLS = (nir.AvgPool2d, nir.SumPool2d)


def _plain(node: Any) -> bool:
    area = prod(sizes(node.kernel_size, 2, "kernel_size"))
    return area & (area - 1) == 0 and not np.any(node.padding)


def _build(parts: Parts, name: str, node: Any, fed: dict[str, list[str]]) -> list[str]:
    sources = fed["input"]
    average = isinstance(node, nir.AvgPool2d)
    channels, *grid = parts.shapes[sources[0]]
    kernel, stride, padding = (sizes(getattr(node, f), 2, f) for f in ("kernel_size", "stride", "padding"))
    factor = 1 / prod(kernel) if average else 1.0
    size = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(grid, kernel, stride, padding, strict=True))
    shape = (channels, *size)
    if _plain(node):
        if not average:
            return [parts.add(name, node, shape, *sources)]
        total = nir.SumPool2d(*(np.array(value) for value in (kernel, stride, padding)))
        return [parts.times(f"{name}.scale", factor, parts.add(f"{name}.sum", total, shape, *sources))]
    weight = np.zeros((channels, channels, *kernel), dtype=np.float32)
    weight[np.arange(channels), np.arange(channels)] = factor
    even, around = squared(weight, padding)
    size = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(grid, even.shape[2:], stride, around, strict=True))
    if size == shape[1:]:  # else one more window would fit; `nir.read` wants such a kernel unchecked
        weight, padding = even, around
    bias = np.zeros(channels, dtype=np.float32)
    conv = nir.Conv2d(tuple(grid), weight, stride, padding, (1, 1), 1, bias)
    return [parts.add(f"{name}.window", conv, shape, *sources)]
