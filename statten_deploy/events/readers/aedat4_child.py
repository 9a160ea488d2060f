"""Decode one AEDAT 4 file in a process of its own: ``python -P aedat4_child.py FILE OUT MAX_EVENTS``.

The decoder ends the whole process on some damaged files, and memory for what they declare is not checked. So it runs
here, with a limit of memory. Writes OUT.npy, a structured array, and prints "width height"; says on stderr what failed.
"""

import sys

import numpy as np

MEMORY_BYTES = 4 << 30
EVENT = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "?")])


def main(source: str, out: str, most: int) -> str | None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # not on this system: the decoder runs without a limit
    import aedat

    decoder = aedat.Decoder(source)
    streams = {number: each for number, each in decoder.id_to_stream().items() if each["type"] == "events"}
    if not streams:
        return "no stream of events in it"
    first = min(streams)  # the others are of other cameras
    parts, total = [np.empty(0, EVENT)], 0
    for packet in decoder:
        if packet["stream_id"] == first:
            total += len(packet["events"])
            if total > most:
                return f"TOO MANY {total}"
            parts.append(packet["events"].astype(EVENT))
    np.save(out, np.concatenate(parts))
    sys.stdout.write(f"{streams[first]['width']} {streams[first]['height']}")
    return None


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except BaseException as error:  # the decoder's panics are no Exception
        if isinstance(error, SystemExit):
            raise
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
