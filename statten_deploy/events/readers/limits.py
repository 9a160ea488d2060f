"""What every reader refuses, and in which words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Never

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError, StattenError, UnsupportedError

MAX_EVENTS = 1 << 25
"""33.5 million events, 436 MB: more than a minute of any sensor in use, and what a small machine can hold."""
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


def unwrap(t: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """Times of a counter of `bits` bits that starts again at 0: a step back by more than half its range is a wrap."""
    back = np.diff(t, prepend=t[:1]) < -(1 << (bits - 1))
    return t + (np.cumsum(back, dtype=np.int64) << bits)
