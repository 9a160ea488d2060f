"""One path through all nodes, so that importers that run depth first meet every node after its sources."""

from itertools import pairwise

import nir
import numpy as np

from statten_deploy.errors import UnsupportedError
from statten_deploy.ir.graph import predecessors, topological_order
from statten_deploy.ir.nodes import TemporalMean
from statten_deploy.ir.shapes import Shape, infer_shapes
from statten_deploy.ir.verify import time_step
from statten_deploy.passes.circuit_parts import Parts

LINK = "link"
"""Prefix of the nodes that only set the order: ``link<i>``, maps of zeros."""

SMALL = 4096
"""Weights that one link may have; through one value it takes fewer."""


def topological_chain(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, bool]:
    """Give every two successive nodes of one topological order an edge, by weights of zero where there is none.

    Norse runs nodes depth first, so that a node with two parents may read one of them a step late. Along a path through
    all nodes, whose edges each source lists first (`write_nir` does), depth first is that order. ``link<i>`` is a
    convolution of zeros, ``link<i>.in`` before it narrows signals to one value; signals without a grid take an
    Affine of zeros, behind a Flatten where they follow a grid.

    Requires: a valid, acyclic graph of stock nodes with one Input. Ensures: exactly one topological order exists; every
    value is the same (zeros are added to sums). What ends the graph, Outputs and means before them, is left out.
    Idempotent. Returns (graph, whether anything changed).

    Raises:
        GraphError: a cyclic graph. UnsupportedError: a flat signal before one with a grid.
    """
    shapes, into = infer_shapes(graph), predecessors(graph)
    order = topological_order(graph)
    ends = {name for name in order if isinstance(graph.nodes[name], nir.Output | TemporalMean)}
    flat = {name for name in order if {1} & {len(shapes[name]), len(_given(name, graph, into, shapes))}} - ends
    order = [name for name in order if name not in flat | ends] + [name for name in order if name in flat]
    joined = set(graph.edges)
    gaps = [(a, b) for a, b in pairwise(order) if (a, b) not in joined]
    if not gaps:
        return graph, False
    parts = Parts("portable", time_step(graph), (order[0], shapes[order[0]]))
    parts.nodes, parts.edges, parts.shapes = dict(graph.nodes), list(graph.edges), dict(shapes)
    for index, (a, b) in enumerate(gaps):
        parts.edges.append((_link(parts, f"{LINK}{index}", a, b, _given(b, graph, into, shapes)), b))
    return nir.NIRGraph(parts.nodes, parts.edges, metadata=graph.metadata, type_check=False), True


def _given(name: str, graph: nir.NIRGraph, into: dict[str, dict[str, list[str]]], shapes: dict[str, Shape]) -> Shape:
    """The shape a node reads; () for an Input."""
    sources = [source for group in into[name].values() for source in group]
    return shapes[sources[0]] if sources else ()


def _link(parts: Parts, name: str, a: str, b: str, target: Shape) -> str:
    """Zeros of shape `target` from the output of `a`."""
    source = parts.shapes[a]
    if len(target) == 3 and len(source) == 3:
        if source[1:] == target[1:] and source[0] * target[0] <= SMALL:
            return parts.conv(name, np.zeros((target[0], source[0]), dtype=np.float32), 0, a)
        around = (target[1] - 1, target[2] - 1)  # with stride 2 these margins give just the size wanted
        return parts.conv(
            name, np.zeros((target[0], 1), dtype=np.float32), 0, _narrow(parts, name, a), padding=around, stride=(2, 2)
        )
    if len(target) == 1 and len(source) == 3:
        narrow = _narrow(parts, name, a)
        shape = np.array((1, 1, 1))
        a = parts.add(f"{name}.flat", nir.Flatten({"input": shape}, 0, -1), (1,), narrow)
    elif len(target) != 1 or len(source) != 1:
        raise UnsupportedError(
            f"{a!r} {source} runs before {b!r}, which reads {target}: no stock node leads back to a grid"
        )
    weight = np.zeros((target[0], parts.shapes[a][0]), dtype=np.float32)
    return parts.add(name, nir.Affine(weight, np.zeros(target, dtype=np.float32)), target, a)


def _narrow(parts: Parts, name: str, source: str) -> str:
    channels, height, width = parts.shapes[source]
    return parts.conv(f"{name}.in", np.zeros((1, channels), dtype=np.float32), 0, source, stride=(height, width))
