"""A whole graph -> stock nodes only: all circuit passes in order, with a budget and a marker for the way back."""

import json
from collections.abc import Iterator
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import UnsupportedError
from statten_deploy.ir.graph import hints, is_cyclic, parse_endpoint
from statten_deploy.ir.integer import is_quantised
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool
from statten_deploy.ir.verify import verify
from statten_deploy.passes.circuit_cost import Cost, circuit_cost
from statten_deploy.passes.circuit_parts import Profile
from statten_deploy.passes.pairwise_sums import pairwise_sums
from statten_deploy.passes.portable_pools import POOLS, portable_pools
from statten_deploy.passes.spike_and_to_circuit import spike_and_to_circuit
from statten_deploy.passes.spike_maxpool_to_circuit import spike_maxpool_to_circuit
from statten_deploy.passes.statten_to_circuit import statten_to_circuit
from statten_deploy.passes.token_maxpool_to_circuit import token_maxpool_to_circuit
from statten_deploy.passes.topological_chain import topological_chain

MAX_CIRCUIT_NEURONS = 2**24
"""Neurons that circuits may have, unless told otherwise. With its share of the weights one takes 40 bytes in core and
170 in portable (CIFAR 2-256, measured), so 16.8 million take 0.7 and 2.9 GB."""

MARKER = "circuits"
"""Key of the hints that says what a lowered graph was made from (JSON)."""

REPLACED: dict[str, type[nir.NIRNode]] = {
    kind.__name__: kind for kind in (STAttenAttention, SpikeAnd, SpikeMaxPool2d, TokenMaxPool, *POOLS)
}
"""Nodes that may be gone after lowering, by the name they have in the marker."""


def lower_to_circuits(
    graph: nir.NIRGraph, profile: Profile = "core", *, max_neurons: int = MAX_CIRCUIT_NEURONS
) -> tuple[nir.NIRGraph, bool]:
    """Replace everything NIR lacks, except a `TemporalMean` at the end, by circuits of stock nodes.

    core: any stock node, fewest neurons. portable: what Norse, SpikingJelly and snnTorch execute, in an order that all
    three keep; it also rewrites pools and sums. Where a block window makes outputs late, the hints say by how much
    (`statten_to_circuit`). The hints also say what the graph was made from, for `raise_circuits`.

    Requires: a valid graph of floats. Ensures: stock nodes and `TemporalMean` only; the same spikes and outputs, late
    ones shifted. Idempotent. Returns (graph, whether anything changed).

    Raises:
        UnsupportedError: a `MaxPool2d`, a quantised graph, a recurrent graph with something to lower, a node outside
            the portable profile (all are named), more than `max_neurons` neurons.
        GraphError: the graph is not valid, or a node has a name of a circuit already.
    """
    if MARKER in hints(graph):
        return graph, False
    verify(graph)
    _refuse(list(_no_circuit(graph)))
    cost = circuit_cost(graph, profile) if _has_work(graph, profile) else {}
    neurons = sum(entry.neurons for entry in cost.values())
    if neurons > max_neurons:
        raise UnsupportedError(_over_budget(cost, neurons, max_neurons))
    lowered, modified = spike_maxpool_to_circuit(graph)
    changed = [modified]
    for lower in (token_maxpool_to_circuit, spike_and_to_circuit):
        lowered, modified = lower(lowered, profile)
        changed.append(modified)
    if profile == "portable":
        for prepare in (portable_pools, pairwise_sums):
            lowered, modified = prepare(lowered)
            changed.append(modified)
    lowered, modified = statten_to_circuit(lowered, profile)
    changed.append(modified)
    if profile == "portable":
        _refuse(list(_not_portable(lowered)))
        lowered, modified = topological_chain(lowered)
        changed.append(modified)
    if not any(changed):
        return graph, False
    metadata = {**lowered.metadata, "statten": {**hints(lowered), MARKER: _describe(graph, lowered, profile)}}
    return nir.NIRGraph(lowered.nodes, lowered.edges, metadata=metadata, type_check=False), True


def _describe(graph: nir.NIRGraph, lowered: nir.NIRGraph, profile: Profile) -> str:
    """The marker: the nodes of a graph in order, those that are gone with their parameters, and the edges."""
    names = list(graph.nodes)
    index = {name: i for i, name in enumerate(names)}
    replaced = {name: _plain(node) for name, node in graph.nodes.items() if name not in lowered.nodes}
    edges = []
    for source, endpoint in graph.edges:
        target, port = parse_endpoint(graph, endpoint)
        edges.append([index[source], index[target], "" if endpoint == target else port])
    return json.dumps({"version": 1, "profile": profile, "nodes": names, "replaced": replaced, "edges": edges})


def _plain(node: Any) -> dict[str, Any]:
    derived = ("metadata", "input_type", "output_type")
    values = {key: np.asarray(value).tolist() for key, value in vars(node).items() if key not in derived}
    return {"op": type(node).__name__, **values}


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UnsupportedError("; ".join(problems))


def _no_circuit(graph: nir.NIRGraph) -> Iterator[str]:
    pools = [name for name, node in graph.nodes.items() if isinstance(node, MaxPool2d)]
    if pools:
        yield (
            f"{', '.join(map(repr, pools))} (MaxPool2d): no circuit of NIR's nodes takes the maximum of real currents; "
            "train with pooling: strided, or use the compact form"
        )
    if is_quantised(graph):
        yield "circuits are made of float graphs; lower before quantising"


def _has_work(graph: nir.NIRGraph, profile: Profile) -> bool:
    work = any(type(node).__name__ in REPLACED and not isinstance(node, POOLS) for node in graph.nodes.values())
    if (work or profile == "portable") and is_cyclic(graph):
        raise UnsupportedError(
            "the graph is recurrent; circuits are built in graphs without loops, use the compact form"
        )
    return work


def _over_budget(cost: dict[str, Cost], neurons: int, budget: int) -> str:
    name, largest = max(cost.items(), key=lambda item: item[1].neurons)
    return (
        f"the circuits would have {neurons:,} neurons, more than the budget of {budget:,} (--max-circuit-neurons); the "
        f"largest is {name!r} with {largest.neurons:,}: {largest.formula}; raise the budget or use the compact form"
    )


def _not_portable(graph: nir.NIRGraph) -> Iterator[str]:
    """What Norse, SpikingJelly and snnTorch do not execute alike, node by node."""
    for name, node in graph.nodes.items():
        reason = _why_not(node)
        if reason:
            yield f"{name!r} ({type(node).__name__}): {reason}; use the core profile"


def _why_not(node: Any) -> str | None:
    if isinstance(node, nir.LIF):
        if np.any(node.v_leak) or np.any(node.v_reset) or np.any(np.asarray(node.r) != 1):
            return "portable neurons have r = 1 and leak and reset to 0"
        if any(np.ptp(value) for value in (node.tau, node.v_threshold)):
            return "portable neurons have one tau and one threshold for the layer"
        return None
    if isinstance(node, nir.Conv2d):
        return "importers refuse grouped convolutions" if int(node.groups) != 1 else None
    if isinstance(node, nir.Input | nir.Output | nir.Affine | nir.Linear | nir.Flatten | nir.SumPool2d | TemporalMean):
        return None
    return "not every importer executes it"
