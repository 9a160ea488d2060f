"""Batches for the trainer, in an order that depends on the seed and the epoch only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from statten_deploy.errors import InputError
from statten_deploy.models.config import ModelConfig
from statten_deploy.train.config import TrainConfig
from statten_deploy.train.data import InputSpec, Samples, open_source, select, stratified_split
from statten_deploy.train.data.split import VALIDATION_SEED
from statten_deploy.train.resume import START, Start
from statten_deploy.train.sample_augment import SampleAugmentation


class Draw(int):
    """The index of a sample, with the seed of the augmentation of this draw of it."""

    seed: int

    def __new__(cls, index: int, seed: int) -> Self:
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self) -> tuple[type["Draw"], tuple[int, int]]:  # it travels to the data-loading processes
        return Draw, (int(self), self.seed)


class TorchSamples(Dataset[tuple[Tensor, int]]):
    """`Samples` as a torch data set of (x, class); with `augment`, what is drawn for training is augmented."""

    def __init__(self, samples: Samples, augment: SampleAugmentation | None = None) -> None:
        self.samples = samples
        self.augment = augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        labels = self.samples.labels
        if self.augment is not None and isinstance(index, Draw):
            x = self.augment(self.samples, int(index), index.seed)
        else:
            x = torch.from_numpy(self.samples.sample(index))
        return x, -1 if labels is None else int(labels[index])


class EpochShuffle(Sampler[int]):
    """A new order every epoch, a function of (seed, epoch): a resumed run sees what an uninterrupted one sees.

    With `repeats` r every sample is drawn r times in a row and the epoch ends after `count` draws, as in timm's
    `RepeatAugSampler`: processes that share the order see differently augmented forms of the same samples.
    """

    def __init__(self, count: int, seed: int, repeats: int = 1) -> None:
        self.count = count
        self.seed = seed
        self.repeats = repeats
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        base = self.seed * 1_000_003 + self.epoch
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(base))
        drawn = order.repeat_interleave(self.repeats)[: self.count].tolist()
        return (Draw(index, (base * 1_000_003 + place) % 2**63) for place, index in enumerate(drawn))


class Share(Sampler[int]):
    """What process `rank` of `ranks` takes of an order: every `ranks`-th index, filled up from the front.

    The batches of all processes together are then those of one process with a batch `ranks` times as large. The
    first `skip` of its indices are left out in the epoch that `order` starts with: a resumed run has learnt from them.
    """

    def __init__(self, order: EpochShuffle, rank: int = 0, ranks: int = 1, skip: int = 0) -> None:
        self.order = order
        self.rank = rank
        self.ranks = ranks
        self.skips = {order.epoch: skip}

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // self.ranks)

    def __iter__(self) -> Iterator[int]:
        whole = list(self.order)
        whole += whole[: -len(whole) % self.ranks]
        return iter(whole[self.rank :: self.ranks][self.skips.get(self.order.epoch, 0) :])


class StattenData(L.LightningDataModule):
    """Training and validation batches. The test split is opened but never offered to the trainer.

    `start`: where in the training a resumed run goes on.

    Raises:
        InputError: the data cannot be read, do not fit the network, or have no labels.
    """

    def __init__(self, data: str | Path, model: ModelConfig, train: TrainConfig, start: Start = START) -> None:
        super().__init__()
        self.start = start
        self.config = train
        source = open_source(data, InputSpec.of(model))
        learn = select(source, "train")
        if learn.labels is None:
            raise InputError(f"{data}: no labels; training needs the class of every sample (array y)")
        self.train_samples = learn
        self.validation_samples: Samples | None = None
        if train.validation:
            kept, held = stratified_split(learn.labels, train.validation, VALIDATION_SEED)
            self.train_samples, self.validation_samples = learn.subset(kept), learn.subset(held)
        self.test_samples = select(source, "test")
        augmentation = SampleAugmentation(train, model, learn)
        self.augmentation = None if augmentation.idle else augmentation

    def train_dataloader(self) -> DataLoader[Any]:
        order = EpochShuffle(len(self.train_samples), self.config.seed, self.config.repeats)
        # Loading processes start before the trainer tells which epoch it is in.
        order.set_epoch(self.start.epoch)
        skip = self.start.batches * self.config.batch_size
        return self._loader(self.train_samples, Share(order, *self._place(), skip), self.augmentation)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.validation_samples is None:
            return []
        # Every sample once: shares may differ in length, since nothing waits for other processes while validating.
        rank, ranks = self._place()
        if len(self.validation_samples) < ranks:
            raise InputError(
                f"{len(self.validation_samples)} samples held out for validation are too few for {ranks} processes; "
                "raise train.validation, or set it to 0"
            )
        return self._loader(self.validation_samples, range(rank, len(self.validation_samples), ranks))

    def test_loader(self) -> DataLoader[Any]:
        """For the final evaluation, after training."""
        return self._loader(self.test_samples)

    def _place(self) -> tuple[int, int]:
        """(this process, all processes)"""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(
        self,
        samples: Samples,
        sampler: Sampler[int] | range | None = None,
        augment: SampleAugmentation | None = None,
    ) -> DataLoader[Any]:
        return DataLoader(
            TorchSamples(samples, augment),
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
        )
