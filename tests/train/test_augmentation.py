"""What recipes do to samples and batches: reproducible, the same with any number of processes, and as timm does it."""

# ruff: noqa: NPY002 - timm draws from numpy's global generator

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from statten_deploy.errors import ConfigError, InputError
from statten_deploy.models.config import ModelConfig
from statten_deploy.train import losses
from statten_deploy.train.config import TrainConfig
from statten_deploy.train.data import ArraySamples
from statten_deploy.train.data.images import ImageSamples, pixels
from statten_deploy.train.datamodule import Draw, EpochShuffle, StattenData
from statten_deploy.train.mixing import Mixer
from statten_deploy.train.optimizers import build_optimizer
from statten_deploy.train.sample_augment import SampleAugmentation, cut_out, roll_turn_or_shear, seeded
from tests.train import disk_sets

COLOUR = ModelConfig(image_size=16, embed_dim=16, depth=1, num_heads=2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
FRAMES = COLOUR.model_copy(
    update={"in_channels": 2, "input": "frames", "dvs_mode": True, "mean": None, "std": None, "name": "frames"}
)


class Pictures(ImageSamples):
    """One picture of 16x16."""

    labels = np.zeros(1, np.int64)

    def __init__(self) -> None:
        self.bytes = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return 1

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.bytes)

    def sample(self, index: int) -> Any:
        return pixels(self.bytes, 3)

    def subset(self, indices: Any) -> "Pictures":
        return self


def frames(seed: int = 0) -> ArraySamples:
    """One recording of four equal frames: what moves them alike keeps them equal."""
    frame = np.random.default_rng(seed).poisson(1.0, (2, 16, 16)).astype(np.float32)
    return ArraySamples(np.stack([np.stack([frame] * 4)]), np.zeros(1, np.int64))


def draws(train: TrainConfig, model: ModelConfig, samples: Any, count: int = 40) -> list[Tensor]:
    augment = SampleAugmentation(train, model, samples)
    return [augment(samples, 0, seed) for seed in range(count)]


def recipe(**changes: Any) -> TrainConfig:
    return TrainConfig(**changes)


# random numbers


def test_a_draw_leaves_the_global_generators_alone() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    with seeded(3):
        told = (random.random(), np.random.rand(), float(torch.rand(())))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    with seeded(3):
        assert (random.random(), np.random.rand(), float(torch.rand(()))) == told


def test_draws_travel_with_their_seeds() -> None:
    draw = pickle.loads(pickle.dumps(Draw(5, 77)))
    assert (draw, draw.seed, [10, 20, 30, 40, 50, 60][draw]) == (5, 77, 60)


@pytest.mark.parametrize(("count", "repeats"), [(512, 3), (256, 1), (768, 2)])
def test_repeats_are_timms(count: int, repeats: int) -> None:
    from timm.data.distributed_sampler import RepeatAugSampler

    ours = EpochShuffle(count, seed=2, repeats=repeats)
    ours.set_epoch(4)
    drawn = list(ours)
    assert len({draw.seed for draw in drawn}) == len(ours) == count
    for rank in range(2):
        theirs = RepeatAugSampler(range(count), num_replicas=2, rank=rank, num_repeats=repeats)
        theirs.set_epoch(2 * 1_000_003 + 4)  # what seeds its permutation
        assert drawn[rank::2] == list(theirs)


def test_batches_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_sets.write_cifar10(tmp_path, monkeypatch, count=4)
    policy = recipe(batch_size=8, validation=0, auto_augment="rand-m9-n1-mstd0.4-inc1", hflip=0.5, erase_prob=0.5)
    runs = []
    for workers in (0, 2):
        torch.manual_seed(workers)  # whatever else has drawn random numbers
        np.random.seed(workers)
        random.seed(workers)
        data = StattenData(f"cifar10:{tmp_path}", COLOUR, policy.model_copy(update={"workers": workers}))
        loader = data.train_dataloader()
        seen = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            seen += [torch.cat([x.flatten(1), y[:, None]], 1) for x, y in loader]
        runs.append(torch.cat(seen))
    assert runs[0].shape == (40, 3 * 16 * 16 + 1)
    assert torch.equal(*runs)
    first, second = ({row.numpy().tobytes() for row in part} for part in runs[0].split(20))
    assert len(first & second) < 10  # the second epoch draws anew


# images


def test_without_chance_images_are_what_is_evaluated() -> None:
    whole = recipe(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    (x,) = draws(whole, COLOUR, Pictures(), 1)
    assert np.array_equal(x.numpy(), Pictures().sample(0))
    (x,) = draws(recipe(), COLOUR, Pictures(), 1)
    assert np.array_equal(x.numpy(), Pictures().sample(0))


def test_policy_and_jitter_change_images_within_their_range() -> None:
    for train in (
        recipe(auto_augment="rand-m9-n1-mstd0.4-inc1"),
        recipe(color_jitter=0.5),
        recipe(crop_scale=(0.1, 0.5)),
    ):
        seen = draws(train, COLOUR, Pictures())
        assert all(x.shape == (3, 16, 16) and x.dtype == torch.float32 for x in seen)
        assert min(float(x.min()) for x in seen) >= 0
        assert max(float(x.max()) for x in seen) <= 1
        assert len({x.numpy().tobytes() for x in seen}) > 15


def test_colour_jitter_is_off_beside_a_policy_as_in_timm() -> None:
    alone = draws(recipe(auto_augment="rand-m9-n1-mstd0.4-inc1"), COLOUR, Pictures(), 10)
    both = draws(recipe(auto_augment="rand-m9-n1-mstd0.4-inc1", color_jitter=0.5), COLOUR, Pictures(), 10)
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


@pytest.mark.parametrize("pictures", [False, True])
def test_flips_mirror_about_half_of_the_samples(pictures: bool) -> None:
    samples: Any = Pictures() if pictures else ArraySamples(Pictures().sample(0)[None], np.zeros(1, np.int64))
    x = torch.from_numpy(Pictures().sample(0))
    more = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)} if pictures else {}
    for axis, train in ((-1, recipe(hflip=0.5, **more)), (-2, recipe(vflip=0.5, **more))):
        augmented = draws(train, COLOUR, samples, 60)
        assert all(torch.equal(y, x.flip(axis)) or torch.equal(y, x) for y in augmented)
        seen = [torch.equal(y, x.flip(axis)) for y in augmented]
        assert 15 < seen.count(True) < 45


def test_erasing_fills_with_the_mean() -> None:
    x = torch.from_numpy(Pictures().sample(0))
    seen = draws(recipe(erase_prob=1.0), COLOUR, Pictures(), 8)
    for y in seen:
        erased = (x != y).any(0)
        assert 1 < int(erased.sum()) < 16 * 16 / 2
        assert torch.allclose(y[:, erased], torch.tensor(COLOUR.mean)[:, None].expand(3, int(erased.sum())))
    noisy = draws(recipe(erase_prob=1.0, erase_mode="pixel", erase_count=2), COLOUR, Pictures(), 4)
    assert all(len(y[(x != y)].unique()) > 4 for y in noisy)


# events


def test_frames_of_a_sample_move_alike() -> None:
    samples = frames()
    for train in (recipe(event_augment="nda"), recipe(event_augment="wide"), recipe(cutout=6, hflip=0.5)):
        seen = draws(train, FRAMES, samples)
        assert all(torch.equal(x[0], x[t]) for x in seen for t in range(1, 4))
        assert len({x.numpy().tobytes() for x in seen}) > 12


def test_nda_is_a_roll_a_turn_or_a_shear() -> None:
    from torchvision.transforms import functional as F

    x = torch.from_numpy(frames().sample(0))
    rolls = {x.roll((a, b), (-2, -1)).numpy().tobytes() for a in range(-3, 4) for b in range(-3, 4)}
    kinds = {"roll": 0, "turn": 0, "shear": 0}
    for seed in range(40):
        with seeded(seed):
            y = roll_turn_or_shear(x)
        with seeded(seed):  # the same numbers, by hand
            kind = int(torch.randint(3, ()))
            amount = float(torch.rand(())) * 2 - 1
        turned, sheared = F.rotate(x, amount * 15), F.affine(x, 0.0, [0, 0], 1.0, [amount * 15, 0.0])
        assert (y.numpy().tobytes() in rolls, torch.equal(y, turned), torch.equal(y, sheared))[kind]
        kinds[list(kinds)[kind]] += 1
    assert min(kinds.values()) > 5


def test_wide_augmentation_leaves_some_alone_and_moves_by_whole_pixels() -> None:
    x = torch.from_numpy(frames().sample(0))
    seen = draws(recipe(event_augment="wide"), FRAMES, frames(), 80)
    assert sum(torch.equal(y, x) for y in seen) >= 8
    assert all(set(y.unique().tolist()) <= set(x.unique().tolist()) | {0.0} for y in seen)  # nearest neighbours only


def test_cut_out_is_a_square() -> None:
    x = torch.ones(4, 2, 16, 16)
    for seed in range(20):
        with seeded(seed):
            y = cut_out(x, 6)
        rows, columns = ((y[0, 0] == 0).any(axis).nonzero().flatten() for axis in (1, 0))
        assert int((y == 0).sum()) == 4 * 2 * len(rows) * len(columns)
        assert 3 <= len(rows) <= 6
        assert 3 <= len(columns) <= 6
    assert x.min() == 1


@pytest.mark.parametrize(
    "train",
    [{"hflip": 0.5}, {"vflip": 0.5}, {"erase_prob": 0.1}, {"color_jitter": 0.1}, {"auto_augment": "rand-m9"},
     {"crop_scale": (0.5, 1)}, {"cutout": 2}, {"event_augment": "nda"}, {"event_augment": "wide"}],
)  # fmt: skip
def test_only_a_recipe_without_augmentation_is_idle(train: dict[str, Any]) -> None:
    events = "cutout" in train or "event_augment" in train
    samples, model = (frames(), FRAMES) if events else (Pictures(), COLOUR)
    assert not SampleAugmentation(recipe(**train), model, samples).idle
    assert SampleAugmentation(recipe(mixup=0.5, random_shift=1), model, samples).idle


# what does not go together


@pytest.mark.parametrize(
    ("train", "model", "samples", "said"),
    [
        ({"auto_augment": "rand-m9"}, COLOUR, "arrays", "train.auto_augment is for image files"),
        ({"color_jitter": 0.4}, FRAMES, "arrays", "train.color_jitter is for image files"),
        ({"crop_scale": (0.5, 1)}, COLOUR.model_copy(update={"in_channels": 1, "mean": None, "std": None}), "pictures",
         "colour images, the network takes 1 channel"),
        ({"event_augment": "nda"}, COLOUR, "pictures", "train.event_augment is for event frames"),
        ({"cutout": 4}, COLOUR, "pictures", "train.cutout is for event frames"),
        ({"erase_prob": 0.5}, FRAMES, "arrays", "use train.cutout"),
        ({"auto_augment": "banana"}, COLOUR, "pictures", "'banana' is no policy that timm knows"),
        ({"auto_augment": "rand-x9"}, COLOUR, "pictures", "'rand-x9' is no policy that timm knows"),
    ],
)  # fmt: skip
def test_augmentation_that_does_not_fit(train: dict[str, Any], model: ModelConfig, samples: str, said: str) -> None:
    kinds = {"arrays": frames(), "pictures": Pictures()}
    with pytest.raises(InputError) as error:
        SampleAugmentation(recipe(**train), model, kinds[samples])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# mixing


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0, "mix_prob": 0.6}])
def test_mixing_is_timms(mode: str, kind: dict[str, float]) -> None:
    from timm.data.mixup import Mixup

    train = recipe(mix_mode=mode, label_smoothing=0.1, **kind)
    x, target = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 1, 0])
    theirs = Mixup(
        kind.get("mixup", 0.0), kind.get("cutmix", 0.0), None, kind.get("mix_prob", 1.0), 0.5, mode,
        label_smoothing=0.1, num_classes=4,
    )  # fmt: skip
    for seed in range(4):
        mixed, shares = Mixer(train, 4)(x, target, seed)
        np.random.seed(seed)
        told, their_shares = theirs(x.clone(), target)
        assert torch.equal(mixed, told)
        assert torch.allclose(shares, their_shares)
        assert torch.allclose(shares.sum(1), torch.ones(6))


def test_all_frames_are_mixed_alike_and_the_last_of_an_odd_batch_stays() -> None:
    mixer = Mixer(recipe(cutmix=1.0, label_smoothing=0.0), 3)
    x = torch.arange(5.0).view(5, 1, 1, 1, 1).expand(5, 4, 2, 8, 8).clone()
    mixed, shares = mixer(x, torch.tensor([0, 1, 2, 0, 1]), 3)
    assert torch.equal(mixed[4], x[4])
    assert shares[4].tolist() == [0, 1, 0]
    assert torch.equal(mixed[0], mixed[0, :1, :1].expand(4, 2, 8, 8))
    cut = float((mixed[0] == 3).float().mean())
    assert 0 < cut < 1
    assert shares[0].tolist() == pytest.approx([1, 0, 0])  # classes 0 and 0
    assert shares[1].tolist() == pytest.approx([0, 1 - cut, cut])
    alone, share = mixer(x[:1], torch.tensor([2]), 0)
    assert torch.equal(alone, x[:1])
    assert share.tolist() == [[0, 0, 1]]


def test_losses_of_shares() -> None:
    from timm.loss import SoftTargetCrossEntropy

    logits, shares = torch.randn(3, 4, 5), torch.rand(4, 5).softmax(1)
    soft = SoftTargetCrossEntropy()
    assert torch.allclose(losses.mean_loss(logits, shares), soft(logits.mean(0), shares))
    per_step = torch.stack([soft(z, shares) for z in logits]).mean()
    expected = 0.9 * per_step + 0.1 * ((logits - 0.5) ** 2).mean()
    assert torch.allclose(losses.tet_loss(logits, shares, 0.5, 0.1), expected)
    hard = torch.tensor([0, 1, 2, 3])
    one_hot = torch.nn.functional.one_hot(hard, 5).float()
    smooth = one_hot * 0.9 + 0.1 / 5
    assert torch.allclose(losses.mean_loss(logits, hard, 0.1), losses.mean_loss(logits, smooth))


# optimizers


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_optimizers_step_as_timms(name: str) -> None:
    """timm's factory on the same network: the same weights after three steps."""
    from timm.optim import create_optimizer_v2

    def trained(make: Any) -> list[Tensor]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
        )
        optimizer = make(net)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.rand(5, 3, 4, 4)).square().sum().backward()
            optimizer.step()
        return [parameter.detach() for parameter in net.parameters()]

    train = recipe(optimizer=name, lr=0.02, weight_decay=0.1)
    ours = trained(lambda net: build_optimizer(net, train))
    theirs = trained(lambda net: create_optimizer_v2(net, opt=name, lr=0.02, weight_decay=0.1, momentum=0.9))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(ours, theirs, strict=True))


def test_values_out_of_range() -> None:
    from statten_deploy.train.config import read_recipe

    config = Path(__file__).resolve().parents[2] / "models/configs/digits.yaml"
    for override in ("hflip=1.5", "mix_mode=all", "repeats=0", "crop_scale=[0.1]", "betas=[0.9, 2]", "optimizer=adam"):
        with pytest.raises(ConfigError, match=override.split("=")[0]):
            read_recipe(config, [override])
