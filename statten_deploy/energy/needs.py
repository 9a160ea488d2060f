"""What every part of a cut layer needs of a core, for all parts at once.

Receptive fields are products over the axes, so the numbers of a part are products (or sums of products) of numbers per
axis: a cut into a x b x c parts gives arrays [a, b, c].
"""

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.energy.fanout import Int
from statten_deploy.energy.fields import Part, Path, whole
from statten_deploy.ir.shapes import Shape

Tile = tuple[int, ...]
"""Size of a part along every axis of a layer."""
Key = tuple[int | str, ...]
Term = tuple[Int, ...]
"""One number per index of every axis; a site has their product."""


class Layer:
    """One layer of neurons with its ways back to its sources, and who listens to it."""

    def __init__(self, shape: Shape, found: list[Path], sources: dict[str, Shape]) -> None:
        self.shape = shape
        self.paths = found
        self.sources = sources
        self.listeners: list[Term] = []
        self._known: dict[Key, Int] = {}

    def neurons(self, tile: Tile) -> Int:
        """Neurons of every part."""
        return _outer([_reduce(np.ones(n, dtype=np.int64), size) for n, size in zip(self.shape, tile, strict=True)])

    def input_axons(self, tile: Tile) -> Int:
        """Sources that every part listens to; one that is heard in two ways counts twice."""
        none = np.zeros([1] * len(tile), dtype=np.int64)
        return sum((self._field_sizes(index, tile) for index in range(len(self.paths))), none)

    def output_axons(self, tile: Tile) -> Int:
        """For every part, the cores that listen to each of its neurons, summed."""
        none = np.zeros([1] * len(tile), dtype=np.int64)
        terms = (_outer([_reduce(n, size) for n, size in zip(t, tile, strict=True)]) for t in self.listeners)
        return sum(terms, none)

    def entries(self, tile: Tile, *, shared: bool) -> Int:
        """Weights that every part stores: one per pair of source and neuron, or (shared) every kernel once.

        Behind a chain of several nodes pairs are the part's neurons times its field: an upper bound, exact where every
        neuron of the part hears the whole field.
        """
        total = np.zeros([1] * len(tile), dtype=np.int64)
        for index, path in enumerate(self.paths):
            if path.fan_in is not None:
                pairs = _reduce(self._pairs(index, tile[1:]), tile[0])
            else:
                pairs = self.neurons(tile) * (self._field_sizes(index, tile) if path.steps else 1)
            total = total + (np.minimum(pairs, self._kernels(index, tile)) if shared and path.steps else pairs)
        return total

    def heard_by(self, index: int, tile: Tile) -> list[Term]:
        """How many parts of this layer listen to each site of the source of path `index`."""
        path = self.paths[index]
        if self._aligned(path):
            pieces = [list(_pieces(n, size)) for n, size in zip(self.shape, tile, strict=True)]
            return [
                tuple(
                    reduce(np.add, (self._along(path, a, p).astype(np.int64) for p in ps))
                    for a, ps in enumerate(pieces)
                )
            ]
        return [tuple(axis.astype(np.int64) for axis in path.field(part)) for part in _parts(self.shape, tile)]

    def _aligned(self, path: Path) -> bool:
        return len(self.shape) == len(self.sources[path.source])

    def _along(self, path: Path, axis: int, piece: NDArray[np.bool_]) -> NDArray[np.bool_]:
        everything = whole(self.shape)
        return path.field((*everything[:axis], piece, *everything[axis + 1 :]))[axis]

    def _field_sizes(self, index: int, tile: Tile) -> Int:
        path = self.paths[index]
        if not self._aligned(path):
            key: Key = ("field", index, *tile)
            if key not in self._known:
                self._known[key] = self._per_part(tile, lambda part: prod(int(axis.sum()) for axis in path.field(part)))
            return self._known[key]
        sizes = []
        for axis, (length, size) in enumerate(zip(self.shape, tile, strict=True)):
            entry: Key = ("axis", index, axis, size)
            if entry not in self._known:
                found = [int(self._along(path, axis, piece).sum()) for piece in _pieces(length, size)]
                self._known[entry] = np.array(found, dtype=np.int64)
            sizes.append(self._known[entry])
        return _outer(sizes)

    def _pairs(self, index: int, spatial: Tile) -> Int:
        """Sources of all neurons of a channel in every spatial part: [channel, part, part]."""
        key: Key = ("pairs", index, *spatial)
        if key not in self._known:
            pairs = np.asarray(self.paths[index].fan_in)
            for axis, size in enumerate(spatial, start=1):
                pairs = _reduce(pairs, size, axis)
            self._known[key] = pairs
        return self._known[key]

    def _kernels(self, index: int, tile: Tile) -> Int:
        """Stored once per core: a matter of the channels of a part, not of its place."""
        key: Key = ("kernels", index, tile[0])
        if key not in self._known:
            self._known[key] = self._per_part((tile[0], *self.shape[1:]), self.paths[index].kernels)
        return self._known[key]

    def _per_part(self, tile: Tile, count: Callable[[Part], int]) -> Int:
        grid = [-(-length // size) for length, size in zip(self.shape, tile, strict=True)]
        return np.array([count(part) for part in _parts(self.shape, tile)], dtype=np.int64).reshape(grid)


def _reduce(numbers: Int, size: int, axis: int = 0) -> Int:
    return np.add.reduceat(numbers, np.arange(0, numbers.shape[axis], size), axis=axis)


def _outer(per_axis: list[Int]) -> Int:
    grids = np.ix_(*per_axis)
    result: Any = grids[0]
    for other in grids[1:]:
        result = result * other
    return np.asarray(result, dtype=np.int64)


def _pieces(length: int, size: int) -> Iterator[NDArray[np.bool_]]:
    index = np.arange(length)
    return ((index >= start) & (index < start + size) for start in range(0, length, size))


def _parts(shape: Shape, tile: Tile) -> Iterator[Part]:
    return product(*(list(_pieces(length, size)) for length, size in zip(shape, tile, strict=True)))
