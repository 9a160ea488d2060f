"""q, k and v as one layer: their convolutions read the same spikes, so that one product, one layer of neurons and one
pool can stand for all three, in front of an attention that takes them as channels of one signal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from statten_deploy.export.onnx.builder import Shape
from statten_deploy.export.onnx.integer.attention import JointAttention
from statten_deploy.fixed_point.ranges import Interval
from statten_deploy.ir.graph import parse_endpoint, predecessors, successors
from statten_deploy.ir.integer import IntegerConv2d, IntegerLIF
from statten_deploy.ir.nodes import SpikeMaxPool2d, STAttenAttention


@dataclass
class Known:
    """What is known of the nodes of a graph: shapes and ranges of results, ranges of the currents of neurons."""

    shapes: dict[str, Shape]
    ranges: dict[str, Interval]
    currents: dict[str, Interval]


@dataclass(frozen=True)
class Part:
    """The channels of a joint layer that one of the layers was: one of `sizes`."""

    layer: str
    sizes: tuple[int, ...]
    index: int


def fuse_heads(graph: nir.NIRGraph, known: Known) -> tuple[nir.NIRGraph, dict[str, Part]]:
    """The graph with joint layers where that is possible, and what became of the layers; `known` learns of the new.

    It is possible where the three chains in front of an attention have the same nodes, feed nobody else, and differ in
    numbers per channel only.
    """
    nodes, edges = dict(graph.nodes), list(graph.edges)
    readers = {endpoint: parse_endpoint(graph, endpoint)[0] for _, endpoint in edges}
    into, after = predecessors(graph), successors(graph)
    parts: dict[str, Part] = {}
    for name, node in graph.nodes.items():
        if not isinstance(node, STAttenAttention):
            continue
        chains = _chains(graph, name, into, after)
        if chains is None:
            continue
        source = into[chains[0][0]]["input"]
        above = tuple(source)
        gone = {member for chain in chains for member in chain}
        edges = [(a, z) for a, z in edges if a not in gone and readers.get(z, z) not in gone]
        for members in zip(*chains, strict=True):
            joint = "+".join((members[0], *(member.rpartition(".")[2] for member in members[1:])))
            nodes[joint] = _joined([graph.nodes[member] for member in members])
            edges += [(a, joint) for a in above]
            above, sizes = (joint,), tuple(known.shapes[member][0] for member in members)
            for index, member in enumerate(members):
                parts[member] = Part(joint, sizes, index)
                del nodes[member]
            _learn(known, joint, members)
        nodes[name] = JointAttention(node)
        edges.append((above[0], name))
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False), parts


def _chains(
    graph: nir.NIRGraph, attention: str, into: Mapping[str, Mapping[str, list[str]]], after: Mapping[str, list[str]]
) -> list[list[str]] | None:
    """The three chains from the convolution on, if they can be joined."""
    chains = []
    for sources in into[attention].values():
        chain: list[str] = []
        above, reader = sources, attention
        while len(above) == 1 and after[above[0]] == [reader]:
            chain.insert(0, above[0])
            reader, above = above[0], into[above[0]].get("input", [])
            if isinstance(graph.nodes[reader], IntegerConv2d):
                break
        chains.append(chain)
    kinds = [[type(graph.nodes[member]) for member in chain] for chain in chains]
    allowed = ([IntegerConv2d, IntegerLIF], [IntegerConv2d, IntegerLIF, SpikeMaxPool2d])
    if kinds[0] not in allowed or any(kind != kinds[0] for kind in kinds):
        return None
    if len({chain[0] for chain in chains}) < len(chains):  # one layer on several ports
        return None
    same_source = all(into[chain[0]] == into[chains[0][0]] for chain in chains)
    alike = all(
        _settings(graph.nodes[member]) == _settings(graph.nodes[members[0]])
        for members in zip(*chains, strict=True)
        for member in members
    )
    return chains if same_source and alike and _settings(graph.nodes[chains[0][0]])[-1] == 1 else None


def _settings(node: Any) -> tuple[Any, ...]:
    """Everything that is not a number per channel."""
    if isinstance(node, IntegerConv2d):
        return (node.weight.shape[1:], node.stride, node.padding, node.dilation, node.groups)
    if isinstance(node, IntegerLIF):
        return (node.dv, node.du, node.input_exponent, node.shape[1:])
    return (node.kernel_size, node.stride, node.padding)


def _joined(nodes: Sequence[Any]) -> nir.NIRNode:
    first = nodes[0]

    def all_of(field: str) -> Any:
        return np.concatenate([getattr(node, field) for node in nodes])

    if isinstance(first, IntegerConv2d):
        return replace(first, **{field: all_of(field) for field in ("weight", "exponent", "scale", "bias")})
    if isinstance(first, IntegerLIF):
        fields = ("threshold", "bias_mantissa", "bias_exponent")
        shape = (sum(node.shape[0] for node in nodes), *first.shape[1:])
        return replace(first, **{field: all_of(field) for field in fields}, shape=shape)
    return replace(first)


def _learn(known: Known, joint: str, members: Sequence[str]) -> None:
    shapes = [known.shapes[member] for member in members]
    known.shapes[joint] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    for table in (known.ranges, known.currents):
        if members[0] in table:
            ends = [np.concatenate([getattr(table[m], end) for m in members]) for end in ("low", "high")]
            table[joint] = Interval(*ends)
