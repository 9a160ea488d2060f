"""Fixed, stratified divisions of a data set, the same on every machine and with every library version."""

import hashlib

import numpy as np

from statten_deploy.train.data.spec import Int64Array

TEST_FRACTION = 0.2
TEST_SEED = 0
VALIDATION_SEED = 1


def fixed_order(count: int, seed: int) -> Int64Array:
    """A permutation of 0..count-1 by SHA-256 of "seed:index": it depends on no library's random generator."""
    keys = [hashlib.sha256(f"{seed}:{index}".encode()).digest() for index in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


def stratified_split(labels: Int64Array, fraction: float, seed: int) -> tuple[Int64Array, Int64Array]:
    """Divide into (kept, held_out), where ceil(fraction · N) are held out and every class keeps its share.

    Each class gives floor(n_c · held_out / N); the rest goes to the classes with the largest remainders.
    Both index arrays are sorted.
    """
    total = len(labels)
    held_total = int(np.ceil(fraction * total))
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (held_total / max(total, 1))
    quota = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - quota), kind="stable")
    quota[by_remainder[: held_total - int(quota.sum())]] += 1
    order = fixed_order(total, seed)
    held = [order[labels[order] == c][:n] for c, n in zip(classes, quota, strict=True)]
    held_out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    kept = np.setdiff1d(np.arange(total, dtype=np.int64), held_out, assume_unique=True)
    return kept, held_out
