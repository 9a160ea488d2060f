"""An ``.npz`` file with `x` [N, ...] and, optionally, `y` [N]."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.events.readers.array_files import declared_members
from statten_deploy.train.data.spec import ArraySamples, Float32Array, InputSpec, Int64Array, Source


def open_npz(path: Path, spec: InputSpec) -> Source:
    """Open `path`; nothing in the file is ever unpickled.

    `x` is float, or 8-bit still images (divided by 255, as image files are), or whole numbers such as event counts.

    Raises:
        InputError: unreadable, no `x`, wrong shape or type, NaN, or labels that do not fit.
    """
    names = _member_shapes(path)
    if "x" not in names:
        raise InputError(f"{path}: no array 'x' (found {', '.join(names) or 'nothing'}); expected x and, optionally, y")
    wanted = f"[N, {', '.join(map(str, spec.shape))}]"
    found = names["x"]
    if len(found) < 1 or found[1:] != spec.shape or found[0] == 0:
        raise InputError(
            f"{path}: 'x' has shape {list(found)}, the network takes {wanted} with N > 0; reshape or resize the samples"
        )
    with np.load(path, allow_pickle=False) as file:
        x = _samples(path, _member(path, file, "x"), spec)
        labels = _labels(path, _member(path, file, "y"), len(x), spec) if "y" in names else None
    return Source(str(path), whole=ArraySamples(x, labels))


def _member_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and declared shapes, read from the headers before anything is allocated."""
    try:
        return {name: shape for name, (shape, _) in declared_members(path).items()}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not a readable .npz file ({detail}); write it with numpy.savez") from None


def _member(path: Path, file: Any, name: str) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = file[name]
    except Exception as error:  # zlib, zipfile and numpy each have their own
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: array {name!r} cannot be read ({detail}); write plain numeric arrays") from None
    return array


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
