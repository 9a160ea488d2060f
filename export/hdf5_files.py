"""HDF5 files that fail in one place. The library writes much of a file when it closes it, and cannot be told there that
the disk is full: every open object complains in a traceback of its own, and some versions end the process."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class _Patient(io.RawIOBase):
    """A file whose first failure is kept, `error`; what is written from there on stays in memory.

    The library reads what it has written itself, and ends the process when it finds something else there.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._rest: list[tuple[int, memoryview]] = []
        self._file = path.open("w+b", buffering=0)
        self._at = self._size = 0

    def write(self, data: Any) -> int:
        given, at = memoryview(data).cast("B"), self._at
        if self.error is None:
            try:
                _write_all(self._file.fileno(), given, at)
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._rest.append((at, memoryview(bytes(given))))
        self._at += len(given)
        self._size = max(self._size, self._at)
        return len(given)

    def readinto(self, buffer: Any) -> int:
        into, start = memoryview(buffer).cast("B"), self._at
        length = max(min(len(into), self._size - start), 0)
        self._file.seek(start)
        found = self._file.readinto(into[:length]) or 0
        into[found:length] = bytes(length - found)
        for at, data in self._rest:
            first, last = max(at, start), min(at + len(data), start + length)
            if first < last:
                into[first - start : last - start] = data[first - at : last - at]
        self._at += length
        return length

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self._size = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._file.fileno(), self._size)
            except OSError as error:
                self.error = error
        return self._size

    def readable(self) -> bool:
        return True

    writable = seekable = readable

    def close(self) -> None:
        self._file.close()
        super().close()


def _write_all(descriptor: int, data: memoryview, at: int) -> None:
    """The system may take less than it is given."""
    while data:
        taken = os.pwrite(descriptor, data, at)
        data, at = data[taken:], at + taken


@contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new file, closed and complete at the end of the block.

    Raises:
        OSError: it cannot be created or written.
    """
    stream = _Patient(path)
    try:
        with h5py.File(stream, "w") as file:
            yield file
    except Exception:
        if stream.error is None:
            raise
    finally:
        stream.close()
    if stream.error is not None:
        raise OSError(stream.error.errno, stream.error.strerror, str(path))
