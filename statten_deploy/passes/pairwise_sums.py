"""Sums of three and more edges -> sums of two, so that every tool adds in the same order."""

import nir

from statten_deploy.ir.graph import Predecessors, parse_endpoint, predecessors, topological_order
from statten_deploy.ir.nodes import STAttenAttention, TemporalMean
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.ir.verify import time_step
from statten_deploy.passes.circuit_parts import Parts
from statten_deploy.passes.rewiring import origin


def pairwise_sums(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, bool]:
    """Let no port read more than two edges, and what ends the graph one only, which is no attention.

    SpikingJelly and snnTorch add edges in the order of a Python set, which changes from run to run, and float sums
    change with it; a sum of two does not. They return a tuple where several edges lead into an Output,
    as they do from the circuit of an attention.
    ``x.total`` is an identity map (1x1 convolution, or Affine for flat signals) that adds x to what comes before it
    at a port; ports whose sums begin alike share it.

    Requires: a valid, acyclic graph. Ensures: the same values, for sums are from left to right as everywhere in this
    package. Idempotent. Returns (graph, whether anything changed).

    Raises:
        GraphError: a cyclic graph, a node that has one of these names already.
    """
    into, shapes = predecessors(graph), infer_shapes(graph)
    most = {name: _most(graph, into, name) for name in graph.nodes}
    if all(len(sources) <= most[name] for name, ports in into.items() for sources in ports.values()):
        return graph, False
    order = topological_order(graph)
    parts = Parts("portable", time_step(graph), origin(graph, shapes, order))
    parts.shapes = dict(shapes)
    parts.nodes = dict(graph.nodes)
    totals: dict[tuple[str, ...], str] = {}
    done: set[str] = set()
    for source, endpoint in graph.edges:
        name, port = parse_endpoint(graph, endpoint)
        sources = into[name][port]
        if len(sources) <= most[name]:
            parts.edges.append((source, endpoint))
        elif endpoint not in done:
            done.add(endpoint)
            end = len(sources) - (most[name] == 2)
            running = sources[0]
            for length in range(1 if end == 1 else 2, end + 1):
                prefix = tuple(sources[:length])
                if prefix not in totals:
                    wanted = f"{prefix[-1]}.total"
                    label = wanted if wanted not in parts.nodes else f"{wanted}{len(totals)}"
                    totals[prefix] = parts.times(label, 1.0, *dict.fromkeys((running, prefix[-1])))
                running = totals[prefix]
            parts.edges += [(term, endpoint) for term in (running, *sources[end:])]
    return nir.NIRGraph(parts.nodes, parts.edges, metadata=graph.metadata, type_check=False), True


def _most(graph: nir.NIRGraph, into: Predecessors, name: str) -> int:
    """Edges that a port of a node may read."""
    if not isinstance(graph.nodes[name], nir.Output | TemporalMean):
        return 2
    sources = into[name]["input"]
    return 0 if any(isinstance(graph.nodes[source], STAttenAttention) for source in sources) else 1
