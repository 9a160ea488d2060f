"""The compact form: an operation that NIR lacks, as a nested graph that says what it is and refuses to be run.

The nested graph has one Input per port, named like the port, and one Output named ``output``. Its metadata holds,
under ``statten``, the format version, the operation and its parameters (docs/nir.md lists them). Edges of the outer
graph lead to ``<node>.<port>``, which no importer resolves: `nir.read` with its type check, SpikingJelly, Norse and
snnTorch all refuse the file. Whoever gets past that meets a body that multiplies by NaN.
"""

from collections.abc import Mapping
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, STAttenAttention, TokenMaxPool, pair
from statten_deploy.ir.shapes import Shape

FORMAT = 1
"""Version of everything that is written under ``statten``; a reader refuses a higher one."""

COMPACT: dict[str, tuple[type[nir.NIRNode], dict[str, type]]] = {
    "STAttenAttention": (STAttenAttention, {"num_heads": int, "window": int, "mode": str, "token_groups": int}),
    "SpikeAnd": (SpikeAnd, {}),
    "TokenMaxPool": (TokenMaxPool, {"num_heads": int}),
    "MaxPool2d": (MaxPool2d, {"kernel_size": tuple, "stride": tuple, "padding": tuple}),
}
"""Operation in the file -> node class and the type of each parameter."""

COMPACT_NODES = tuple(node for node, _ in COMPACT.values())


def to_subgraph(node: Any, inputs: Mapping[str, Shape], output: Shape) -> nir.NIRGraph:
    """The compact form of one of `COMPACT_NODES`, given the shape on each port and of the output."""
    operation = type(node).__name__
    nodes: dict[str, nir.NIRNode] = {port: nir.Input({"input": np.array(shape)}) for port, shape in inputs.items()}
    edges = []
    for port, shape in inputs.items():
        adapter = _adapter(node, shape, output)
        if adapter is not None:
            nodes[f"{port}_shape"] = adapter
            edges += [(port, f"{port}_shape"), (f"{port}_shape", "not_executable")]
        else:
            edges.append((port, "not_executable"))
    nodes["not_executable"] = nir.Scale(np.full(output, np.nan, dtype=np.float32))
    nodes["output"] = nir.Output({"output": np.array(output)})
    edges.append(("not_executable", "output"))
    parameters = {name: _plain(getattr(node, name)) for name in COMPACT[operation][1]}
    metadata = {"statten": {"format": FORMAT, "op": operation, **parameters}}
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)


def from_subgraph(name: str, graph: nir.NIRGraph, described: Mapping[str, Any]) -> nir.NIRNode:
    """The node that a compact form stands for; `described` is its metadata under ``statten``.

    Raises:
        InputError: an operation or format this version does not know, a parameter or port that is missing.
    """
    check_format(described, f"node {name!r}")
    operation = str(described["op"])
    if operation not in COMPACT:
        raise InputError(
            f"node {name!r} is the operation {operation!r}, which this version does not know (it knows "
            f"{', '.join(COMPACT)}); a newer statten-deploy may"
        )
    kind, parameters = COMPACT[operation]
    missing = [field for field in parameters if field not in described]
    if missing:
        raise InputError(f"node {name!r} ({operation}): the metadata lacks {', '.join(missing)}")
    try:
        node = kind(**{field: _CONVERT[type_](described[field]) for field, type_ in parameters.items()})
    except (TypeError, ValueError, IndexError):
        found = ", ".join(f"{field} = {described[field]!r}" for field in parameters)
        raise InputError(f"node {name!r} ({operation}): cannot use the parameters {found}") from None
    inputs = sorted(n for n, inner in graph.nodes.items() if isinstance(inner, nir.Input))
    if inputs != sorted(node.input_type):
        raise InputError(f"node {name!r} ({operation}) has the ports {inputs}, expected {sorted(node.input_type)}")
    return node


def check_format(described: Mapping[str, Any], where: str) -> None:
    """Refuse what a newer version wrote: it may mean something else."""
    version = described.get("format", FORMAT)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{where}: format {version!r} is not a version number")
    if version > FORMAT:
        raise InputError(
            f"{where} was written in format {version}; this version reads up to {FORMAT}: upgrade statten-deploy"
        )


def _adapter(node: Any, shape: Shape, output: Shape) -> nir.SumPool2d | None:
    """Stock nodes that bring a port to the shape of the output, so that the nested graph passes the type check."""
    if isinstance(node, MaxPool2d):
        return nir.SumPool2d(*(np.array(v) for v in (node.kernel_size, node.stride, node.padding)))
    if shape == output:
        return None
    size = np.array(output[1:])  # [C, 1, 1] summed over windows that hold it once each: a broadcast
    return nir.SumPool2d(size, np.ones(2, dtype=np.int64), size - 1)


def _plain(value: Any) -> Any:
    return np.array(value, dtype=np.int64) if isinstance(value, tuple) else value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError
    return int(value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_CONVERT: dict[type, Any] = {int: _integer, str: _string, tuple: pair}
