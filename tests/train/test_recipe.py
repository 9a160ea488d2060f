"""Recipes: sections, overrides, and a clear line for everything unknown."""

from pathlib import Path

import pytest
import yaml

from statten_deploy.errors import ConfigError
from statten_deploy.train.config import parse_override, read_recipe
from tests.train.recipes import TINY_MODEL, TINY_TRAIN, write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "tiny.yaml")


def test_sections_and_overrides(recipe: Path) -> None:
    plain = read_recipe(recipe)
    assert plain.train.lr == 0.01
    assert plain.model.depth == 1
    changed = read_recipe(recipe, ["train.lr=1e-3", "depth=2", "model.image_size=[16, 8]", "pooling_stat=0110"], 5)
    assert changed.train == plain.train.model_copy(update={"lr": 1e-3, "epochs": 5})
    told = {"depth": 2, "image_size": (16, 8), "pooling_stat": "0110"}
    assert changed.model == plain.model.model_copy(update=told)


def test_values_are_yaml_except_for_text() -> None:
    assert parse_override("threads=null") == ("train", "threads", None)
    assert parse_override("model.mean=[0.5]") == ("model", "mean", [0.5])
    assert parse_override("pooling_stat=0011") == ("model", "pooling_stat", "0011")
    assert parse_override("tet=true") == ("model", "tet", True)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lr", "expected key=value"),
        ("learning_rate=1", "unknown key 'learning_rate'; known keys: model: name"),
        ("model.lr=1", "unknown key 'model.lr'"),
        ("data.lr=1", "unknown key 'data.lr'"),
        ("lr=[1", "not a YAML value"),
        ("lr=fast", "lr: Input should be a valid number"),
        ("lr=-1", "lr: Input should be greater than 0 (found -1)"),
        ("depth=none", "depth"),
        ("time_steps=3", "time_steps 3 is not a multiple of chunk_size 2"),
        ("tet_lambda=0.5", "train.tet_lambda has no effect without model.tet"),
    ],
)
def test_override_errors(recipe: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_recipe(recipe, ["chunk_size=2", "time_steps=4", override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_train_key(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", train={"mixin": 0.5})
    with pytest.raises(ConfigError, match="unknown key 'mixin'; known keys: optimizer, lr"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"model": TINY_MODEL}, "missing: train"),
        ({"model": TINY_MODEL, "train": None}, "missing: train"),
        ({"model": TINY_MODEL, "train": TINY_TRAIN, "trian": {}}, "unknown: trian"),
        ({"depth": 2, "lr": 3e-4}, "missing: model, train; unknown: depth, lr"),
        ({"dim": 256, "layer": 2, "lr": 3e-4}, "a released recipe names dim, img_size, dataset (missing: img_size, "),
    ],
)
def test_sections_are_checked(tmp_path: Path, document: dict[str, object], expected: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as error:
        read_recipe(path)
    assert expected in str(error.value)


def test_tet_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", model={"tet": True}, train={"tet_lambda": 0.01})
    assert read_recipe(path).train.tet_lambda == 0.01
