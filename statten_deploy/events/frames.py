"""Recordings as frames of event counts, [T, 2, H, W]: channel 0 counts OFF events, channel 1 ON events."""

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.events.events import Events

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


def frames_by_number(events: Events, count: int, size: tuple[int, int]) -> Float32Array:
    """`count` frames of N // count events each, in the order of time; the last takes the rest. [count, 2, H, W]

        F[f, p, y, x] = number of events j with  min(j // (N // count), count - 1) = f,  polarity p, at (y, x)

    As in the released STAtten code (SpikingJelly's ``split_by="number"``). Fewer than `count` events: all are in the
    last frame.

    Raises:
        InputError: no frames, or see `to_grid`.
    """
    _check_frames(count)
    ordered = in_order(events)
    each = len(ordered) // count
    which = np.full(len(ordered), count - 1, np.int64)
    if each:
        which = np.minimum(np.arange(len(ordered)) // each, count - 1)
    return count_events(ordered, which, count, size)


def frames_by_time(events: Events, count: int, size: tuple[int, int]) -> Float32Array:
    """`count` frames of (t[last] - t[first]) // count microseconds each; the last takes the rest. [count, 2, H, W]

        F[f, p, y, x] = number of events with  min((t - t[first]) // duration, count - 1) = f,  polarity p, at (y, x)

    As SpikingJelly's ``split_by="time"``; a frame without events is zero (SpikingJelly fails there).

    Raises:
        InputError: no frames, or see `to_grid`.
    """
    _check_frames(count)
    ordered = in_order(events)
    which = np.full(len(ordered), count - 1, np.int64)
    if len(ordered):
        since = ordered.t - ordered.t[0]
        duration = int(since[-1]) // count
        if duration:
            which = np.minimum(since // duration, count - 1)
    return count_events(ordered, which, count, size)


def _check_frames(count: int) -> None:
    if count < 1:
        raise InputError(f"{count} frames: expected at least 1")


def in_order(events: Events) -> Events:
    """Sorted by time; events of the same time stay in the order of recording."""
    if len(events) and (np.diff(events.t) < 0).any():
        return events[np.argsort(events.t, kind="stable")]
    return events


def count_events(events: Events, which: Int64Array, count: int, size: tuple[int, int]) -> Float32Array:
    """Event i counted in frame which[i], at its place on the smaller grid `size` (H, W). float32 [count, 2, H, W]"""
    height, width = size
    row, column = to_grid(events, size)
    cell = ((which * 2 + events.p) * height + row) * width + column
    total = np.bincount(cell, minlength=count * 2 * height * width)
    return total.reshape(count, 2, height, width).astype(np.float32)


def to_grid(events: Events, size: tuple[int, int]) -> tuple[Int64Array, Int64Array]:
    """Row and column of every event on a grid `size` (H, W) laid over the sensor: row = y · H // sensor height.

    Neighbouring pixels fall into one cell and their events add up. Where the sensor's size is unknown it is `size`.

    Raises:
        InputError: the grid is finer than the sensor, or events lie outside.
    """
    sensor = events.size or size
    check_grid(size, sensor)
    y, x = events.y.astype(np.int64), events.x.astype(np.int64)
    outside = (y >= sensor[0]) | (x >= sensor[1])
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        unknown = "" if events.size else " (assumed: nothing tells the sensor's size)"
        raise InputError(
            f"event {first} at x {x[first]}, y {y[first]} is outside a sensor of {sensor[1]}x{sensor[0]}{unknown}"
        )
    return y * size[0] // sensor[0], x * size[1] // sensor[1]


def check_grid(size: tuple[int, int], sensor: tuple[int, int]) -> None:
    """
    Raises:
        InputError: frames of `size` (H, W) are finer than the sensor.
    """
    for of_grid, of_sensor, what in zip(size, sensor, ("rows", "columns"), strict=True):
        if of_grid > of_sensor:
            raise InputError(
                f"the network's frames have {of_grid} {what} and the sensor {of_sensor}: events cannot be enlarged; "
                f"use a network for {sensor[1]}x{sensor[0]} pixels or fewer"
            )
