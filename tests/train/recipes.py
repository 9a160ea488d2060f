"""A recipe and data so small that an epoch takes a fraction of a second."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import yaml

with warnings.catch_warnings():
    # torchmetrics imports scienceplots where it is installed, which calls deprecated functions of matplotlib.
    warnings.filterwarnings("ignore", r"The \w+ function was deprecated in Matplotlib", DeprecationWarning)
    import lightning  # noqa: F401

TINY_MODEL: dict[str, Any] = {
    "name": "tiny",
    "image_size": 8,
    "in_channels": 1,
    "num_classes": 3,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "time_steps": 2,
    "chunk_size": 1,
    "pooling_stat": "0011",
}
TINY_TRAIN: dict[str, Any] = {
    "lr": 0.01,
    "min_lr": 0.001,
    "warmup_lr": 0.001,
    "weight_decay": 0.01,
    "epochs": 3,
    "warmup_epochs": 1,
    "batch_size": 8,
    "label_smoothing": 0.0,
    "random_shift": 1,
    "random_rotation": 5,
    "ema_decay": 0.8,
    "validation": 0.2,
    "seed": 7,
    "threads": 1,
}


def write_recipe(path: Path, model: dict[str, Any] | None = None, train: dict[str, Any] | None = None) -> Path:
    document = {"model": {**TINY_MODEL, **(model or {})}, "train": {**TINY_TRAIN, **(train or {})}}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def write_stripes(path: Path, count: int = 90, labels: bool = True) -> Path:
    """Images [N, 1, 8, 8] of three classes: bright rows, bright columns, or a bright square, with noise."""
    rng = np.random.default_rng(3)
    x = rng.random((count, 1, 8, 8), dtype=np.float32) * np.float32(0.3)
    y = np.arange(count) % 3
    x[y == 0, :, ::2, :] += 0.6
    x[y == 1, :, :, ::2] += 0.6
    x[y == 2, :, 2:6, 2:6] += 0.6
    np.savez(path, x=x, **({"y": y} if labels else {}))
    return path
