"""Quantisation-aware runs on a tiny data set: what is trained, written, evaluated, continued and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statten_deploy.errors import CheckpointError, ConfigError, InputError
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import load_checkpoint, load_model
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train import TrainResult, load_arrays, read_recipe, train
from statten_deploy.train.module import StattenModule
from tests.train.recipes import write_recipe, write_stripes
from tests.train.test_run import PowerCutError, cut_at, logged, same, trained, weights

BITS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("float")
    recipe = read_recipe(write_recipe(folder / "r.yaml", train={"validation": 0, "epochs": 8, "ema_decay": 0}))
    return Path(train(recipe, data, folder / "run", device="cpu").checkpoint)


def run(folder: Path, data: Path, resume: Path | None = None, **options: Any) -> TrainResult:
    changes = options.pop("changes", {})
    model = options.pop("model", {})
    recipe = read_recipe(write_recipe(folder.parent / f"{folder.name}.yaml", model, {"lr": 0.005, **changes}))
    return train(recipe, data, None if resume else folder, device="cpu", resume=resume, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, start: Path) -> tuple[Path, TrainResult]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(folder, data, init=start, qat_bits=BITS)


def test_training_lowers_the_loss_of_the_integer_network(finished: tuple[Path, TrainResult]) -> None:
    losses = logged(finished[0], "train/loss")
    assert losses[2] < 0.9 * losses[0]


def test_checkpoint_tells_its_quantisation(finished: tuple[Path, TrainResult], start: Path) -> None:
    folder, result = finished
    told = {"bits": BITS, "granularity": "channel"}
    assert result.quantisation == told
    assert result.to_dict()["quantisation"] == told
    for name in ("best.ckpt", "last.ckpt"):
        assert load_checkpoint(folder / name).quantisation == told
    assert load_checkpoint(start).quantisation is None
    assert load_model(folder / "best.ckpt").config == load_model(start).config


def test_reported_accuracy_is_that_of_the_integer_runner(finished: tuple[Path, TrainResult], data: Path) -> None:
    model = load_model(finished[1].checkpoint)
    x, y = load_arrays(data, "test", model.config)
    result = IntegerRunner(quantize(build_graph(model), QuantizeOptions(BITS))).run(x, spikes=True)
    assert finished[1].test_correct == int((result.outputs["logits"].argmax(1) == y).sum())
    assert finished[1].test_samples == 18
    assert finished[1].firing_rates == pytest.approx({name: s.mean() for name, s in result.spikes.items()})


def test_validation_sees_the_integer_network_of_the_average(
    finished: tuple[Path, TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(finished[0] / "recipe.yaml")
    average = load_model(finished[0] / "last.ckpt")
    made = StattenModule(recipe.model, recipe.train, {"bits": BITS, "granularity": "channel"}, average)
    torch.nn.init.zeros_(made.model.head.weight)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(made, "log", lambda key, value, **_: logged.__setitem__(key, value))
    x, target = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    made.eval().validation_step((x, target), 0)
    graph = quantize(build_graph(average), QuantizeOptions(BITS))
    logits = IntegerRunner(graph).run(x.numpy()).outputs["logits"] * graph.nodes["head_mean"].scale
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits.astype(np.float32)), target)
    assert logged["validation/loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(made(x).detach().numpy(), logits.astype(np.float32), rtol=1e-5, atol=1e-6)


def test_batch_norms_keep_their_statistics_and_weights_move(finished: tuple[Path, TrainResult], start: Path) -> None:
    before, after = weights(start), weights(finished[0] / "last.ckpt")
    still = {name for name, tensor in before.items() if torch.equal(after[name], tensor)}
    assert len(still) < 0.7 * len(before)
    for name in before:
        if "running" in name or "num_batches" in name or "talking_heads" in name:
            assert name in still
    assert "model.head.weight" not in still
    assert "model.patch_embed.proj_conv.weight" not in still


def test_average_and_trained_weights_are_both_kept(finished: tuple[Path, TrainResult]) -> None:
    last = finished[0] / "last.ckpt"
    assert not torch.equal(trained(last)["model.head.weight"], weights(last)["model.head.weight"])


def test_resumed_run_ends_where_an_uninterrupted_one_does(
    finished: tuple[Path, TrainResult], data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        cut_at(2, patch)
        with pytest.raises(PowerCutError):
            run(folder, data, init=start, qat_bits=BITS)
    result = run(folder, data, resume=folder / "last.ckpt", qat_bits=BITS)
    assert same(finished[0] / "last.ckpt", folder / "last.ckpt")
    assert same(finished[0] / "best.ckpt", folder / "best.ckpt")
    assert result.quantisation == finished[1].quantisation
    assert result.test_correct == finished[1].test_correct


def test_start_without_quantisation_tunes_the_float_network(data: Path, start: Path, tmp_path: Path) -> None:
    still = {"epochs": 1, "warmup_epochs": 0, "ema_decay": 0, "lr": 1e-12, "min_lr": 0, "validation": 0}
    result = run(tmp_path / "tuned", data, init=start, changes=still)
    assert result.quantisation is None
    before, after = weights(start), weights(tmp_path / "tuned/final.ckpt")
    for name, tensor in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], tensor)
    moved = "model.patch_embed.proj_bn.running_mean"
    assert not torch.equal(before[moved], after[moved])
    assert "statten_quantisation" not in torch.load(tmp_path / "tuned/final.ckpt", weights_only=True)


def test_plif_decays_are_trained_too(data: Path, tmp_path: Path) -> None:
    plif = {"neuron": "plif"}
    recipe = read_recipe(write_recipe(tmp_path / "f.yaml", plif, {"epochs": 1, "validation": 0}))
    first = Path(train(recipe, data, tmp_path / "float", device="cpu").checkpoint)
    run(tmp_path / "qat", data, init=first, qat_bits=4, model=plif, changes={"epochs": 1, "validation": 0})
    for layer in ("block.0.mlp.fc1_lif.w", "block.0.mlp.fc2_lif.w", "head_lif.w"):
        assert not torch.equal(weights(first)[f"model.{layer}"], weights(tmp_path / "qat/final.ckpt")[f"model.{layer}"])


def test_refusals(finished: tuple[Path, TrainResult], data: Path, start: Path, tmp_path: Path) -> None:
    last = finished[0] / "last.ckpt"
    with pytest.raises(InputError, match="--qat-bits 4: starts from a trained network; train the recipe without it"):
        run(tmp_path / "a", data, qat_bits=4)
    with pytest.raises(InputError, match="--qat-bits 9: expected 2 to 8"):
        run(tmp_path / "a", data, qat_bits=9, init=start)
    with pytest.raises(InputError, match=r"a resumed run has its weights from .*; drop --init or --resume"):
        run(tmp_path / "a", data, resume=last, init=start, qat_bits=BITS)
    with pytest.raises(ConfigError, match="was trained with --qat-bits 2, this run asks for --qat-bits 4; continue it"):
        run(tmp_path / "a", data, resume=last, qat_bits=4, changes={"epochs": 9})
    with pytest.raises(ConfigError, match="was trained with --qat-bits 2, this run asks for real weights"):
        run(tmp_path / "a", data, resume=last, changes={"epochs": 9})
    with pytest.raises(ConfigError, match="embed_dim: --config says 24, the weights say 16"):
        run(tmp_path / "a", data, init=start, model={"embed_dim": 24})
    with pytest.raises(ConfigError, match="chunk_size: --config says 2, the checkpoint was trained with 1"):
        run(tmp_path / "a", data, init=start, model={"chunk_size": 2})
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such file"):
        run(tmp_path / "a", data, init=tmp_path / "none.ckpt", qat_bits=4)
    assert not (tmp_path / "a").exists()
