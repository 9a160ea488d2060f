"""Handwritten digits that come with scikit-learn: 1797 images of 8x8, ten classes, no download.

Source: test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository (CC BY 4.0), as `sklearn.datasets.load_digits`.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.train.data.spec import ArraySamples, Float32Array, InputSpec, Int64Array, Source
from statten_deploy.train.data.split import TEST_FRACTION, TEST_SEED, stratified_split

SHAPE = (1, 16, 16)
OWN_SHAPE = (1, 8, 8)
"""As scikit-learn has them."""
CLASSES = 10


def open_digits(spec: InputSpec) -> Source:
    """The digits: values/16 in [0, 1], enlarged to [1, 16, 16]; 1437 train and 360 test images, stratified.

    Raises:
        InputError: the network takes something else than one 16x16 grey image.
    """
    if spec.shape != SHAPE:
        raise InputError(
            f"digits: the data are still images of shape {list(SHAPE)}, the network takes {list(spec.shape)}; "
            "set in_channels: 1, image_size: 16 and input: image, or give other data with --data"
        )
    return digits_of_size(spec)


def digits_of_size(spec: InputSpec) -> Source:
    """The same digits enlarged to `SHAPE`, or of their `OWN_SHAPE`."""
    if spec.classes is not None and spec.classes != CLASSES:
        raise InputError(
            f"digits: the data have {CLASSES} classes, the network has {spec.classes}; set num_classes: 10"
        )
    images, labels = read_digits()
    x = (images / 16).astype(np.float32)
    if spec.shape == SHAPE:
        x = _double(_double(x, 1), 2)
    everything = ArraySamples(np.ascontiguousarray(x[:, np.newaxis]), labels)
    train, test = stratified_split(labels, TEST_FRACTION, TEST_SEED)
    return Source("digits", train=everything.subset(train), test=everything.subset(test))


def read_digits() -> tuple[Int64Array, Int64Array]:
    """(images [1797, 8, 8] of 0 to 16, classes [1797]), as `sklearn.datasets.load_digits` returns them.

    From the file that scikit-learn installs: importing scikit-learn takes longer than most exports.

    Raises:
        InputError: scikit-learn is not installed, or does not hold the file.
    """
    package = find_spec("sklearn")
    path = Path(package.origin if package and package.origin else "sklearn").parent / "datasets/data/digits.csv.gz"
    if not path.is_file():
        raise InputError(f"digits: {path}: no such file; it comes with scikit-learn (pip install scikit-learn)")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _double(x: Float32Array, axis: int) -> Float32Array:
    """Bilinear enlargement by 2 along `axis` (pixel centres at half-integers, edges repeated).

    Every output is 3/4 of the nearest pixel and 1/4 of the next; sixteenths stay exact in float32.
    """
    before = np.concatenate([x.take([0], axis), x], axis).take(range(x.shape[axis]), axis)
    after = np.concatenate([x, x.take([-1], axis)], axis).take(range(1, x.shape[axis] + 1), axis)
    pair = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    shape = (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    doubled: Float32Array = pair.reshape(shape).astype(np.float32)
    return doubled
