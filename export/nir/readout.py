"""The mean over time at the end of a network: NIR has no such node, so the file ends before it.

The file's output is one value per step. The Output node's metadata says ``readout = "mean"``: average over the T steps
of a sample to get what the network gives. Our reader puts the `TemporalMean` back.
"""

from collections.abc import Mapping
from typing import Any

import nir

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.ir.graph import parse_endpoint, successors
from statten_deploy.ir.nodes import TemporalMean


def cut_readout(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, dict[str, str]]:
    """The graph without its final `TemporalMean` nodes, and Output -> name of the mean it lost.

    Raises:
        UnsupportedError: a mean that is not right before one Output.
    """
    cut: dict[str, str] = {}
    after = successors(graph)
    for name, node in graph.nodes.items():
        if not isinstance(node, TemporalMean):
            continue
        target = after[name][0] if len(after[name]) == 1 else None
        feeding = [source for source, endpoint in graph.edges if parse_endpoint(graph, endpoint)[0] == target]
        if target is None or not isinstance(graph.nodes[target], nir.Output) or feeding != [name]:
            raise UnsupportedError(
                f"{name!r} (TemporalMean): NIR has no mean over time; it can be written only where it alone feeds an "
                f"Output, but it feeds {', '.join(map(repr, after[name])) or 'nothing'}"
            )
        cut[target] = name
    means = {mean: target for target, mean in cut.items()}
    edges = [
        (source, means.get(parse_endpoint(graph, endpoint)[0], endpoint))
        for source, endpoint in graph.edges
        if source not in means
    ]
    nodes = {name: node for name, node in graph.nodes.items() if name not in means}
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False), cut


def restore_readout(graph: nir.NIRGraph, described: Mapping[str, Mapping[str, Any]]) -> nir.NIRGraph:
    """Put back the means that Output nodes ask for; `described` is each node's metadata under ``statten``.

    Raises:
        InputError: a readout this version does not know.
    """
    asked: dict[str, str] = {}
    for name, text in described.items():
        if not isinstance(graph.nodes.get(name), nir.Output) or "readout" not in text:
            continue
        if text["readout"] != "mean":
            raise InputError(f"Output {name!r}: unknown readout {text['readout']!r}; this version knows 'mean'")
        wanted = str(text.get("readout_name", f"{name}_mean"))
        asked[name] = wanted if wanted not in graph.nodes and wanted not in asked.values() else f"{name}_mean"
    nodes: dict[str, nir.NIRNode] = {}
    for name, node in graph.nodes.items():
        if name in asked:
            nodes[asked[name]] = TemporalMean()
        nodes[name] = node
    edges: list[tuple[str, str]] = []
    for source, endpoint in graph.edges:
        owner = parse_endpoint(graph, endpoint)[0]
        edges.append((source, asked.get(owner, endpoint)))
    edges += [(mean, name) for name, mean in asked.items()]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)
