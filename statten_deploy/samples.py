"""The samples that backends are compared on: read batch by batch, numbered as in their data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from statten_deploy.api import random_samples
from statten_deploy.compare.executors import Array
from statten_deploy.compare.tally import Labels
from statten_deploy.errors import InputError
from statten_deploy.source import Source
from statten_deploy.train.data import DATASETS, InputSpec, Samples, open_source, select
from statten_deploy.train.data.split import fixed_order

RANDOM_SAMPLES = 32
"""Seeded random inputs, where there are no data."""


@dataclass(frozen=True)
class Stream:
    """The samples to compare on, read when they are needed."""

    name: str
    samples: Samples
    numbers: Sequence[int]
    """Of the samples in their data set."""

    def take(self, start: int, stop: int) -> Array:
        """Samples start .. stop - 1 as one array [B, ...]."""
        return np.stack([self.samples.sample(i) for i in range(start, min(stop, len(self.samples)))])

    def batches(self, size: int) -> Iterator[tuple[int, Array, Labels | None]]:
        """(number of the first sample, x, labels or None): the first sample alone, then `size` at a time."""
        labels = self.samples.labels
        for start, stop in self.spans(size):
            yield start, self.take(start, stop), None if labels is None else labels[start:stop]

    def spans(self, size: int) -> list[tuple[int, int]]:
        """Where batches begin and end."""
        starts = [0, *range(1, len(self.samples), size)]
        return list(pairwise([*starts, len(self.samples)]))


class _RandomSamples(Samples):
    """Seeded random inputs, each with a seed of its own."""

    def __init__(self, source: Source, count: int, seed: int) -> None:
        self.source, self.count, self.seed = source, count, seed

    @property
    def labels(self) -> None:
        return None

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Array:
        found: Array = random_samples(self.source, 1, self.seed * 2**32 + index)[0]
        return found

    def subset(self, indices: Labels) -> "Samples":
        raise NotImplementedError("random inputs have no parts")


def open_stream(source: Source, data: str | Path | None, samples: int | None, seed: int) -> tuple[Stream, list[str]]:
    if samples is not None and samples < 1:
        raise InputError(f"--samples {samples}: expected at least 1")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")
    if data is None and source.dataset not in DATASETS:
        count = samples or RANDOM_SAMPLES
        why = f"data set {source.dataset!r} is not at hand" if source.dataset else "the model names no data set"
        warning = f"{why}: compared on {count} seeded random inputs, without labels; give real ones with --data"
        return Stream("seeded random inputs", _RandomSamples(source, count, seed), range(count)), [warning]
    name = source.dataset if data is None else str(data)
    part = select(open_source(name, InputSpec(source.input_shape, source.classes)), "evaluation")
    if samples is not None and samples > len(part):
        raise InputError(f"{name}: has {len(part)} samples, --samples asks for {samples}")
    if samples is None or samples == len(part):
        return Stream(name, part, range(len(part))), []
    chosen = np.sort(fixed_order(len(part), seed)[:samples])
    return Stream(name, part.subset(chosen), chosen.tolist()), []


TOLD = "--input events says whole numbers"
LOOKED = "the first {count} hold whole numbers and were taken for counts of events"


def check_events(stream: Stream, numbers: Sequence[int], x: Array, events: str) -> None:
    """Counts of events are whole numbers in every sample. `events`: why x [B, ...] should be such."""
    for number, sample in zip(numbers, x, strict=True):
        if not np.array_equal(np.rint(sample), sample):
            raise InputError(f"{stream.name}: sample {number} holds fractions, but {events}; give --input frames")
