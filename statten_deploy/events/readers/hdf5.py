"""Event files in HDF5: arrays ``events/t, x, y, p`` (DSEC, M3ED and others), or ``CD/events`` (Prophesee)."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.events.events import Events
from statten_deploy.events.readers.limits import (
    EVENT_BYTES,
    INSTALL,
    check_count,
    events_of_child,
    one_line,
    write_events,
)
from statten_deploy.untrusted.child import limit_memory
from statten_deploy.untrusted.limits import check_bytes, max_bytes

COLUMNS = ("t", "x", "y", "p")
GROUP = "events"
PROPHESEE = "CD/events"
OFFSET = "t_offset"
"""DSEC: microseconds to add to every time."""


def read_hdf5(path: Path, max_events: int) -> Events:
    """Read either layout; times in microseconds. The sensor's size is the file's attribute ``geometry``, if it has one.

    Files compressed with Blosc, Zstandard and the like need `hdf5plugin`.

    Read in a process of its own: damage can make HDF5 and the decoders of its compressions hang, crash or swell.

    Raises:
        InputError: another layout, damaged, or too many events; UnsupportedError: a compression that cannot be read.
    """
    return events_of_child(__name__, path, max_events, "HDF5")


def main(path: str, out: str, most: str) -> str:
    """In the child."""
    limit_memory(min(EVENT_BYTES * int(most), max_bytes()))
    return write_events(read_here(Path(path), int(most), limit_memory), out)


def read_here(path: Path, max_events: int, settle: Callable[[int], None] = lambda extra: None) -> Events:
    """`read_hdf5` in this process; `settle` hears how many bytes it takes before any is read."""
    import h5py

    with suppress(ImportError):
        import hdf5plugin  # noqa: F401 - importing it teaches h5py the filters
    with one_line(path, "HDF5"), h5py.File(path, "r") as file:
        where = file.get(PROPHESEE)
        layout = where if isinstance(where, h5py.Dataset) and where.dtype.names else file.get(GROUP)
        columns = _columns(path, layout)
        for name, dataset in columns.items():
            if dataset.shape is None or len(dataset.shape) != 1 or dataset.dtype.hasobject:
                raise InputError(f"{path}: column {name} has shape {dataset.shape}, expected numbers [N]")
            if dataset.is_virtual or dataset.external:
                raise InputError(f"{path}: column {name} takes its data from another file; expected one file")
            check_count(path, dataset.shape[0], max_events)
            check_bytes(path, (dataset.shape[0] + (dataset.chunks or (0,))[0]) * dataset.dtype.itemsize, name)
            _check_filters(path, dataset)
        chunks = [(each.chunks or (0,))[0] * each.dtype.itemsize for each in columns.values()]
        settle(EVENT_BYTES * max(each.shape[0] for each in columns.values()) + 2 * max(chunks))
        values = {name: columns[name][name] if layout is columns[name] else columns[name][()] for name in COLUMNS}
        if OFFSET in file:
            offset = file[OFFSET]
            if not isinstance(offset, h5py.Dataset) or offset.size != 1 or offset.dtype.kind not in "iu":
                raise InputError(f"{path}: {OFFSET} is not one whole number of microseconds")
            values["t"] = values["t"].astype(np.int64) + int(offset[()])
        return Events.of(**values, size=_geometry(file.attrs.get("geometry")), source=str(path))


def _columns(path: Path, layout: Any) -> dict[str, Any]:
    import h5py

    if isinstance(layout, h5py.Dataset) and layout.dtype.kind == "V" and set(COLUMNS) <= set(layout.dtype.names or ()):
        return dict.fromkeys(COLUMNS, layout)
    if isinstance(layout, h5py.Group) and all(isinstance(layout.get(name), h5py.Dataset) for name in COLUMNS):
        return {name: layout[name] for name in COLUMNS}
    raise InputError(f"{path}: no events in it; expected arrays {GROUP}/t, x, y, p, or {PROPHESEE} with these fields")


def _check_filters(path: Path, dataset: Any) -> None:
    import h5py

    properties = dataset.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            told = name.decode("latin-1") or "unnamed"
            raise UnsupportedError(
                f"{path}: compressed with HDF5 filter {code} ({told}), which is not installed: {INSTALL} brings Blosc, "
                "Zstandard and others; Prophesee's ECF must be converted by Prophesee's tools"
            )


def _geometry(told: Any) -> tuple[int, int] | None:
    text = told.decode("latin-1") if isinstance(told, bytes) else str(told)
    width, x, height = text.partition("x")
    return (int(height), int(width)) if x and width.isdigit() and height.isdigit() else None
