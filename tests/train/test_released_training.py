"""Released recipes train, and released checkpoints are evaluated, exported and compared, all from released files."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statten_deploy.cli import train as train_cli
from statten_deploy.cli.common import run as run_command
from statten_deploy.models.checkpoint import load_model
from statten_deploy.train import read_recipe
from statten_deploy.train.data import load_arrays
from statten_deploy.train.run import train
from tests.cli.commands import compare, error_line, export, run
from tests.conftest import lively_model, small_config
from tests.train import disk_sets, released_files

SMALL = ["embed_dim=16", "depth=1", "num_heads=2", "mlp_ratio=1", "workers=0", "threads=1", "precision=32"]
CONFIGS = Path(__file__).resolve().parents[2] / "models/configs"


def write_data(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "cifar10":
        disk_sets.write_cifar10(root, monkeypatch, count=4)
    elif name == "cifar100":
        disk_sets.write_cifar100(root, monkeypatch)
    elif name == "imagenet":
        disk_sets.write_imagenet(root)
    elif name == "cifar10dvs":
        disk_sets.write_cifar10dvs(root, count=11)
    else:
        disk_sets.write_ncaltech101(root, counts=(2,))


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("cifar10-2-256", ["image_size=16", "batch_size=10"]),
        ("cifar10-2-256", ["image_size=16", "batch_size=10", "attention=SDT"]),
        ("imagenet-8-512", ["image_size=32", "num_classes=2", "batch_size=3"]),
        ("cifar10dvs-2-256-t10", ["time_steps=2", "chunk_size=1", "image_size=16", "batch_size=50"]),
        ("ncaltech101-2-256-t16", ["time_steps=2", "chunk_size=1", "image_size=16", "batch_size=50"]),
    ],
)
def test_shipped_recipes_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, more: list[str]) -> None:
    """The whole recipe but for the size: optimizer, augmentation, mixing and loss as they are."""
    recipe = read_recipe(CONFIGS / f"{config}.yaml", [*SMALL, *more], epochs=1)
    write_data(tmp_path, recipe.model.dataset, monkeypatch)
    result = train(recipe, f"{recipe.model.dataset}:{tmp_path}", tmp_path / "run", device="cpu")
    assert result.train_samples > 5
    assert 0 <= result.test_accuracy <= 1
    written = torch.load(result.checkpoint, weights_only=True)["statten_config"]
    assert written["attention"] == recipe.model.attention


def test_a_run_repeats_with_any_number_of_loading_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of the CIFAR10 recipe from its released file: the same weights with 0 and 2 processes."""
    disk_sets.write_cifar10(tmp_path, monkeypatch, count=4)
    document = released_files.CIFAR10 | {"data_dir": str(tmp_path), "warmup_epochs": 1, "cooldown_epochs": 0}
    path = released_files.write(tmp_path / "released.yml", document)
    weights = []
    for workers in (0, 2):
        more = [*SMALL, "image_size=16", "batch_size=7", "ema_decay=0.5", f"workers={workers}"]
        recipe = read_recipe(path, more, epochs=2)
        result = train(recipe, out=tmp_path / f"run{workers}", device="cpu")
        weights.append(load_model(result.checkpoint).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_command_takes_a_released_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Baseline SDT from its own YAML, which says neither chunk_size nor attention_mode, in one command."""
    disk_sets.write_cifar10(tmp_path / "data", monkeypatch, count=4)
    document = {key: value for key, value in released_files.CIFAR10.items() if key != "chunk_size"}
    path = released_files.write(tmp_path / "2_256.yml", document | {"data_dir": str(tmp_path / "data"), "extra": 1})
    arguments = ["--config", path, "--out", tmp_path / "run", "--epochs", 1, "--device", "cpu", "--json"]
    for value in [*SMALL, "image_size=16", "batch_size=10"]:
        arguments += ["--set", value]
    assert run_command(train_cli.app, "statten-train", [str(a) for a in arguments]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["data"] == f"cifar10:{tmp_path / 'data'}"
    assert "extra: not used, no key of a released recipe" in captured.err
    assert "taken for the Spike-driven Transformer (attention: SDT)" in captured.err
    written = torch.load(tmp_path / "run/final.ckpt", weights_only=True)["statten_config"]
    assert (written["attention"], written["dataset"], written["name"]) == ("SDT", "cifar10", "cifar10-2_256")


def test_download_of_what_cannot_be_fetched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(CONFIGS / "digits.yaml"), "--out", str(tmp_path / "run"), "--download"]
    assert run_command(train_cli.app, "statten-train", arguments) == 2
    assert "--download: digits cannot be fetched; these can: cifar10" in error_line(capsys)
    assert not (tmp_path / "run").exists()


# released checkpoints

EVENTS = {"dvs_mode": True, "input": "frames", "in_channels": 2, "num_classes": 10, "mean": None, "std": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "sdt": {"attention": "SDT"},
    "plif": {"neuron": "plif"},
    "dvs": EVENTS,
    "dvs-tet": EVENTS | {"tet": True},
    "dvs-sdt": EVENTS | {"attention": "SDT"},
}


def written(tmp_path: Path, variant: str, form: str) -> tuple[Path, Path, Any]:
    """A checkpoint and a YAML file as the released code writes them, and the network they hold."""
    normal = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616), "num_classes": 10}
    config = small_config("static", image_size=16, depth=1, **{**normal, **VARIANTS[variant]})
    model = lively_model(config)
    events = config.dvs_mode
    arguments = (released_files.CIFAR10DVS if events else released_files.CIFAR10) | {
        "img_size": 16,
        "dim": config.embed_dim,
        "layer": 1,
        "num_heads": config.num_heads,
        "mlp_ratio": int(config.mlp_ratio),
        "time_steps": config.time_steps,
        "chunk_size": config.chunk_size,
        "TET": config.tet,
        "attention_mode": config.attention,
        "spike_mode": config.neuron,
    }
    released = released_files.write(tmp_path / "released.yml", arguments)
    prefix = "module." if "module" in form else ""
    state: Any = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    if "bare" not in form:
        parser = argparse.Namespace(**{key.replace("-", "_"): value for key, value in arguments.items()})
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01).state_dict()
        state = {"epoch": 9, "arch": "sdt", "state_dict": state, "optimizer": optimizer, "version": 2, "args": parser}
        state |= {"amp_scaler": {"scale": 65536.0}, "metric": 96.03}
        if "yaml" in form:
            del state["args"]
    path = tmp_path / ("official.pt" if "bare" in form else "official.pth.tar" if prefix else "official.pth")
    torch.save(state, path)
    return path, released, model


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        ("static", "module yaml"),
        ("static", "args"),
        ("sdt", "module args"),
        ("plif", "bare"),
        ("dvs", "bare module"),
        ("dvs-tet", "yaml"),
        ("dvs-sdt", "module yaml"),
    ],
)
def test_run_evaluates_a_released_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variant: str, form: str
) -> None:
    path, released, model = written(tmp_path, variant, form)
    name = "cifar10dvs" if model.config.dvs_mode else "cifar10"
    write_data(tmp_path / "data", name, monkeypatch)
    options = [] if form.endswith("args") else ["--config", released]
    assert run(path, "--data", f"{name}:{tmp_path / 'data'}", "--json", *options) == 0
    told = json.loads(capsys.readouterr().out)
    x, y = load_arrays(f"{name}:{tmp_path / 'data'}", "test", model.config)
    with torch.no_grad():
        predictions = model.eval()(torch.from_numpy(x)).argmax(1).numpy()
    assert told["predictions"] == predictions.tolist()
    assert told["correct"] == int((predictions == y).sum())
    assert sum(layer["spikes"] for layer in told["layers"]) > 0


def test_a_released_checkpoint_without_its_recipe_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, _ = written(tmp_path, "static", "module yaml")
    assert run(path, "--data", f"cifar10:{tmp_path}") == 2
    assert "its weights tell time_steps, chunk_size, image_size, pooling_stat" in error_line(capsys)


@pytest.mark.parametrize(("variant", "target"), [("static", "onnx"), ("dvs-tet", "nir"), ("sdt", "onnx-int8")])
def test_export_and_run_of_a_released_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variant: str, target: str
) -> None:
    path, released, model = written(tmp_path, variant, "module yaml")
    name = "cifar10dvs" if model.config.dvs_mode else "cifar10"
    write_data(tmp_path / "data", name, monkeypatch)
    data = f"{name}:{tmp_path / 'data'}"
    out = tmp_path / {"onnx": "a.onnx", "nir": "a.nir", "onnx-int8": "a.int8.onnx"}[target]
    arguments = ["--target", target, "--config", released, "--calibration", data, "--samples", 4, "--out", out]
    assert export(path, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True
    assert run(out, "--data", data, "--json") == 0
    exported = json.loads(capsys.readouterr().out)["predictions"]
    assert run(path, "--config", released, "--data", data, "--json") == 0
    original = json.loads(capsys.readouterr().out)["predictions"]
    agree = np.mean(np.array(exported) == np.array(original))
    assert agree == 1 if target != "onnx-int8" else agree > 0


def test_compare_takes_a_released_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, released, _ = written(tmp_path, "static", "module yaml")
    write_data(tmp_path / "data", "cifar10", monkeypatch)
    monkeypatch.setenv("STATTEN_DATA", str(tmp_path / "data"))
    arguments = ["--config", released, "--data", "cifar10", "--backends", "torch,onnx", "--out", tmp_path / "report"]
    assert compare(path, *arguments, "--samples", 4) == 0
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["dataset"] == "cifar10"
    assert [backend["agreement"] for backend in report["backends"]] == [None, 1.0]
