"""A graph that `lower_to_circuits` made -> the graph it was made from."""

import json
from collections import defaultdict
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import StattenError
from statten_deploy.ir.graph import hints, parse_endpoint
from statten_deploy.passes.circuit_parts import same_node
from statten_deploy.passes.lower_to_circuits import MARKER, REPLACED, lower_to_circuits

LATENCY = ("latency_steps", "latency")


def raise_lowered(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, bool]:
    """Put attention, ANDs and pools back where their circuits stand, and take out delays, clocks and links.

    Fires where the hints hold the marker of `lower_to_circuits` and it is true: the graph that it describes, with the
    weights of this one, is lowered again and must give this very graph: the same nodes with equal parameters, the same
    edges in the same order at every port, the same latencies. It must not fire on a circuit that was changed in any
    number: that is left as the stock nodes it consists of.

    Requires: a valid graph. Ensures: the graph that was lowered, weights included. Idempotent.
    Returns (graph, whether anything changed).
    """
    marker = hints(graph).get(MARKER)
    if not isinstance(marker, str):
        return graph, False
    try:
        told = json.loads(marker)
        described = _described(graph, told)
        again, _ = lower_to_circuits(described, told["profile"], max_neurons=_neurons(graph))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, StattenError):
        return graph, False  # not a marker of ours, or not a true one
    return (described, True) if _same(graph, again) else (graph, False)


def _described(graph: nir.NIRGraph, told: dict[str, Any]) -> nir.NIRGraph:
    """The graph that a marker speaks of, with the nodes of this one where they were kept."""
    if told["version"] != 1 or told["profile"] not in ("core", "portable"):
        raise ValueError("unknown marker")
    nodes: dict[str, nir.NIRNode] = {}
    for name in told["nodes"]:
        if name in told["replaced"]:
            values = dict(told["replaced"][name])
            kind = REPLACED[values.pop("op")]
            nodes[name] = kind(**{k: np.array(v) if isinstance(v, list) else v for k, v in values.items()})
        else:
            nodes[name] = graph.nodes[name]
    names = list(nodes)
    edges = [(names[a], f"{names[b]}.{port}" if port else names[b]) for a, b, port in told["edges"]]
    kept = {key: value for key, value in hints(graph).items() if key not in (MARKER, *LATENCY)}
    metadata = {key: value for key, value in graph.metadata.items() if key != "statten"}
    return nir.NIRGraph(nodes, edges, metadata=metadata | ({"statten": kept} if kept else {}), type_check=False)


def _neurons(graph: nir.NIRGraph) -> int:
    """An upper bound for the circuits in a graph: a marker cannot ask for more than the file holds already."""
    return sum(int(node.tau.size) for node in graph.nodes.values() if isinstance(node, nir.LIF))


def _same(a: nir.NIRGraph, b: nir.NIRGraph) -> bool:
    if a.nodes.keys() != b.nodes.keys() or _sources(a) != _sources(b):
        return False
    if any(hints(a).get(key) != hints(b).get(key) for key in LATENCY):
        return False
    return all(same_node(node, b.nodes[name]) for name, node in a.nodes.items())


def _sources(graph: nir.NIRGraph) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for source, endpoint in graph.edges:
        found[parse_endpoint(graph, endpoint)].append(source)
    return dict(found)
