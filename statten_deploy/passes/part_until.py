"""A graph -> the part of it that leads to one neuron layer."""

import nir
import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.ir.graph import Predecessors, predecessors, topological_order
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.ir.verify import SPIKING


def part_until(graph: nir.NIRGraph, layer: str) -> nir.NIRGraph:
    """The layer and everything it depends on, with one Output: that layer's spikes.

    Requires: a graph without loops. Ensures: nodes are the same objects, edges keep their order, hints stay.

    Raises:
        InputError: no neuron layer of that name; the message lists them.
    """
    if not isinstance(graph.nodes.get(layer), SPIKING):
        layers = ", ".join(name for name in topological_order(graph) if isinstance(graph.nodes[name], SPIKING))
        raise InputError(f"--until {layer}: is not a neuron layer of the graph; these are: {layers or 'none'}")
    needed = set(upstream(predecessors(graph), layer))
    nodes = {name: node for name, node in graph.nodes.items() if name in needed}
    edges = [(source, target) for source, target in graph.edges if source in nodes and _inside(target, nodes)]
    output = "spikes" if "spikes" not in nodes else f"{layer}.spikes"
    nodes[output] = nir.Output({"output": np.array(infer_shapes(graph)[layer])})
    return nir.NIRGraph(nodes, [*edges, (layer, output)], metadata=graph.metadata, type_check=False)


def upstream(into: Predecessors, name: str) -> list[str]:
    """The node and everything it depends on."""
    needed, waiting = [name], [name]
    while waiting:
        for sources in into[waiting.pop()].values():
            fresh = [source for source in dict.fromkeys(sources) if source not in needed]
            needed += fresh
            waiting += fresh
    return needed


def _inside(endpoint: str, nodes: dict[str, nir.NIRNode]) -> bool:
    """Whether an edge ends at a kept node, or at a port of one."""
    return endpoint in nodes or endpoint.rpartition(".")[0] in nodes
