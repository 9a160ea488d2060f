"""Whether a run can be continued from a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from statten_deploy.errors import CheckpointError, ConfigError
from statten_deploy.models.checkpoint import QUANTISATION_KEY, Quantisation
from statten_deploy.train.config import Recipe

LAST = "last.ckpt"
"""Everything needed to continue: weights, optimizer, schedule, epoch. Written after every epoch."""

MAY_CHANGE = frozenset({"train.epochs", "train.threads", "train.workers"})
"""What a continued run may do differently; a different `epochs` also stretches the learning-rate schedule."""


def check_resume(path: Path, recipe: Recipe, quantisation: Quantisation | None = None) -> None:
    """Whether `path` is a full checkpoint of this very recipe and quantisation; only `MAY_CHANGE` may differ.

    Raises:
        CheckpointError: not a checkpoint that can be continued.
        ConfigError: it belongs to another recipe (every difference is named) or quantisation, or has finished.
    """
    raw = _read(path)
    found = raw.get(QUANTISATION_KEY)
    if found != quantisation:
        raise ConfigError(
            f"{path}: was trained with {_form(found)}, this run asks for {_form(quantisation)}; continue it as it was "
            "started"
        )
    told = _flat(recipe.model.model_dump(mode="json"), recipe.train.model_dump(mode="json"))
    stored = _flat(raw["statten_config"], raw["statten_train"])
    differences = [
        f"{key}: the recipe says {told.get(key)!r}, the checkpoint {stored.get(key)!r}"
        for key in sorted(told.keys() | stored.keys())
        if told.get(key) != stored.get(key) and key not in MAY_CHANGE
    ]
    if differences:
        raise ConfigError(f"{path}: belongs to another recipe ({'; '.join(differences)})")
    finished = int(raw["epoch"]) + 1
    if finished >= recipe.train.epochs:
        raise ConfigError(
            f"{path}: has finished {finished} epochs, the recipe asks for {recipe.train.epochs}; raise it with --epochs"
        )


def _form(quantisation: Any) -> str:
    bits = quantisation.get("bits") if isinstance(quantisation, Mapping) else None
    return "real weights" if bits is None else f"--qat-bits {bits}"


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; --resume takes the {LAST} of an earlier run")
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on a damaged file
        detail = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({detail})") from None
    if not isinstance(raw, dict) or not {"statten_config", "statten_train", "state_dict"} <= raw.keys():
        raise CheckpointError(f"{path}: not written by statten-train; --resume takes the {LAST} of an earlier run")
    if "optimizer_states" not in raw:
        raise CheckpointError(f"{path}: holds weights only; --resume takes the {LAST} beside it")
    return raw


def _flat(model: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{name}.{key}": value for name, part in (("model", model), ("train", train)) for key, value in part.items()
    }
