"""A folder of images: one sub-folder per class, optionally below ``train/`` and ``test/`` (or ``val/``)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.train.data.images import ImageSamples, check_takes_images, fit, read_picture
from statten_deploy.train.data.spec import Float32Array, InputSpec, Int64Array, Samples, Source

if TYPE_CHECKING:
    from PIL.Image import Image

TEST_FOLDERS = ("test", "val", "validation")
IMAGENET_CROP = 0.95
"""Share of an ImageNet picture's shorter side that is shown, as the released networks are evaluated."""
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision takes for images."""


class FolderSamples(ImageSamples):
    """Images on disk, decoded when asked for.

    Names are kept as one array of bytes: a list of a million paths would be copied into every data-loading process.
    """

    def __init__(
        self,
        root: Path,
        names: npt.NDArray[np.bytes_],
        labels: Int64Array,
        spec: InputSpec,
        crop: float | None = None,
    ) -> None:
        self.root = root
        self._names = names
        self._labels = labels
        self._spec = spec
        self._crop = crop

    @property
    def labels(self) -> Int64Array:
        return self._labels

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """The file of one sample."""
        return self.root / os.fsdecode(bytes(self._names[index]))

    def picture(self, index: int) -> "Image":
        return read_picture(self.path(index), self._spec.shape[0])

    def sample(self, index: int) -> Float32Array:
        return fit(self.picture(index), self._spec, self._crop)

    def subset(self, indices: Int64Array) -> "FolderSamples":
        return FolderSamples(self.root, self._names[indices], self._labels[indices], self._spec, self._crop)


def open_folder(root: Path, spec: InputSpec, crop: float | None = None) -> Source:
    """Open `root`; `crop` as in `fit`.

    Raises:
        InputError: no class folders or images, another number of classes, or a network that takes no still images.
    """
    check_takes_images(str(root), spec)
    return divided(root, lambda part: _scan(part, spec, crop))


def open_imagenet(spec: InputSpec, root: Path) -> Source:
    """ImageNet as extracted for torchvision and timm: ``train/`` and ``val/``, one sub-folder per class.

    Raises:
        InputError: neither `root` nor ``imagenet`` below it holds these.
    """
    check_takes_images("imagenet", spec)
    for folder in (root, root / "imagenet", root / "ImageNet", root / "imagenet1k"):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return open_folder(folder, spec, IMAGENET_CROP)
    raise InputError(
        f"imagenet: neither {root} nor {root / 'imagenet'} has the folders train/ and val/; put ILSVRC 2012 there, one "
        "sub-folder of images per class, or say where it is (imagenet:DIR, or the variable STATTEN_DATA)"
    )


def divided(root: Path, scan: Callable[[Path], Samples]) -> Source:
    """What `scan` finds in `root`, or in its sub-folders ``train`` and ``test`` where it has both.

    Raises:
        InputError: those two have different classes.
    """
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if (root / "train").is_dir() and tests:
        train, test = scan(root / "train"), scan(tests[0])
        if _classes(root / "train") != _classes(tests[0]):
            raise InputError(f"{tests[0]}: class folders differ from those of {root / 'train'}; they must be the same")
        return Source(str(root), train=train, test=test)
    return Source(str(root), whole=scan(root))


def _classes(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir())


def classes_of(root: Path, spec: InputSpec, what: str) -> list[str]:
    """The class folders of `root`.

    Raises:
        InputError: another number than the network has classes.
    """
    found = _classes(root)
    if spec.classes is not None and len(found) != spec.classes:
        names = f" ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''})" if found else ""
        raise InputError(
            f"{root}: found {len(found)} class folders{names}, the network has {spec.classes} classes; "
            f"expected one sub-folder of {what} per class, or set num_classes"
        )
    return found


def _scan(root: Path, spec: InputSpec, crop: float | None) -> FolderSamples:
    found = [_images(root, name) for name in classes_of(root, spec, "images")]
    if not found or not all(found):
        empty = "" if not found else f" ({_classes(root)[[bool(part) for part in found].index(False)]} has none)"
        raise InputError(f"{root}: expected one sub-folder of images per class{empty}; known are {' '.join(ENDINGS)}")
    labels = np.repeat(np.arange(len(found), dtype=np.int64), [len(part) for part in found])
    names = np.array([name for part in found for name in part], dtype=np.bytes_)
    return FolderSamples(root, names, labels, spec, crop)


def _images(root: Path, name: str) -> list[bytes]:
    """Image files below a class's folder, sorted; links to folders are not followed, so a cycle cannot arise."""
    walk = sorted(os.walk(root / name))
    return [
        os.fsencode(os.path.relpath(os.path.join(folder, file), root))
        for folder, _, files in walk
        for file in sorted(files)
        if file.lower().endswith(ENDINGS)
    ]
