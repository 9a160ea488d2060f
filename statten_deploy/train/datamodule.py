"""Batches for the trainer, in an order that depends on the seed and the epoch only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from statten_deploy.errors import InputError
from statten_deploy.models.config import ModelConfig
from statten_deploy.train.config import TrainConfig
from statten_deploy.train.data import InputSpec, Samples, open_source, select, stratified_split
from statten_deploy.train.data.split import VALIDATION_SEED


class TorchSamples(Dataset[tuple[Tensor, int]]):
    """`Samples` as a torch data set of (x, class)."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        labels = self.samples.labels
        return torch.from_numpy(self.samples.sample(index)), -1 if labels is None else int(labels[index])


class EpochShuffle(Sampler[int]):
    """A new order every epoch, a function of (seed, epoch): a resumed run sees what an uninterrupted one sees."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


class StattenData(L.LightningDataModule):
    """Training and validation batches. The test split is opened but never offered to the trainer.

    Raises:
        InputError: the data cannot be read, do not fit the network, or have no labels.
    """

    def __init__(self, data: str | Path, model: ModelConfig, train: TrainConfig) -> None:
        super().__init__()
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

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train_samples, EpochShuffle(len(self.train_samples), self.config.seed))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return [] if self.validation_samples is None else self._loader(self.validation_samples)

    def test_loader(self) -> DataLoader[Any]:
        """For the final evaluation, after training."""
        return self._loader(self.test_samples)

    def _loader(self, samples: Samples, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
        return DataLoader(
            TorchSamples(samples),
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
        )
