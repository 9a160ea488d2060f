"""Files of Prophesee cameras: ``.raw`` in the encodings EVT 2.0 and EVT 3.0, and ``.dat``."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.events.events import Events, concatenate, empty
from statten_deploy.events.readers.limits import check_count, check_whole, damaged, missing, one_line, unwrap

BLOCK_BYTES = 1 << 23
HEADER_BYTES = 1 << 16
"""A header is a few hundred bytes of text."""

OFF, ON, TIME_HIGH = 0x0, 0x1, 0x8
OTHER_WORDS = (0xA, 0xE, 0xF)
"""External triggers and vendor data: no events of pixels."""
CD_EVENTS = (0x00, 0x0C)
"""Event types of a ``.dat`` file whose events are those of pixels."""


def read_raw(path: Path, max_events: int) -> Events:
    """EVT 2.0 or EVT 3.0, as the header says. Events before the first time word have no time and are left out.

    Source: Prophesee's descriptions of the formats.

    Raises:
        InputError: no header, a damaged or truncated file, or too many events; UnsupportedError: another encoding, or
        `evt3` is not installed.
    """
    with path.open("rb") as stream:
        header, start = _header(path, stream)
        version, size = _version(header), _size(header)
        left = path.stat().st_size - start
        if version == 2:
            check_whole(path, left, 4, "words")
            return _collect(path, _evt2(path, stream), 34, max_events, size)
    if version == 3:
        check_whole(path, left, 2, "words")
        return _collect(path, _evt3(path), None, max_events, size)
    raise UnsupportedError(f"{path}: encoding {_told(header)} cannot be read; expected EVT 2.0 or EVT 3.0")


def read_dat(path: Path, max_events: int) -> Events:
    """Events of eight bytes: microseconds (32 bits), then x (14), y (14), polarity (4), little-endian.

    Raises:
        InputError: no header, events of something else than pixels, a truncated file, or too many events.
    """
    with path.open("rb") as stream:
        header, start = _header(path, stream)
        kind, each = stream.read(1), stream.read(1)
        if not each or kind[0] not in CD_EVENTS or each[0] != 8:
            damaged(path, ".dat", f"event type {kind.hex() or 'none'} of {each.hex() or 'no'} bytes, expected 0c of 08")
        left = path.stat().st_size - start - 2
        check_whole(path, left, 8, "events")
        check_count(path, left // 8, max_events)
        words = np.frombuffer(stream.read(left), "<u4").reshape(-1, 2)
    place = words[:, 1]
    x, y = (place & 0x3FFF).astype(np.uint16), (place >> 14 & 0x3FFF).astype(np.uint16)
    return _placed(path, Events(unwrap(words[:, 0].astype(np.int64), 32), x, y, place >> 28 > 0), _size(header))


def _header(path: Path, stream: IO[bytes]) -> tuple[list[str], int]:
    """Lines that start with %, and where the data begin; the stream stands there."""
    lines: list[str] = []
    while not lines or lines[-1] != "end":
        start = stream.tell()
        line = stream.readline(HEADER_BYTES)
        if not line.startswith(b"%") or not line.endswith(b"\n") or start > HEADER_BYTES:
            break
        lines.append(line[1:].decode("latin-1").strip())
    else:
        start = stream.tell()
    if not lines:
        raise InputError(f"{path}: not a Prophesee file, which begins with lines of text that start with %")
    stream.seek(start)
    return lines, start


def _told(header: list[str]) -> str:
    found = [line for line in header if line.lower().startswith(("evt", "format"))]
    return f"({'; '.join(found)[:80] or 'the header names none'})"


def _version(header: list[str]) -> int | None:
    for line in header:
        told = re.match(r"(?:evt\s+|format\s+EVT)(\d)(?:\.?(\d))?\b", line, re.IGNORECASE)
        if told:
            return int(told[1]) if told[2] in (None, "0") else None  # EVT 2.1 is another encoding
    return None


def _size(header: list[str]) -> tuple[int, int] | None:
    """(height, width), if a line says so: geometry 1280x720, format ..;height=720;width=1280, or Width and Height."""
    told: dict[str, int] = {}
    for line in header:
        geometry = re.match(r"geometry\s+(\d{1,5})x(\d{1,5})$", line, re.IGNORECASE)
        if geometry:
            told.update(width=int(geometry[1]), height=int(geometry[2]))
        for name, value in re.findall(r"\b(width|height)[=\s]\s*(\d{1,5})\b", line, re.IGNORECASE):
            told[name.lower()] = int(value)
    return (told["height"], told["width"]) if told.get("height") and told.get("width") else None


def _evt2(path: Path, stream: IO[bytes]) -> Iterator[Events]:
    """32-bit words: type (4 bits), then time bits 5..0, x (11), y (11); or, in time words, time bits 33..6."""
    high = -1  # none yet
    while block := stream.read(BLOCK_BYTES):
        words = np.frombuffer(block, "<u4")
        kind = words >> 28
        is_event, is_time = kind <= ON, kind == TIME_HIGH
        unknown = ~(is_event | is_time | np.isin(kind, OTHER_WORDS))
        if unknown.any():
            damaged(path, "EVT 2.0", f"word of unknown type {kind[unknown][0]}")
        times = np.concatenate([[high], (words[is_time] & 0x0FFFFFFF).astype(np.int64)])
        since = times[np.cumsum(is_time)]  # of the last time word before each word
        timed = is_event & (since >= 0)
        word = words[timed]
        t = since[timed] << 6 | (word >> 22 & 0x3F).astype(np.int64)
        x, y = (word >> 11 & 0x7FF).astype(np.uint16), (word & 0x7FF).astype(np.uint16)
        yield Events(t, x, y, kind[timed] == ON)
        high = int(times[-1])


def _evt3(path: Path) -> Iterator[Events]:
    try:
        import evt3
    except ImportError:
        missing(path, "evt3")
    with one_line(path, "EVT 3.0"):
        for part in evt3.decode_file_batches(str(path), batch_bytes=BLOCK_BYTES):
            yield Events(part.t.astype(np.int64), part.x, part.y, part.p > 0)


def _collect(
    path: Path, parts: Iterator[Events], bits: int | None, max_events: int, size: tuple[int, int] | None
) -> Events:
    found: list[Events] = []
    total = 0
    for part in parts:
        total += len(part)
        check_count(path, total, max_events)
        found.append(part)
    events = concatenate(found) if found else empty()
    if bits is not None:
        events = Events(unwrap(events.t, bits), events.x, events.y, events.p)
    return _placed(path, events, size)


def _placed(path: Path, events: Events, size: tuple[int, int] | None) -> Events:
    """The events on a sensor of `size`, checked: a coordinate outside means damage."""
    return Events.of(events.t, events.x, events.y, events.p, size, str(path))
