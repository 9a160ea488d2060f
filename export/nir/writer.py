"""Writing a graph as a NIR file."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.nir.compact import COMPACT_NODES, FORMAT, to_subgraph
from statten_deploy.export.nir.hdf5 import write_file
from statten_deploy.export.nir.integers import INTEGER_NODES, lower_integers
from statten_deploy.export.nir.names import written_names
from statten_deploy.export.nir.readout import cut_readout
from statten_deploy.export.nir.stock import STOCK_NODES, normalised
from statten_deploy.ir.graph import (
    hints,
    inline_subgraphs,
    is_cyclic,
    parse_endpoint,
    ports,
    predecessors,
    successors,
    topological_order,
)
from statten_deploy.ir.integer import TemporalSum
from statten_deploy.ir.nodes import SpikeMaxPool2d, TemporalMean
from statten_deploy.ir.shapes import Shape, infer_shapes
from statten_deploy.ir.verify import verify
from statten_deploy.passes import spike_maxpool_to_circuit


@dataclass(frozen=True)
class WriteReport:
    """What was written.

    forms: every node of the graph with the form it took: ``stock``, ``integer`` (a quantised node as the stock node of
        the same equation), ``circuit`` (a spike max-pool as convolution and gate), ``compact`` (an operation NIR
        lacks) or ``readout`` (a mean or sum over time, now the caller's).
    names: every node of the file, from its name there to its name in the graph.
    type_checked: the file opens with plain `nir.read`; otherwise it takes ``type_check=False``.
    """

    path: Path
    forms: dict[str, str]
    names: dict[str, str]
    type_checked: bool
    warnings: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Nodes per form."""
        return dict(Counter(self.forms.values()))


def write_nir(graph: nir.NIRGraph, path: str | Path) -> WriteReport:
    """Write a graph to a NIR file (docs/nir.md describes it); identical graphs give identical bytes.

    Stock nodes are written as they are, quantised nodes as stock nodes that hold their integers. A `SpikeMaxPool2d`
    becomes its circuit of stock nodes. `STAttenAttention`, `SpikeAnd`, `TokenMaxPool` and `MaxPool2d` take the compact
    form. A `TemporalMean` or `TemporalSum` before an Output is left to the reader. `read_nir` gives back an equal
    graph. The graph itself is not changed.

    Raises:
        GraphError: the graph is not valid. UnsupportedError: a node with no form in a file.
        InputError: the file cannot be created.
    """
    path = Path(path)
    graph = inline_subgraphs(graph)
    verify(graph)
    forms = {name: _form(name, node) for name, node in graph.nodes.items()}
    stock, integers = lower_integers(graph)
    lowered, readouts = cut_readout(spike_maxpool_to_circuit(stock)[0])
    file_graph, names = _file_graph(lowered, {**integers, **readouts})
    warnings = []
    compact = sorted({type(graph.nodes[name]).__name__ for name, form in forms.items() if form == "compact"})
    if compact:
        warnings.append(
            f"{sum(form == 'compact' for form in forms.values())} nodes ({', '.join(compact)}) exist in no NIR "
            "primitive and are in the compact form: statten-deploy reads the file, other tools refuse it"
        )
    refused = None if compact else _stock_check(file_graph)
    if refused is not None:
        warnings.append(f"plain nir.read refuses the file ({refused}); it opens with type_check=False")
    warnings += _traps(lowered)
    warnings += _leaks(stock, integers)
    write_file(path, file_graph)
    originals = {written: name for name, written in names.items()}
    return WriteReport(path, forms, originals, not compact and refused is None, tuple(warnings))


def _form(name: str, node: nir.NIRNode) -> str:
    if isinstance(node, COMPACT_NODES):
        return "compact"
    if isinstance(node, SpikeMaxPool2d):
        return "circuit"
    if isinstance(node, TemporalMean | TemporalSum):
        return "readout"
    if isinstance(node, INTEGER_NODES):
        return "integer"
    if isinstance(node, STOCK_NODES):
        return "stock"
    raise UnsupportedError(f"{name!r}: a NIR file has no form for {type(node).__name__}")


def _file_graph(graph: nir.NIRGraph, told: dict[str, dict[str, Any]]) -> tuple[nir.NIRGraph, dict[str, str]]:
    """The graph as it stands in the file, and the names: in the graph -> in the file.

    `told` is what else goes into the metadata of a node.
    """
    order = list(graph.nodes) if is_cyclic(graph) else topological_order(graph)
    names = written_names(graph, order)
    shapes = infer_shapes(graph)
    into = predecessors(graph)
    position = {name: index for index, name in enumerate(graph.nodes)}
    nodes = {}
    for name in order:
        given = {port: shapes[sources[0]] for port, sources in into[name].items()}
        described: dict[str, Any] = {"index": position[name]}
        if names[name] != name:
            described["name"] = name
        described |= told.get(name, {})
        nodes[names[name]] = _file_node(graph.nodes[name], given, shapes[name], described)
    metadata = {**graph.metadata, "statten": {**hints(graph), "format": FORMAT}}
    return nir.NIRGraph(nodes, _file_edges(graph, order, names), metadata=metadata, type_check=False), names


def _file_node(node: nir.NIRNode, given: dict[str, Shape], gives: Shape, described: dict[str, Any]) -> nir.NIRNode:
    if isinstance(node, COMPACT_NODES):
        written: nir.NIRNode = to_subgraph(node, given, gives)
        described = {**written.metadata["statten"], **described}
    else:
        written = normalised(node, next(iter(given.values()), gives), gives)
    written.metadata = {**node.metadata, "statten": described}
    return written


def _file_edges(graph: nir.NIRGraph, order: list[str], names: dict[str, str]) -> list[tuple[str, str]]:
    """Edges grouped by destination, destinations in order of execution, the order within each port kept.

    Norse runs nodes depth first along the edges of each source, so listing nearer destinations first lets a node
    with a shortcut run after all of its sources wherever one chain passes through them.
    """
    grouped: dict[str, list[tuple[str, str]]] = {name: [] for name in order}
    for source, endpoint in graph.edges:
        name, port = parse_endpoint(graph, endpoint)
        compact = isinstance(graph.nodes[name], COMPACT_NODES)
        grouped[name].append((names[source], f"{names[name]}.{port}" if compact else names[name]))
    return [edge for name in order for edge in grouped[name]]


def _stock_check(graph: nir.NIRGraph) -> str | None:
    """What `nir`'s own type check says against the file, None when nothing."""
    try:  # on copies: the check fills in shapes and may add nodes
        nir.NIRGraph({name: replace(node) for name, node in graph.nodes.items()}, list(graph.edges))
    except (ValueError, AssertionError, NotImplementedError, TypeError, IndexError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def _leaks(stock: nir.NIRGraph, integers: Mapping[str, Any]) -> list[str]:
    """Neurons whose bias no convolution could carry: another tool starts their membranes elsewhere."""
    found = [name for name in integers if np.any(getattr(stock.nodes[name], "v_leak", 0))]
    if not found:
        return []
    return [
        f"the biases of {len(found)} neuron layers ({', '.join(map(repr, found))}) had to go to v_leak, where other "
        "tools start their membranes; statten-deploy starts them at 0"
    ]


def _traps(graph: nir.NIRGraph) -> list[str]:
    """Measured places where other tools read something else into a file."""
    found = []
    into, after = predecessors(graph), successors(graph)
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Output):
            sources = [source for group in into[name].values() for source in group]
            if len(sources) > 1:
                found.append(
                    f"{len(sources)} edges add up in Output {name!r}; SpikingJelly and snnTorch return a tuple"
                )
        elif not after[name] and ports(node):
            found.append(f"{name!r} feeds nothing; nir.read makes it an Output")
    return found
