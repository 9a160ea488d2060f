"""What a network takes, and the samples a data source offers it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from statten_deploy.models.config import ModelConfig

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

SPLITS: dict[str, str] = {
    "train": "what a network may learn from",
    "calibration": "the same samples as `train`: quantisation and verification never see test data",
    "test": "disjoint from `train`, always",
    "evaluation": "the test split of data that come with one; everything, where a user gave one undivided set",
}
"""The parts of a data set that can be asked for."""


@dataclass(frozen=True)
class InputSpec:
    """Shape of one sample, [C, H, W] (still image) or [T, C, H, W] (event frames), and the number of classes."""

    shape: tuple[int, ...]
    classes: int | None = None
    """None: unknown, labels are not checked against it."""

    @classmethod
    def of(cls, config: ModelConfig) -> Self:
        """The input of the network that `config` describes."""
        frame = (config.in_channels, *config.image_size)
        return cls(frame if config.input == "image" else (config.time_steps, *frame), config.num_classes)

    @property
    def still(self) -> bool:
        """Whether one sample is one image, shown at every step."""
        return len(self.shape) == 3


class Samples(ABC):
    """A sequence of samples, read one by one: a folder of images need not fit in memory."""

    @property
    @abstractmethod
    def labels(self) -> Int64Array | None:
        """Class of every sample [N], or None where the data have no labels."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int) -> Float32Array:
        """One sample, shaped as the `InputSpec` says."""

    def batch(self, indices: Iterable[int]) -> Float32Array:
        """Several samples, [N, ...]."""
        return np.stack([self.sample(index) for index in indices])

    @abstractmethod
    def subset(self, indices: Int64Array) -> "Samples":
        """The samples at `indices`, in that order."""


class ArraySamples(Samples):
    """Samples held in memory: x [N, ...], labels [N] or None."""

    def __init__(self, x: Float32Array, labels: Int64Array | None) -> None:
        self.x = x
        self._labels = labels

    @property
    def labels(self) -> Int64Array | None:
        return self._labels

    def __len__(self) -> int:
        return len(self.x)

    def sample(self, index: int) -> Float32Array:
        item: Float32Array = self.x[index]
        return item

    def subset(self, indices: Int64Array) -> "ArraySamples":
        return ArraySamples(self.x[indices], None if self.labels is None else self.labels[indices])


@dataclass(frozen=True)
class Source:
    """An opened data source: either divided by whoever made it (`train` and `test`), or one undivided set (`whole`)."""

    name: str
    whole: Samples | None = None
    train: Samples | None = None
    test: Samples | None = None
