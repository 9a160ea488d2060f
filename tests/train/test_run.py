"""Training runs on a tiny data set: learning, checkpoints, repeating and resuming."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from statten_deploy.errors import CheckpointError, ConfigError, InputError
from statten_deploy.models.checkpoint import load_checkpoint, load_model
from statten_deploy.train import TrainResult, evaluate, load_arrays, read_recipe, train
from statten_deploy.train.module import StattenModule
from tests.train.recipes import write_recipe, write_stripes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def run(folder: Path, data: Path, resume: Path | None = None, **changes: Any) -> TrainResult:
    recipe = read_recipe(write_recipe(folder.parent / f"{folder.name}.yaml", train=changes))
    return train(recipe, data, None if resume else folder, device="cpu", resume=resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, TrainResult]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(folder, data)


def logged(folder: Path, key: str, version: int = 0) -> dict[int, float]:
    with (folder / "csv" / f"version_{version}" / "metrics.csv").open() as stream:
        return {int(row["epoch"]): float(row[key]) for row in csv.DictReader(stream) if row[key]}


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def trained(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["statten_trained"]
    return state


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_loss_decreases(finished: tuple[Path, TrainResult]) -> None:
    losses = logged(finished[0], "train/loss")
    assert list(losses) == [0, 1, 2]
    assert losses[2] < 0.9 * losses[0]
    assert set(logged(finished[0], "validation/accuracy")) == {0, 1, 2}


def test_learning_rate_follows_the_recipe(finished: tuple[Path, TrainResult]) -> None:
    with (finished[0] / "csv/version_0/metrics.csv").open() as stream:
        rates = [float(row["lr-AdamW/pg1"]) for row in csv.DictReader(stream) if row["lr-AdamW/pg1"]]
    assert rates == pytest.approx([0.001, 0.01, 0.01 - 0.009 * 0.5], rel=0.3)
    assert rates[:2] == pytest.approx([0.001, 0.01])


def test_result_and_files(finished: tuple[Path, TrainResult], data: Path) -> None:
    folder, result = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "recipe.yaml", "csv", "tensorboard"}
    assert list(folder.glob("tensorboard/version_0/events.*"))
    # 90 samples: 18 test; of the other 72, a fifth (15) selects the best epoch.
    assert (result.train_samples, result.validation_samples, result.test_samples) == (57, 15, 18)
    assert result.selected_by == "lowest validation loss"
    assert result.test_accuracy == result.test_correct / 18
    assert all(0 <= rate <= 1 for rate in result.firing_rates.values())
    assert {"patch_embed.proj_lif", "block.0.attn.attn_lif", "head_lif"} <= result.firing_rates.keys()
    assert read_recipe(folder / "recipe.yaml").train == read_recipe(folder.parent / "whole.yaml").train


def test_checkpoint_holds_weights_and_configuration_only(finished: tuple[Path, TrainResult]) -> None:
    folder, result = finished
    raw = torch.load(folder / "best.ckpt", weights_only=True)
    assert not {"optimizer_states", "lr_schedulers", "callbacks"} & raw.keys()
    assert str(folder) not in repr({key: value for key, value in raw.items() if key != "state_dict"})
    loaded = load_checkpoint(folder / "best.ckpt")
    assert loaded.config == read_recipe(folder / "recipe.yaml").model
    assert loaded.sha256 == result.sha256
    assert result.bytes == (folder / "best.ckpt").stat().st_size < (folder / "last.ckpt").stat().st_size / 2
    assert raw["statten_train"]["epochs"] == 3


def test_reported_accuracy_is_that_of_the_written_file(finished: tuple[Path, TrainResult], data: Path) -> None:
    model = load_model(finished[1].checkpoint)
    x, y = load_arrays(data, "test", model.config)
    score = evaluate(model, [(torch.from_numpy(x), torch.from_numpy(y))])
    assert (score.correct, score.samples) == (finished[1].test_correct, 18)
    assert score.firing_rates == pytest.approx(finished[1].firing_rates)


def test_best_is_the_epoch_of_lowest_validation_loss(finished: tuple[Path, TrainResult]) -> None:
    losses = logged(finished[0], "validation/loss")
    raw = torch.load(finished[0] / "best.ckpt", weights_only=True)
    assert raw["epoch"] == min(losses, key=losses.__getitem__)


def test_same_seed_same_weights(finished: tuple[Path, TrainResult], data: Path, tmp_path: Path) -> None:
    run(tmp_path / "again", data)
    assert same(finished[0] / "last.ckpt", tmp_path / "again/last.ckpt")
    run(tmp_path / "other", data, seed=8)
    assert not same(finished[0] / "last.ckpt", tmp_path / "other/last.ckpt")


class PowerCutError(Exception):
    pass


def cut_at(epoch: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = PowerCutError) -> None:
    def start(self: StattenModule) -> None:
        if self.current_epoch == epoch:
            raise error

    monkeypatch.setattr(StattenModule, "on_train_epoch_start", start)


def test_resumed_run_ends_where_an_uninterrupted_one_does(
    finished: tuple[Path, TrainResult], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        cut_at(2, patch)
        with pytest.raises(PowerCutError):
            run(folder, data)
    assert list(logged(folder, "train/loss")) == [0, 1]
    result = run(folder, data, resume=folder / "last.ckpt")
    assert list(logged(folder, "train/loss", version=1)) == [2]
    assert logged(folder, "train/loss", version=1)[2] == logged(finished[0], "train/loss")[2]
    assert same(finished[0] / "last.ckpt", folder / "last.ckpt")
    assert same(finished[0] / "best.ckpt", folder / "best.ckpt")
    whole, cut = trained(finished[0] / "last.ckpt"), trained(folder / "last.ckpt")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert not torch.equal(whole["model.head.weight"], weights(folder / "last.ckpt")["model.head.weight"])
    assert result.test_correct == finished[1].test_correct


def test_ctrl_c_is_left_to_the_caller(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    cut_at(1, monkeypatch, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", data)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "cut/last.ckpt").is_file()


def test_nothing_held_out_keeps_the_last_epoch(data: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "all", data, validation=0, epochs=1, warmup_epochs=0)
    assert Path(result.checkpoint).name == "final.ckpt"
    assert (result.train_samples, result.validation_samples, result.selected_by) == (72, 0, "last epoch")
    assert same(tmp_path / "all/final.ckpt", tmp_path / "all/last.ckpt")
    assert not (tmp_path / "all/best.ckpt").exists()


def test_event_frames_and_tet(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    x, y = rng.poisson(0.4, (30, 2, 2, 8, 8)).astype(np.float32), np.arange(30) % 3
    np.savez(tmp_path / "events.npz", x=x, y=y)
    model = {"input": "frames", "in_channels": 2, "dvs_mode": True, "tet": True}
    path = write_recipe(tmp_path / "r.yaml", model=model, train={"epochs": 1, "tet_lambda": 0.1, "random_shift": 1})
    result = train(read_recipe(path), tmp_path / "events.npz", tmp_path / "out", device="cpu")
    assert result.test_samples == 6


def test_resume_errors(finished: tuple[Path, TrainResult], data: Path, tmp_path: Path) -> None:
    folder = finished[0]
    with pytest.raises(CheckpointError, match=r"holds weights only; --resume takes the last\.ckpt"):
        run(folder, data, resume=folder / "best.ckpt", epochs=5)
    with pytest.raises(CheckpointError, match="no such file"):
        run(folder, data, resume=tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match=r"belongs to another recipe \(train\.lr: the recipe says 0\.5, the chec"):
        run(folder, data, resume=folder / "last.ckpt", lr=0.5, epochs=9)
    with pytest.raises(ConfigError, match="has finished 3 epochs, the recipe asks for 3; raise it with --epochs"):
        run(folder, data, resume=folder / "last.ckpt")
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        run(folder, data, resume=tmp_path / "junk.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not written by statten-train"):
        run(folder, data, resume=tmp_path / "other.ckpt")


def test_folder_errors(finished: tuple[Path, TrainResult], data: Path, tmp_path: Path) -> None:
    folder = finished[0]
    recipe = read_recipe(folder / "recipe.yaml")
    with pytest.raises(InputError, match="holds an earlier run; choose another --out, or continue it with --resume"):
        train(recipe, data, folder, device="cpu")
    longer = read_recipe(folder / "recipe.yaml", epochs=4)
    with pytest.raises(InputError, match="a resumed run continues in the folder of its checkpoint"):
        train(longer, data, tmp_path, device="cpu", resume=folder / "last.ckpt")


def test_default_folder_is_numbered(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path / "r.yaml", train={"epochs": 1})
    for expected in ("runs/tiny/best.ckpt", "runs/tiny-2/best.ckpt"):
        assert train(read_recipe(path), data, device="cpu").checkpoint == expected


def test_data_errors(data: Path, tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml"))
    with pytest.raises(InputError, match=r"names no data set .model\.dataset.; give one with --data"):
        train(recipe, None, tmp_path / "out")
    unlabelled = write_stripes(tmp_path / "u.npz", labels=False)
    with pytest.raises(InputError, match="no labels; training needs the class of every sample"):
        train(recipe, unlabelled, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_no_cuda_device(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--device cuda: torch finds no CUDA device"):
        train(read_recipe(write_recipe(tmp_path / "r.yaml")), data, tmp_path / "out", device="cuda")


def test_progress_bar_leaves_stdout_alone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml", train={"epochs": 1}))
    train(recipe, data, tmp_path / "out", device="cpu", progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Epoch 0/0" in captured.err


def test_without_progress_nothing_is_printed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml", train={"epochs": 1}))
    train(recipe, data, tmp_path / "out", device="cpu")
    assert capsys.readouterr() == ("", "")


def test_threads_are_put_back(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    during = []
    monkeypatch.setattr(StattenModule, "on_train_start", lambda self: during.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        run(tmp_path / "out", data, epochs=1, threads=1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert during == [1]


def test_a_damaged_image_in_a_worker_process_is_one_line(tmp_path: Path) -> None:
    from PIL import Image

    for c in range(3):
        (tmp_path / f"images/{c}").mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), c * 80).save(tmp_path / f"images/{c}/{i}.png")
    broken = tmp_path / "images/1/4.png"
    broken.write_bytes(broken.read_bytes()[:50])
    path = write_recipe(tmp_path / "r.yaml", train={"epochs": 1, "workers": 1, "validation": 0})
    with pytest.raises(InputError) as error:
        train(read_recipe(path), tmp_path / "images", tmp_path / "out", device="cpu")
    assert str(error.value).startswith(f"{broken}: cannot be decoded as an image")
    assert "\n" not in str(error.value)
