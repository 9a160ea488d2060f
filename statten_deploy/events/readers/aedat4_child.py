"""Decoding one AEDAT 4 file, in a process of its own: the decoder ends its process on some damaged files."""

from pathlib import Path

import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.events.events import Events
from statten_deploy.events.readers.limits import EVENT_BYTES, check_count, write_events
from statten_deploy.untrusted.child import limit_memory
from statten_deploy.untrusted.limits import max_bytes

EVENT = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "?")])


def main(path: str, out: str, most: str) -> str:
    """In the child."""
    limit_memory(min(EVENT_BYTES * int(most), max_bytes()))
    return write_events(decode(Path(path), int(most)), out)


def decode(path: Path, max_events: int) -> Events:
    """The first stream of events; the others are of other cameras.

    Raises:
        InputError: no stream of events, or too many of them; whatever `aedat` raises, or the end of the process.
    """
    import aedat

    decoder = aedat.Decoder(str(path))
    streams = {number: each for number, each in decoder.id_to_stream().items() if each["type"] == "events"}
    if not streams:
        raise InputError(f"{path}: not a readable AEDAT 4 file (no stream of events in it); copy it again")
    first = min(streams)
    parts, total = [np.empty(0, EVENT)], 0
    for packet in decoder:
        if packet["stream_id"] == first:
            total += len(packet["events"])
            check_count(path, total, max_events)
            parts.append(packet["events"].astype(EVENT))
    found = np.concatenate(parts)
    size = (streams[first]["height"], streams[first]["width"])
    return Events.of(found["t"], found["x"], found["y"], found["p"], size, str(path))
