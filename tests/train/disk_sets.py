"""Tiny data sets in the published forms on disk, written without any of the readers."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.events.encoders import aedat2_bytes, bin_bytes, some_events

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Five training batches and a test batch of `count` images, pickled as published; torchvision is told their sums.

    Returns images [6 · count, 3, 32, 32] and labels, the test batch last.
    """
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, labels, sums = [], [], {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        told = (np.arange(count) % 10).tolist()
        content = {"data": data, "labels": told, "batch_label": name, "filenames": ["x.png"] * count}
        sums[name] = _pickled(folder / name, content)
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(told)
    sums["batches.meta"] = _pickled(folder / "batches.meta", {"label_names": CIFAR10_CLASSES})
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return np.concatenate(images), np.concatenate(labels)


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """One file of 100 training images and one of 100 test images, with fine and coarse labels."""
    from torchvision.datasets import CIFAR100

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    sums, images = {}, []
    for name in ("train", "test"):
        data = rng.integers(0, 256, (100, 3072), dtype=np.uint8)
        fine = rng.permutation(100).tolist()
        content = {"data": data, "fine_labels": fine, "coarse_labels": [i // 5 for i in fine]}
        sums[name] = _pickled(folder / name, content)
        images.append(np.array(fine))
    sums["meta"] = _pickled(folder / "meta", {"fine_label_names": ["c"] * 100})
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    return np.stack(images)


def _pickled(path: Path, content: dict[str, Any]) -> str:
    data = pickle.dumps(content, protocol=2)
    path.write_bytes(data)
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def write_imagenet(root: Path, classes: int = 2, count: int = 3) -> None:
    """``train/`` and ``val/`` of JPEG files of different sizes, one grey and one with a palette among them."""
    rng = np.random.default_rng(2)
    for part in ("train", "val"):
        for label in range(classes):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (48 + 8 * index, 60, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                image = image.convert("L") if index == 1 else image
                image.save(folder / f"ILSVRC2012_{part}_{index:08d}.JPEG", quality=95)


def write_cifar10dvs(root: Path, below: str = "extract", count: int = 4) -> None:
    """AEDAT 2.0 files of a DVS128, ``<below>/<class>/cifar10_<class>_<number>.aedat``."""
    for label, name in enumerate(CIFAR10_CLASSES):
        folder = root / below / name
        folder.mkdir(parents=True)
        for index in range(count):
            events = some_events(60 + index, (128, 128), seed=100 * label + index)
            (folder / f"cifar10_{name}_{index}.aedat").write_bytes(aedat2_bytes(events))


def write_ncaltech101(root: Path, counts: tuple[int, ...] = (3,), below: str = "Caltech101") -> None:
    """``<below>/<class>/image_<number>.bin``, class i with counts[i % len(counts)] recordings."""
    for label in range(101):
        folder = root / below / f"class_{label:03d}"
        folder.mkdir(parents=True)
        for index in range(counts[label % len(counts)]):
            events = some_events(40, (180, 240), seed=1000 * label + index)
            (folder / f"image_{index:04d}.bin").write_bytes(bin_bytes(events))


def write_nmnist(root: Path, count: int = 2) -> None:
    """``Train/<digit>/<number>.bin`` and ``Test/...``."""
    for part in ("Train", "Test"):
        for label in range(10):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                seed = 1000 * label + index + (500 if part == "Test" else 0)
                (folder / f"{index:05d}.bin").write_bytes(bin_bytes(some_events(50, (34, 34), seed=seed)))


def write_dvsgesture(root: Path, users: int = 2) -> None:
    """``ibmGestureTrain/user01_led/<class>.npy`` and ``ibmGestureTest/...``: columns x, y, p, t in milliseconds."""
    for part in ("ibmGestureTrain", "ibmGestureTest"):
        for user in range(users):
            folder = root / part / f"user{user:02d}_led"
            folder.mkdir(parents=True)
            for label in range(11):
                events = some_events(80, (128, 128), seed=100 * user + label + (50 if part.endswith("Test") else 0))
                columns = (events.x, events.y, events.p, events.t // 1000)
                np.save(folder / f"{label}.npy", np.stack([c.astype(np.int64) for c in columns], axis=1))
