"""A folder of images: one sub-folder per class, optionally below ``train/`` and ``test/`` (or ``val/``)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.train.data.spec import Float32Array, InputSpec, Int64Array, Samples, Source

TEST_FOLDERS = ("test", "val", "validation")
MODES = {1: "L", 3: "RGB"}
"""Pillow's colour mode for a number of channels."""


class FolderSamples(Samples):
    """Images on disk, decoded when asked for: resized to the network's image, values in [0, 1]."""

    def __init__(self, paths: Sequence[Path], labels: Int64Array, spec: InputSpec) -> None:
        self.paths = paths
        self._labels = labels
        self._spec = spec

    @property
    def labels(self) -> Int64Array:
        return self._labels

    def __len__(self) -> int:
        return len(self.paths)

    def sample(self, index: int) -> Float32Array:
        return read_image(self.paths[index], self._spec)

    def subset(self, indices: Int64Array) -> "FolderSamples":
        return FolderSamples([self.paths[i] for i in indices], self._labels[indices], self._spec)


def open_folder(root: Path, spec: InputSpec) -> Source:
    """Open `root`.

    Raises:
        InputError: no class folders or images, another number of classes, or a network that takes no still images.
    """
    if not spec.still or spec.shape[0] not in MODES:
        raise InputError(
            f"{root}: a folder of images gives still images of 1 or 3 channels, the network takes "
            f"{list(spec.shape)}; give an .npz file with x [N, {', '.join(map(str, spec.shape))}]"
        )
    return divided(root, lambda part: _scan(part, spec))


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


def _scan(root: Path, spec: InputSpec) -> FolderSamples:
    from torchvision.datasets import ImageFolder

    classes_of(root, spec, "images")
    try:
        folder = ImageFolder(root)
    except (FileNotFoundError, OSError) as error:
        raise InputError(
            f"{root}: expected one sub-folder of images per class ({' '.join(str(error).split())[:160]})"
        ) from None
    labels = np.array([label for _, label in folder.samples], dtype=np.int64)
    return FolderSamples([Path(path) for path, _ in folder.samples], labels, spec)


def read_image(path: Path, spec: InputSpec) -> Float32Array:
    """One image file as [C, H, W] in [0, 1], resized (bilinear) to the network's H x W.

    Raises:
        InputError: the file is not an image that can be decoded.
    """
    from PIL import Image

    channels, height, width = spec.shape
    try:
        with Image.open(path) as image:
            small = image.convert(MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow raises a different type for every format and kind of damage
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be decoded as an image ({detail}); repair or remove it") from None
    pixels = np.asarray(small, dtype=np.float32).reshape(height, width, channels) / np.float32(255)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
