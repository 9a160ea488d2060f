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
    """A file whose first failure is kept, `error`; from there on it takes everything and keeps nothing."""

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._file = path.open("w+b", buffering=0)
        self._at = self._size = 0

    def write(self, data: Any) -> int:
        length, at = memoryview(data).nbytes, self._at
        if self.error is None:
            try:
                _write_all(self._file.fileno(), memoryview(data).cast("B"), at)
            except OSError as error:
                self.error = error
        self._at += length
        self._size = max(self._size, self._at)
        return length

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._at)
        found = self._file.readinto(buffer) if self.error is None else len(buffer)
        self._at += found or 0
        return found or 0

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
