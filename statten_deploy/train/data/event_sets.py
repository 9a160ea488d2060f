"""Recorded event data sets, as frames by number: CIFAR10-DVS, N-Caltech101, DVS128 Gesture, N-MNIST.

They are found where tonic and SpikingJelly put them, in the forms that these two leave on disk: recordings, events as
``.npz``, or frames that SpikingJelly has already made (which the released networks learnt from). tonic fetches them;
the recordings are read by `statten_deploy.events`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.events import READERS
from statten_deploy.train.data.frame_files import CACHE, RecordedFrames, Resize
from statten_deploy.train.data.spec import InputSpec, Int64Array, Source

Files = list[tuple[Path, int]]
"""Recordings and their classes."""


@dataclass(frozen=True)
class EventSet:
    """One data set: what its sensor sees, where it may lie, how it is divided."""

    name: str
    sensor: tuple[int, int]
    """(H, W) of the frames before they are resized."""
    classes: int
    resize: Resize
    tonic: str
    """tonic's class, which is also the name of its folder."""
    below: tuple[str, ...] = ("",)
    """Where recordings may lie below the data set's folder."""
    parts: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """Names of the folders of the training and the test recordings; None: the set comes undivided."""
    first: Callable[[float], int] = math.ceil
    """Rounding of 0.9 n: of the n recordings of a class so many, in the order of their names, are for training."""
    by_user: bool = False
    """Recordings lie in one folder per person, named after their class."""

    def folders(self, root: Path) -> list[Path]:
        """Where the data set may lie."""
        return [root, *(root / name for name in (self.name, self.tonic, *SPELLINGS.get(self.name, ())))]


SPELLINGS = {
    "cifar10dvs": ("cifar10-dvs", "CIFAR10-DVS"),
    "ncaltech101": ("n-caltech101", "N-Caltech101"),
    "dvs128gesture": ("DVSGesturedataset", "DVS128Gesture", "gesture"),
    "nmnist": ("n-mnist", "N-MNIST"),
}

EVENT_SETS = {
    each.name: each
    for each in (
        EventSet("cifar10dvs", (128, 128), 10, "mean", "CIFAR10DVS", ("events_np", "extract", "")),
        EventSet(
            "ncaltech101",
            (180, 240),
            101,
            "nearest",
            "NCALTECH101",
            ("events_np", "extract/Caltech101", "extract", "Caltech101", ""),
            first=math.floor,
        ),
        EventSet(
            "dvs128gesture",
            (128, 128),
            11,
            "sum",
            "DVSGesture",
            ("events_np", ""),
            (("train", "ibmGestureTrain"), ("test", "ibmGestureTest")),
            by_user=True,
        ),
        EventSet(
            "nmnist",
            (34, 34),
            10,
            "sum",
            "NMNIST",
            ("events_np", "extract", ""),
            (("train", "Train"), ("test", "Test")),
        ),
    )
}

TRAIN_SHARE = 0.9
NO_CLASSES = (CACHE, "frames_number_", "events_np", "__MACOSX", ".")
"""Folders that may lie beside those of classes."""


def open_event_set(kind: EventSet) -> Callable[[InputSpec, Path], Source]:
    """The opener of one data set: frames [T, 2, H, W] for any T."""

    def open_it(spec: InputSpec, root: Path) -> Source:
        _check(kind, spec)
        found = _find(kind, root, spec.shape[0])
        if found is None:
            steps = spec.shape[0]
            raise InputError(
                f"{kind.name}: no recordings of {kind.classes} classes below {root} or {kind.folders(root)[2]}; put "
                f"there what tonic ({kind.tonic}) or SpikingJelly leaves on disk (recordings, events_np or "
                f"frames_number_{steps}_split_by_number), say where it is ({kind.name}:DIR, or the variable "
                "STATTEN_DATA), or fetch it with statten-train --download"
            )
        base, form, parts = found
        samples = [RecordedFrames(files, spec, kind.sensor, kind.resize, base, form) for files in parts]
        if len(samples) == 1:
            kept, held = first_of_each_class(samples[0].labels, kind.first)
            samples = [samples[0].subset(kept), samples[0].subset(held)]
        return Source(kind.name, train=samples[0], test=samples[1])

    return open_it


def first_of_each_class(labels: Int64Array, rounding: Callable[[float], int]) -> tuple[Int64Array, Int64Array]:
    """Divide as released: of the n samples of a class the first `rounding`(0.9 n) train, the rest test."""
    kept: list[Int64Array] = []
    held: list[Int64Array] = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = rounding(len(places) * TRAIN_SHARE)
        kept.append(places[:count])
        held.append(places[count:])
    return np.concatenate(kept), np.concatenate(held)


def _check(kind: EventSet, spec: InputSpec) -> None:
    if len(spec.shape) != 4 or spec.shape[1] != 2:
        raise InputError(
            f"{kind.name}: the data are event frames [T, 2, H, W], the network takes {list(spec.shape)}; "
            "set input: frames and in_channels: 2, or give other data with --data"
        )
    if any(of_net > of_sensor for of_net, of_sensor in zip(spec.shape[2:], kind.sensor, strict=True)):
        raise InputError(
            f"{kind.name}: the sensor has {kind.sensor[0]}x{kind.sensor[1]} pixels (H x W), the network's frames have "
            f"{spec.shape[2]}x{spec.shape[3]}; events cannot be enlarged: lower image_size"
        )
    if spec.classes is not None and spec.classes != kind.classes:
        raise InputError(
            f"{kind.name}: the data have {kind.classes} classes, the network has {spec.classes}; "
            f"set num_classes: {kind.classes}"
        )


Form = Literal["frames", "events"]


def _find(kind: EventSet, root: Path, steps: int) -> tuple[Path, Form, list[Files]] | None:
    """The form with the most recordings, of equals the first: SpikingJelly's frames before what they were made of."""
    best: tuple[Path, Form, list[Files]] | None = None
    for folder in kind.folders(root):
        forms: list[tuple[str, Form]] = [(f"frames_number_{steps}_split_by_number", "frames")]
        for below, form in [*forms, *((name, "events") for name in kind.below)]:
            parts = _parts(kind, folder / below, form)
            if parts is not None and (best is None or sum(map(len, parts)) > sum(map(len, best[2]))):
                best = (folder, form, parts)
        if best is not None:
            return best
    return None


def _parts(kind: EventSet, folder: Path, form: Form) -> list[Files] | None:
    if not folder.is_dir():
        return None
    if kind.parts is None:
        whole = _by_class(kind, folder, form)
        return None if whole is None else [whole]
    found = []
    for names in kind.parts:
        part = next((folder / name for name in names if (folder / name).is_dir()), None)
        files = None if part is None else _by_class(kind, part, form) or _by_user(kind, part)
        if files is None:
            return None
        found.append(files)
    return found


def _by_class(kind: EventSet, folder: Path, form: Form) -> Files | None:
    """One sub-folder per class; classes are numbered in the order of their names, as SpikingJelly does."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(NO_CLASSES))
    if len(classes) != kind.classes:
        return None
    endings = {".npz"} if form == "frames" else READERS.keys()
    files = [
        (path, label)
        for label, entry in enumerate(classes)
        for path in sorted(entry.iterdir())
        if path.suffix.lower() in endings
    ]
    return files or None


def _by_user(kind: EventSet, folder: Path) -> Files | None:
    """tonic's DVS128 Gesture: one folder per person, files ``<class>.npy``. Classes are numbered as in `_by_class`."""
    if not kind.by_user:
        return None
    numbers = {name: label for label, name in enumerate(sorted(str(each) for each in range(kind.classes)))}
    files = [(path, numbers[path.stem]) for path in sorted(folder.glob("*/*.npy")) if path.stem in numbers]
    return files or None


def download_event_set(kind: EventSet, root: Path) -> None:
    """Let tonic fetch and unpack the data set below `root`, where it is not there yet.

    Raises:
        UnsupportedError: tonic is not installed.
    """
    try:
        import tonic.datasets
        from tonic.download_utils import extract_archive
    except ImportError:
        raise UnsupportedError(
            f"{kind.name}: fetching it needs tonic, which is not installed: pip install 'statten-deploy[datasets]'"
        ) from None
    fetch = getattr(tonic.datasets, kind.tonic)
    for options in [{}] if kind.parts is None else [{"train": True}, {"train": False}]:
        fetch(str(root), **options)
    for inner in (root / kind.tonic).rglob("Caltech101.zip"):  # an archive in the archive, which tonic leaves packed
        if not (inner.parent / "Caltech101").is_dir():
            extract_archive(str(inner))
