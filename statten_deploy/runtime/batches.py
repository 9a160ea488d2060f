"""Batches as micro-batches, one on each core.

A core that computes a few samples by itself waits for nobody and keeps what it works on in its own cache; all cores on
one operation after the other do neither. Single samples still take all cores.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from statten_deploy.runtime.engines import Engine

Array = NDArray[Any]

FEWEST, MOST = 2, 8
"""Samples of a micro-batch, where there are enough for all cores."""
NUMBERS = 8192
"""What the samples of a micro-batch take in, if `FEWEST` to `MOST` do. More samples share what weights and calls cost;
fewer keep what passes from layer to layer, which grows with the input, in the cache of a core."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Batches:
    """An engine for single samples, and engines for micro-batches, made when first needed.

    Every input and output has the batch as its first axis. `make(rows)` is an engine that may be called by `workers`
    threads at a time, each of which it gives one core; `fixed`: it takes batches of just that size.
    """

    def __init__(self, single: "Engine", workers: int, make: Callable[[int], "Engine"], *, fixed: bool = False) -> None:
        self.single, self.workers, self.fixed = single, workers, fixed
        self.inputs, self.outputs = single.inputs, single.outputs
        numbers = sum(prod(size or 1 for size in port.shape[1:]) for port in single.inputs)
        self.micro = min(max(NUMBERS // max(numbers, 1), FEWEST), MOST)
        self._make = make
        self._made: dict[int, Engine] = {1: single} if fixed and workers == 1 else {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = len(next(iter(feeds.values())))
        if rows == 1:
            return self.single.run(feeds)
        size = self.micro if rows >= self.micro * self.workers else 1 if self.fixed else -(-rows // self.workers)
        engine = self._engine(size if self.fixed else 0)
        parts = [{name: x[at : at + size] for name, x in feeds.items()} for at in range(0, rows, size)]
        if self.fixed and rows % size:
            parts[-1] = {name: _padded(x, size) for name, x in parts[-1].items()}
        results = list(map(engine.run, parts)) if self.workers == 1 else list(self._workers().map(engine.run, parts))
        return {port.name: np.concatenate([part[port.name] for part in results])[:rows] for port in self.outputs}

    def _engine(self, size: int) -> "Engine":
        with self._lock:
            if size not in self._made:
                self._made[size] = self._make(size)
            return self._made[size]

    def _workers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="statten")
            return self._pool


def _padded(x: Array, rows: int) -> Array:
    return np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])
