"""Training: recipes, data sets, the Lightning module. Names load on first use: data alone needs no Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statten_deploy.train.config import Recipe, TrainConfig, read_recipe
    from statten_deploy.train.data import load_arrays
    from statten_deploy.train.run import TrainResult, train
    from statten_deploy.train.scoring import Accuracy, evaluate

__all__ = ["Accuracy", "Recipe", "TrainConfig", "TrainResult", "evaluate", "load_arrays", "read_recipe", "train"]

_HOMES: dict[str, str] = {
    "Accuracy": "scoring",
    "Recipe": "config",
    "TrainConfig": "config",
    "TrainResult": "run",
    "evaluate": "scoring",
    "load_arrays": "data",
    "read_recipe": "config",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
