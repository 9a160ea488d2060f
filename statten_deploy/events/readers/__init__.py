"""Event files of every common camera, by the end of their name."""

from collections.abc import Callable
from pathlib import Path

from statten_deploy.errors import InputError
from statten_deploy.events.events import Events
from statten_deploy.events.readers.aedat_files import read_aedat
from statten_deploy.events.readers.array_files import read_npy, read_npz
from statten_deploy.events.readers.atis import read_bin
from statten_deploy.events.readers.hdf5 import read_hdf5
from statten_deploy.events.readers.limits import MAX_EVENTS
from statten_deploy.events.readers.prophesee import read_dat, read_raw

READERS: dict[str, Callable[[Path, int], Events]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".bin": read_bin,
    ".raw": read_raw,
    ".dat": read_dat,
    ".aedat": read_aedat,
    ".aedat4": read_aedat,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}
"""One reader per ending: (path, most events) -> events."""


def read_events(path: str | Path, *, size: tuple[int, int] | None = None, max_events: int = MAX_EVENTS) -> Events:
    """All events of a file (docs/events.md lists the formats), in the order of the file.

    `size`: (height, width) of the sensor, for formats that do not tell it. A file of more than `max_events` is refused
    before they are in memory.

    Raises:
        InputError: the file is damaged, truncated or too large, or does not fit `size`.
        UnsupportedError: a variant that cannot be read, or a missing library, with the command that installs it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.exists() else 'no such file'}; expected an event file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: not a known kind of event file; expected one of {', '.join(READERS)}")
    events = reader(path, max_events)
    if size is None:
        return events
    if events.size not in (None, size):
        told = f"{events.size[1]}x{events.size[0]}" if events.size else ""
        raise InputError(f"{path}: says that its sensor has {told} pixels, told {size[1]}x{size[0]}; leave that out")
    return Events.of(events.t, events.x, events.y, events.p, size, str(path))
