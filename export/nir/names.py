"""Names of nodes as they stand in a file, and back.

Measured on the importers of SpikingJelly 2.0.0, Norse 1.1.0 and snnTorch 1.0.0 (nirtorch 2.6): all replace "." by "_",
so that ``a.b`` and ``a_b`` become one module and the network is silently wired differently; a node called like an
attribute of `torch.nn.ModuleDict` ("type", "items", "half") fails to load; "/" starts a group in HDF5; and `nir.read`
returns nodes in alphabetical order, which nirtorch's importer needs to be the order of execution to be fast. Written
names therefore hold letters, digits and underscores only and are numbered in the order of execution, as in
``n007_block_0_attn_q_conv``; Input and Output nodes, which users address, keep their names where those are safe. The
name in the graph is kept in the node's metadata, which only our reader looks at.
"""

import keyword
import re
from collections.abc import Mapping
from typing import Any

import nir
import torch

_SAFE = re.compile(r"(?!n\d+_)[A-Za-z][A-Za-z0-9_]*")
_TAKEN = frozenset(dir(torch.nn.ModuleDict())) | frozenset(dir(torch.fx.GraphModule)) | frozenset(keyword.kwlist)


def written_names(graph: nir.NIRGraph, order: list[str]) -> dict[str, str]:
    """Name in the graph -> name in the file, numbered along `order`."""
    inner = [name for name in order if not _kept(name, graph.nodes[name])]
    digits = len(str(max(len(inner) - 1, 0)))
    names = {name: f"n{i:0{digits}d}_{re.sub(r'[^A-Za-z0-9_]', '_', name)}" for i, name in enumerate(inner)}
    return {name: names.get(name, name) for name in order}


def _kept(name: str, node: nir.NIRNode) -> bool:
    return isinstance(node, nir.Input | nir.Output) and bool(_SAFE.fullmatch(name)) and name not in _TAKEN


def original_names(told: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name in the file -> name in the graph; `told` is each node's metadata under ``statten``, by its name in the file.

    Where nodes were copied inside the file, several say the same name: then the names in the file are all there is.
    """
    names = {name: str(text.get("name", name)) for name, text in told.items()}
    return names if len(set(names.values())) == len(names) else {name: name for name in told}
