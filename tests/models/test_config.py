"""Configurations: ours and the released files' own keys, validated with one line that names what is wrong."""

from pathlib import Path

import pytest

from statten_deploy.errors import ConfigError
from statten_deploy.models.config import ModelConfig, load_config, read_config_values
from tests.conftest import small_config

RELEASED = """
dataset: torch/cifar10
num_classes: 10
num_heads: 8
img_size: 32
mean: [0.4914, 0.4822, 0.4465]
std: [0.2470, 0.2435, 0.2616]
pooling_stat: "0011"
time_steps: 4
chunk_size: 2
layer: 2
dim: 256
in_channels: 3
mlp-ratio: 4
TET: False
attention_mode: STAtten
spike_mode: plif
lr: 3e-4
sched: cosine
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_released_keys_are_understood_and_recipe_keys_ignored(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, RELEASED))
    assert (config.embed_dim, config.depth, config.image_size, config.mlp_ratio) == (256, 2, (32, 32), 4)
    assert (config.neuron, config.chunk_size, config.std) == ("plif", 2, (0.2470, 0.2435, 0.2616))


@pytest.mark.parametrize(
    ("written", "read"), [("0011", "0011"), ("1111", "1111"), ('"0110"', "0110"), ("0111", "0111")]
)
def test_unquoted_pooling_stat_survives_yaml_octals(tmp_path: Path, written: str, read: str) -> None:
    text = RELEASED.replace('"0011"', written)
    assert load_config(write(tmp_path, text)).pooling_stat == read


def test_event_data_sets_imply_dvs_mode(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, "dataset: cifar10-dvs\nimg_size: 64\ndim: 256\nlayer: 2\nTET: True\nin_channels: 2")
    )
    assert (config.dvs_mode, config.input, config.tet, config.mean) == (True, "frames", True, None)


def test_two_spellings_that_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="disagree"):
        load_config(write(tmp_path, "dim: 64\nmlp_ratio: 4\nmlp-ratio: 2"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time_steps": 5}, "time_steps 5 is not a multiple of chunk_size 2"),
        ({"num_heads": 5}, "num_heads 5 does not divide embed_dim 32"),
        ({"embed_dim": 36}, "multiple of 8"),
        ({"pooling_stat": "01"}, "pooling_stat"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean has 1 values for 3 input channels"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std come together"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "std must be positive"),
        ({"token_groups": 2}, "token_groups needs"),
        ({"divide": "token", "token_groups": 3}, "does not divide the 4 rows"),
        ({"divide": "token", "window": "sliding"}, 'window must be "block"'),
        ({"typo": 1}, "unknown key 'typo'"),
        ({"depth": 0}, "depth"),
        ({"attention": "softmax"}, "attention"),
    ],
)
def test_problems_are_named(changes: dict, said: str) -> None:
    values = small_config("static").model_dump() | changes
    with pytest.raises(ConfigError, match=said) as caught:
        ModelConfig.create(values, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "expected a YAML mapping"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_config_values(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_and_oversized_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_values(tmp_path / "none.yaml")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="larger than"):
        read_config_values(big)


def test_scale_of_each_division() -> None:
    assert small_config("static").attention_scale == 1 / 4
    assert small_config("dvs").attention_scale == 1 / (4 * 4 * 2)
    # rows = 4 · 16 / 2 = 32, 1/sqrt(32) = 2^-2.5, rounded to a power of two
    assert small_config("token").attention_scale == 2.0**-2


def test_configuration_survives_json() -> None:
    config = small_config("normalised")
    assert ModelConfig.create(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("width", "ratio", "hidden"), [(56, 61 / 56, 61), (16, 1.3, 20), (32, 4, 128), (24, 0.5, 12)])
def test_hidden_width_is_rounded_down_but_not_by_floats(width: int, ratio: float, hidden: int) -> None:
    assert small_config("static", embed_dim=width, mlp_ratio=ratio).hidden_dim == hidden
