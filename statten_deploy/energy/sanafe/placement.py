"""Where neurons lie: layers on the cores that `chip_fit` gives them, relays and inputs packed behind."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.energy.counter import InputKind
from statten_deploy.energy.fit import chip_fit
from statten_deploy.energy.sanafe.network import SpikingNetwork
from statten_deploy.errors import UnsupportedError
from statten_deploy.ir.shapes import Shape

Int = NDArray[np.int64]

PACKED = ("input", "relay")
"""Populations that share cores, in order."""


@dataclass(frozen=True)
class Mesh:
    """Cores in tiles, tiles in columns of `height`, as SANA-FE numbers them."""

    width: int
    height: int
    cores_per_tile: int
    neurons_per_core: int

    @property
    def cores(self) -> int:
        """Cores of the chip."""
        return self.width * self.height * self.cores_per_tile

    def hops(self, sources: Any, destinations: Any) -> tuple[Int, Int]:
        """(east-west, north-south) hops between the tiles of cores."""
        a, b = (np.asarray(cores) // self.cores_per_tile for cores in (sources, destinations))
        return np.abs(a // self.height - b // self.height), np.abs(a % self.height - b % self.height)


@dataclass(frozen=True)
class Placement:
    """Per population the core of every neuron. `notes`: layers that break limits of Loihi that SANA-FE has not."""

    cores: dict[str, Int]
    used: int
    notes: tuple[str, ...]


def place(network: SpikingNetwork, mesh: Mesh) -> Placement:
    """Layers as `chip_fit` cuts them for Loihi 1, each on cores of its own; the rest fills cores in order.

    Raises:
        UnsupportedError: more cores than the chip has.
    """
    told: InputKind = "events" if network.inputs == "spikes" else "frames"
    fitted = {layer.name: layer for layer in chip_fit(network.lowered, "loihi1", input=told).layers}
    found: dict[str, Int] = {}
    notes = []
    used, room = 0, 0  # neurons that the last core still takes
    layers = [population for population in network.populations.values() if population.role not in PACKED]
    packed = [population for population in network.populations.values() if population.role in PACKED]
    for population in layers:
        layer = fitted.get(population.name)
        tile = layer.tile if layer is not None and layer.tile else _by_neurons(population.shape, mesh.neurons_per_core)
        if layer is not None and not layer.tile:
            notes.append(f"{population.name}: {layer.advice}")
        cores = np.empty(population.shape, dtype=np.int64)
        for part in _parts(population.shape, tile):
            cores[part] = used
            used += 1
        found[population.name] = cores.reshape(-1)
    for population in packed:
        cores = np.empty(population.size, dtype=np.int64)
        start = 0
        while start < population.size:
            if not room:
                used, room = used + 1, mesh.neurons_per_core
            taken = min(room, population.size - start)
            cores[start : start + taken] = used - 1
            start, room = start + taken, room - taken
        found[population.name] = cores
    if used > mesh.cores:
        relays = sum(population.size for population in packed if population.role == "relay")
        raise UnsupportedError(
            f"the network takes {used} cores ({relays:,} of its neurons are relays) and SANA-FE's Loihi has "
            f"{mesh.cores}; take a part of it (part_until)"
        )
    return Placement(found, used, tuple(notes))


def _by_neurons(shape: Shape, most: int) -> tuple[int, ...]:
    """Whole channels, as many as a core takes neurons; pieces of rows where a channel is larger."""
    each = prod(shape[1:])
    return (max(1, most // each), *shape[1:]) if each <= most else (*(1,) * (len(shape) - 1), most)


def _parts(shape: Shape, tile: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    starts = (range(0, length, size) for length, size in zip(shape, tile, strict=True))
    for corner in product(*starts):
        yield tuple(slice(start, start + size) for start, size in zip(corner, tile, strict=True))


def routes(network: SpikingNetwork, placement: Placement) -> dict[str, dict[int, Int]]:
    """Per population, for every core that listens to it, the neurons that it hears: their spikes go there once each."""
    found: dict[str, dict[int, Int]] = {name: {} for name in network.populations}
    for listener in network.populations.values():
        for connection in listener.connections:
            entries, reached = connection.weights.tocoo(), found[connection.source]
            cores = placement.cores[listener.name][entries.col]
            for core in np.unique(cores).tolist():
                heard = np.unique(entries.row[cores == core])
                reached[core] = np.union1d(reached[core], heard) if core in reached else heard
    return found
