"""Arrays from ``.npy`` and ``.npz`` files: headers first, sizes checked, then the values. Nothing is ever unpickled."""

import zipfile
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.untrusted.limits import MAX_NAME, check_bytes
from statten_deploy.untrusted.text import shown

Kind = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and type of an array."""

MAX_MEMBERS = 10_000
"""Arrays in one archive."""
MAX_HEADER = 1 << 16
"""Bytes of the text that describes one array."""


def declared(stream: IO[bytes]) -> Kind:
    """Shape and type that a ``.npy`` header declares; the stream stands behind it.

    Raises:
        ValueError: no such header.
    """
    version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
    width = 2 if version == (1, 0) else 4
    start = stream.tell()
    length = int.from_bytes(stream.read(width), "little")
    if length > MAX_HEADER:  # numpy would read all of it, and only then look at its length
        raise ValueError(f"a header of {length} bytes")
    stream.seek(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)  # type: ignore[no-untyped-call]
    except (RecursionError, MemoryError, SyntaxError, TypeError, OverflowError) as error:
        raise ValueError(f"its header is not one ({type(error).__name__})") from None
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"its shape is {shown(shape)}")
    return shape, dtype


def read_npy(stream: IO[bytes]) -> npt.NDArray[Any]:
    """One array, whose header has been checked."""
    array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
    return array


class Archive:
    """An open ``.npz`` file. `kinds`: shape and type of every array, from the headers.

    An array that is read has exactly the size that its header and the archive declare, and all arrays together are not
    larger than the limit (`max_bytes`), whatever a compressed stream would unpack to.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            InputError: not such an archive, names that stand twice or lead elsewhere, or too large when unpacked.
        """
        self.path = path
        self.kinds: dict[str, Kind] = {}
        try:
            self._zip = zipfile.ZipFile(path)
            try:
                self._check()
            except BaseException:
                self._zip.close()
                raise
        except InputError:
            raise
        except Exception as error:  # zipfile, zlib and numpy each have their own
            raise self.damaged(error) from None

    def read(self, name: str) -> npt.NDArray[Any]:
        """The array `name`.

        Raises:
            InputError: it is damaged, or needs unpickling.
        """
        shape, dtype = self.kinds[name]
        if dtype.hasobject:
            raise InputError(f"{self.path}: array {name!r} holds Python objects, which are not read; expected numbers")
        try:
            with self._zip.open(self._members[name]) as stream:
                array = read_npy(stream)
                while stream.read(1 << 20):  # to the end, where the checksum is
                    pass
        except Exception as error:  # as above
            raise self.damaged(error, f"array {name!r}: ") from None
        if array.shape != shape or array.dtype != dtype:
            raise self.damaged(f"array {name!r} is not what its header says")
        return array

    def damaged(self, error: object, where: str = "") -> InputError:
        """What to raise where the file is at fault."""
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return InputError(f"{self.path}: not a readable .npz file ({where}{reason}); write it with numpy.savez")

    def _check(self) -> None:
        members = self._zip.infolist()
        if len(members) > MAX_MEMBERS:
            raise InputError(f"{self.path}: holds {len(members):,} arrays, at most {MAX_MEMBERS:,} are read")
        check_bytes(self.path, sum(member.file_size for member in members))
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        if len(self._members) < len(members):
            raise ValueError("a name stands twice")
        for name, member in self._members.items():
            if len(name) > MAX_NAME or not name.isprintable():
                raise ValueError(f"{shown(name)} is no name of an array")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{shown(name)} is compressed in a way that numpy does not use")
            with self._zip.open(member) as stream:
                kind = declared(stream)
                behind = member.file_size - stream.tell()
            if not kind[1].hasobject and prod(kind[0]) * kind[1].itemsize != behind:
                raise ValueError(f"{shown(name)} declares {shown(kind[0])} of {kind[1]}, {behind:,} bytes are there")
            self.kinds[name] = kind

    def close(self) -> None:
        """Nothing can be read any more."""
        self._zip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
