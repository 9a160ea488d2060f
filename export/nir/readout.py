"""The mean over time at the end of a network: NIR has no such node, so the file ends before it.

The file's output is one value per step. The Output node's metadata says ``readout = "mean"``: average over the T steps
of a sample to get what the network gives. In a quantised network it says ``"sum"``: add the T integers up, and multiply
by ``readout_scale`` for real values. Our reader puts the node back.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import nir

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.ir.graph import parse_endpoint, successors
from statten_deploy.ir.integer import TemporalSum
from statten_deploy.ir.nodes import TemporalMean


def cut_readout(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, dict[str, dict[str, Any]]]:
    """The graph without its final `TemporalMean` and `TemporalSum` nodes, and Output -> the metadata that says so.

    Raises:
        UnsupportedError: a mean or sum that is not right before one Output.
    """
    cut: dict[str, str] = {}
    after = successors(graph)
    for name, node in graph.nodes.items():
        if not isinstance(node, TemporalMean | TemporalSum):
            continue
        target = after[name][0] if len(after[name]) == 1 else None
        feeding = [source for source, endpoint in graph.edges if parse_endpoint(graph, endpoint)[0] == target]
        if target is None or not isinstance(graph.nodes[target], nir.Output) or feeding != [name]:
            raise UnsupportedError(
                f"{name!r} ({type(node).__name__}): NIR has no mean over time; it can be written only where it alone "
                f"feeds an Output, but it feeds {', '.join(map(repr, after[name])) or 'nothing'}"
            )
        cut[name] = target
    edges = [
        (source, cut.get(parse_endpoint(graph, endpoint)[0], endpoint))
        for source, endpoint in graph.edges
        if source not in cut
    ]
    nodes = {name: node for name, node in graph.nodes.items() if name not in cut}
    told = {target: _told(name, graph.nodes[name]) for name, target in cut.items()}
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False), told


def _told(name: str, node: nir.NIRNode) -> dict[str, Any]:
    if isinstance(node, TemporalSum):
        return {"readout": "sum", "readout_name": name, "readout_scale": node.scale}
    return {"readout": "mean", "readout_name": name}


def restore_readout(graph: nir.NIRGraph, described: Mapping[str, Mapping[str, Any]]) -> nir.NIRGraph:
    """Put back the means and sums that Output nodes ask for; `described` is each node's metadata under ``statten``.

    Raises:
        InputError: a readout this version does not know, a sum without a scale.
    """
    asked: dict[str, str] = {}
    readouts: dict[str, nir.NIRNode] = {}
    for name, text in described.items():
        if not isinstance(graph.nodes.get(name), nir.Output) or "readout" not in text:
            continue
        readouts[name] = _readout(name, text)
        wanted = str(text.get("readout_name", f"{name}_{text['readout']}"))
        free = wanted not in graph.nodes and wanted not in asked.values()
        asked[name] = wanted if free else f"{name}_{text['readout']}"
    nodes: dict[str, nir.NIRNode] = {}
    for name, node in graph.nodes.items():
        if name in asked:
            nodes[asked[name]] = readouts[name]
        nodes[name] = node
    edges: list[tuple[str, str]] = []
    for source, endpoint in graph.edges:
        owner = parse_endpoint(graph, endpoint)[0]
        edges.append((source, asked.get(owner, endpoint)))
    edges += [(readout, name) for name, readout in asked.items()]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)


def _readout(name: str, text: Mapping[str, Any]) -> nir.NIRNode:
    if text["readout"] == "mean":
        return TemporalMean()
    if text["readout"] != "sum":
        raise InputError(f"Output {name!r}: unknown readout {text['readout']!r}; this version knows 'mean' and 'sum'")
    scale = text.get("readout_scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not (isfinite(scale) and scale > 0):
        raise InputError(f"Output {name!r}: readout_scale is {scale!r}, expected a positive number")
    return TemporalSum(scale)
