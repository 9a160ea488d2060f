"""Events in numpy files: a structured array, columns, or one array per column. Nothing is ever unpickled."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.events.events import Events
from statten_deploy.events.readers.limits import check_count, damaged, one_line
from statten_deploy.untrusted import arrays
from statten_deploy.untrusted.arrays import Archive

NAMES = {"t": ("t", "ts", "timestamp"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity")}
"""What the columns may be called."""
COLUMNS = "txyp"
"""Order of the columns of an array [N, 4]."""


def read_npy(path: Path, max_events: int) -> Events:
    """A structured array [N] with fields t, x, y, p, or a numeric array [N, 4] with columns t, x, y, p.

    Times in microseconds; polarities 0 and 1, or -1 and 1.

    Raises:
        InputError: something else, damaged, or too many events.
    """
    with one_line(path, ".npy"), path.open("rb") as stream:
        shape, dtype = arrays.declared(stream)
        _check_array(path, shape, dtype, max_events)
        stream.seek(0)
        array = arrays.read_npy(stream)
    if dtype.names:
        return Events.of(**_by_name(path, {name: array[name] for name in dtype.names}), source=str(path))
    t, x, y, p = array.T
    return Events.of(t, x, y, p, source=str(path))


def read_npz(path: Path, max_events: int) -> Events:
    """Arrays t, x, y, p of shape [N], and optionally the sensor's `width` and `height`.

    Raises:
        InputError: something else, damaged, or too many events.
    """
    with one_line(path, ".npz"), Archive(path) as file:
        names = _by_name(path, {name: name for name in file.kinds})
        for name in names.values():
            shape, dtype = file.kinds[name]
            if len(shape) != 1 or dtype.hasobject:
                raise InputError(f"{path}: {name!r} has shape {list(shape)} and type {dtype}, expected numbers [N]")
            check_count(path, shape[0], max_events)
        columns = {key: file.read(name) for key, name in names.items()}
        size = None
        if {"width", "height"} <= file.kinds.keys():
            size = (_side(file, "height"), _side(file, "width"))
    return Events.of(**columns, size=size, source=str(path))


def _side(file: Archive, name: str) -> int:
    shape, dtype = file.kinds[name]
    if prod(shape) != 1 or dtype.kind not in "iu":
        raise InputError(f"{file.path}: {name!r} has shape {list(shape)} and type {dtype}, expected one whole number")
    return int(file.read(name).item())


def is_event_npz(path: Path) -> bool:
    """Whether an ``.npz`` file holds events (t, x, y, p) rather than samples (x and y).

    Raises:
        InputError: it cannot be read.
    """
    with Archive(path) as file:
        names = file.kinds.keys()
        return all(any(name in names for name in choices) for choices in NAMES.values())


def _check_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], max_events: int) -> None:
    fields = dtype.names is not None and len(shape) == 1
    columns = dtype.names is None and len(shape) == 2 and shape[1] == len(COLUMNS)
    if dtype.hasobject or not (fields or columns):
        raise InputError(
            f"{path}: holds {list(shape)} of {dtype}; expected a structured array [N] with fields t, x, y, p or "
            "numbers [N, 4] with these columns"
        )
    check_count(path, shape[0], max_events)
    size = shape[0] * (4 if columns else 1) * dtype.itemsize
    if size > path.stat().st_size:
        damaged(path, ".npy", f"declares {size:,} bytes of events, has fewer")


def _by_name(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    columns = {key: [found[name] for name in choices if name in found] for key, choices in NAMES.items()}
    wrong = [key for key, values in columns.items() if len(values) != 1]
    if wrong:
        raise InputError(
            f"{path}: has {', '.join(found) or 'nothing'}; expected t, x, y and p, each once ({', '.join(wrong)})"
        )
    return {key: values[0] for key, values in columns.items()}
