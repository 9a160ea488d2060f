"""Augmentation of single samples, where they are read: in the data-loading processes.

Every draw of a sample has a seed of its own, so that a run does not depend on how many processes read for it.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as F

from statten_deploy.errors import InputError
from statten_deploy.models.config import ModelConfig
from statten_deploy.train.config import TrainConfig
from statten_deploy.train.data.images import ImageSamples
from statten_deploy.train.data.sequential import Columns
from statten_deploy.train.data.spec import Samples

ROLL_PIXELS = 3
TURN_DEGREES = 15.0
SHEAR_DEGREES = 15.0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global random numbers from `seed`, and as they were before afterwards.

    timm and torchvision draw from these.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class SampleAugmentation:
    """What a recipe does to every training sample. Images pass timm's transforms before they are fitted to the network.

    Raises:
        InputError: the recipe asks for transforms of images, and the samples are none.
    """

    def __init__(self, train: TrainConfig, model: ModelConfig, samples: Samples) -> None:
        self.config = train
        self.mean = torch.tensor(model.mean or (0.0,) * model.in_channels).view(-1, 1, 1)
        self.std = torch.tensor(model.std or (1.0,) * model.in_channels).view(-1, 1, 1)
        self.events = model.input == "frames"
        if isinstance(samples, Columns):
            _check_columns(train)
        self.picture: Any = None
        asked = [
            name
            for name, used in (
                ("auto_augment", train.auto_augment),
                ("color_jitter", train.color_jitter),
                ("crop_scale", train.crop_scale),
            )
            if used
        ]
        if asked and not isinstance(samples, ImageSamples):
            raise InputError(f"train.{asked[0]} is for image files; these samples are arrays: remove it")
        if asked and model.in_channels != 3:
            raise InputError(f"train.{asked[0]} is for colour images, the network takes {model.in_channels} channel(s)")
        for name, used in (("event_augment", train.event_augment != "none"), ("cutout", train.cutout)):
            if used and not self.events:
                raise InputError(f"train.{name} is for event frames, the network takes still images: remove it")
        if train.erase_prob and self.events:
            raise InputError("train.erase_prob is for still images; use train.cutout for event frames")
        if asked:
            self.picture = _timm_transform(train, model)
        self.erase: Any = _timm_erasing(train) if train.erase_prob else None
        self.wide = WideEventAugment() if train.event_augment == "wide" else None

    @property
    def idle(self) -> bool:
        """Whether samples stay as they are."""
        config = self.config
        used = (self.picture, self.erase, self.wide, config.hflip, config.vflip, config.cutout)
        return not any(used) and config.event_augment == "none"

    def __call__(self, samples: Samples, index: int, seed: int) -> Tensor:
        """One augmented sample, [C, H, W] or [T, C, H, W]; a function of `seed`."""
        with seeded(seed):
            if self.picture is not None and isinstance(samples, ImageSamples):
                x: Tensor = self.picture(samples.picture(index)) / 255
            else:
                x = self._flip(torch.from_numpy(samples.sample(index)))
            if self.events:
                x = self._events(x)
            return x if self.erase is None else self._erase(x)

    def _flip(self, x: Tensor) -> Tensor:
        for probability, axis in ((self.config.hflip, -1), (self.config.vflip, -2)):
            if probability and torch.rand(()) < probability:
                x = x.flip(axis)
        return x

    def _events(self, x: Tensor) -> Tensor:
        if self.wide is not None:
            x = self.wide(x)
        elif self.config.event_augment == "nda":
            x = roll_turn_or_shear(x)
        return cut_out(x, self.config.cutout) if self.config.cutout else x

    def _erase(self, x: Tensor) -> Tensor:
        """timm erases what the network has normalised: with zero, which is the mean, or with normal noise."""
        normal = (x - self.mean) / self.std
        erased = self.erase(normal.clone())
        return torch.where(erased == normal, x, erased * self.std + self.mean)


class WideEventAugment(transforms.TrivialAugmentWide):
    """One of nothing, shear, shift and turn, with a random strength, as the released ``dvs_trival_aug``."""

    def _augmentation_space(self, num_bins: int) -> dict[str, tuple[Tensor, bool]]:
        return {
            "Identity": (torch.tensor(0.0), False),
            "ShearX": (torch.linspace(-0.3, 0.3, num_bins), True),
            "TranslateX": (torch.linspace(-5.0, 5.0, num_bins), True),
            "TranslateY": (torch.linspace(-5.0, 5.0, num_bins), True),
            "Rotate": (torch.linspace(-30.0, 30.0, num_bins), True),
        }


def _check_columns(train: TrainConfig) -> None:
    used = {
        "random_shift": train.random_shift,
        "random_rotation": train.random_rotation,
        "random_scale": train.random_scale,
        "hflip": train.hflip,
        "event_augment": train.event_augment != "none",
        "cutout": train.cutout,
    }
    for name in (name for name, value in used.items() if value):
        raise InputError(f"train.{name} would move the pixels of every column by itself, not of the image: remove it")


def roll_turn_or_shear(x: Tensor) -> Tensor:
    """Frames [T, C, H, W] rolled, turned or sheared, as the released code does with N-Caltech101.

    Source: Li et al., "Neuromorphic Data Augmentation for Training Spiking Neural Networks", ECCV 2022.
    """
    kind = int(torch.randint(3, ()))
    if kind == 0:
        offsets = torch.randint(-ROLL_PIXELS, ROLL_PIXELS + 1, (2,)).tolist()
        return x.roll(offsets, (-2, -1))
    amount = float(torch.rand(())) * 2 - 1
    moved: Tensor = (
        F.rotate(x, amount * TURN_DEGREES)
        if kind == 1
        else F.affine(x, angle=0.0, translate=[0, 0], scale=1.0, shear=[amount * SHEAR_DEGREES, 0.0])
    )
    return moved


def cut_out(x: Tensor, side: int) -> Tensor:
    """Frames without the events of a square of `side` pixels around a random pixel; it may reach over the edge."""
    height, width = x.shape[-2:]
    row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
    half = side // 2
    x = x.clone()
    x[..., max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 0
    return x


def _timm_transform(train: TrainConfig, model: ModelConfig) -> Any:
    """Picture -> bytes [C, H, W]: crop, flips, policy or colour jitter."""
    from timm.data.transforms_factory import transforms_imagenet_train

    whole = train.crop_scale is None
    jitter: Any = train.color_jitter or None
    try:
        return transforms_imagenet_train(
            model.image_size,
            scale=(1.0, 1.0) if whole else train.crop_scale,
            ratio=(1.0, 1.0) if whole else train.crop_ratio,
            hflip=train.hflip,
            vflip=train.vflip,
            color_jitter=jitter,
            auto_augment=train.auto_augment or None,
            interpolation=train.interpolation,
            mean=model.mean or (0.5, 0.5, 0.5),
            normalize=False,
        )
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        detail = " ".join(str(error).split())[:120]
        raise InputError(
            f"train.auto_augment: {train.auto_augment!r} is no policy that timm knows, such as "
            f"rand-m9-n1-mstd0.4-inc1{f' ({detail})' if detail else ''}"
        ) from None


def _timm_erasing(train: TrainConfig) -> Any:
    from timm.data import random_erasing

    make: Any = random_erasing.RandomErasing
    return make(train.erase_prob, mode=train.erase_mode, max_count=train.erase_count, device="cpu")
