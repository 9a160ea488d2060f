"""Loss, learning rate and augmentation against hand computation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statten_deploy.train.augment import random_shift, random_turn
from statten_deploy.train.config import TrainConfig
from statten_deploy.train.losses import mean_loss, tet_loss
from statten_deploy.train.schedule import learning_rate

# [T = 2, B = 2, classes = 3]
LOGITS = torch.tensor([[[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], [[0.0, 3.0, 1.0], [-1.0, 0.0, 1.0]]])
TARGET = torch.tensor([0, 2])


def cross_entropy(logits: list[float], target: int, smoothing: float = 0.0) -> float:
    log_sum = math.log(sum(math.exp(z) for z in logits))
    losses = [log_sum - z for z in logits]
    return (1 - smoothing) * losses[target] + smoothing * sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_tet_loss_by_hand(lam: float, smoothing: float) -> None:
    means = 1.0
    per_step = [
        sum(cross_entropy(z, y, smoothing) for z, y in zip(step, TARGET.tolist(), strict=True)) / 2
        for step in LOGITS.tolist()
    ]
    squares = [(z - means) ** 2 for z in LOGITS.flatten().tolist()]
    expected = (1 - lam) * sum(per_step) / 2 + lam * sum(squares) / len(squares)
    assert tet_loss(LOGITS, TARGET, means, lam, smoothing).item() == pytest.approx(expected, rel=1e-6)


def test_mean_loss_by_hand() -> None:
    mean = LOGITS.mean(0).tolist()
    expected = sum(cross_entropy(z, y, 0.1) for z, y in zip(mean, TARGET.tolist(), strict=True)) / 2
    assert mean_loss(LOGITS, TARGET, 0.1).item() == pytest.approx(expected, rel=1e-6)


RECIPE = TrainConfig(lr=0.01, min_lr=0.001, warmup_lr=0.002, epochs=10, warmup_epochs=2)


def test_schedule_by_hand() -> None:
    rates = [learning_rate(step, 5, RECIPE) for step in range(50)]
    assert rates[0] == pytest.approx(0.002)
    assert rates[5] == pytest.approx(0.006)  # halfway through the warm-up
    assert rates[10] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.001)
    assert rates[20] == pytest.approx(0.001 + 0.009 * (1 + math.cos(math.pi * 10 / 39)) / 2)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@given(epochs=st.integers(1, 20), warmup=st.integers(0, 25), steps=st.integers(1, 7), step=st.integers(0, 200))
def test_schedule_stays_in_its_range(epochs: int, warmup: int, steps: int, step: int) -> None:
    recipe = RECIPE.model_copy(update={"epochs": epochs, "warmup_epochs": warmup})
    assert 0.001 - 1e-9 <= learning_rate(step, steps, recipe) <= 0.01 + 1e-9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(64, 2, 6, 8), (64, 3, 2, 6, 8)])
def test_shift_moves_whole_samples(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=generator(1)) + 1
    y = random_shift(x, 1, generator())
    offsets = set()
    for before, after in zip(x, y, strict=True):
        padded = torch.nn.functional.pad(before, (1,) * 4)
        found = [
            (dy, dx) for dy in range(3) for dx in range(3) if torch.equal(padded[..., dy : dy + 6, dx : dx + 8], after)
        ]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) == 9
    assert torch.equal(y, random_shift(x, 1, generator()))
    assert torch.equal(x, random_shift(x, 0, generator()))


def test_turn_by_nothing_changes_nothing() -> None:
    x = torch.rand(4, 2, 6, 8)
    assert random_turn(x, 0, 0, generator()) is x
    assert torch.allclose(random_turn(x, 1e-6, 0, generator()), x, atol=1e-5)


class Angle:
    """Stands in for torch.rand: the same draw for every sample."""

    def __init__(self, angle: float, zoom: float) -> None:
        self.draws = (angle, zoom)

    def __call__(self, two: int, batch: int, generator: torch.Generator) -> torch.Tensor:
        return torch.tensor(self.draws)[:, None].expand(two, batch) / 2 + 0.5


@pytest.mark.parametrize("size", [(6, 6), (6, 10)])
def test_turn_of_a_half_circle(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    x = torch.rand(3, 2, 1, *size, generator=generator())
    monkeypatch.setattr(torch, "rand", Angle(1.0, 0.0))
    assert torch.allclose(random_turn(x, 180, 0, generator()), x.flip(-1, -2), atol=1e-5)


def test_turn_of_a_quarter_circle_keeps_pixels_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point 2 right of the centre of an oblong image ends 2 above or below it."""
    x = torch.zeros(1, 1, 9, 15)
    x[..., 4, 9] = 1
    monkeypatch.setattr(torch, "rand", Angle(1.0, 0.0))
    y = random_turn(x, 90, 0, generator())
    assert y.sum().item() == pytest.approx(1, abs=1e-4)
    assert max(y[0, 0, 2, 7].item(), y[0, 0, 6, 7].item()) == pytest.approx(1, abs=1e-4)


def test_zoom_enlarges(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 6] = 1
    monkeypatch.setattr(torch, "rand", Angle(0.0, 1.0))
    y = random_turn(x, 0, 0.5, generator())  # 2 right of the centre -> 3 right
    assert y[0, 0, 4].argmax().item() == 7
