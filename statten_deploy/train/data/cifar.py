"""CIFAR10 and CIFAR100, read by torchvision from the published files.

These files are pickles. torchvision checks every one against its published checksum before it opens any, so that
nothing but the published files is ever unpickled; whatever differs is refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.train.data.images import ImageSamples, check_takes_images, fit
from statten_deploy.train.data.spec import Float32Array, InputSpec, Int64Array, Source

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = {"cifar10": 10, "cifar100": 100}
SHAPE = (3, 32, 32)


class CifarSamples(ImageSamples):
    """Images in memory as bytes, [N, 32, 32, 3]."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: Int64Array, spec: InputSpec) -> None:
        self._images = images
        self._labels = labels
        self._spec = spec

    @property
    def labels(self) -> Int64Array:
        return self._labels

    def __len__(self) -> int:
        return len(self._images)

    def picture(self, index: int) -> "Image":
        from PIL import Image

        image = Image.fromarray(self._images[index])
        return image if self._spec.shape[0] == 3 else image.convert("L")

    def sample(self, index: int) -> Float32Array:
        return fit(self.picture(index), self._spec, None)

    def subset(self, indices: Int64Array) -> "CifarSamples":
        return CifarSamples(self._images[indices], self._labels[indices], self._spec)


def open_cifar(name: str) -> Callable[[InputSpec, Path], Source]:
    """The opener of data set `name`: 50,000 train and 10,000 test images of 32x32, resized where a network asks."""

    def open_it(spec: InputSpec, root: Path) -> Source:
        check_takes_images(name, spec)
        if spec.classes is not None and spec.classes != CLASSES[name]:
            raise InputError(
                f"{name}: the data have {CLASSES[name]} classes, the network has {spec.classes}; "
                f"set num_classes: {CLASSES[name]}"
            )
        train, test = (_read(name, root, part, spec) for part in (True, False))
        return Source(name, train=train, test=test)

    return open_it


def _read(name: str, root: Path, train: bool, spec: InputSpec) -> CifarSamples:
    kind = _torchvision(name)
    folders = [root, root / name, root / name.upper()]
    found = next((folder for folder in folders if (folder / kind.base_folder).is_dir()), None)
    if found is None:
        raise InputError(
            f"{name}: no folder {kind.base_folder} in {root}; unpack {kind.filename} there, say where it is "
            f"({name}:DIR, or the variable STATTEN_DATA), or fetch it with statten-train --download"
        )
    try:
        data = kind(found, train=train)
    except RuntimeError:
        raise InputError(
            f"{found / kind.base_folder}: files are missing or differ from the published ones (checksum), and no other "
            f"is unpickled; unpack {kind.filename} again"
        ) from None
    return CifarSamples(data.data, np.array(data.targets, dtype=np.int64), spec)


def download_cifar(name: str, root: Path) -> None:
    """Fetch the published archive into `root` and unpack it, where it is not there yet."""
    _torchvision(name)(root, download=True)


def _torchvision(name: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
