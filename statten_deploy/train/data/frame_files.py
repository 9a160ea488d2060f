"""Frames of recordings, made once and kept on disk."""

import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.events import Events, frames_by_number, read_events
from statten_deploy.events.readers.limits import MAX_EVENTS, check_count, one_line
from statten_deploy.train.data.spec import Float32Array, InputSpec, Int64Array, Samples
from statten_deploy.untrusted.arrays import Archive, declared, read_npy

Resize = Literal["mean", "nearest", "sum"]
"""From the sensor's pixels to the network's: bilinear, which at half the size is the mean of four (CIFAR10-DVS as
released); the nearest pixel (N-Caltech101 as released); or the sum of the events in each cell."""

CACHE = "statten_frames_number_"
"""Folder of the frames that were made, with their number behind it."""

MS = 1000
"""Microseconds: tonic's DVS128 Gesture counts milliseconds."""


class RecordedFrames(Samples):
    """Recordings as T frames of event counts by number, at the network's size.

    Frames are computed when first asked for and kept below `base`, one file per recording: written under another name
    and renamed, so that a run can be killed at any time, goes on where it was, and shares them with others. A folder
    that cannot be written is none: then every frame is computed again.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        spec: InputSpec,
        sensor: tuple[int, int],
        resize: Resize,
        base: Path,
        form: Literal["frames", "events"],
    ) -> None:
        self._base = base
        self._names = np.array([os.fsencode(path.relative_to(base)) for path, _ in files], dtype=np.bytes_)
        self._labels = np.array([label for _, label in files], dtype=np.int64)
        self._spec = spec
        self._sensor = sensor
        self._resize: Resize = resize
        self._form = form

    @property
    def labels(self) -> Int64Array:
        return self._labels

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """The file of one recording."""
        return self._base / os.fsdecode(bytes(self._names[index]))

    def cached(self, index: int) -> Path:
        """Where its frames are kept."""
        path = self.path(index).relative_to(self._base)
        return self._base / f"{CACHE}{self._spec.shape[0]}" / path.with_suffix(".npz")

    def subset(self, indices: Int64Array) -> "RecordedFrames":
        part = RecordedFrames([], self._spec, self._sensor, self._resize, self._base, self._form)
        part._names, part._labels = self._names[indices], self._labels[indices]
        return part

    def sample(self, index: int) -> Float32Array:
        frames = self._full(index)
        height, width = self._spec.shape[2:]
        return resize_frames(frames, (height, width), self._resize)

    def _full(self, index: int) -> npt.NDArray[Any]:
        """Frames [T, 2, H, W] of the whole sensor."""
        shape = (self._spec.shape[0], 2, *self._sensor)
        source = self.path(index)
        if self._form == "frames":
            return read_frames(source, shape)
        cached = self.cached(index)
        with suppress(InputError, OSError):  # missing, of an older recording or damaged: made anew
            if cached.stat().st_mtime_ns >= source.stat().st_mtime_ns:
                return read_frames(cached, shape)
        try:
            frames = frames_by_number(read_recording(source, self._sensor), shape[0], self._sensor)
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith(str(source)) else f"{source}: {text}") from None
        with suppress(OSError):  # no place to keep it
            keep_frames(cached, frames)
        return frames


def read_recording(path: Path, sensor: tuple[int, int]) -> Events:
    """The events of one recording of a data set with a `sensor` of (H, W) pixels.

    Raises:
        InputError: damaged, or events that this sensor does not have.
    """
    if path.suffix == ".npy":  # tonic's DVS128 Gesture: columns x, y, p, t
        with one_line(path, ".npy"), path.open("rb") as stream:
            shape, dtype = declared(stream)
            if len(shape) != 2 or shape[1] != 4 or dtype.kind not in "iuf":
                raise InputError(
                    f"{path}: holds {list(shape)} of {dtype}; expected numbers [N, 4] with columns x, y, p, t"
                )
            check_count(path, shape[0], MAX_EVENTS)
            if math.prod(shape) * dtype.itemsize > path.stat().st_size:
                raise ValueError(f"declares {shape[0]:,} events, has fewer")
            stream.seek(0)
            array = read_npy(stream)
        x, y, p, t = array.T
        events = Events.of(t, x, y, p, sensor, str(path))  # whole numbers, none so large that MS times it overflows
        return Events(events.t * MS, events.x, events.y, events.p, sensor)
    events = read_events(path)
    if events.size == sensor:
        return events
    return Events.of(events.t, events.x, events.y, events.p, sensor, str(path))


def read_frames(path: Path, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Array ``frames`` of an ``.npz`` file, as SpikingJelly writes it.

    Raises:
        InputError: damaged, other frames than `shape`, or NaN.
    """
    with Archive(path) as file:
        kind = file.kinds.get("frames")
        if kind is None or kind[0] != shape or kind[1].kind not in "uif":
            found = "no array 'frames'" if kind is None else f"frames {list(kind[0])} of {kind[1]}"
            raise InputError(f"{path}: has {found}; expected numbers {list(shape)}")
        frames = file.read("frames")
    if not np.isfinite(frames).all():
        raise InputError(f"{path}: 'frames' holds NaN or infinite values; expected finite numbers")
    return frames


def keep_frames(path: Path, frames: Float32Array) -> None:
    """Write `frames`, whole numbers, in the smallest type that holds them; the file appears whole or not at all."""
    kind = np.uint8 if frames.max(initial=0) < 1 << 8 else np.uint16 if frames.max() < 1 << 16 else np.uint32
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, frames=frames.astype(kind))
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def resize_frames(frames: npt.NDArray[Any], size: tuple[int, int], how: Resize) -> Float32Array:
    """Frames [T, 2, H, W] at another `size` (H, W)."""
    full = frames.astype(np.float32)
    if full.shape[2:] == size:
        return full
    if how == "sum":
        for axis, cells in ((2, size[0]), (3, size[1])):
            places = np.arange(full.shape[axis]) * cells // full.shape[axis]
            full = np.add.reduceat(full, np.searchsorted(places, np.arange(cells)), axis=axis)
        return full
    import torch  # what the released code resizes with

    mode = {"mode": "nearest"} if how == "nearest" else {"mode": "bilinear", "align_corners": False}
    resized: Float32Array = torch.nn.functional.interpolate(torch.from_numpy(full), size, **mode).numpy()
    return resized
