"""Whether a run can be continued from a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statten_deploy.errors import CheckpointError, ConfigError
from statten_deploy.models.checkpoint import QUANTISATION_KEY, Quantisation
from statten_deploy.train.config import Recipe
from statten_deploy.untrusted.text import shown
from statten_deploy.untrusted.torch_file import read_torch_file

LAST = "last.ckpt"
"""Everything needed to continue: weights, optimizer, schedule, place. Written after epochs, or every so many steps."""

MAY_CHANGE = frozenset(
    f"train.{key}"
    for key in (
        "epochs",
        "threads",
        "workers",
        "devices",  # the number of processes may not: see PROCESSES_KEY
        "nodes",
        "compile",
        "checkpoint_activations",
        "save_every_steps",
        "loggers",
    )
)
"""What a continued run may do differently; a different `epochs` also stretches the learning-rate schedule."""


PROCESSES_KEY = "statten_processes"
"""In a checkpoint: how many processes trained. As many continue, since they share out batches and add up gradients."""


@dataclass(frozen=True)
class Start:
    """A place in the training: whole epochs, and batches of the epoch after them."""

    epoch: int = 0
    batches: int = 0


START = Start()


def check_resume(path: Path, recipe: Recipe, quantisation: Quantisation | None = None) -> Start:
    """Where `path` continues: it must be a full checkpoint of this very recipe and quantisation.

    Only `MAY_CHANGE` may differ.

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
        f"{key}: the recipe says {shown(told.get(key))}, the checkpoint {shown(stored.get(key))}"
        for key in sorted(told.keys() | stored.keys())
        if told.get(key) != stored.get(key) and key not in MAY_CHANGE
    ]
    if differences:
        raise ConfigError(f"{path}: belongs to another recipe ({'; '.join(differences)})")
    try:
        start = _start(raw)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: does not say how many batches it has learnt from; --resume takes an intact {LAST}"
        ) from None
    finished = start.epoch
    if finished >= recipe.train.epochs:
        raise ConfigError(
            f"{path}: has finished {finished} epochs, the recipe asks for {recipe.train.epochs}; raise it with --epochs"
        )
    return start


def _start(raw: Mapping[str, Any]) -> Start:
    batches = raw["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if batches["is_last_batch"]:
        return Start(raw["epoch"] + 1)
    return Start(raw["epoch"], int(batches["current"]["processed"]))


def _form(quantisation: Any) -> str:
    bits = quantisation.get("bits") if isinstance(quantisation, Mapping) else None
    return "real weights" if bits is None else f"--qat-bits {shown(bits)}"


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; --resume takes the {LAST} of an earlier run")
    raw = read_torch_file(path)
    sections = [raw.get(key) for key in ("statten_config", "statten_train", "state_dict")]
    if not all(isinstance(section, Mapping) for section in sections):
        raise CheckpointError(f"{path}: not written by statten-train; --resume takes the {LAST} of an earlier run")
    if "optimizer_states" not in raw:
        raise CheckpointError(f"{path}: holds weights only; --resume takes the {LAST} beside it")
    if type(raw.get("epoch")) is not int:
        raise CheckpointError(f"{path}: does not say how many epochs it has finished; --resume takes an intact {LAST}")
    return raw


def _flat(model: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{name}.{key}": value for name, part in (("model", model), ("train", train)) for key, value in part.items()
    }
