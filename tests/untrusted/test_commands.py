"""Damaged files given to the commands: an exit status, one line, no traceback, and nothing under the final name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from statten_deploy.cli import compare, export, run, train
from statten_deploy.cli.common import run as command
from tests.untrusted.formats import CONFIG, FORMATS, ROOT
from tests.untrusted.mutations import mutate

DIGITS = str(ROOT / "models/zoo/digits.ckpt")
EVENTS = str(ROOT / "models/zoo/digits-events.ckpt")
RUNS = 3
"""Mutations per format and command; test_fuzz reads thousands in another way."""


def exporting(path: Path, out: Path) -> list[str]:
    return [str(path), "--target", "onnx", "--no-verify", "--out", str(out / "out.onnx")]


def running(path: Path, out: Path) -> list[str]:
    return [str(path), "--data", "digits", "--samples", "1"]


def data_of(model: str) -> Callable[[Path, Path], list[str]]:
    return lambda path, out: [model, "--data", f"{path}@34x34" if path.suffix in (".bin", ".npy") else str(path)]


def quantising(path: Path, out: Path) -> list[str]:
    return [DIGITS, "--target", "lava", "--calibration", str(path), "--no-verify", "--out", str(out / "out.lava")]


def pricing(path: Path, out: Path) -> list[str]:
    return [DIGITS, "--backends", "torch", "--samples", "1", "--profile", str(path), "--out", str(out / "report")]


def training(path: Path, out: Path) -> list[str]:
    return ["--config", str(path), "--epochs", "1", "--data", str(path), "--out", str(out / "run")]


COMMANDS = {
    **{(name, "export"): (export.app, exporting) for name in ("ckpt", "pth", "pt-legacy", "safetensors", "nir")},
    **{(name, "run"): (run.app, running) for name in ("onnx", "onnx-int8", "net", "nir-stranger")},
    **{(name, "run"): (run.app, data_of(EVENTS)) for name in FORMATS if name.startswith("events-")},
    ("npz", "run"): (run.app, data_of(DIGITS)),
    ("npz", "export"): (export.app, quantising),
    ("toml-profile", "compare"): (compare.app, pricing),
    ("yaml", "train"): (train.app, training),
}


@pytest.mark.filterwarnings("ignore")  # what libraries deprecate is no concern of these files
@pytest.mark.parametrize(("name", "what"), COMMANDS)
def test_command(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, what: str) -> None:
    app, arguments = COMMANDS[name, what]
    chosen = FORMATS[name]
    sound = tmp_path / f"sound{chosen.suffix}"
    chosen.make(sound)
    path, out, data = tmp_path / f"mutated{chosen.suffix}", tmp_path / "out", sound.read_bytes()
    out.mkdir()
    refused = 0
    for seed in range(10_000, 10_000 + RUNS):
        path.write_bytes(mutate(data, seed, chosen.kinds))
        capfd.readouterr()
        status = command(app, f"statten-{what}", arguments(path, out))
        told = capfd.readouterr().err
        assert status in (0, 1, 2), told
        assert "Traceback" not in told
        assert "internal error" not in told
        if status:
            refused += 1
            assert len(told.splitlines()) == 1, told
            assert told.startswith(f"statten-{what}: error: ")
            assert told.rstrip("\n").isprintable()
            assert not list(out.iterdir())
        for made in out.iterdir():
            made.unlink() if made.is_file() else None
    assert refused


def test_the_artefacts_are_of_networks_that_work(tmp_path: Path) -> None:
    """What is mutated is sound before: else anything would be refused."""
    assert CONFIG.time_steps == 4
    FORMATS["ckpt"].make(tmp_path / "a.ckpt")
    assert command(export.app, "statten-export", exporting(tmp_path / "a.ckpt", tmp_path)) == 0
