"""What a file may take: the one place where it is said. Standard library only, for the edge too.

A file is refused where its contents, unpacked, are larger than `max_bytes`, and where a library that has been known to
hang on damage needs longer than `max_seconds`. Both can be raised or lowered by the environment.
"""

import os
from pathlib import Path

from statten_deploy.errors import ConfigError, InputError

MEMORY_VARIABLE = "STATTEN_MAX_BYTES"
SECONDS_VARIABLE = "STATTEN_MAX_SECONDS"
GIB = 1 << 30
DEFAULT_MAX_BYTES = 8 * GIB
"""Unpacked contents of one file, unless three quarters of the machine's memory are less."""
DEFAULT_MAX_SECONDS = 120.0
"""Seconds that the child process has which reads an HDF5 or AEDAT 4 file first."""

MAX_CONFIG_BYTES = 1 << 16
"""A YAML or TOML file: a configuration is a page of text."""
MAX_JSON_BYTES = 1 << 24
"""A sidecar, a manifest, a bundle's plan, or metadata inside a file."""
MAX_PIXELS = 1 << 27
"""An image file: 134 megapixels are more than a camera takes."""
MAX_NAME = 1000
"""Characters of a node's or layer's name."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": GIB, "T": 1 << 40}


def max_bytes() -> int:
    """Most bytes that the contents of one file may have.

    Raises:
        ConfigError: the environment variable is not a size.
    """
    told = os.environ.get(MEMORY_VARIABLE, "").strip()
    if not told:
        return min(DEFAULT_MAX_BYTES, _physical_memory() // 4 * 3)
    number, unit = (told[:-1], told[-1].upper()) if told[-1].upper() in "KMGT" else (told, "")
    if not number.isdecimal() or not 0 < int(number[:20]) * _UNITS[unit] < 1 << 62:
        raise ConfigError(f"{MEMORY_VARIABLE}={told[:40]!r}: expected a number of bytes, such as 2000000000 or 16G")
    return int(number) * _UNITS[unit]


def max_seconds() -> float:
    """Most seconds that a child process may take to read one file.

    Raises:
        ConfigError: the environment variable is not a number of seconds.
    """
    told = os.environ.get(SECONDS_VARIABLE, "").strip()
    if not told:
        return DEFAULT_MAX_SECONDS
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{SECONDS_VARIABLE}={told[:40]!r}: expected a number of seconds, such as 300")
    return seconds


def check_bytes(where: object, needed: int, what: str = "", most: int | None = None) -> None:
    """Whether contents of `needed` bytes may be held.

    Raises:
        InputError: more than `most`, by default `max_bytes()`.
    """
    limit = max_bytes() if most is None else most
    if needed > limit:
        raise InputError(
            f"{where}: {what + ' ' if what else ''}declares {size(needed)} when unpacked, above the limit of "
            f"{size(limit)}; if you trust the file, raise the limit with {MEMORY_VARIABLE}"
        )


def check_small(path: Path, most: int, what: str) -> None:
    """Whether a file that is read as a whole is of the size that such files have.

    Raises:
        InputError: larger than `most` bytes.
    """
    if path.stat().st_size > most:
        raise InputError(f"{path}: larger than {size(most)}; expected {what}")


def size(number: int) -> str:
    """``3.2 GiB``."""
    for unit, factor in (("GiB", GIB), ("MiB", 1 << 20), ("kiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number < factor << 40 else f"2^{number.bit_length() - 1} bytes"
    return f"{number} bytes"


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return DEFAULT_MAX_BYTES << 1
