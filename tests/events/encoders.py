"""Writers of event files, byte by byte as the formats say; none of the readers is used."""

import struct
from pathlib import Path

import numpy as np

from statten_deploy.events import Events


def some_events(count: int = 500, size: tuple[int, int] = (20, 34), seed: int = 0, last_us: int = 50_000) -> Events:
    """Random events in the order of time, some at equal times, in every corner of the sensor."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, last_us, count))
    y, x = rng.integers(0, size[0], count), rng.integers(0, size[1], count)
    y[:2], x[:2] = (0, size[0] - 1), (size[1] - 1, 0)
    return Events.of(t, x, y, rng.integers(0, 2, count), size)


def rows(events: Events) -> list[tuple[int, int, int, int]]:
    return list(
        zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.astype(int).tolist(), strict=True)
    )


def bin_bytes(events: Events) -> bytes:
    """40 bits: x, y, polarity and 23 bits of time; row 240 says that the clock wrapped (after 2^13 us, as N-MNIST)."""
    out = b""
    base = 0
    for t, x, y, p in rows(events):
        while t - base >= 1 << 13:
            base += 1 << 13
            out += bytes([0, 240, 0, 0, 0])
        since = t - base
        out += bytes([x, y, p << 7 | since >> 16, since >> 8 & 0xFF, since & 0xFF])
    return out


def dat_bytes(events: Events, header: str = "% Data file\n% Version 2\n% Height 20\n% Width 34\n") -> bytes:
    words = b"".join(struct.pack("<II", t & 0xFFFFFFFF, p << 28 | y << 14 | x) for t, x, y, p in rows(events))
    return header.encode() + bytes([0x0C, 8]) + words


EVT2_HEADER = "% evt 2.0\n% format EVT2;height=20;width=34\n% end\n"
EVT3_HEADER = "% evt 3.0\n% format EVT3;height=20;width=34\n% geometry 34x20\n% end\n"


def evt2_bytes(events: Events, header: str = EVT2_HEADER) -> bytes:
    """Starts with an event before any time word, which has no time, and holds a trigger word."""
    words = [0x1 << 28 | 3 << 11 | 4, 0xA << 28]
    high = -1
    for t, x, y, p in rows(events):
        if t >> 6 != high:
            high = t >> 6
            words.append(0x8 << 28 | high & 0x0FFFFFFF)
        words.append(p << 28 | (t & 0x3F) << 22 | x << 11 | y)
    return header.encode() + struct.pack(f"<{len(words)}I", *words)


def evt3_bytes(events: Events, header: str = EVT3_HEADER) -> bytes:
    """16-bit words: row (0), single event (2), time bits 11..0 (6) and 23..12 (8); vectors are written by hand."""
    words: list[int] = []
    high = low = row = -1
    for t, x, y, p in rows(events):
        if t >> 12 != high:
            high, low = t >> 12, -1
            words.append(0x8 << 12 | high & 0xFFF)
        if t & 0xFFF != low:
            low = t & 0xFFF
            words.append(0x6 << 12 | low)
        if y != row:
            row = y
            words.append(0x0 << 12 | y)
        words.append(0x2 << 12 | p << 11 | x)
    return header.encode() + struct.pack(f"<{len(words)}H", *words)


def aedat2_bytes(events: Events) -> bytes:
    """A DVS128 (128x128): jAER's x and y run the other way round, and its polarity bit means OFF."""
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# Creation time: now\r\n"
    return header + b"".join(
        struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | (1 - p), t & 0xFFFFFFFF) for t, x, y, p in rows(events)
    )


def aedat3_bytes(events: Events, packet: int = 100) -> bytes:
    """Packets of polarity events with one packet of another kind between; one event in each is marked invalid."""
    out = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 0: DVS128\r\n#!END-HEADER\r\n"
    out += struct.pack("<HHIIIIII", 0, 0, 8, 0, 0, 1, 1, 1) + bytes(8)  # a special event
    told = rows(events)
    for start in range(0, len(told), packet):
        part = told[start : start + packet]
        overflow = part[0][0] >> 31
        out += struct.pack("<HHIIIIII", 1, 0, 8, 4, overflow, len(part) + 1, len(part) + 1, len(part))
        out += struct.pack("<Ii", 5 << 17 | 5 << 2, part[0][0] & 0x7FFFFFFF)  # not valid
        out += b"".join(struct.pack("<Ii", x << 17 | y << 2 | p << 1 | 1, t & 0x7FFFFFFF) for t, x, y, p in part)
    return out


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
