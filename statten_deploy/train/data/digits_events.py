"""The handwritten digits of scikit-learn as an event camera sees them, made when asked for (docs/events.md)."""

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.events import Events, frames_by_number
from statten_deploy.events.saccades import SIZE, saccade_events
from statten_deploy.train.data.digits import CLASSES, read_digits
from statten_deploy.train.data.spec import Float32Array, InputSpec, Int64Array, Samples, Source
from statten_deploy.train.data.split import TEST_FRACTION, TEST_SEED, stratified_split


class DigitEvents(Samples):
    """Recordings of digits as frames; each is made once, when it is first asked for, and kept."""

    def __init__(self, images: npt.NDArray[np.int64], labels: Int64Array, indices: Int64Array, spec: InputSpec) -> None:
        self.indices = indices
        self._images = images
        self._labels = labels
        self._spec = spec
        self._frames: dict[int, npt.NDArray[np.uint16]] = {}

    @property
    def labels(self) -> Int64Array:
        return self._labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def events(self, index: int) -> Events:
        """One recording; its seed is the digit's number in scikit-learn's set."""
        number = int(self.indices[index])
        return saccade_events(self._images[number], number)

    def sample(self, index: int) -> Float32Array:
        number = int(self.indices[index])
        if number not in self._frames:
            steps, _, *size = self._spec.shape
            frames = frames_by_number(self.events(index), steps, (size[0], size[1]))
            self._frames[number] = frames.astype(np.uint16)
        return self._frames[number].astype(np.float32)

    def subset(self, indices: Int64Array) -> "DigitEvents":
        part = DigitEvents(self._images, self._labels, self.indices[indices], self._spec)
        part._frames = self._frames  # what one of them has made, none makes again
        return part


class Recordings(Sequence[Events]):
    """Recordings of digits, each made when it is asked for: what a `SimulatedCamera` plays."""

    def __init__(self, samples: DigitEvents) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Events: ...
    @overload
    def __getitem__(self, index: slice) -> "Recordings": ...
    def __getitem__(self, index: int | slice) -> "Events | Recordings":
        if isinstance(index, slice):
            return Recordings(self._samples.subset(np.arange(len(self))[index]))
        return self._samples.events(index)


def open_digits_events(spec: InputSpec) -> Source:
    """The digits seen by an event camera, divided as the data set `digits`: 1437 train and 360 test recordings.

    Frames of event counts [T, 2, H, W] by number, for any T; H and W up to the sensor's 32.

    Raises:
        InputError: the network takes something else than such frames.
    """
    fits = len(spec.shape) == 4 and spec.shape[1] == 2 and max(spec.shape[2:]) <= min(SIZE)
    if not fits:
        raise InputError(
            f"digits-events: the data are event frames [T, 2, H, W] of up to {SIZE[0]}x{SIZE[1]} pixels, the network "
            f"takes {list(spec.shape)}; set input: frames, in_channels: 2 and image_size: 16, or give other data"
        )
    if spec.classes is not None and spec.classes != CLASSES:
        raise InputError(
            f"digits-events: the data have {CLASSES} classes, the network has {spec.classes}; set num_classes: 10"
        )
    return Source("digits-events", train=_part("train", spec), test=_part("test", spec))


def digit_recordings(split: Literal["train", "test"]) -> tuple[Recordings, Int64Array]:
    """The events of one split, and the classes [N]."""
    part = _part(split, InputSpec((1, 2, *SIZE)))
    return Recordings(part), part.labels


def _part(split: Literal["train", "test"], spec: InputSpec) -> DigitEvents:
    images, labels = read_digits()
    train, test = stratified_split(labels, TEST_FRACTION, TEST_SEED)
    return DigitEvents(images, labels, train if split == "train" else test, spec)
