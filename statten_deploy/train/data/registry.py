"""From the name of a data set, a folder or a file to arrays."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from filelock import FileLock

from statten_deploy.errors import InputError
from statten_deploy.models.config import ModelConfig
from statten_deploy.train.data.cifar import CLASSES as CIFAR
from statten_deploy.train.data.cifar import SHAPE as CIFAR_SHAPE
from statten_deploy.train.data.cifar import download_cifar, open_cifar
from statten_deploy.train.data.digits import OWN_SHAPE, SHAPE, digits_of_size, open_digits
from statten_deploy.train.data.digits_events import open_digits_events
from statten_deploy.train.data.event_files import is_events, open_events, split_sensor
from statten_deploy.train.data.event_sets import EVENT_SETS, download_event_set, open_event_set
from statten_deploy.train.data.folder import open_folder, open_imagenet
from statten_deploy.train.data.npz import open_npz
from statten_deploy.train.data.sequential import sequential
from statten_deploy.train.data.spec import SPLITS, ArraySamples, Float32Array, InputSpec, Int64Array, Samples, Source
from statten_deploy.train.data.split import TEST_FRACTION, TEST_SEED, fixed_order, stratified_split

DATASETS: dict[str, Callable[[InputSpec], Source]] = {
    "digits": open_digits,
    "digits-events": open_digits_events,
    "sequential-digits": sequential("sequential-digits", digits_of_size, (OWN_SHAPE, SHAPE)),
}
"""Data sets that come with the package."""


def _columns_of(name: str) -> Callable[[InputSpec, Path], Source]:
    def open_columns(spec: InputSpec, root: Path) -> Source:
        return sequential(f"sequential-{name}", lambda images: open_cifar(name)(images, root), (CIFAR_SHAPE,))(spec)

    return open_columns


ON_DISK: dict[str, Callable[[InputSpec, Path], Source]] = {
    **{name: open_cifar(name) for name in CIFAR},
    **{f"sequential-{name}": _columns_of(name) for name in CIFAR},
    "imagenet": open_imagenet,
    **{name: open_event_set(kind) for name, kind in EVENT_SETS.items()},
}
"""Data sets known by name that the user has; each is looked for below the data root."""

RELEASED_NAMES = {
    "torch/cifar10": "cifar10",
    "torch/cifar100": "cifar100",
    "cifar10-dvs": "cifar10dvs",
    "gesture": "dvs128gesture",
}
"""What the released files call them."""

ROOT_VARIABLE = "STATTEN_DATA"
DEFAULT_ROOT = "data"


def split_root(data: str) -> tuple[str, Path | None]:
    """``cifar10:/datasets`` -> ("cifar10", /datasets): a data set's name, and where it is; released names in ours.

    Without a folder it is where the environment variable STATTEN_DATA says, else in ``data``. The folder is None for
    what is no name of `ON_DISK`.
    """
    name, _, folder = data.partition(":")
    name = RELEASED_NAMES.get(name, name)
    if name not in ON_DISK:
        return data, None
    return name, Path(folder or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def download(data: str) -> None:
    """Fetch a data set into its root, where it is not there yet. Nothing else ever downloads.

    Of several processes that start together one fetches; the others wait, and find it there.

    Raises:
        InputError: nothing that can be fetched, or it cannot be reached.
    """
    name, root = split_root(data)
    if root is None or name not in (*CIFAR, *EVENT_SETS):
        able = ", ".join((*CIFAR, *EVENT_SETS))
        raise InputError(f"--download: {data} cannot be fetched; these can: {able}")
    root.mkdir(parents=True, exist_ok=True)
    try:
        # into a folder that takes no lock nothing can be fetched either
        with FileLock(root / ".download.lock") if os.access(root, os.W_OK) else nullcontext():
            if name in CIFAR:
                download_cifar(name, root)
            else:
                download_event_set(EVENT_SETS[name], root)
    except (OSError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"--download: {name} cannot be fetched into {root} ({detail})") from None


def open_source(data: str | Path, spec: InputSpec) -> Source:
    """Open a data set by name (`split_root`), a folder of images or event files, an ``.npz`` file or an event file.

    Raises:
        InputError: nothing of that name, or its samples are not what `spec` says.
    """
    if str(data) in DATASETS:
        return DATASETS[str(data)](spec)
    name, root = split_root(str(data))
    if root is not None:
        return ON_DISK[name](spec, root)
    path, sensor = split_sensor(str(data))
    if path.exists() and is_events(path):
        return open_events(path, spec, sensor)
    if sensor is not None:
        raise InputError(f"{data}: {path} holds no event files; only those have a sensor (@WIDTHxHEIGHT)")
    if path.is_dir():
        return open_folder(path, spec)
    if path.suffix == ".npz" and path.is_file():
        return open_npz(path, spec)
    problem = "is neither a folder, nor an .npz file, nor an event file" if path.exists() else "no such data"
    raise InputError(
        f"{data}: {problem}; expected a built-in data set ({', '.join(sorted(DATASETS))}), one that you have "
        f"({', '.join(ON_DISK)}), a folder of images or event files (one sub-folder per class), an .npz file with x "
        "and y, or an event file"
    )


def select(source: Source, split: str) -> Samples:
    """One part of an opened source; see `SPLITS`.

    An undivided set is divided 80/20, stratified by class, always in the same way.

    Raises:
        InputError: unknown split, or a part without samples.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    part = _part(source, split)
    if not len(part):
        raise InputError(f"{source.name}: the {split} split is empty; the data set is too small to be divided")
    return part


def _part(source: Source, split: str) -> Samples:
    learn = split in ("train", "calibration")
    if source.whole is None:
        divided = source.train if learn else source.test
        return divided if divided is not None else ArraySamples(np.empty((0,), np.float32), None)
    if split == "evaluation":
        return source.whole
    labels = source.whole.labels
    groups = np.zeros(len(source.whole), np.int64) if labels is None else labels
    train, test = stratified_split(groups, TEST_FRACTION, TEST_SEED)
    return source.whole.subset(train if learn else test)


def load_arrays(
    data: str | Path, split: str, config: ModelConfig | InputSpec, samples: int | None = None
) -> tuple[Float32Array, Int64Array | None]:
    """One split as arrays: x float32 [N, ...] as the network takes it, y int64 [N], or None where there are no labels.

    `samples` takes at most so many, chosen in a fixed order that mixes the classes.

    Raises:
        InputError: one line with the file, what was expected, what was found and what to do.
    """
    spec = config if isinstance(config, InputSpec) else InputSpec.of(config)
    part = select(open_source(data, spec), split)
    if samples is not None:
        if samples < 1:
            raise InputError(f"--samples {samples}: expected at least 1")
        part = part.subset(np.sort(fixed_order(len(part), TEST_SEED)[:samples]))
    if isinstance(part, ArraySamples):
        return part.x, part.labels
    return part.batch(range(len(part))), part.labels
