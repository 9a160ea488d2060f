"""Whether a network fits on a chip: cores per layer, the limit that decides, and how to split.

Every layer of neurons gets cores of its own and is cut into equal parts (channels x rows x columns). One part must
keep all of a core's limits:

    neurons        its neurons
    input axons    the distinct sources that it listens to (its receptive fields)
    memory         its weights, ceil(entries · bits / 8), plus `neuron_bytes` per neuron. Kernels count once per core
                   where the chip shares them; `cores_unshared` says what it takes with one entry per synapse
    output axons   for every neuron of the part, the cores of other layers that listen to it

Currents are not sent: a layer that reads a residual stream has synapses for each of its contributions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path as FilePath
from typing import Any

import nir
import numpy as np

from statten_deploy.energy.chips import LIMITS, Chip, load_chip
from statten_deploy.energy.counter import InputKind, input_kind
from statten_deploy.energy.fields import POPULATIONS, Path, is_elsewhere, paths, whole
from statten_deploy.energy.needs import Layer, Tile
from statten_deploy.energy.signals import GATES, Kind, kinds
from statten_deploy.errors import ConfigError
from statten_deploy.ir import STAttenAttention
from statten_deploy.ir.graph import hints, inline_subgraphs, is_cyclic, predecessors, topological_order
from statten_deploy.ir.shapes import Shape, infer_shapes


@dataclass(frozen=True)
class LayerFit:
    """One layer of neurons. Axons and memory are those of its fullest core; `cores` is 0 if no split fits."""

    name: str
    operation: str
    shape: Shape
    neurons: int
    synapses: int
    weights: int
    cores: int
    cores_unshared: int
    cores_by_limit: dict[str, int]
    decides: str
    tile: Tile
    needs: dict[str, int]
    advice: str


@dataclass(frozen=True)
class ChipFit:
    """A network on a chip. `elsewhere`: nodes that neurons and synapses do not compute, with the reason."""

    chip: Chip
    bits: int
    layers: tuple[LayerFit, ...]
    elsewhere: dict[str, str]
    notes: tuple[str, ...]
    decides: str = field(default="")

    @property
    def fits(self) -> bool:
        """Whether every layer can be placed (on any number of chips)."""
        return all(layer.cores for layer in self.layers)

    @property
    def neurons(self) -> int:
        """Neurons of all layers."""
        return sum(layer.neurons for layer in self.layers)

    @property
    def synapses(self) -> int:
        """Pairs of source and neuron; kernels unrolled."""
        return sum(layer.synapses for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights where every kernel is stored once per layer."""
        return sum(layer.weights for layer in self.layers)

    @property
    def cores(self) -> int:
        """Cores of all layers that fit."""
        return sum(layer.cores for layer in self.layers)

    @property
    def chips(self) -> int:
        """Chips for these cores."""
        return ceil(self.cores / self.chip.cores)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        return {
            "chip": self.chip.name,
            "bits": self.bits,
            "fits": self.fits,
            "neurons": self.neurons,
            "synapses": self.synapses,
            "weights": self.weights,
            "cores": self.cores,
            "chips": self.chips,
            "decides": self.decides,
            "elsewhere": self.elsewhere,
            "notes": list(self.notes),
            "layers": [{**vars(layer), "shape": list(layer.shape), "tile": list(layer.tile)} for layer in self.layers],
        }


def chip_fit(
    graph: nir.NIRGraph, chip: str | FilePath | Chip, *, bits: int | None = None, input: InputKind | None = None
) -> ChipFit:
    """Cores and chips that a graph needs. `bits` per weight: what a quantised graph says, else 8.

    `input` as in `EnergyCounter`: layers behind real-valued inputs get currents from outside, events take axons.

    Raises:
        ConfigError: an unknown chip, bits outside 1 to 32, or a graph that does not say what its input is.
    """
    found = chip if isinstance(chip, Chip) else load_chip(chip)
    width = int(hints(graph).get("bits", 8)) if bits is None else bits
    if not 1 <= width <= 32:
        raise ConfigError(f"bits {width}: expected 1 to 32 bits per weight")
    return _Fitter(inline_subgraphs(graph), found, width, input).fit()


class _Fitter:
    def __init__(self, graph: nir.NIRGraph, chip: Chip, bits: int, told: InputKind | None) -> None:
        self.graph, self.chip, self.bits = graph, chip, bits
        self.into, self.shapes = predecessors(graph), infer_shapes(graph)
        self.kinds = kinds(graph, self.into, input_kind(graph, told))
        order = list(graph.nodes) if is_cyclic(graph) else topological_order(graph)
        self.layers = [name for name in order if self._takes_neurons(name)]
        self.parts = {name: Layer(self.shapes[name], self._paths(name), self.shapes) for name in self.layers}

    def _paths(self, name: str) -> list[Path]:
        return paths(name, self.graph, self.into, self.shapes, self.kinds)

    def _takes_neurons(self, name: str) -> bool:
        node = self.graph.nodes[name]
        return isinstance(node, POPULATIONS) and (not isinstance(node, GATES) or self.kinds[name] is Kind.EVENTS)

    def fit(self) -> ChipFit:
        elsewhere = {name: self._why(name) for name in self.graph.nodes if is_elsewhere(name, self.graph, self.kinds)}
        for name in elsewhere:  # what is computed elsewhere listens to every neuron before it
            for source in {path.source for path in self._paths(name)} & self.parts.keys():
                everything = tuple(axis.astype(np.int64) for axis in whole(self.shapes[source]))
                self.parts[source].listeners.append(everything)
        fitted: dict[str, LayerFit] = {}
        for name in reversed(self.layers):  # how a layer is cut decides how many output axons its sources need
            fitted[name] = self._layer(name)
            cut = fitted[name].tile or self.shapes[name]  # a layer that cannot be placed must not decide about others
            for index, path in enumerate(self.parts[name].paths):
                if path.source in self.parts:
                    self.parts[path.source].listeners += self.parts[name].heard_by(index, cut)
        layers = tuple(fitted[name] for name in self.layers)
        largest = max(layers, key=lambda layer: (not layer.cores, layer.cores), default=None)
        decides = "" if largest is None else f"{largest.name}: {largest.decides}"
        return ChipFit(self.chip, self.bits, layers, elsewhere, (*self.chip.notes, *self._notes()), decides)

    def _why(self, name: str) -> str:
        node, shape = self.graph.nodes[name], self.shapes[name]
        if isinstance(node, STAttenAttention):
            d = shape[0] // node.num_heads
            cells = node.num_heads * d * d * node.token_groups
            return f"spikes meet spikes, in {cells} counters: no synapses do this; its results arrive as graded spikes"
        return "a maximum of currents: no neuron does this; train with pooling: strided"

    def _notes(self) -> Iterator[str]:
        yield "every layer has cores of its own; small layers could share some"
        if not all(
            kind is Kind.EVENTS for name, kind in self.kinds.items() if isinstance(self.graph.nodes[name], nir.Input)
        ):
            yield "the input is real-valued: its first layer is computed outside and arrives as bias currents"

    # one layer

    def _layer(self, name: str) -> LayerFit:
        shape = self.shapes[name]
        limits = {limit: found.value for limit, found in self.chip.limits.items()}
        sharing = self.chip.shares_kernels
        tile = self._split(name, limits, shared=sharing)
        other = self._split(name, limits, shared=False) if sharing else tile
        alone = {limit: self._split(name, {limit: value}, shared=sharing) for limit, value in limits.items()}
        by_limit = {limit: _cores(shape, cut) if cut else 0 for limit, cut in alone.items()}
        decides = min(by_limit, key=lambda limit: (by_limit[limit] > 0, -by_limit[limit]))
        fullest = tile or (1,) * len(shape)
        needs = {limit: self._need(limit, name, fullest, shared=sharing) for limit in LIMITS}
        return LayerFit(
            name=name,
            operation=type(self.graph.nodes[name]).__name__,
            shape=shape,
            neurons=prod(shape),
            synapses=int(self.parts[name].entries(shape, shared=False).sum()),
            weights=int(self.parts[name].entries(shape, shared=True).sum()),
            cores=_cores(shape, tile) if tile else 0,
            cores_unshared=_cores(shape, other) if other else 0,
            cores_by_limit=by_limit,
            decides=decides,
            tile=tile or (),
            needs=needs,
            advice=_advice(shape, tile, decides, needs, limits),
        )

    def _split(self, name: str, limits: Mapping[str, int], *, shared: bool) -> Tile | None:
        """The cut with the fewest cores that keeps the limits; None if a single neuron does not."""
        shape = self.shapes[name]
        least = max(ceil(self._total(limit, name, shared=shared) / value) for limit, value in limits.items())
        tiles = [tile for tile in _tiles(shape) if _cores(shape, tile) >= least]
        # of equal cuts the one with the most channels: a channel group listens to everything, a row band to its rows
        for tile in sorted(tiles, key=lambda tile: (_cores(shape, tile), -tile[0])):
            if all(self._need(limit, name, tile, shared=shared) <= value for limit, value in limits.items()):
                return tile
        return None

    def _total(self, limit: str, name: str, *, shared: bool) -> int:
        """What all parts together need at least, however the layer is cut: fewer cores than that need no try."""
        additive = limit in ("neurons", "output_axons") or (limit == "memory_bytes" and not shared)
        return self._need(limit, name, self.shapes[name], shared=shared) if additive else 1

    def _need(self, limit: str, name: str, tile: Tile, *, shared: bool) -> int:
        """What the fullest part of a cut layer needs of one of a core's limits."""
        layer = self.parts[name]
        if limit == "neurons":
            return prod(tile)
        if limit == "memory_bytes":
            stored = -(-layer.entries(tile, shared=shared) * self.bits // 8)
            return int((stored + layer.neurons(tile) * self.chip.neuron_bytes).max())
        return int((layer.input_axons(tile) if limit == "input_axons" else layer.output_axons(tile)).max())


def _sizes(length: int) -> list[int]:
    """Part sizes that cut an axis into different numbers of parts, largest first."""
    return list(dict.fromkeys(ceil(length / n) for n in range(1, length + 1)))


def _tiles(shape: Shape) -> Iterator[Tile]:
    """Cuts by channels, then by rows, then (single rows) by columns."""
    spatial: list[Tile] = [()]
    if len(shape) == 2:
        spatial = [(size,) for size in _sizes(shape[1])]
    elif len(shape) == 3:
        spatial = [(size, shape[2]) for size in _sizes(shape[1])]
        spatial += [(1, size) for size in _sizes(shape[2])[1:]]
    yield from ((size, *rest) for rest in spatial for size in _sizes(shape[0]))


def _cores(shape: Shape, tile: Tile) -> int:
    return prod(ceil(length / size) for length, size in zip(shape, tile, strict=True))


def _advice(shape: Shape, tile: Tile | None, decides: str, needs: Mapping[str, int], limits: Mapping[str, int]) -> str:
    if tile is None:
        return (
            f"does not fit: a single neuron needs {needs[decides]} {decides}, a core has {limits[decides]}; "
            "fewer channels, smaller kernels or fewer residual contributions are needed"
        )
    cores = _cores(shape, tile)
    if cores == 1:
        return "one core"
    words = ("channel groups", "row bands", "column bands")
    counts = [ceil(length / size) for length, size in zip(shape, tile, strict=True)]
    cut = " x ".join(f"{n} {word}" for n, word in zip(counts, words, strict=False) if n > 1)
    return f"split into {cut}: {' x '.join(map(str, tile))} neurons a core ({decides} decides)"
