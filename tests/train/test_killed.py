"""A training killed at any moment continues as if it had not been."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from statten_deploy.errors import CheckpointError, ConfigError
from statten_deploy.train import read_recipe, train
from statten_deploy.train.datamodule import EpochShuffle, Share, StattenData
from statten_deploy.train.module import StattenModule
from statten_deploy.train.resume import Start, check_resume
from statten_deploy.train.saving import AtomicCheckpointIO, LastCheckpoint
from tests.train.recipes import write_recipe, write_stripes

ROOT = Path(__file__).resolve().parents[2]
# 57 samples: 8 batches and 4 optimizer steps per epoch
CHANGES = {"accumulate": 2, "gradient_clip": 0.5, "save_every_steps": 1, "epochs": 2}
CHILD = """
import os, signal, sys
from pathlib import Path
from statten_deploy.train import read_recipe, train
from statten_deploy.train.module import StattenModule

def end(self, outputs, batch, batch_idx):
    if (self.current_epoch, batch_idx) == (1, 4):
        os.kill(os.getpid(), signal.SIGKILL)

StattenModule.on_train_batch_end = end
train(read_recipe(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), device="cpu")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def everything(path: Path) -> dict[str, torch.Tensor]:
    """Weights, their average, and the optimizer's moments."""
    raw = torch.load(path, weights_only=True)
    moments = raw["optimizer_states"][0]["state"]
    steps = {f"{i}.{key}": value for i, each in moments.items() for key, value in each.items()}
    return {**raw["state_dict"], **raw["statten_trained"], **steps}


def test_killed_in_mid_epoch_ends_with_the_same_weights_bit_for_bit(data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", train=CHANGES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", CHILD, str(path), str(data), str(tmp_path / "cut")]
    killed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    last = tmp_path / "cut/last.ckpt"
    # The fifth batch was learnt from, but not yet part of an optimizer step.
    assert check_resume(last, read_recipe(path)) == Start(epoch=1, batches=4)
    resumed = train(read_recipe(path), data, device="cpu", resume=last)
    whole = train(read_recipe(path), data, tmp_path / "whole", device="cpu")
    assert resumed is not None
    assert whole is not None
    expected, found = everything(tmp_path / "whole/last.ckpt"), everything(last)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert resumed.test_correct == whole.test_correct
    best = [torch.load(tmp_path / run / "best.ckpt", weights_only=True) for run in ("whole", "cut")]
    assert best[0]["epoch"] == best[1]["epoch"]
    assert all(torch.equal(best[0]["state_dict"][key], best[1]["state_dict"][key]) for key in best[0]["state_dict"])


def test_schedule_counts_optimizer_steps(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two batches to a step, warm-up ends and the cosine reaches its end at the same epochs."""
    rates: list[float] = []
    step = StattenModule.optimizer_step

    def watched(self: StattenModule, *args: Any) -> None:
        rates.append(self.optimizers().param_groups[0]["lr"])
        step(self, *args)

    monkeypatch.setattr(StattenModule, "optimizer_step", watched)
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml", train={**CHANGES, "save_every_steps": 0}))
    train(recipe, data, tmp_path / "out", device="cpu")
    assert len(rates) == 8
    assert rates[0] == pytest.approx(recipe.train.warmup_lr)
    assert rates[4] == pytest.approx(recipe.train.lr)
    assert rates[7] == pytest.approx(recipe.train.min_lr)


@pytest.mark.parametrize("moment", ["write", "sync", "rename"])
def test_a_file_is_old_or_new_never_a_part(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.tensor(1)}, path)

    def power_cut(*_: Any) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(torch, "save", lambda _, stream: power_cut(stream.write(b"half a f")))
        elif moment == "sync":
            patch.setattr(os, "fsync", power_cut)
        else:
            patch.setattr(Path, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            AtomicCheckpointIO().save_checkpoint({"x": torch.tensor(2)}, path)
    assert torch.load(path, weights_only=True) == {"x": torch.tensor(1)}
    AtomicCheckpointIO().save_checkpoint({"x": torch.tensor(3)}, path)
    assert torch.load(path, weights_only=True) == {"x": torch.tensor(3)}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_loader_goes_on_behind_what_was_seen(workers: int, data: Path, tmp_path: Path) -> None:
    train_config = {"batch_size": 8, "workers": workers}
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml", train=train_config))
    whole = StattenData(data, recipe.model, recipe.train).train_dataloader()
    whole.sampler.set_epoch(2)
    expected = [x for x, _ in whole]
    loader = StattenData(data, recipe.model, recipe.train, Start(epoch=2, batches=3)).train_dataloader()
    found = [x for x, _ in loader]
    assert len(loader) == len(expected) == 8
    assert len(found) == 5
    assert all(torch.equal(a, b) for a, b in zip(found, expected[3:], strict=True))
    loader.sampler.set_epoch(3)
    assert len(list(loader)) == 8  # the epoch after is whole


def test_shares_make_up_the_batches_of_one_process() -> None:
    order = EpochShuffle(10, seed=1)
    whole = list(order)
    shares = [list(Share(order, rank, 4)) for rank in range(4)]
    assert [len(share) for share in shares] == [3] * 4
    assert [shares[rank][i] for i in range(3) for rank in range(4)] == [*whole, *whole[:2]]


def test_loggers_are_those_asked_for(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any, **_: Any) -> None:
        raise ModuleNotFoundError("wandb")

    recipe = read_recipe(write_recipe(tmp_path / "r.yaml", train={"loggers": ["wandb"]}))
    monkeypatch.setattr(WandbLogger, "__init__", missing)
    with pytest.raises(ConfigError, match=r"train\.loggers: wandb is not installed; pip install wandb, or leave it"):
        train(recipe, data, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml", train={"loggers": ["csv"], "epochs": 1}))
    train(recipe, data, tmp_path / "out", device="cpu")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"best.ckpt", "last.ckpt", "recipe.yaml", "csv"}


def test_mixed_precision_keeps_float32_weights_and_validates_in_float32(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    forward = torch.nn.Conv2d.forward

    def watched(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        y = forward(self, x)
        seen[self.training].add(y.dtype)
        return y

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    changes = {"precision": 16, "epochs": 1, "warmup_epochs": 0, "ema_decay": 0}
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml", train=changes))
    train(recipe, data, tmp_path / "out", device="cpu")
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}
    assert "train.precision 16: float16 needs a CUDA device; on this CPU it is bf16" in caplog.messages
    state = torch.load(tmp_path / "out/best.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


def test_a_resumed_run_writes_nothing_in_mid_accumulation(tmp_path: Path) -> None:
    written: list[Path] = []
    trainer: Any = SimpleNamespace(global_step=4, is_last_batch=False, save_checkpoint=written.append)
    last: Any = LastCheckpoint(tmp_path, every=2)
    last.on_train_start(trainer, None)  # continued from step 4
    last.on_train_batch_end(trainer)  # its gradients wait for step 5
    assert not written
    trainer.global_step = 6
    last.on_train_batch_end(trainer)
    assert written == [tmp_path / "last.ckpt"]


def test_a_damaged_place_is_one_line(tmp_path: Path) -> None:
    recipe = read_recipe(Path("models/configs/digits.yaml"))
    sections = {"statten_config": recipe.model.model_dump(mode="json")}
    sections["statten_train"] = recipe.train.model_dump(mode="json")
    torch.save({**sections, "state_dict": {}, "optimizer_states": [], "epoch": 1, "loops": {}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="does not say how many batches it has learnt from"):
        check_resume(tmp_path / "last.ckpt", recipe)
