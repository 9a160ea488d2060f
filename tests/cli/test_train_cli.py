"""``statten-train`` as users type it: files, JSON, resume, exit statuses, one-line errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from statten_deploy.cli import train as train_cli
from statten_deploy.cli.common import run as run_command
from statten_deploy.models.checkpoint import load_checkpoint, load_model
from tests.train.recipes import write_recipe, write_stripes

SHIPPED = Path(__file__).resolve().parents[2] / "models/configs"


def statten_train(*arguments: object) -> int:
    return run_command(train_cli.app, "statten-train", [str(a) for a in arguments])


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[object, ...]:
    recipe = write_recipe(tmp_path / "tiny.yaml", train={"epochs": 2})
    data = write_stripes(tmp_path / "stripes.npz")
    return ("--config", recipe, "--data", data, "--device", "cpu")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("statten-train: error: ")
    return captured.err


def test_train_says_where_the_checkpoint_is_and_how_good(tiny, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert statten_train(*tiny, "--out", out) == 0
    captured = capsys.readouterr()
    assert f"checkpoint {out / 'best.ckpt'} (" in captured.out
    assert "test accuracy " in captured.out
    assert "/18)" in captured.out
    assert "top-5" not in captured.out  # of three classes
    assert re.search(r"^  block\.0\.attn\.attn_lif +firing rate [01]\.\d{4}$", captured.out, re.MULTILINE)
    assert "energy per sample, dynamic only, from the spikes of 18 samples" in captured.out
    assert re.search(r"^  loihi1 +[\d.]+ [µnp]J", captured.out, re.MULTILINE)
    assert captured.err == ""
    assert load_model(out / "best.ckpt").config.name == "tiny"


def test_json_is_one_object_and_resume_continues(tiny, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert statten_train(*tiny, "--out", out, "--json", "--set", "train.lr=0.005", "--set", "embed_dim=24") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["checkpoint"] == str(out / "best.ckpt")
    assert first["epochs"] == 2
    assert load_model(out / "best.ckpt").config.embed_dim == 24
    changes = ("--set", "train.lr=0.005", "--set", "embed_dim=24")
    assert statten_train(*tiny, *changes, "--epochs", 3, "--resume", out / "last.ckpt", "--json") == 0
    second = json.loads(capsys.readouterr().out)
    assert second["epochs"] == 3
    assert torch.load(out / "last.ckpt", weights_only=True)["epoch"] == 2
    assert {path.name for path in (out / "csv").iterdir()} == {"version_0", "version_1"}


def test_training_in_integers_from_a_checkpoint(tiny, tmp_path: Path, capsys) -> None:
    assert statten_train(*tiny, "--out", tmp_path / "float", "--json") == 0
    assert json.loads(capsys.readouterr().out)["quantisation"] is None
    start = ("--init", tmp_path / "float/best.ckpt", "--epochs", 1, "--set", "warmup_epochs=0")
    assert statten_train(*tiny, *start, "--qat-bits", 4, "--out", tmp_path / "run") == 0
    assert "test accuracy of the integer network with 4-bit weights " in capsys.readouterr().out
    assert statten_train(*tiny, *start, "--qat-bits", 4, "--out", tmp_path / "again", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["quantisation"] == {"bits": 4, "granularity": "channel"}
    assert load_checkpoint(told["checkpoint"]).quantisation == told["quantisation"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--set", "learning_rate=1"), "unknown key 'learning_rate'; known keys: "),
        (("--set", "lr"), "expected key=value"),
        (
            ("--data", "missing-folder"),
            "missing-folder: no such data; expected a built-in data set (digits, digits-events, ",
        ),
        (("--data", "digits"), "digits: the data are still images of shape [1, 16, 16], the network takes [1, 8, 8]"),
        (("--set", "image_size=16"), "stripes.npz: 'x' has shape [90, 1, 8, 8], the network takes [N, 1, 16, 16]"),
        (("--set", "num_classes=2"), "stripes.npz: 'y' holds classes 0 to 2, the network has 0 to 1"),
        (("--config", "no.yaml"), "no.yaml: cannot be read (No such file or directory)"),
        (("--epochs", "0"), "--epochs"),
        (("--device", "tpu"), "--device"),
        (("--resume", "last.ckpt"), "last.ckpt: no such file; --resume takes the last.ckpt of an earlier run"),
        (("--qat-bits", "4"), "--qat-bits 4: starts from a trained network; train the recipe without it first and"),
        (("--qat-bits", "9"), "--qat-bits"),
        (("--init", "no.ckpt"), "no.ckpt: no such file; expected a checkpoint"),
        (("--init", "a.ckpt", "--resume", "b.ckpt"), "--init a.ckpt: a resumed run has its weights from b.ckpt; drop"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tiny, capsys, arguments: tuple[str, ...], expected: str) -> None:
    assert statten_train(*tiny, *arguments) == 2
    assert expected in error_line(capsys)


def test_config_is_required(capsys) -> None:
    assert statten_train() == 2
    assert "--config" in error_line(capsys)


def test_ctrl_c(tiny, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from statten_deploy.train.module import StattenModule

    def interrupt(self: StattenModule) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StattenModule, "on_train_epoch_start", interrupt)
    assert statten_train(*tiny, "--out", tmp_path / "run") == 130
    assert capsys.readouterr().out == ""


def test_digits_start_from_the_shipped_recipe(tmp_path: Path, capsys) -> None:
    """One epoch of a smaller network on the real data, named by the recipe itself."""
    smaller = ("--set", "embed_dim=16", "--set", "time_steps=2", "--set", "mlp_ratio=1", "--epochs", 1)
    out = ("--out", tmp_path / "run", "--device", "cpu", "--json")
    assert statten_train("--config", SHIPPED / "digits.yaml", *smaller, *out) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["train_samples"], result["validation_samples"], result["test_samples"]) == (1437, 0, 360)
    assert result["data"] == "digits"
    assert result["test_accuracy"] <= result["test_top5_accuracy"] <= 1
    assert (result["energy_samples"], result["energy_note"]) == (360, "")
    assert set(result["energy_pj"]) == {"45nm-fp32", "45nm-int8", "loihi1"}


def test_help_is_quick_because_it_imports_no_torch() -> None:
    code = (
        "import sys; from statten_deploy.cli.common import run; from statten_deploy.cli.train import app;"
        "status = run(app, 'statten-train', ['--help']);"
        "print(status, [m for m in ('torch', 'lightning', 'sklearn', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    for option in ("--config", "--data", "--out", "--set", "--epochs", "--device", "--resume", "--json", "--debug"):
        assert option in done.stdout
    for option in ("--init", "--qat-bits"):
        assert option in done.stdout


@pytest.mark.parametrize("devices", ["0", "-1", "two", "1.5"])
def test_devices_are_a_number_or_auto(tiny, devices: str, capsys) -> None:
    assert statten_train(*tiny, "--devices", devices) == 2
    assert f"--devices {devices}: expected a number of processes, 1 or more, or auto" in error_line(capsys)


def test_as_many_gpus_as_processes(tiny, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert statten_train(*tiny, "--device", "cuda", "--devices", "3", "--out", tmp_path / "run") == 2
    assert "--devices 3: one process per GPU, and torch finds 2 here; ask for as many, or auto" in error_line(capsys)
    assert not (tmp_path / "run").exists()
