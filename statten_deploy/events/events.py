"""The events of one recording, and what they must be."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError

MAX_SIDE = 1 << 15
"""Pixels: no sensor is wider or higher; larger coordinates mean that a file was misread."""

MAX_TIME_US = 1 << 60
"""36,000 years: differences of times cannot overflow."""


@dataclass(frozen=True, eq=False)
class Events:
    """N events in the order in which they were recorded.

    t: microseconds, int64 [N]. x (column, from the left), y (row, from the top): uint16 [N]. p: polarity, bool [N],
    True where the pixel became brighter (ON). size: (height, width) of the sensor, None where nothing tells.
    """

    t: npt.NDArray[np.int64]
    x: npt.NDArray[np.uint16]
    y: npt.NDArray[np.uint16]
    p: npt.NDArray[np.bool_]
    size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        t: npt.ArrayLike,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        p: npt.ArrayLike,
        size: tuple[int, int] | None = None,
        source: str = "events",
    ) -> Self:
        """Check four columns of numbers and store them in the types above. Polarities are 0 and 1, or -1 and 1.

        Raises:
            InputError: columns of different lengths, no whole numbers, or coordinates that no sensor has.
        """
        columns = {"t": np.asarray(t), "x": np.asarray(x), "y": np.asarray(y), "p": np.asarray(p)}
        shapes = {name: column.shape for name, column in columns.items()}
        if len(set(shapes.values())) != 1 or columns["t"].ndim != 1:
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise InputError(f"{source}: columns have shapes {told}; expected one value per event in each")
        for name, column in columns.items():
            _check_numbers(source, name, column)
        if size is not None and not all(1 <= side <= MAX_SIDE for side in size):
            raise InputError(f"{source}: a sensor of {size[1]}x{size[0]} pixels; expected sides from 1 to {MAX_SIDE}")
        for name, side in (("x", "width"), ("y", "height")):
            limit = MAX_SIDE if size is None else size[1 if name == "x" else 0]
            _check_range(source, name, columns[name], limit, f"{side} {limit}")
        if (np.abs(columns["t"].astype(np.float64)) > MAX_TIME_US).any():
            raise InputError(f"{source}: times beyond {MAX_TIME_US:.0e} microseconds; they are damaged")
        on = columns["p"] > 0
        if not np.isin(columns["p"], (-1, 0, 1)).all():
            raise InputError(f"{source}: polarities other than 0 and 1 (or -1 and 1)")
        return cls(
            columns["t"].astype(np.int64), columns["x"].astype(np.uint16), columns["y"].astype(np.uint16), on, size
        )

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, part: slice | npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> "Events":
        """The events of a slice, a mask or an index array, of the same sensor."""
        return Events(self.t[part], self.x[part], self.y[part], self.p[part], self.size)

    def __repr__(self) -> str:
        span = f", t {self.t.min()} .. {self.t.max()} us" if len(self) else ""
        return f"Events({len(self)} events{span}, size {self.size})"


def concatenate(parts: list[Events]) -> Events:
    """The events of several recordings of one sensor, one after the other."""
    if not parts:
        return empty()
    t, x, y, p = (np.concatenate([getattr(part, name) for part in parts]) for name in "txyp")
    return Events(t, x, y, p, parts[0].size)


def empty(size: tuple[int, int] | None = None) -> Events:
    """No events."""
    return Events(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint16), np.empty(0, np.bool_), size)


def _check_numbers(source: str, name: str, column: npt.NDArray[np.generic]) -> None:
    if column.dtype.kind in "iub":
        return
    if column.dtype.kind != "f" or not np.isfinite(column).all() or (column != np.floor(column)).any():
        raise InputError(f"{source}: column {name!r} ({column.dtype}) holds something else than whole numbers")


def _check_range(source: str, name: str, column: npt.NDArray[np.generic], limit: int, what: str) -> None:
    wrong = (column < 0) | (column >= limit)  # type: ignore[operator]
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{source}: {name} of event {first} is {column[first]}, outside a sensor of {what}")
