"""Released recipes: the same in their words and in ours, and one clear line for what cannot be trained as asked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from statten_deploy.errors import ConfigError
from statten_deploy.train.config import TrainConfig, read_recipe
from statten_deploy.train.schedule import learning_rate
from tests.train import released_files
from tests.train.released_files import CIFAR10, CIFAR10DVS, RELEASED

CONFIGS = Path(__file__).resolve().parents[2] / "models/configs"


@pytest.mark.parametrize("name", RELEASED)
def test_our_recipe_is_the_released_one(tmp_path: Path, name: str) -> None:
    theirs = read_recipe(released_files.write(tmp_path / "their.yml", RELEASED[name]))
    ours = read_recipe(CONFIGS / f"{name}.yaml")
    assert theirs.model == ours.model.model_copy(update={"name": theirs.model.name})
    told, stated = theirs.train.model_dump(), ours.train.model_dump()
    if not ours.train.crop_scale:  # a part of the whole area is the whole
        assert told.pop("crop_scale") == ((1.0, 1.0) if "cifar1" in name and "dvs" not in name else None)
        told.pop("crop_ratio"), stated.pop("crop_scale"), stated.pop("crop_ratio")
    if ours.model.dvs_mode:
        stated["interpolation"] = told["interpolation"]
    if not ours.model.tet:
        assert "tet_means" not in theirs.train.model_fields_set
    assert told == stated


def test_values_that_a_file_leaves_out_are_the_released_parsers(tmp_path: Path) -> None:
    path = released_files.write(
        tmp_path / "r.yml",
        {"dim": 64, "img_size": 32, "dataset": "torch/cifar10", "sched": "cosine", "num_classes": 10},
    )
    recipe = read_recipe(path)
    assert (recipe.train.optimizer, recipe.train.lr, recipe.train.epochs, recipe.train.warmup_epochs) == (
        *("sgd", 0.01),
        *(210, 3),
    )
    assert (recipe.model.depth, recipe.model.pooling_stat, recipe.train.crop_scale) == (4, "1111", (0.08, 1.0))
    assert recipe.model.attention == "SDT"
    assert recipe.notes == (
        "no chunk_size and no attention_mode: taken for the Spike-driven Transformer (attention: SDT)",
    )


def test_a_released_recipe_can_be_changed(tmp_path: Path) -> None:
    path = released_files.write(tmp_path / "r.yml", CIFAR10)
    recipe = read_recipe(path, ["lr=1e-3", "model.depth=1", "train.mixup=0"], epochs=3)
    assert (recipe.train.lr, recipe.model.depth, recipe.train.mixup, recipe.train.epochs) == (1e-3, 1, 0, 3)


def test_data_dir_counts_where_it_exists(tmp_path: Path) -> None:
    path = released_files.write(tmp_path / "r.yml", CIFAR10 | {"data_dir": str(tmp_path)})
    assert read_recipe(path).data == f"cifar10:{tmp_path}"
    path = released_files.write(tmp_path / "r.yml", CIFAR10DVS | {"data_dir": str(tmp_path / "none")})
    assert read_recipe(path).data == "cifar10dvs"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_ema": True}, {"ema_decay": 0.9998}),
        ({"opt": "lamb", "opt_betas": [0.8, 0.99], "opt_eps": 1e-6}, {"betas": (0.8, 0.99), "eps": 1e-6}),
        ({"dataset": "cifar10-dvs", "dvs_aug": True}, {"cutout": 16, "event_augment": "none"}),
        ({"dataset": "cifar10-dvs", "dvs_trival_aug": True}, {"cutout": 0, "event_augment": "wide"}),
        ({"amp": True}, {"precision": "16"}),
        ({"reprob": 0.25, "remode": "pixel", "recount": 2}, {"erase_prob": 0.25, "erase_mode": "pixel"}),
        ({"aug_repeats": 0}, {"repeats": 1}),
    ],
)
def test_options_of_the_released_code(tmp_path: Path, changes: dict[str, Any], said: dict[str, Any]) -> None:
    document = CIFAR10 | changes
    if "dvs" in document["dataset"]:
        del document["mean"], document["std"]
    train = read_recipe(released_files.write(tmp_path / "r.yml", document)).train
    assert {name: getattr(train, name) for name in said} == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sched": "step"}, "sched: 'step' is not supported, 'cosine' is"),
        ({"bce_loss": True}, "bce_loss: True is not supported, False is"),
        ({"jsd": True, "aug_splits": 3}, "jsd: True is not supported, False is; aug_splits: 3 is not supported, 0 is"),
        ({"opt": "rmsprop"}, "optimizer: Input should be 'adamw', 'lamb' or 'sgd'"),
        ({"dim": None}, "a released recipe names dim, img_size, dataset (missing: dim)"),
        ({"time_steps": 3}, "time_steps 3 is not a multiple of chunk_size 2"),
    ],
)
def test_what_would_train_differently_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = released_files.write(tmp_path / "r.yml", CIFAR10 | changes)
    with pytest.raises(ConfigError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value).replace(f"{path}: ", "")
    assert "\n" not in str(error.value)


def test_keys_that_are_not_used_are_named(tmp_path: Path) -> None:
    document = RELEASED["imagenet-8-768"] | {"my_own_key": 1, "model-ema": True}
    assert read_recipe(released_files.write(tmp_path / "r.yml", document)).notes == (
        "bce-loss, model-ema: not used, the released code does not read this spelling",
        "my_own_key: not used, no key of a released recipe",
    )


def test_epoch_schedule_is_timms() -> None:
    config = TrainConfig(
        lr=3e-4, min_lr=1e-5, warmup_lr=1e-6, epochs=50, warmup_epochs=7, cooldown_epochs=10, schedule="epoch"
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    theirs = CosineLRScheduler(optimizer, t_initial=40, lr_min=1e-5, warmup_t=7, warmup_lr_init=1e-6)
    for epoch in range(50):
        told = optimizer.param_groups[0]["lr"]
        assert all(learning_rate(epoch * 5 + step, 5, config) == pytest.approx(told, rel=1e-9) for step in range(5))
        theirs.step(epoch + 1)


def test_cooldown_of_the_step_schedule() -> None:
    config = TrainConfig(lr=0.1, min_lr=0.01, warmup_lr=0.01, epochs=10, warmup_epochs=2, cooldown_epochs=3)
    rates = [learning_rate(step, 4, config) for step in range(40)]
    assert rates[27:] == pytest.approx([0.01] * 13)
    assert min(rates[8:27]) > 0.01
    short = config.model_copy(update={"epochs": 2})
    assert [learning_rate(step, 4, short) for step in (0, 4)] == pytest.approx([0.01, 0.055])
