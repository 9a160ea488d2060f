"""Variable-length text of an HDF5 file, read without the HDF5 library.

The library (2.0.0) loops for ever on a global heap with a damaged object header, as four flipped bytes can make one;
nothing in Python can stop it. The layout is simple enough to read here: an element of a dataset is (length, address of
a heap collection, index), a collection is a header and objects of (index, references, reserved, size, data), padded
to 8 bytes (HDF5 File Format Specification, III.E "Disk Format: Level 1E - Global Heap").
"""

import struct
from pathlib import Path

_ELEMENT = struct.Struct("<IQI")
_HEADER = struct.Struct("<4sB3xQ")
_OBJECT = struct.Struct("<HH4xQ")

ELEMENT_BYTES = _ELEMENT.size
Heap = dict[int, bytes]


class TextFile:
    """Reads text elements of one file; every heap collection is parsed once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.heaps: dict[int, Heap] = {}

    def lengths(self, offset: int, count: int) -> int:
        """Bytes of text that `count` elements at `offset` declare."""
        return sum(length for length, _, _ in self._elements(offset, count))

    def read(self, offset: int, count: int) -> list[str]:
        """The text of `count` elements at `offset`.

        Raises:
            ValueError: references that lead nowhere, text that is not UTF-8.
        """
        return [self._text(*element) for element in self._elements(offset, count)]

    def _elements(self, offset: int, count: int) -> list[tuple[int, int, int]]:
        raw = self._bytes(offset, count * ELEMENT_BYTES)
        return list(_ELEMENT.iter_unpack(raw))

    def _text(self, length: int, address: int, index: int) -> str:
        if length == 0:
            return ""
        if address not in self.heaps:
            self.heaps[address] = self._heap(address)
        data = self.heaps[address].get(index)
        if data is None or len(data) < length:
            raise ValueError(f"text of {length} bytes is missing")
        return data[:length].split(b"\0", 1)[0].decode("utf8")

    def _heap(self, address: int) -> Heap:
        signature, version, size = _HEADER.unpack(self._bytes(address, _HEADER.size))
        if signature != b"GCOL" or version != 1 or size < _HEADER.size:
            raise ValueError("a reference to text leads to something else")
        data = self._bytes(address, size)
        objects: Heap = {}
        position = _HEADER.size
        while position + _OBJECT.size <= len(data):
            index, _, length = _OBJECT.unpack_from(data, position)
            if index == 0:  # the free space at the end
                break
            start = position + _OBJECT.size
            objects[index] = data[start : start + length]
            position = start + (length + 7) // 8 * 8
        return objects

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at {offset} lie outside the file")
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
