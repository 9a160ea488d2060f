"""The NIR file format on disk, written node by node.

The layout is that of `nir.write`, dataset for dataset. Two things differ: nothing is copied (`nir.write` holds every
array three times), and only arrays that gzip shrinks are compressed. Trained float weights lose 8 % and cost most of
the time, full neuron parameter arrays lose 99 %: a network of 66 M weights writes in a third of the time.
"""

import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from statten_deploy.errors import GraphError, InputError
from statten_deploy.export.hdf5_files import create_hdf5
from statten_deploy.untrusted import own

_SMALL = 2048  # bytes; a compressed dataset costs more than this in bookkeeping
_SAMPLE = 65536  # bytes looked at to see whether compression pays


def write_file(path: Path, graph: nir.NIRGraph) -> None:
    """Write a graph of stock nodes; identical graphs give identical bytes.

    Raises:
        InputError: the folder does not exist.
        OSError: the file cannot be written.
        GraphError: metadata that HDF5 cannot hold.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written (the folder {path.parent} does not exist)")
    with create_hdf5(path) as file:
        _write_value(file, "version", nir.version)
        _write_node(file.create_group("node"), graph)
    own.remember(path)


def node_fields(node: Any) -> dict[str, Any]:
    """A node's constructor values as the file names them."""
    values = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in ("input_type", "output_type")}
    if isinstance(node, nir.Input):
        values["shape"] = node.input_type["input"]
    elif isinstance(node, nir.Output):
        values["shape"] = node.output_type["output"]
    elif isinstance(node, nir.Flatten):
        values["input_type"] = node.input_type["input"]
    return values


def _write_node(group: h5py.Group, node: nir.NIRNode) -> None:
    values = node_fields(node)
    metadata = values.pop("metadata")
    if isinstance(node, nir.NIRGraph):
        inner = group.create_group("nodes")
        for name, child in sorted(values.pop("nodes").items()):
            _write_node(inner.create_group(name), child)
    for key, value in values.items():
        _write_value(group, key, value)
    _write_value(group, "type", type(node).__name__)
    if metadata:
        _write_metadata(group.create_group("metadata"), metadata, "metadata")


def _write_metadata(group: h5py.Group, metadata: Mapping[str, Any], where: str) -> None:
    for key, value in sorted(metadata.items()):  # the order of creation shows in the bytes
        if isinstance(value, Mapping):
            _write_metadata(group.create_group(str(key)), value, f"{where}.{key}")
        elif value is not None:  # NIR has no null
            try:
                _write_value(group, str(key), value)
            except (TypeError, ValueError):
                raise GraphError(
                    f"{where}.{key} is {type(value).__name__}; metadata holds text, numbers, arrays and nested dicts"
                ) from None


def _write_value(group: h5py.Group, key: str, value: Any) -> None:
    if isinstance(value, str):
        group.create_dataset(key, data=value, dtype=h5py.string_dtype())
        return
    compress = isinstance(value, np.ndarray) and _shrinks(value)
    group.create_dataset(key, data=value, compression="gzip" if compress else None, shuffle=compress or None)


def _shrinks(array: np.ndarray[Any, Any]) -> bool:
    if array.nbytes <= _SMALL or array.dtype.kind not in "fiub":
        return False
    middle = array.reshape(-1)[array.size // 2 :][: _SAMPLE // array.itemsize]
    sample = np.ascontiguousarray(middle).tobytes()
    return len(zlib.compress(sample, 1)) < 0.7 * len(sample)
