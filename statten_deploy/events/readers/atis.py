"""``.bin`` files of N-MNIST and N-Caltech101: five bytes an event, as the ATIS camera wrote them."""

from pathlib import Path

import numpy as np

from statten_deploy.events.events import Events
from statten_deploy.events.readers.limits import check_count, check_whole

OVERFLOW_ROW = 240
"""An event in this row is none: the clock has wrapped."""
OVERFLOW_US = 1 << 13


def read_bin(path: Path, max_events: int) -> Events:
    """x (8 bits), y (8), polarity (1), microseconds (23), big-endian. The format does not tell the sensor's size.

    Source: Orchard et al., "Converting static image datasets to spiking neuromorphic datasets using saccades",
    Frontiers in Neuroscience 2015, and the authors' reader.

    Raises:
        InputError: not a whole number of events, or too many.
    """
    length = path.stat().st_size
    check_whole(path, length, 5, "events")
    check_count(path, length // 5, max_events)
    x, y, high, middle, low = np.fromfile(path, np.uint8).reshape(-1, 5).T
    t = (high & 0x7F).astype(np.int64) << 16 | middle.astype(np.int64) << 8 | low
    wraps = y == OVERFLOW_ROW
    t += np.cumsum(wraps, dtype=np.int64) * OVERFLOW_US
    kept = ~wraps
    return Events(t[kept], x[kept].astype(np.uint16), y[kept].astype(np.uint16), (high >> 7).astype(np.bool_)[kept])
