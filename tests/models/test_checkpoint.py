"""Checkpoints of every origin, and everything that can be wrong with them; no file may run code."""

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from statten_deploy.errors import CheckpointError, ConfigError
from statten_deploy.models.checkpoint import CONFIG_KEY, QUANTISATION_KEY, load_checkpoint, load_model
from tests.conftest import lively_input, lively_model, small_config

CONFIG = small_config("static")
BARE = {"time_steps": 4, "chunk_size": 2, "image_size": 16, "pooling_stat": "0011"}
RELEASED_ARGS = {
    "img_size": 16,
    "in_channels": 3,
    "num_classes": 5,
    "dim": 32,
    "layer": 2,
    "num_heads": 4,
    "mlp_ratio": 2,
    "time_steps": 4,
    "chunk_size": 2,
    "pooling_stat": "0011",
    "TET": False,
    "dataset": "torch/cifar10",
    "attention_mode": "STAtten",
    "spike_mode": "lif",
    "lr": 3e-4,
    "opt": "adamw",
}


@pytest.fixture
def model():
    return lively_model(CONFIG)


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def released(model, **changes: Any) -> dict[str, Any]:
    return {
        "epoch": 3,
        "arch": "sdt",
        "state_dict": model.state_dict(),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(**{**RELEASED_ARGS, **changes}),
        "metric": 96.0,
    }


def same_network(path: Path, model, overrides=None) -> None:
    x = lively_input(model.config)
    with torch.no_grad():
        assert torch.equal(load_model(path, overrides)(x), model(x))


def test_lightning_checkpoint(tmp_path, model) -> None:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    content = {"state_dict": state, CONFIG_KEY: CONFIG.model_dump(mode="json"), "statten_deploy_version": "0.1.0"}
    path = save(tmp_path / "best.ckpt", content)
    same_network(path, model)
    assert load_checkpoint(path).config == CONFIG


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt"])
def test_released_checkpoint(tmp_path, model, suffix) -> None:
    same_network(save(tmp_path / f"model_best{suffix}", released(model)), model)


def test_module_prefix_and_bare_state_dict(tmp_path, model) -> None:
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    same_network(save(tmp_path / "bare.pt", state), model, BARE)


def test_safetensors_with_and_without_configuration(tmp_path, model) -> None:
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "bare.safetensors")
    same_network(tmp_path / "bare.safetensors", model, BARE)
    save_file(state, tmp_path / "full.safetensors", {CONFIG_KEY: json.dumps(CONFIG.model_dump(mode="json"))})
    same_network(tmp_path / "full.safetensors", model)


def test_every_variant_round_trips(tmp_path, variant) -> None:
    model = lively_model(small_config(variant))
    content = {"state_dict": model.state_dict(), CONFIG_KEY: model.config.model_dump(mode="json")}
    same_network(save(tmp_path / "x.ckpt", content), model)


@pytest.mark.parametrize(("width", "ratio"), [(16, 1.3), (56, 61 / 56), (32, 2.7), (24, 0.5)])
def test_ratios_that_are_not_whole_load_again(tmp_path, width, ratio) -> None:
    model = lively_model(small_config("static", embed_dim=width, mlp_ratio=ratio, depth=1))
    content = {"state_dict": model.state_dict(), CONFIG_KEY: model.config.model_dump(mode="json")}
    same_network(save(tmp_path / "x.ckpt", content), model)
    same_network(save(tmp_path / "bare.pt", model.state_dict()), model, BARE)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path, model) -> None:
    load_checkpoint(save(tmp_path / "r.pth", released(model)), {"time_steps": "4", "mlp_ratio": "2"})


def test_weights_tell_what_they_can(tmp_path, model) -> None:
    config = load_checkpoint(save(tmp_path / "bare.pt", model.state_dict()), BARE).config
    told = (config.embed_dim, config.depth, config.in_channels, config.num_classes, config.mlp_ratio, config.num_heads)
    assert told == (32, 2, 3, 5, 2, 4)


def test_missing_configuration_is_named(tmp_path, model) -> None:
    with pytest.raises(ConfigError, match=r"tell time_steps, chunk_size, image_size, pooling_stat; .*--config"):
        load_checkpoint(save(tmp_path / "bare.pt", model.state_dict()))


def test_released_checkpoint_without_a_chunk_size_does_not_guess(tmp_path, model) -> None:
    content = released(model)
    del content["args"].chunk_size
    with pytest.raises(ConfigError, match=r"chunk_size.*attention_mode: SDT"):
        load_checkpoint(save(tmp_path / "sdt.pth", content))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 64}, "embed_dim: the checkpoint's own configuration says 64, the weights say 32"),
        ({"num_classes": 10}, "num_classes"),
        ({"num_heads": 8}, "num_heads"),
        ({"layer": 3}, "depth"),
        ({"spike_mode": "plif"}, "neuron"),
    ],
)
def test_contradiction_with_the_weights_names_both(tmp_path, model, changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        load_checkpoint(save(tmp_path / "r.pth", released(model, **changes)))


def test_contradiction_with_the_checkpoint_names_both(tmp_path, model) -> None:
    path = save(tmp_path / "r.pth", released(model))
    with pytest.raises(ConfigError, match="time_steps: --config says 8, the checkpoint was trained with 4"):
        load_checkpoint(path, {"time_steps": 8})
    load_checkpoint(path, {"time_steps": 4, "image_size": [16, 16]})


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("where", ["args", "state_dict", "top"])
def test_a_checkpoint_cannot_run_code(tmp_path, model, where) -> None:
    target = tmp_path / "ran"
    content: Any = released(model)
    if where == "top":
        content = Evil(target)
    else:
        content[where] = Evil(target)
    with pytest.raises(CheckpointError, match=r"(posix|nt)\.system"):
        load_checkpoint(save(tmp_path / "evil.pth", content))
    with (tmp_path / "legacy.pt").open("wb") as stream:
        pickle.dump(Evil(target), stream)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "legacy.pt")
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.ckpt", b""),
        ("text.pth", b"not a checkpoint"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{"),
        ("what.xyz", b""),
    ],
)
def test_unreadable_files_are_one_line(tmp_path, name, content) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_truncated_checkpoint(tmp_path, model) -> None:
    path = save(tmp_path / "r.pth", released(model))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("head.weight", torch.full((5, 32), float("nan")), "NaN"),
        ("patch_embed.proj_bn.running_var", torch.full((4,), -1.0), "negative variances"),
        ("head.bias", torch.zeros(4), r"head.bias has shape \[4\], expected \[5\]"),
        ("extra.weight", torch.zeros(3), "unexpected extra.weight"),
        ("head.weight", None, "'head.weight' is missing"),
        ("head.bias", None, "missing head.bias"),
        ("head.bias", "text", "expected a tensor"),
    ],
)
def test_wrong_weights_are_named(tmp_path, model, key, value, said) -> None:
    state: dict[str, Any] = dict(model.state_dict())
    if value is None:
        del state[key]
    else:
        state[key] = value
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(save(tmp_path / "x.pth", {"state_dict": state}), BARE)


def test_gap_in_block_numbers(tmp_path, model) -> None:
    state = {name.replace("block.1.", "block.2."): value for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="without gaps"):
        load_checkpoint(save(tmp_path / "x.pth", state), BARE)


def test_missing_file(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.ckpt")


def test_quantisation_is_read_from_both_kinds_of_files(tmp_path, model) -> None:
    told = {"bits": 3, "granularity": "tensor"}
    config = CONFIG.model_dump(mode="json")
    path = save(tmp_path / "a.ckpt", {"state_dict": model.state_dict(), CONFIG_KEY: config, QUANTISATION_KEY: told})
    assert load_checkpoint(path).quantisation == told
    save_file(
        model.state_dict(),
        tmp_path / "b.safetensors",
        {CONFIG_KEY: json.dumps(config), QUANTISATION_KEY: json.dumps(told)},
    )
    assert load_checkpoint(tmp_path / "b.safetensors").quantisation == told
    path = save(tmp_path / "c.ckpt", {"state_dict": model.state_dict(), CONFIG_KEY: config})
    assert load_checkpoint(path).quantisation is None


@pytest.mark.parametrize(
    "told",
    [
        4,
        None,
        {},
        {"bits": 4},
        {"bits": 1, "granularity": "channel"},
        {"bits": 9, "granularity": "channel"},
        {"bits": 4.0, "granularity": "channel"},
        {"bits": True, "granularity": "channel"},
        {"bits": 4, "granularity": "layer"},
        {"bits": 4, "granularity": ["channel"]},
        {"bits": 4, "granularity": "channel", "more": 1},
    ],
)
def test_a_quantisation_that_is_none_is_refused(tmp_path, model, told) -> None:
    content = {"state_dict": model.state_dict(), CONFIG_KEY: CONFIG.model_dump(mode="json"), QUANTISATION_KEY: told}
    with pytest.raises(CheckpointError, match=r"statten_quantisation is .*; expected bits \(2 to 8\) and granularity"):
        load_checkpoint(save(tmp_path / "a.ckpt", content))
