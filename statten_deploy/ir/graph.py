"""Traversal of a `nir.NIRGraph`: ports, neighbours, order, nesting, hints. Nothing here changes a graph in place."""

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import GraphError

Predecessors = dict[str, dict[str, list[str]]]
"""node -> port -> sources, in edge order."""


def ports(node: nir.NIRNode) -> tuple[str, ...]:
    """The names of a node's input ports: ``("input",)`` for most, ``("q", "k", "v")`` for attention."""
    if isinstance(node, nir.Input):
        return ()
    return tuple(getattr(node, "input_type", None) or ("input",))


def parse_endpoint(graph: nir.NIRGraph, endpoint: str) -> tuple[str, str]:
    """Split the destination of an edge into (node, port).

    ``"head"`` is the node's only port; ``"block.0.attn.statten.q"`` is port ``q`` of ``block.0.attn.statten``.
    A full node name wins over the port reading.

    Raises:
        GraphError: no such node or port.
    """
    node = graph.nodes.get(endpoint)
    if node is not None:
        names = ports(node)
        if len(names) > 1:
            raise GraphError(
                f"edge into {endpoint!r}: the node has ports {', '.join(names)}; name one, as {endpoint}.{names[0]}"
            )
        return endpoint, names[0] if names else "input"
    name, _, port = endpoint.rpartition(".")
    if name not in graph.nodes:
        raise GraphError(f"edge into {endpoint!r}: the graph has no such node")
    if port not in ports(graph.nodes[name]):
        raise GraphError(
            f"edge into {endpoint!r}: node {name!r} has no port {port!r} (it has {', '.join(ports(graph.nodes[name]))})"
        )
    return name, port


def predecessors(graph: nir.NIRGraph) -> Predecessors:
    """For every node, the sources of each of its ports in edge order (the order in which they are summed)."""
    result: Predecessors = {name: {port: [] for port in ports(node)} for name, node in graph.nodes.items()}
    for source, endpoint in graph.edges:
        if source not in graph.nodes:
            raise GraphError(f"edge ({source!r}, {endpoint!r}): the graph has no node {source!r}")
        name, port = parse_endpoint(graph, endpoint)
        result[name].setdefault(port, []).append(source)
    return result


def successors(graph: nir.NIRGraph) -> dict[str, list[str]]:
    """For every node, the nodes its output goes to, in edge order, each once."""
    result: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, endpoint in graph.edges:
        name, _ = parse_endpoint(graph, endpoint)
        if source not in result:
            raise GraphError(f"edge ({source!r}, {endpoint!r}): the graph has no node {source!r}")
        if name not in result[source]:
            result[source].append(name)
    return result


def _sorted(graph: nir.NIRGraph) -> tuple[list[str], list[str]]:
    """Kahn's algorithm: (nodes in order, nodes on or behind a cycle). Ties keep the order of `graph.nodes`."""
    following = successors(graph)
    waiting = {
        name: len({source for sources in into.values() for source in sources})
        for name, into in predecessors(graph).items()
    }
    ready = [name for name, count in waiting.items() if count == 0]
    order: list[str] = []
    while ready:
        name = ready.pop()
        order.append(name)
        for after in reversed(following[name]):
            waiting[after] -= 1
            if waiting[after] == 0:
                ready.append(after)
    done = set(order)
    return order, [name for name in graph.nodes if name not in done]


def is_cyclic(graph: nir.NIRGraph) -> bool:
    """Whether the graph has a loop (a recurrent network)."""
    return bool(_sorted(graph)[1])


def topological_order(graph: nir.NIRGraph) -> list[str]:
    """Node names so that every source stands before its destination.

    Raises:
        GraphError: the graph is cyclic; the message names the nodes.
    """
    order, rest = _sorted(graph)
    if rest:
        shown = ", ".join(repr(name) for name in rest[:6]) + (", ..." if len(rest) > 6 else "")
        raise GraphError(f"the graph is cyclic (recurrent): no order exists for {shown}")
    return order


def order_from(graph: nir.NIRGraph, known: Container[str]) -> list[str]:
    """`topological_order`, or in a cyclic graph an order in which the nodes `known` may be read before their turn.

    Raises:
        GraphError: a loop without a node that is known; the message names the nodes.
    """
    if not is_cyclic(graph):
        return topological_order(graph)
    ahead = [(source, target) for source, target in graph.edges if source not in known]
    return topological_order(nir.NIRGraph(graph.nodes, ahead, metadata=graph.metadata, type_check=False))


def input_names(graph: nir.NIRGraph) -> list[str]:
    """Names of the `nir.Input` nodes."""
    return [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]


def output_names(graph: nir.NIRGraph) -> list[str]:
    """Names of the `nir.Output` nodes."""
    return [name for name, node in graph.nodes.items() if isinstance(node, nir.Output)]


def part(graph: nir.NIRGraph, names: Container[str]) -> nir.NIRGraph:
    """The nodes `names` with the edges between them."""
    nodes = {name: node for name, node in graph.nodes.items() if name in names}
    inner = [(a, b) for a, b in graph.edges if a in nodes and parse_endpoint(graph, b)[0] in nodes]
    return nir.NIRGraph(nodes, inner, metadata=graph.metadata, type_check=False)


def hints(graph: nir.NIRGraph) -> Mapping[str, Any]:
    """What the graph says about itself under ``metadata["statten"]``; empty for a third-party graph."""
    found = graph.metadata.get("statten", {}) if isinstance(graph.metadata, dict) else {}
    return found if isinstance(found, dict) else {}


def _with_arrays(graph: nir.NIRGraph) -> nir.NIRGraph:
    tensors = {
        name: {field: np.asarray(value) for field, value in vars(node).items() if hasattr(value, "detach")}
        for name, node in graph.nodes.items()
        if node is not None
    }
    if not any(tensors.values()):
        return graph
    nodes = {name: replace(node, **tensors[name]) if tensors.get(name) else node for name, node in graph.nodes.items()}
    return nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False)


def inline_subgraphs(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Replace nested `nir.NIRGraph` nodes by their contents, named ``outer.inner``.

    A nested graph's Input and Output nodes disappear: what fed the nested node feeds what its Input fed. Parameters
    that are tensors, as exporters leave them, become arrays.

    Raises:
        GraphError: a nested graph does not have exactly one Input and one Output.
    """
    graph = _with_arrays(graph)
    if not any(isinstance(node, nir.NIRGraph) for node in graph.nodes.values()):
        return graph
    nodes: dict[str, nir.NIRNode] = {}
    entries: dict[str, list[str]] = {}
    exits: dict[str, list[str]] = {}
    inner_edges: list[tuple[str, str]] = []
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            nodes[name] = node
            continue
        inner = inline_subgraphs(node)
        entrances, leaves = input_names(inner), output_names(inner)
        if len(entrances) != 1 or len(leaves) != 1:
            raise GraphError(
                f"subgraph {name!r} has {len(entrances)} inputs and {len(leaves)} outputs; one of each is supported"
            )
        entry, leaf = entrances[0], leaves[0]
        if any(source == entry and target == leaf for source, target in inner.edges):
            raise GraphError(f"subgraph {name!r} passes its input straight to its output; remove that edge")
        for inner_name, inner_node in inner.nodes.items():
            if inner_name not in (entry, leaf):
                full = f"{name}.{inner_name}"
                if full in graph.nodes:
                    raise GraphError(f"node {full!r} exists both inside and beside subgraph {name!r}")
                nodes[full] = inner_node
        entries[name] = [f"{name}.{target}" for source, target in inner.edges if source == entry]
        exits[name] = [f"{name}.{source}" for source, target in inner.edges if target == leaf]
        inner_edges += [(f"{name}.{a}", f"{name}.{b}") for a, b in inner.edges if a != entry and b != leaf]
    edges = [
        (source, target)
        for outer_source, outer_target in graph.edges
        for source in exits.get(outer_source, [outer_source])
        for target in entries.get(outer_target, [outer_target])
    ]
    return nir.NIRGraph(nodes, edges + inner_edges, metadata=graph.metadata, type_check=False)
