"""Circuits -> the operations they compute: those of a marked graph all at once, ORs of spikes by their structure."""

from typing import Any

import nir
import numpy as np

from statten_deploy.ir.graph import parse_endpoint, predecessors, successors
from statten_deploy.ir.nodes import SpikeMaxPool2d
from statten_deploy.ir.shapes import explicit_padding, sizes
from statten_deploy.ir.verify import time_step
from statten_deploy.passes.latency import BINARY
from statten_deploy.passes.raise_lowered import raise_lowered
from statten_deploy.passes.spike_maxpool_to_circuit import GATE, OR


def raise_circuits(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, bool]:
    """Turn a graph that `lower_to_circuits` made back into what it was, else every OR into one `SpikeMaxPool2d`.

    The first is `raise_lowered`. Without its marker, or where the graph is not what the marker says, a
    convolution-and-gate pair becomes a pool where all of this holds, whatever the names:
    a Conv2d (groups 1, dilation 1, bias 0, padding at most half the kernel) has ones on the channel diagonal and
    zeros elsewhere; one node that emits 0/1 feeds it, by one edge; it feeds one LIF and nothing else; nothing else
    feeds that LIF; and the LIF is a gate: tau between dt and dt (1 + 1e-4), r = 1, v_leak = v_reset = 0, one threshold
    between 0.01 and 0.99. Then v is below the threshold on a count of 0 and above it on 1 or more, whatever came
    before. It must not fire on real-valued input, nor on a neuron that remembers.

    Requires: a valid graph; dt from its hints, else 1e-4 s. Ensures: the same spikes; the pair ``p.or``, ``p.gate``
    becomes ``p``, a pair with other names takes the name of its LIF. Idempotent. Returns (graph, changed).
    """
    raised, changed = raise_lowered(graph)
    if changed:
        return raised, True
    pairs = _pairs(graph)
    if not pairs:
        return graph, False
    renamed: dict[str, str] = {}
    nodes: dict[str, nir.NIRNode] = {}
    for name, node in graph.nodes.items():
        if name in pairs:
            conv: Any = node
            pooled = _pool_name(graph, name, pairs[name])
            renamed[name] = renamed[pairs[name]] = pooled
            padding = [before for before, _ in explicit_padding(conv)]
            nodes[pooled] = SpikeMaxPool2d(conv.weight.shape[2:], sizes(conv.stride, 2, "stride"), tuple(padding))
        elif name not in pairs.values():
            nodes[name] = node
    edges = []
    for source, target in graph.edges:
        owner = parse_endpoint(graph, target)[0]
        if source not in pairs:
            edges.append((renamed.get(source, source), renamed.get(owner, target)))
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False), True


def _pool_name(graph: nir.NIRGraph, conv: str, lif: str) -> str:
    name = conv.removesuffix(OR)
    return name if conv != name and lif == name + GATE and name not in graph.nodes else lif


def _pairs(graph: nir.NIRGraph) -> dict[str, str]:
    """convolution -> gate, for every pair that is an OR."""
    into, after = predecessors(graph), successors(graph)
    found = {}
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.Conv2d) or len(after[name]) != 1:
            continue
        (lif,) = after[name]
        sources = into[name]["input"]
        if (
            [name] == [source for group in into[lif].values() for source in group]
            and len(sources) == 1
            and isinstance(graph.nodes[sources[0]], BINARY)
            and _is_gate(graph.nodes[lif], time_step(graph))
            and _counts_per_channel(node)
        ):
            found[name] = lif
    return found


def _counts_per_channel(conv: Any) -> bool:
    weight = np.asarray(conv.weight)
    if weight.ndim != 4 or weight.shape[0] != weight.shape[1] or int(conv.groups) != 1:
        return False
    diagonal = weight[np.arange(len(weight)), np.arange(len(weight))]
    if not (diagonal == 1).all() or np.count_nonzero(weight) != diagonal.size:
        return False
    if conv.bias is not None and np.any(conv.bias):
        return False
    padding = explicit_padding(conv)
    fits = all(a == b and 2 * a <= kernel for (a, b), kernel in zip(padding, weight.shape[2:], strict=True))
    return fits and sizes(conv.dilation, 2, "dilation") == (1, 1)


def _is_gate(node: nir.NIRNode, dt: float) -> bool:
    if not isinstance(node, nir.LIF):
        return False
    tau = np.asarray(node.tau, dtype=np.float64) / dt
    threshold = np.asarray(node.v_threshold)
    return bool(
        (tau >= 1 - 1e-6).all()
        and (tau <= 1 + 1e-4).all()
        and np.all(np.asarray(node.r) == 1)
        and not np.any(node.v_leak)
        and not np.any(node.v_reset)
        and (threshold >= 0.01).all()
        and (threshold <= 0.99).all()
    )
