"""Temporary folders beside what they are for. Whoever dies in one leaves it; the next who needs one there removes it.

A room is called ``.<name>.<random>.partial``. Its process holds a lock on it (`flock`), which ends with the process
however that ends: a room without a lock is one of a killed run.
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

ENDING = ".partial"
ASIDE = "aside"
"""Folder in a room for what stood under the final names."""
LONGEST_NAME = 50
"""Characters of a name that show in its room's: file systems have limits."""
ATTEMPTS = 16

_ACTIVE: "list[Room]" = []
"""Rooms of this process, for `discard_all`."""


def discard_all() -> bool:
    """Remove every temporary file of this process; whether there was any room. For signal handlers."""
    active = bool(_ACTIVE)
    for room in list(_ACTIVE):
        room.discard()
    return active


@dataclass(eq=False)
class Room:
    """A temporary folder of this process, for `name` in `folder`."""

    folder: Path
    name: str
    path: Path
    _lock: int | None = None

    def enter(self) -> bool:
        """Create and lock it; False where it went to another process meanwhile, or its name is taken."""
        try:
            self.path.mkdir(0o700)
        except FileExistsError:
            return False
        self._lock = _open(self.path)
        if self._lock is None:
            return self.path.is_dir()
        return _locked(self._lock) is not False and self.path.is_dir()

    def discard(self) -> None:
        """Remove everything in it, and itself."""
        shutil.rmtree(self.path, ignore_errors=True)

    def leave(self) -> None:
        """Remove it and its lock."""
        self.discard()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def room(folder: Path, name: str) -> Iterator[Room]:
    """A room for `name` in `folder`; rooms that killed processes left there for the same name are removed.

    Raises:
        OSError: it cannot be created.
    """
    sweep(folder, name)
    for _ in range(ATTEMPTS):
        entered = Room(folder, name, folder / f".{name[:LONGEST_NAME]}.{token_hex(4)}{ENDING}")
        _ACTIVE.append(entered)  # before it exists: a signal may come at any moment
        try:
            if entered.enter():
                yield entered
                return
        finally:
            entered.leave()
            _ACTIVE.remove(entered)
    raise OSError(f"{folder}: no temporary folder could be made in {ATTEMPTS} attempts")


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A room in the system's folder for temporary files.

    Raises:
        OSError: it cannot be created.
    """
    with room(Path(tempfile.gettempdir()), name) as entered:
        yield entered.path


def sweep(folder: Path, name: str) -> None:
    """Remove the rooms of killed processes for `name`; an artefact that one had set aside comes back if it is missing.

    Where locks do not work nothing is removed.
    """
    begins = f".{name[:LONGEST_NAME]}."
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if path.name.startswith(begins) and path.name.endswith(ENDING)]:
            _remove_if_left(path, folder / name)


def _remove_if_left(path: Path, destination: Path) -> None:
    descriptor = _open(path)
    if descriptor is None:
        return
    try:
        if os.fstat(descriptor).st_uid == os.geteuid() and _locked(descriptor):
            aside = path / ASIDE / destination.name
            if aside.exists() and not os.path.lexists(destination):
                aside.rename(destination)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int | None:
    """A descriptor of a folder that is no link, to be locked; None where the system has no such thing."""
    if sys.platform == "win32":
        return None
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return None
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None


def _locked(descriptor: int) -> bool | None:
    """Lock a folder: True done, False somebody else's, None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
