"""Reading a NIR file: ours, with everything put back, or any other tool's of stock nodes."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import GraphError, InputError, StattenError
from statten_deploy.export.nir.compact import FORMAT, check_format, from_subgraph
from statten_deploy.export.nir.integers import check_integers, raise_integers
from statten_deploy.export.nir.names import original_names
from statten_deploy.export.nir.readout import restore_readout
from statten_deploy.export.nir.stock import STOCK_NODES
from statten_deploy.ir.graph import inline_subgraphs, parse_endpoint, ports
from statten_deploy.ir.verify import verify
from statten_deploy.passes import raise_circuits
from statten_deploy.untrusted.hdf5 import Tree, load_tree

KNOWN: dict[str, type[nir.NIRNode]] = {kind.__name__: kind for kind in (*STOCK_NODES, nir.NIRGraph)}
"""Node types by the name they have in a file."""

FILE_FIELDS: dict[type[nir.NIRNode], tuple[frozenset[str], frozenset[str]]] = {
    nir.Input: (frozenset({"shape"}), frozenset()),
    nir.Output: (frozenset({"shape"}), frozenset()),
    nir.Flatten: (frozenset(), frozenset({"start_dim", "end_dim", "input_type"})),
    nir.NIRGraph: (frozenset({"nodes", "edges"}), frozenset()),
    nir.Conv1d: (frozenset({"weight", "stride", "padding", "dilation", "groups", "bias"}), frozenset({"input_shape"})),
    nir.Conv2d: (frozenset({"weight", "stride", "padding", "dilation", "groups", "bias"}), frozenset({"input_shape"})),
}
"""(required, optional) fields in a file where they differ from the constructor's."""


def read_nir(path: str | Path, *, max_bytes: int | None = None, keep_circuits: bool = False) -> nir.NIRGraph:
    """Read a NIR file of this package or of any other tool.

    The file is measured before anything is allocated. Integers, the compact form, pool circuits, the readout and the
    names that `write_nir` wrote are put back, so a graph survives the round trip. Nested graphs of stock nodes are
    inlined.

    Args:
        path: an HDF5 file as `nir.write` or `write_nir` writes it.
        max_bytes: refuse a file whose declared arrays are larger than this when unpacked (default: SECURITY.md).
        keep_circuits: leave the circuits of `lower_to_circuits` as the stock nodes they consist of.

    Raises:
        InputError: no such file, not a NIR file, damaged, too large, not self-contained, unknown or newer contents.
        GraphError: the file is sound, but the graph in it is not valid.
    """
    path = Path(path)
    tree = load_tree(path, max_bytes)
    try:
        graph = _build_graph(tree, "the graph")
        check_format(_described(graph), "the file")
        graph, described = _restore_names(graph)
        graph = inline_subgraphs(restore_readout(graph, described))
        graph.metadata = _without_format(graph.metadata)
        stock, graph = graph, raise_integers(graph, described)
        verify(graph)
        check_integers(stock, graph)
        graph, raised = (graph, False) if keep_circuits else raise_circuits(graph)
        if raised:
            verify(graph)
    except StattenError as error:
        raise type(error)(f"{path}: {error}") from None
    return graph


def _build_graph(tree: Tree, where: str) -> nir.NIRGraph:
    kind = tree.get("type")
    if kind != "NIRGraph":
        raise InputError(f"{where} has the type {kind!r}, expected 'NIRGraph'")
    _check_fields(nir.NIRGraph, tree, where)
    if not isinstance(tree["nodes"], dict):
        raise InputError(f"{where}: 'nodes' is not a group")
    nodes = _build_nodes(tree["nodes"])
    metadata = _plain(tree.get("metadata", {}), where)
    return nir.NIRGraph(nodes, _edges(tree["edges"], where), metadata=metadata, type_check=False)


def _build_nodes(trees: Tree) -> dict[str, nir.NIRNode]:
    """All nodes, or one error that names everything wrong with them."""
    nodes: dict[str, nir.NIRNode] = {}
    errors: list[StattenError] = []
    kinds = {name: tree.get("type") for name, tree in trees.items() if isinstance(tree, dict)}
    unknown = {name: kind for name, kind in kinds.items() if isinstance(kind, str) and kind not in KNOWN}
    if unknown:
        listed = ", ".join(f"node {name!r} has the unknown type {kind!r}" for name, kind in unknown.items())
        errors.append(InputError(f"{listed}; known are {', '.join(sorted(KNOWN))}"))
    for name, tree in trees.items():
        if name in unknown:
            continue
        try:
            nodes[name] = _build_node(name, tree)
        except StattenError as error:
            errors.append(error)
    if errors:
        raise type(errors[0])("; ".join(map(str, errors)))
    return nodes


def _build_node(name: str, tree: Any) -> nir.NIRNode:
    kind = tree.get("type") if isinstance(tree, dict) else None
    if not isinstance(kind, str):
        raise InputError(f"node {name!r} has no type, so this is not a NIR node")
    if kind == "NIRGraph":
        return _build_nested(name, tree)
    _check_fields(KNOWN[kind], tree, f"node {name!r} ({kind})")
    values = dict(tree)
    values["metadata"] = _plain(values.get("metadata", {}), f"node {name!r}")
    if kind in ("Conv1d", "Conv2d"):
        values.setdefault("input_shape", None)
    try:
        with np.errstate(all="ignore"):
            return nir.dict2NIRNode(_spelt(kind, values))
    except (AssertionError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise GraphError(f"node {name!r} ({kind}): {reason}") from None


def _build_nested(name: str, tree: Tree) -> nir.NIRNode:
    graph = _build_graph(tree, f"subgraph {name!r}")
    described = _described(graph)
    if "op" in described:
        node = from_subgraph(name, graph, described)
        node.metadata = graph.metadata
        return node
    return graph


def _check_fields(kind: type[nir.NIRNode], tree: Tree, where: str) -> None:
    if kind in FILE_FIELDS:
        required, optional = FILE_FIELDS[kind]
    else:
        given = [f for f in fields(kind) if f.init and f.name != "metadata"]
        required = frozenset(f.name for f in given if f.default is MISSING)
        optional = frozenset(f.name for f in given) - required
    missing = sorted(required - set(tree))
    if missing:
        raise InputError(f"{where} lacks the field {', '.join(map(repr, missing))}")
    extra = sorted(set(tree) - required - optional - {"type", "metadata"})
    if extra:
        raise InputError(f"{where} has the unknown field {', '.join(map(repr, extra))}")


def _spelt(kind: str, values: Tree) -> Tree:
    """Sizes of convolutions as Python numbers, as in graphs made in memory; everything else stays as it is read."""
    if kind in ("Conv1d", "Conv2d"):
        for key in ("stride", "padding", "dilation", "groups", "input_shape"):
            value = values[key]
            if isinstance(value, np.ndarray):
                values[key] = tuple(int(v) for v in value.reshape(-1))
            elif isinstance(value, np.number):
                values[key] = int(value)
    if kind == "Flatten":
        values |= {key: int(values[key]) for key in ("start_dim", "end_dim") if key in values}
    return values


def _edges(value: Any, where: str) -> list[tuple[str, str]]:
    array = np.asarray(value)
    if array.size == 0:
        return []
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "OSU":
        raise InputError(f"{where}: 'edges' has shape {array.shape}, expected pairs of node names")
    decode = _decode_text
    return [(decode(a), decode(b)) for a, b in array]


def _decode_text(value: Any) -> str:
    try:
        return value.decode("utf8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise InputError(f"an edge names the node {value!r}, which is not UTF-8") from None


def _plain(value: Any, where: str) -> dict[str, Any]:
    """Metadata: ours (under ``statten``) as plain Python values, other tools' as read."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: 'metadata' is not a group")
    return {key: _plain_value(inner) if key == "statten" else inner for key, inner in value.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_value(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain_value(inner) for inner in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    return _decode_text(value) if isinstance(value, bytes) else value


def _described(node: nir.NIRNode) -> Mapping[str, Any]:
    found = node.metadata.get("statten", {}) if isinstance(node.metadata, dict) else {}
    return found if isinstance(found, dict) else {}


def _without_format(metadata: dict[str, Any]) -> dict[str, Any]:
    """A third-party file has no hints; one of ours that was made from it says nothing but its format."""
    return {k: v for k, v in metadata.items() if k != "statten" or v != {"format": FORMAT}}


def _restore_names(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, dict[str, Mapping[str, Any]]]:
    """Names and order as they were before writing; what the file said about each node moves out of its metadata."""
    described = {name: dict(_described(node)) for name, node in graph.nodes.items()}
    names = original_names(described)
    edges = []
    for source, endpoint in graph.edges:
        if endpoint not in graph.nodes and "." in endpoint:
            owner, port = parse_endpoint(graph, endpoint)
            single = len(ports(graph.nodes[owner])) == 1
            endpoint = names[owner] if single else f"{names[owner]}.{port}"
        else:
            endpoint = names.get(endpoint, endpoint)
        edges.append((names.get(source, source), endpoint))
    order = list(graph.nodes)
    if all(isinstance(text.get("index"), int) for text in described.values()):
        order.sort(key=lambda name: described[name]["index"])
    nodes = {names[name]: graph.nodes[name] for name in order}
    for node in nodes.values():
        node.metadata = {key: value for key, value in node.metadata.items() if key != "statten"}
    restored = nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)
    return restored, {names[name]: described[name] for name in order}
