"""An ``.npz`` file with `x` [N, ...] and, optionally, `y` [N]."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.train.data.spec import ArraySamples, Float32Array, InputSpec, Int64Array, Source
from statten_deploy.untrusted.arrays import Archive
from statten_deploy.untrusted.limits import check_bytes

BYTES_BESIDE = 5
"""Per value, beside the file's own: float32, and one byte to tell whether it is finite."""


def open_npz(path: Path, spec: InputSpec) -> Source:
    """Open `path`; nothing in the file is ever unpickled.

    `x` is float, or 8-bit still images (divided by 255, as image files are), or whole numbers such as event counts.

    Raises:
        InputError: unreadable, no `x`, wrong shape or type, NaN, or labels that do not fit.
    """
    with Archive(path) as file:
        if "x" not in file.kinds:
            names = ", ".join(file.kinds) or "nothing"
            raise InputError(f"{path}: no array 'x' (found {names}); expected x and, optionally, y")
        wanted = f"[N, {', '.join(map(str, spec.shape))}]"
        found, dtype = file.kinds["x"]
        if len(found) < 1 or found[1:] != spec.shape or found[0] == 0:
            raise InputError(
                f"{path}: 'x' has shape {list(found)}, the network takes {wanted} with N > 0; reshape or resize the "
                "samples"
            )
        check_bytes(path, prod(found) * (dtype.itemsize + BYTES_BESIDE), "'x'")
        x = _samples(path, file.read("x"), spec)
        labels = _labels(path, file.read("y"), len(x), spec) if "y" in file.kinds else None
    return Source(str(path), whole=ArraySamples(x, labels))


def _samples(path: Path, x: npt.NDArray[Any], spec: InputSpec) -> Float32Array:
    if x.dtype.kind not in "fiub":
        raise InputError(f"{path}: 'x' has type {x.dtype}, expected float32 (or 8-bit images, or whole numbers)")
    values = x.astype(np.float32)
    if x.dtype == np.uint8 and spec.still:
        values /= np.float32(255)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: 'x' holds NaN or infinite values; expected finite numbers")
    return values


def _labels(path: Path, y: npt.NDArray[Any], count: int, spec: InputSpec) -> Int64Array:
    if y.dtype.kind not in "iu" or y.shape != (count,):
        raise InputError(
            f"{path}: 'y' has type {y.dtype} and shape {list(y.shape)}, expected whole numbers of shape [{count}], "
            "one class per sample"
        )
    labels = y.astype(np.int64)
    if labels.min() < 0 or (spec.classes is not None and labels.max() >= spec.classes):
        upper = "" if spec.classes is None else f" to {spec.classes - 1}"
        raise InputError(
            f"{path}: 'y' holds classes {labels.min()} to {labels.max()}, the network has 0{upper}; "
            "number the classes from 0, or set num_classes"
        )
    return labels
