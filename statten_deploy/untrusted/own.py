"""Which files this process has written itself: those need not be read in a child process first."""

from pathlib import Path

_WRITTEN: set[tuple[int, int, int, int]] = set()
_MOST = 10_000
"""Files that are remembered; a process that writes more reads the others the slow way."""


def remember(path: Path) -> None:
    """A file that has just been written, and closed."""
    if len(_WRITTEN) < _MOST:
        _WRITTEN.add(_identity(path))


def wrote(path: Path) -> bool:
    """Whether this is a file of `remember`, not written to since; it may have been renamed."""
    return _identity(path) in _WRITTEN


def _identity(path: Path) -> tuple[int, int, int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
