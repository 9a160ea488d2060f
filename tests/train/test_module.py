"""The module under training: batches that change from epoch to epoch, losses, and firing rates."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from statten_deploy.models.neurons import LIF
from statten_deploy.models.statten import STAtten
from statten_deploy.train import evaluate, read_recipe
from statten_deploy.train.datamodule import EpochShuffle, StattenData
from statten_deploy.train.module import StattenModule, update_average
from statten_deploy.train.scoring import count_spikes
from tests.train.recipes import write_recipe, write_stripes


def module(tmp_path: Path, epoch: int = 0, **changes: Any) -> StattenModule:
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml", **changes))
    made = StattenModule(recipe.model, recipe.train)
    made._trainer = SimpleNamespace(current_epoch=epoch, world_size=1, global_rank=0)
    return made


def test_order_changes_with_the_epoch_and_repeats() -> None:
    sampler = EpochShuffle(50, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(EpochShuffle(50, seed=4)) != first


def test_augmentation_is_a_function_of_seed_epoch_and_batch(tmp_path: Path) -> None:
    x = torch.rand(16, 1, 8, 8)
    kinds = {(0, 0): {}, (1, 0): {}, (0, 1): {}, (0, 2): {"train": {"seed": 8}}}
    moved = [module(tmp_path, epoch, **changes)._augment(x, batch) for (epoch, batch), changes in kinds.items()]
    assert all(not torch.equal(a, b) for i, a in enumerate(moved) for b in moved[:i])
    assert torch.equal(moved[1], module(tmp_path, 1)._augment(x, 0))
    still = module(tmp_path, train={"random_shift": 0, "random_rotation": 0})
    assert torch.equal(still._augment(x, 0), x)


def test_validation_is_not_augmented_and_test_is_never_offered(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path / "r.yaml"))
    data = StattenData(write_stripes(tmp_path / "d.npz"), recipe.model, recipe.train)
    held = torch.cat([x for x, _ in data.val_dataloader()])
    seen = torch.cat([x for x, _ in data.train_dataloader()])
    test = torch.cat([x for x, _ in data.test_loader()])
    everything = {x.numpy().tobytes() for part in (held, seen, test) for x in part}
    assert len(everything) == len(held) + len(seen) + len(test) == 90


@pytest.mark.parametrize("tet", [False, True])
def test_loss_is_the_one_of_the_configuration(tmp_path: Path, tet: bool) -> None:
    train = {"tet_lambda": 0.2, "tet_means": 0.5} if tet else {}
    made = module(tmp_path, model={"tet": tet}, train=train)
    logits, target = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 1])
    per_step = torch.stack([torch.nn.functional.cross_entropy(z, target) for z in logits]).mean()
    expected = torch.nn.functional.cross_entropy(logits.mean(0), target)
    if tet:
        expected = 0.8 * per_step + 0.2 * ((logits - 0.5) ** 2).mean()
    assert torch.allclose(made.loss(logits, target), expected)


def test_biases_and_batch_norms_are_not_decayed(tmp_path: Path) -> None:
    made = module(tmp_path, model={"neuron": "plif"})
    made._trainer = SimpleNamespace(estimated_stepping_batches=30)
    groups = made.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert {p.dim() for p in groups[1]["params"]} == {0, 1}
    assert {p.dim() for p in groups[0]["params"]} == {2, 4}
    trained = sum(p.requires_grad for p in made.model.parameters())
    assert sum(len(group["params"]) for group in groups) == trained


def test_average_by_hand() -> None:
    average, model = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    values = [2.0, -1.0, 0.5]
    expected = [1.0, 0.0]  # weight, running mean
    for step, value in enumerate(values, start=1):
        torch.nn.init.constant_(model.weight, value)
        model.running_mean, model.num_batches_tracked = torch.tensor([10 * value]), torch.tensor(step)
        update_average(average, model, 0.25, step)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * v for e, v in zip(expected, (value, 10 * value), strict=True)]
    assert (1 + 1) / (10 + 1) < 0.25 < (1 + 3) / (10 + 3)
    assert [average.weight.item(), average.running_mean.item()] == pytest.approx(expected)
    assert average.num_batches_tracked == 3


def test_every_checkpoint_holds_the_average_as_its_network(tmp_path: Path) -> None:
    made = module(tmp_path)
    with torch.no_grad():
        made.average.head.bias.fill_(2.0)
        made.model.head.bias.fill_(1.0)
    for full in (False, True):
        checkpoint: dict[str, Any] = {"state_dict": dict(made.state_dict())} | (
            {"optimizer_states": []} if full else {}
        )
        made.on_save_checkpoint(checkpoint)
        assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"model"}
        assert checkpoint["state_dict"]["model.head.bias"].tolist() == [2.0] * 3
        assert ("statten_trained" in checkpoint) is full
    other = module(tmp_path)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    assert other.model.head.bias.tolist() == [1.0] * 3
    assert other.average.head.bias.tolist() == [2.0] * 3
    assert made.kept is made.average


def test_the_average_is_what_is_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(tmp_path).eval()
    with torch.no_grad():
        made.average.head.bias.copy_(torch.tensor([0.0, 3.0, 0.0]))
    logged: dict[str, Any] = {}
    monkeypatch.setattr(made, "log", lambda key, value, **_: logged.__setitem__(key, value))
    x, target = torch.rand(4, 1, 8, 8), torch.tensor([1, 0, 1, 1])
    made.validation_step((x, target), 0)
    assert torch.equal(logged["validation/loss"], made.loss(made.average.forward_steps(x), target))
    assert not torch.equal(logged["validation/loss"], made.loss(made.model.forward_steps(x), target))


def test_without_average_the_model_itself_is_kept(tmp_path: Path) -> None:
    made = module(tmp_path, train={"ema_decay": 0})
    assert made.kept is made.model
    checkpoint: dict[str, Any] = {"state_dict": dict(made.state_dict()), "optimizer_states": []}
    made.on_save_checkpoint(checkpoint)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"model"}
    assert "statten_trained" not in checkpoint


def test_firing_rates_count_spikes() -> None:
    neurons = torch.nn.Sequential(LIF())
    with count_spikes(neurons) as totals:
        neurons(torch.tensor([[4.0, 0.0, 0.0, 4.0], [4.0, 0.0, 0.0, 0.0]]))  # [T = 2, 4 neurons]: 3 spikes of 8
        neurons(torch.zeros(2, 4))
    assert totals["0"].tolist() == [3, 16]
    neurons(torch.ones(2, 4) * 9)
    assert totals["0"].tolist() == [3, 16]


def test_accuracy_is_correct_over_samples(tmp_path: Path) -> None:
    model = STAtten(read_recipe(write_recipe(tmp_path / "r.yaml")).model)
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([0.0, 1.0, 0.0])
    batches = [(torch.rand(4, 1, 8, 8), torch.tensor([1, 1, 0, 2])), (torch.rand(1, 1, 8, 8), torch.tensor([1]))]
    score = evaluate(model, batches)
    assert (score.correct, score.samples, score.accuracy) == (3, 5, 0.6)
