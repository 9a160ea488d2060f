"""Replacing single nodes of a graph by circuits."""

from collections.abc import Callable
from typing import Any

import nir

from statten_deploy.ir.graph import predecessors, topological_order
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.ir.verify import time_step
from statten_deploy.passes.circuit_parts import Parts, Profile

Builder = Callable[[Parts, str, Any, dict[str, list[str]]], list[str]]
"""(parts, name, node, sources per port) -> the nodes whose sum stands for the node's output."""


def replace_nodes(
    graph: nir.NIRGraph, kinds: tuple[type[nir.NIRNode], ...], build: Builder, profile: Profile
) -> tuple[nir.NIRGraph, bool]:
    """(graph with every node of `kinds` replaced by what `build` adds, whether there was one); others stay."""
    if not any(isinstance(node, kinds) for node in graph.nodes.values()):
        return graph, False
    shapes, into = infer_shapes(graph), predecessors(graph)
    order = topological_order(graph)
    parts = Parts(profile, time_step(graph), origin(graph, shapes, order))
    parts.shapes = {name: shapes[name] for name in order}
    parts.nodes = {name: node for name, node in graph.nodes.items() if not isinstance(node, kinds)}
    stands_for = {name: [name] for name in parts.nodes}
    for name in order:
        node = graph.nodes[name]
        fed = {port: [part for s in sources for part in stands_for[s]] for port, sources in into[name].items()}
        if isinstance(node, kinds):
            stands_for[name] = build(parts, name, node, fed)
        else:
            single = len(fed) == 1
            parts.edges += [(s, name if single else f"{name}.{port}") for port, group in fed.items() for s in group]
    return nir.NIRGraph(parts.nodes, parts.edges, metadata=graph.metadata, type_check=False), True


def origin(graph: nir.NIRGraph, shapes: dict[str, tuple[int, ...]], order: list[str]) -> tuple[str, tuple[int, ...]]:
    """The first node with a signal [C, H, W], in order of execution; the first node where there is none."""
    name = next((name for name in order if len(shapes[name]) == 3), order[0])
    return name, shapes[name]
