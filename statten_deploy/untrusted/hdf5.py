"""HDF5 files nobody vouches for: everything is measured before anything is allocated.

A file of 15 kB can declare arrays of gigabytes, link to other files, or nest without end. A walk over the structure
refuses what is larger than the limit, what leads outside the file and what is not plain numbers and text; only then is
anything read. What remains is the HDF5 library itself: about one in 8000 files with random bytes flipped makes it loop
for ever (2.0.0), and a compressed chunk unpacks to whatever its stream holds. So a file that this process has not
written is read in a child process first, with a limit of time and memory (`examine`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.untrusted import own
from statten_deploy.untrusted.child import limit_memory, read_in_child
from statten_deploy.untrusted.hdf5_text import ELEMENT_BYTES, TextFile
from statten_deploy.untrusted.limits import MAX_NAME, MEMORY_VARIABLE, max_bytes, size

MAX_DEPTH = 32
MAX_OBJECTS = 1_000_000
MAX_TEXT_BYTES = 64 * 2**20
SIGNATURE = b"\x89HDF\r\n\x1a\n"

Tree = dict[str, Any]


def load_tree(path: Path, most: int | None = None) -> Tree:
    """A NIR file as nested dicts of arrays, numbers and strings.

    Raises:
        InputError: not a NIR file, damaged, larger than `most` (`max_bytes()`) when unpacked, or not self-contained.
    """
    examine(path, "NIR", most)
    return read_tree(path, most)


def examine(path: Path, kind: str, most: int | None = None) -> None:
    """Read a file in a child process, unless this process wrote it; what this process does then, the child has done.

    Raises:
        InputError: there is no such file, or the child could not read it: what is wrong with it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a {kind} file")
    if not _signed(path):
        raise InputError(f"{path}: not an HDF5 file, so not a {kind} file")
    if not own.wrote(path):
        read_in_child(__name__, path, [str(max_bytes() if most is None else most)], "HDF5")


def main(path: str, most: str) -> str:
    """In the child: everything is visited, and what HDF5 must unpack is unpacked, array by array."""
    limit_memory(int(most) // 8)  # the structure alone
    with _opened(Path(path)) as file:
        walk = _Walk(Path(path), int(most), TextFile(Path(path)))
        walk.group(file, "/", 0)
        limit_memory(2 * walk.largest + walk.text_bytes)
        walk.unpack(file)
    return ""


def read_tree(path: Path, most: int | None = None) -> Tree:
    """`load_tree` in this process."""
    with _opened(path) as file:
        if "node" not in file:
            raise InputError(f"{path}: an HDF5 file without the group 'node', so not a NIR file")
        walk = _Walk(path, max_bytes() if most is None else most, TextFile(path))
        walk.group(file, "/", 0)
        node = walk.read(file["node"])
    if not isinstance(node, dict):
        raise InputError(f"{path}: 'node' is not a group, so this is not a NIR file")
    return node


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """An open file; whatever h5py raises about it becomes one `InputError`."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (InputError, MemoryError):
        raise
    except Exception as error:  # h5py reports damage with a dozen exception types
        reason = " ".join(str(error).split())[:160].strip("'\"") or type(error).__name__
        raise InputError(f"{path}: damaged HDF5 file ({reason})") from None


def _signed(path: Path) -> bool:
    """Whether the signature of HDF5 stands where it may: at 0, 512, 1024, 2048, ... bytes."""
    end = path.stat().st_size
    with path.open("rb") as stream:
        at = 0
        while at < end:
            stream.seek(at)
            if stream.read(len(SIGNATURE)) == SIGNATURE:
                return True
            at = max(512, at * 2)
    return False


@dataclass
class _Walk:
    """Visits every object once and adds up what reading it would cost."""

    path: Path
    max_bytes: int
    text: TextFile
    seen: set[int] = field(default_factory=set)
    total_bytes: int = 0
    text_bytes: int = 0
    largest: int = 0

    def group(self, group: h5py.Group, where: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.refuse(where, f"is nested more than {MAX_DEPTH} levels deep")
        for name in group:
            inner = f"{where.rstrip('/')}/{name}"
            if len(name) > MAX_NAME or not name.isprintable():
                self.refuse(ascii(inner[:80]), f"is no name: expected at most {MAX_NAME} characters, all printable")
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
        declared = max(prod(item.shape), prod(item.chunks or ())) * item.dtype.itemsize
        self.total_bytes += declared
        self.largest = max(self.largest, declared)
        if self.total_bytes > self.max_bytes:
            self.refuse(
                where,
                f"brings the declared size to {size(self.total_bytes)}, above the limit of {size(self.max_bytes)}; "
                f"if you trust the file, raise the limit with {MEMORY_VARIABLE}",
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

    def unpack(self, item: Any) -> None:
        """Read every array that is stored in chunks, and let it go: contiguous ones take no decoding."""
        for inner in item.values():
            if isinstance(inner, h5py.Group):
                self.unpack(inner)
            elif _is_text(inner):
                self.read(inner)
            elif inner.chunks is not None:
                inner[()]

    def refuse(self, where: str, why: str) -> None:
        raise InputError(f"{self.path}: {where} {why}")


def _is_text(item: h5py.Dataset) -> bool:
    return item.dtype.kind == "O" and h5py.check_string_dtype(item.dtype) is not None
