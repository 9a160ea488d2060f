"""Files of iniVation and jAER cameras: AEDAT 2.0, 3.1 and 4."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.events.events import Events, concatenate, empty
from statten_deploy.events.readers import aedat4_child
from statten_deploy.events.readers.limits import check_count, check_whole, damaged, events_of_child, missing, unwrap

MAGIC = b"#!AER-DAT"
HEADER_BYTES = 1 << 20
DVS128 = (128, 128)
PACKET = np.dtype("<u2, <u2, <u4, <u4, <u4, <u4, <u4, <u4")
POLARITY_PACKET = 1


def read_aedat(path: Path, max_events: int) -> Events:
    """AEDAT 2.0 (DVS128: CIFAR10-DVS), 3.1 (DVS128 Gesture) or 4 (DV), as the first line says.

    Raises:
        InputError: damaged, truncated, or too many events; UnsupportedError: another version or camera, or `aedat` is
        not installed.
    """
    with path.open("rb") as stream:
        first = stream.readline(64)
        version = first.removeprefix(MAGIC).strip().decode("latin-1") if first.startswith(MAGIC) else None
        if version is None:
            raise InputError(f"{path}: not an AEDAT file, whose first line is {MAGIC.decode()} and a version")
        if version.startswith("2"):
            return _read_2(path, stream, max_events)
        if version.startswith("3"):
            return _read_3(path, stream, max_events)
    if version.startswith("4"):
        return _read_4(path, max_events)
    raise UnsupportedError(f"{path}: AEDAT version {version[:16]!r}; expected 2.0, 3.1 or 4.0")


def _read_2(path: Path, stream: IO[bytes], max_events: int) -> Events:
    """Eight bytes, big-endian: address (y: bits 14..8, x: 7..1, OFF: 0), then microseconds.

    Oriented and signed as SpikingJelly reads CIFAR10-DVS, which is what released networks were trained on.
    """
    _skip_comments(path, stream)
    left = path.stat().st_size - stream.tell()
    check_whole(path, left, 8, "events")
    check_count(path, left // 8, max_events)
    words = np.frombuffer(stream.read(left), ">u4").reshape(-1, 2)
    address = words[:, 0]
    if (address >> 15).any():
        raise UnsupportedError(
            f"{path}: addresses of another camera than the DVS128 (above 15 bits); convert it to AEDAT 4"
        )
    t = unwrap(words[:, 1].astype(np.int64), 32)
    x, y = 127 - (address >> 8 & 0x7F), 127 - (address >> 1 & 0x7F)
    return Events(t, x.astype(np.uint16), y.astype(np.uint16), (address & 1) == 0, DVS128)


def _skip_comments(path: Path, stream: IO[bytes]) -> None:
    """Leave the stream behind the lines that start with #."""
    start = stream.tell()
    while (line := stream.readline(HEADER_BYTES)).startswith(b"#"):
        start = stream.tell()
        if start > HEADER_BYTES:
            raise InputError(f"{path}: header of more than {HEADER_BYTES} bytes; it is damaged")
        if line.strip() == b"#!END-HEADER":
            break
    stream.seek(start)


def _read_3(path: Path, stream: IO[bytes], max_events: int) -> Events:
    """Packets of 28 bytes of header and events of 8: data (x: bits 31..17, y: 16..2, ON: 1, valid: 0), microseconds."""
    _skip_comments(path, stream)
    found: list[Events] = []
    total = 0
    for part in _packets_3(path, stream):
        total += len(part)
        check_count(path, total, max_events)
        found.append(part)
    return concatenate(found) if found else empty()


def _packets_3(path: Path, stream: IO[bytes]) -> Iterator[Events]:
    left = path.stat().st_size - stream.tell()
    while left:
        header = stream.read(PACKET.itemsize)
        left -= len(header)
        if len(header) < PACKET.itemsize:
            damaged(path, "AEDAT 3", "truncated inside a packet's header")
        kind, _, each, _, overflow, capacity, number, _ = np.frombuffer(header, PACKET)[0].tolist()
        length = each * capacity
        if length > left or number > capacity:
            damaged(path, "AEDAT 3", f"a packet of {length:,} bytes, {left:,} are left")
        data = stream.read(length)
        left -= length
        if kind != POLARITY_PACKET:
            continue
        if each != 8:
            damaged(path, "AEDAT 3", f"events of {each} bytes, expected 8")
        words = np.frombuffer(data, "<u4").reshape(-1, 2)[:number]
        words = words[(words[:, 0] & 1) == 1]  # the others were declared invalid by a filter
        place = words[:, 0]
        t = words[:, 1].astype(np.int64) | overflow << 31
        yield Events(t, (place >> 17).astype(np.uint16), (place >> 2 & 0x7FFF).astype(np.uint16), (place >> 1 & 1) == 1)


def _read_4(path: Path, max_events: int) -> Events:
    """The first stream of events; decoded by `aedat` in a process of its own, see `aedat4_child`."""
    if find_spec("aedat") is None:
        missing(path, "aedat")
    return events_of_child(aedat4_child.__name__, path, max_events, "AEDAT 4")
