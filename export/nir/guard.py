"""Opening a file nobody vouches for: everything is measured before anything is allocated.

A NIR file of 15 kB can declare arrays of gigabytes, link to other files, or nest without end. `load_tree` walks the
HDF5 structure first and refuses what is larger than the caller allows, what leads outside the file and what is not
plain numbers and text; only then does it read. What remains is the HDF5 library itself: about one in 8000 files with
random bytes flipped makes it loop for ever (2.0.0), so files from strangers are best read under a time limit.
"""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.export.nir.text import ELEMENT_BYTES, TextFile

GIB = 2**30
DEFAULT_MAX_BYTES = 8 * GIB
"""Declared size above which a file is refused."""

MAX_DEPTH = 32
MAX_OBJECTS = 1_000_000
MAX_TEXT_BYTES = 64 * 2**20

Tree = dict[str, Any]


def load_tree(path: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> Tree:
    """The file as nested dicts of arrays, numbers and strings.

    Raises:
        InputError: not a NIR file, damaged, larger than `max_bytes` when unpacked, or not self-contained.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a NIR file")
    try:
        if not h5py.is_hdf5(path):
            raise InputError(f"{path}: not an HDF5 file, so not a NIR file")
        with h5py.File(path, "r") as file:
            if "node" not in file:
                raise InputError(f"{path}: an HDF5 file without the group 'node', so not a NIR file")
            walk = _Walk(path, max_bytes, TextFile(path))
            walk.group(file, "/", 0)
            tree = walk.read(file)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory") from None
    except Exception as error:  # h5py reports damage with a dozen exception types
        reason = " ".join(str(error).split())[:160].strip("'\"") or type(error).__name__
        raise InputError(f"{path}: damaged HDF5 file ({reason})") from None
    node = tree["node"]
    if not isinstance(node, dict):
        raise InputError(f"{path}: 'node' is not a group, so this is not a NIR file")
    return node


@dataclass
class _Walk:
    """Visits every object once and adds up what reading it would cost."""

    path: Path
    max_bytes: int
    text: TextFile
    seen: set[int] = field(default_factory=set)
    total_bytes: int = 0
    text_bytes: int = 0

    def group(self, group: h5py.Group, where: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.refuse(where, f"is nested more than {MAX_DEPTH} levels deep")
        for name in group:
            inner = f"{where.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                self.refuse(inner, "is a link; a NIR file holds its data itself")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in self.seen:
                self.refuse(inner, "is a second link to an object of this file; a NIR file is a tree")
            self.seen.add(address)
            if len(self.seen) > MAX_OBJECTS:
                self.refuse(inner, f"is past the first {MAX_OBJECTS} objects, the most that are read")
            if isinstance(item, h5py.Group):
                self.group(item, inner, depth + 1)
            elif isinstance(item, h5py.Dataset):
                self.dataset(item, inner)
            else:
                self.refuse(inner, f"is a {type(item).__name__}; expected groups and datasets")

    def dataset(self, item: h5py.Dataset, where: str) -> None:
        if item.is_virtual or item.external:
            self.refuse(where, "takes its data from another file; a NIR file holds its data itself")
        if _is_text(item):
            self.text_bytes += self.text_size(item, where)
            if self.text_bytes > MAX_TEXT_BYTES:
                self.refuse(where, f"brings the text in the file above {MAX_TEXT_BYTES // 2**20} MiB")
        elif item.dtype.kind not in "iufbS":
            self.refuse(where, f"holds {item.dtype}; expected numbers or text")
        if item.shape is None:
            self.refuse(where, "is empty (a null dataset)")
        self.total_bytes += prod(item.shape) * item.dtype.itemsize
        if self.total_bytes > self.max_bytes:
            self.refuse(
                where,
                f"brings the declared size to {self.total_bytes / GIB:.3g} GiB, above the limit of "
                f"{self.max_bytes / GIB:.3g} GiB; if you trust the file, read it with a larger max_bytes",
            )

    def text_size(self, item: h5py.Dataset, where: str) -> int:
        """Bytes of text in a dataset, without reading the text: an element on disk is its length and where it lies."""
        count = int(item.size or 0)
        if count == 0:
            return 0
        offset = item.id.get_offset()
        if offset is None or item.id.get_storage_size() != count * ELEMENT_BYTES or item.file.userblock_size:
            self.refuse(where, "holds text in a layout that cannot be measured; store it contiguously")
        if count * ELEMENT_BYTES > MAX_TEXT_BYTES:
            return count * ELEMENT_BYTES
        return self.text.lengths(offset, count)

    def read(self, item: Any) -> Any:
        """What was visited, as dicts, arrays, numbers and strings."""
        if isinstance(item, h5py.Group):
            return {name: self.read(inner) for name, inner in item.items()}
        if _is_text(item):
            values = self.text.read(item.id.get_offset(), int(item.size)) if item.size else []
            return values[0] if item.shape == () else np.array(values, dtype=object).reshape(item.shape)
        value = item[()]
        return value.decode("utf8") if isinstance(value, bytes) else value

    def refuse(self, where: str, why: str) -> None:
        raise InputError(f"{self.path}: {where} {why}")


def _is_text(item: h5py.Dataset) -> bool:
    return item.dtype.kind == "O" and h5py.check_string_dtype(item.dtype) is not None
