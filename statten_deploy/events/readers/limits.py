"""What every reader refuses, and in which words."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Never

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError, StattenError, UnsupportedError
from statten_deploy.events.events import Events
from statten_deploy.untrusted.child import read_in_child

MAX_EVENTS = 1 << 25
"""33.5 million events, 436 MB: more than a minute of any sensor in use, and what a small machine can hold."""
EVENT_BYTES = 128
"""Most that a reader may take per event while it reads, copies included."""
INSTALL = "pip install 'statten-deploy[events]'"


def check_count(path: Path, count: int, most: int) -> None:
    """
    Raises:
        InputError: more than `most` events.
    """
    if count > most:
        raise InputError(
            f"{path}: holds {count:,} events, at most {most:,} are read; cut the recording or raise max_events"
        )


def check_whole(path: Path, left: int, each: int, what: str) -> None:
    """
    Raises:
        InputError: `left` bytes are not a whole number of `each`.
    """
    if left % each:
        raise InputError(
            f"{path}: truncated: {left:,} bytes are not a whole number of {each}-byte {what}; copy it again"
        )


def damaged(path: Path, kind: str, detail: object) -> Never:
    """
    Raises:
        InputError: always, with the first words of what a library said.
    """
    raise InputError(
        f"{path}: not a readable {kind} file ({' '.join(str(detail).split())[:160]}); copy it again"
    ) from None


def missing(path: Path, library: str) -> Never:
    """
    Raises:
        UnsupportedError: always, with the command that installs the library.
    """
    raise UnsupportedError(f"{path}: reading it needs {library}, which is not installed: {INSTALL}") from None


@contextmanager
def one_line(path: Path, kind: str) -> Iterator[None]:
    """Whatever a library raises becomes one `InputError`: each format's library has exceptions of its own."""
    try:
        yield
    except StattenError:
        raise
    except Exception as error:
        damaged(path, kind, error)


def events_of_child(module: str, path: Path, max_events: int, kind: str) -> Events:
    """What ``module.main(path, out, max_events)`` finds in a process of its own (see `write_events`).

    For libraries that damage makes hang, crash or swell.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "events.npz"
        told = read_in_child(module, path, [str(out), str(max_events)], kind)
        with np.load(out, allow_pickle=False) as file:
            t, x, y, p = (file[name] for name in "txyp")
    height, width = (int(word) for word in told.split()) if told else (0, 0)
    return Events(t, x, y, p, (height, width) if told else None)


def write_events(events: Events, out: str) -> str:
    """In the child: hand over the events as an ``.npz``, and the sensor's size as text."""
    np.savez(out, t=events.t, x=events.x, y=events.y, p=events.p)
    return f"{events.size[0]} {events.size[1]}" if events.size else ""


def unwrap(t: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """Times of a counter of `bits` bits that starts again at 0: a step back by more than half its range is a wrap."""
    back = np.diff(t, prepend=t[:1]) < -(1 << (bits - 1))
    return t + (np.cumsum(back, dtype=np.int64) << bits)
