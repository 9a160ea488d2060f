"""The shipped configurations: valid, complete, and networks of the published size."""

from pathlib import Path

import pytest
import torch

from statten_deploy.models.config import ModelConfig, load_config
from statten_deploy.models.statten import STAtten
from statten_deploy.train.config import read_recipe

FOLDER = Path(__file__).resolve().parents[2] / "models/configs"

PUBLISHED: dict[str, float] = {
    "cifar10-2-256": 2.57,
    "cifar10-2-512": 10.23,
    "cifar100-2-256": 2.59,  # ten classes: 2.57; the head grows with the classes
    "cifar100-2-512": 10.28,  # ten classes: 10.23
    "imagenet-8-512": 29.69,
    "imagenet-8-768": 66.34,
    "cifar10dvs-2-256-t10": 2.57,
    "cifar10dvs-2-256-t16": 2.57,
    "ncaltech101-2-256-t10": 2.59,
    "ncaltech101-2-256-t16": 2.59,
    "digits": 0.11,
    "digits-stream": 0.11,
    "digits-4bit": 0.11,
    "digits-events": 0.11,
    "digits-stream-4bit": 0.11,
    "sequential-digits": 0.1,
    "sequential-cifar10": 2.57,
    "sequential-cifar100": 2.59,
}
"""Million parameters."""


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in STAtten(config).parameters())


def test_every_file_is_listed() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_builds_the_published_network(name: str) -> None:
    recipe = read_recipe(FOLDER / f"{name}.yaml")
    assert recipe.model.name == name
    assert recipe.model == load_config(FOLDER / f"{name}.yaml")
    assert round(parameters(recipe.model) / 1e6, 2) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "steps", "chunk", "heads", "pooling", "classes", "shape", "tet"),
    [
        ("cifar10-2-256", 4, 2, 8, "0011", 10, (3, 32, 32), False),
        ("cifar10-2-512", 4, 2, 8, "0011", 10, (3, 32, 32), False),
        ("cifar100-2-256", 4, 2, 8, "0011", 100, (3, 32, 32), False),
        ("cifar100-2-512", 4, 2, 8, "0011", 100, (3, 32, 32), False),
        ("imagenet-8-512", 4, 2, 8, "1111", 1000, (3, 224, 224), False),
        ("imagenet-8-768", 4, 2, 8, "1111", 1000, (3, 224, 224), False),
        ("cifar10dvs-2-256-t10", 10, 5, 8, "0011", 10, (2, 64, 64), True),
        ("cifar10dvs-2-256-t16", 16, 4, 8, "0011", 10, (2, 64, 64), True),
        ("ncaltech101-2-256-t10", 10, 5, 8, "0011", 101, (2, 64, 64), False),
        ("ncaltech101-2-256-t16", 16, 4, 8, "0011", 101, (2, 64, 64), False),
    ],
)
def test_released_variants(
    name: str, steps: int, chunk: int, heads: int, pooling: str, classes: int, shape: tuple[int, ...], tet: bool
) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    events = shape[0] == 2
    assert (config.time_steps, config.chunk_size, config.num_heads) == (steps, chunk, heads)
    assert (config.pooling_stat, config.num_classes, config.tet) == (pooling, classes, tet)
    assert (config.in_channels, *config.image_size) == shape
    assert (config.dvs_mode, config.input) == (events, "frames" if events else "image")
    assert (config.mean is None, config.std is None) == (events, events)
    assert (config.attention, config.neuron, config.pooling, config.window) == ("STAtten", "lif", "maxpool", "block")


def test_stream_variant_is_the_hardware_form() -> None:
    plain, stream = (load_config(FOLDER / f"{name}.yaml") for name in ("digits", "digits-stream"))
    assert (stream.pooling, stream.window) == ("strided", "sliding")
    told = {"name": "digits", "pooling": "maxpool", "window": "block"}
    assert stream.model_copy(update=told) == plain


def test_digits_events_is_a_stream_of_events() -> None:
    config = load_config(FOLDER / "digits-events.yaml")
    assert (config.pooling, config.window, config.tet) == ("strided", "sliding", True)
    assert (config.dvs_mode, config.input, config.in_channels, config.time_steps) == (True, "frames", 2, 8)


def test_digits_and_its_stream_are_trained_alike() -> None:
    assert read_recipe(FOLDER / "digits.yaml").train == read_recipe(FOLDER / "digits-stream.yaml").train
