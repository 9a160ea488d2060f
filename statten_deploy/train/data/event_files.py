"""Event files as samples: one file, or a folder of them, with one sub-folder per class."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.events import READERS, frames_by_number, read_events
from statten_deploy.events.readers.array_files import is_event_npz
from statten_deploy.train.data.folder import ENDINGS, classes_of, divided
from statten_deploy.train.data.spec import Float32Array, InputSpec, Int64Array, Samples, Source

Size = tuple[int, int]
IMAGES = frozenset(ENDINGS)


class EventFiles(Samples):
    """Recordings on disk, read when asked for: each is one sample, as frames of event counts by number."""

    def __init__(self, paths: Sequence[Path], labels: Int64Array | None, spec: InputSpec, sensor: Size | None) -> None:
        self.paths = paths
        self._labels = labels
        self._spec = spec
        self._sensor = sensor

    @property
    def labels(self) -> Int64Array | None:
        return self._labels

    def __len__(self) -> int:
        return len(self.paths)

    def sample(self, index: int) -> Float32Array:
        path = self.paths[index]
        events = read_events(path, size=self._sensor)
        if events.size is None:
            raise InputError(
                f"{path}: does not tell its sensor's size; add it to the name of the data, such as {path}@34x34 "
                "(width x height)"
            )
        steps, _, height, width = self._spec.shape
        try:
            return frames_by_number(events, steps, (height, width))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def subset(self, indices: Int64Array) -> "EventFiles":
        labels = None if self._labels is None else self._labels[indices]
        return EventFiles([self.paths[i] for i in indices], labels, self._spec, self._sensor)


def split_sensor(data: str) -> tuple[Path, Size | None]:
    """``recordings@34x34`` -> (recordings, (34, 34)): a sensor's width x height, for formats that do not tell it."""
    told = re.fullmatch(r"(.+)@(\d{1,5})x(\d{1,5})", data)
    if told is None or Path(data).exists():
        return Path(data), None
    return Path(told[1]), (int(told[3]), int(told[2]))


def is_events(path: Path) -> bool:
    """Whether `path` is an event file, or a folder of them: images in it make it a folder of images."""
    if path.is_file():
        suffix = path.suffix.lower()
        return is_event_npz(path) if suffix == ".npz" else suffix in READERS
    for _, _, names in os.walk(path):
        suffixes = {Path(name).suffix.lower() for name in names}
        if suffixes & (IMAGES | READERS.keys()):
            return not suffixes & IMAGES
    return False


def open_events(path: Path, spec: InputSpec, sensor: Size | None) -> Source:
    """Open an event file or a folder of them (one sub-folder per class, or none), like a folder of images.

    Raises:
        InputError: the network takes no event frames, or another number of classes.
    """
    if len(spec.shape) != 4 or spec.shape[1] != 2:
        raise InputError(
            f"{path}: events give frames [T, 2, H, W], the network takes {list(spec.shape)}; use a network with "
            "input: frames and in_channels: 2"
        )
    if path.is_file():
        return Source(str(path), whole=EventFiles([path], None, spec, sensor))
    return divided(path, lambda root: _scan(root, spec, sensor))


def _scan(root: Path, spec: InputSpec, sensor: Size | None) -> EventFiles:
    if not any(entry.is_dir() for entry in root.iterdir()):
        return EventFiles(_files(root), None, spec, sensor)
    files = [_files(root / name) for name in classes_of(root, spec, "recordings")]
    labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(part) for part in files])
    return EventFiles([path for part in files for path in part], labels, spec, sensor)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in READERS and path.is_file())
