"""How real inputs become integers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import nir
import numpy as np

from statten_deploy.ir import hints, input_names
from statten_deploy.ir.graph import successors
from statten_deploy.ir.integer import InputEncoder
from statten_deploy.ir.shapes import Shape
from statten_deploy.quantize.currents import WEIGHTED
from statten_deploy.quantize.rounding import Real

FAR = 1 << 31
"""A zero point that far out is refused; it only has to be a whole number until then."""


@dataclass(frozen=True)
class Encoding:
    """The encoder behind the input `source`; `absorbed` is the normalisation that it replaces, if there is one.

    `units`: real value of one encoded integer, per channel, on the signals of those two nodes.
    """

    source: str
    encoder: InputEncoder
    absorbed: str | None
    units: dict[str, Real]

    @property
    def name(self) -> str:
        """The name of the encoder's node."""
        return f"{self.source}.encoder"


def encode_input(graph: nir.NIRGraph, shapes: Mapping[str, Shape]) -> Encoding:
    """Pixels in [0, 1] become bytes, a normalisation scale and zero point; anything else is spikes or counts."""
    (source,) = input_names(graph)
    channels = shapes[source][0]
    image = hints(graph).get("input") == "image"
    scale, zero = np.full(channels, 1 / 255 if image else 1.0), np.zeros(channels)
    units = {source: scale}
    absorbed = _normalisation(graph, source)
    if absorbed is not None:
        node = graph.nodes[absorbed]
        std = 1 / np.asarray(node.weight, dtype=np.float64)[range(channels), range(channels), 0, 0]
        zero = np.clip(np.rint(-np.asarray(node.bias, dtype=np.float64) * std / scale), -FAR, FAR)
        units[absorbed] = scale / std
    return Encoding(source, InputEncoder(scale, zero), absorbed, units)


def encoding_problems(graph: nir.NIRGraph, encoding: Encoding) -> Iterator[str]:
    """A normalisation whose zero is no byte."""
    zero, top = encoding.encoder.zero_point, 255
    wrong = np.flatnonzero((zero < 0) | (zero > top))
    if encoding.absorbed is not None and len(wrong):
        node, channel = graph.nodes[encoding.absorbed], wrong[0]
        mean = -float(node.bias[channel]) / float(node.weight[channel, channel, 0, 0])
        largest = top * encoding.encoder.scale[channel]
        yield (
            f"{encoding.absorbed} (it normalises with mean {mean:.3g} in channel {channel}, expected 0 to {largest:g}: "
            f"train with a mean in that range, or fold {encoding.absorbed} into the layer behind it)"
        )


def _normalisation(graph: nir.NIRGraph, source: str) -> str | None:
    """The diagonal 1x1 convolution right behind the input and in front of weights, if there is one."""
    after = successors(graph)
    node = graph.nodes.get(after[source][0]) if len(after[source]) == 1 else None
    if not isinstance(node, nir.Conv2d) or node.weight.shape[2:] != (1, 1) or node.bias is None:
        return None
    name = after[source][0]
    matrix = node.weight[:, :, 0, 0]
    square = matrix.shape[0] == matrix.shape[1]
    diagonal = square and not np.any(matrix - np.diag(np.diag(matrix))) and np.all(np.diag(matrix) > 0)
    return name if diagonal and all(isinstance(graph.nodes[target], WEIGHTED) for target in after[name]) else None
