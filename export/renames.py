"""Renames that put several files into place, at once as far as the system allows, and back if one of them fails."""

import ctypes
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

AT_FDCWD = -100
RENAME_EXCHANGE = 2
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
"""What a system or a file system answers that cannot exchange."""


class Renames:
    """Renames of one commit, undone in reverse where the block they are done in fails.

    A process that is killed in between leaves what `Staging.commit` says.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def move(self, source: Path, destination: Path) -> None:
        """One name to another, which does not exist."""
        source.rename(destination)
        self._undo.append(partial(destination.rename, source))

    def put(self, source: Path, destination: Path, aside: Path) -> None:
        """`source` under the name `destination`, where an older file or folder may stand; that one takes its name.

        Where the system cannot exchange two names, a file is replaced (which cannot be undone), and an older folder is
        moved to `aside` first.
        """
        if not os.path.lexists(destination):
            self.move(source, destination)
        elif exchange(source, destination):
            self._undo.append(partial(exchange, source, destination))
        elif source.is_dir():
            self.move(destination, aside)
            self.move(source, destination)
        else:
            source.replace(destination)

    def back(self) -> None:
        """Undo them all."""
        for undo in reversed(self._undo):
            with suppress(OSError):
                undo()


@contextmanager
def renames() -> Iterator[Renames]:
    """Renames that are done together or not at all. Signals wait until they are."""
    done = Renames()
    with _undisturbed():
        try:
            yield done
        except BaseException:
            done.back()
            raise


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the system cannot.

    Raises:
        OSError: it can, but not these.
    """
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if call(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP are answered at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    received: list[int] = []

    def later(number: int, _: Any) -> None:
        received.append(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    replaced = {number: handler for number, handler in before.items() if handler is not None}
    for number in replaced:
        signal.signal(number, later)
    try:
        yield
    finally:
        for number in reversed(replaced):
            signal.signal(number, replaced[number])
        for number in received:
            signal.raise_signal(number)
