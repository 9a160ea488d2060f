"""Post-training quantisation of a float graph: every current gets a scale, every neuron an integer threshold.

A LIF neuron ``v += c (x - v)``, fire at θ, becomes a fixed-point neuron with ``a = K x``, threshold ``θ K / c`` and
``dv = 4096 c``, for one scale K per channel. Currents that are added share K; each weighted branch has its own power of
two.
"""

from dataclasses import dataclass
from typing import Any, Literal

import nir
import numpy as np

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.fixed_point.arithmetic import BIAS_MANTISSA_BITS, CURRENT_SHIFT, DECAY_BITS, THRESHOLD_BITS
from statten_deploy.ir import (
    MaxPool2d,
    SpikeAnd,
    SpikeMaxPool2d,
    STAttenAttention,
    TemporalMean,
    TokenMaxPool,
    hints,
    infer_shapes,
    inline_subgraphs,
    predecessors,
    topological_order,
)
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.nodes import pair
from statten_deploy.quantize.currents import Stream, counted_source, streams, weighted_sources
from statten_deploy.quantize.rounding import (
    Real,
    best_step,
    largest_integer,
    mantissa_and_exponent,
    to_integers,
)

THRESHOLD_TARGET = 1 << 10
"""Thresholds are at least this: their rounding is then finer than that of 8-bit weights, and currents keep room for 2^6
thresholds and more below 24 bits."""
COUNT_EXPONENT = 4
"""Counts are shifted by up to this, so that so many halvings of the membrane stay exact."""


SUPPORTED: frozenset[type[nir.NIRNode]] = frozenset(
    {
        nir.Input,
        nir.Output,
        nir.Conv2d,
        nir.Affine,
        nir.Linear,
        nir.LIF,
        nir.AvgPool2d,
        nir.SumPool2d,
        nir.Flatten,
        MaxPool2d,
        SpikeMaxPool2d,
        STAttenAttention,
        SpikeAnd,
        TokenMaxPool,
        TemporalMean,
    }
)
"""Float nodes with an integer form."""


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantise: weight bits 2..8, one scale per output channel or one per tensor."""

    bits: int = 8
    granularity: Literal["channel", "tensor"] = "channel"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(f"--bits {self.bits}: expected 2 to 8")


def quantize(graph: nir.NIRGraph, options: QuantizeOptions | None = None) -> nir.NIRGraph:
    """The integer graph of a float graph.

    Raises:
        InputError: options out of range; UnsupportedError: nodes without an integer form (all are named).
    """
    return _Quantizer(inline_subgraphs(graph), options or QuantizeOptions()).build()


class _Quantizer:
    def __init__(self, graph: nir.NIRGraph, options: QuantizeOptions) -> None:
        self.graph, self.options = graph, options
        self.dt = float(hints(graph).get("dt", 1e-4))
        self.shapes = infer_shapes(graph)
        self.into = predecessors(graph)
        self.order = topological_order(graph)
        self.neurons = [name for name in self.order if isinstance(graph.nodes[name], nir.LIF)]
        self.nodes: dict[str, nir.NIRNode] = {}
        self.scale: dict[str, Real] = {}
        self.input_gain: dict[str, Real] = {}
        self.rename: dict[str, str] = {}
        self.encoder_edges: list[tuple[str, str]] = []
        self.input = ""

    def build(self) -> nir.NIRGraph:
        self._refuse()
        self._encode_input()
        for stream in streams(self.graph, self.neurons):
            self._scale_stream(stream)
        for name in self.order:
            if name not in self.rename:
                self.nodes.setdefault(name, self._convert(name))
        edges = [self._edge(source, target) for source, target in self.graph.edges]
        kept = [edge for edge in edges if edge is not None]
        options = {"bits": self.options.bits, "granularity": self.options.granularity}
        metadata = {"statten": {**hints(self.graph), **options}}
        return nir.NIRGraph(self.nodes, self.encoder_edges + kept, metadata=metadata, type_check=False)

    # what can be converted at all

    def _refuse(self) -> None:
        problems = []
        for name in self.order:
            node = self.graph.nodes[name]
            if type(node) not in SUPPORTED:
                problems.append(f"{name} ({type(node).__name__})")
            elif isinstance(node, nir.LIF):
                problems += [f"{name} ({what})" for what in self._unlike(node)]
        if problems:
            raise UnsupportedError(f"no fixed-point form for: {'; '.join(problems)}")

    def _unlike(self, node: nir.LIF) -> list[str]:
        wrong = []
        if np.any(node.v_leak) or (node.v_reset is not None and np.any(node.v_reset)):
            wrong.append("v_leak and v_reset must be 0")
        if np.any(node.r != 1):
            wrong.append("r must be 1")
        if np.ptp(node.tau) > 0:
            wrong.append("one tau per layer")
        if np.any(node.v_threshold <= 0):
            wrong.append("thresholds must be positive")
        return wrong

    # input

    def _encode_input(self) -> None:
        """Pixels in [0, 1] become bytes, a normalisation scale and zero point; events are counts."""
        (name,) = (n for n in self.order if isinstance(self.graph.nodes[n], nir.Input))
        channels = self.shapes[name][0]
        scale, zero, gain = np.full(channels, 1 / 255), np.zeros(channels), np.full(channels, 1 / 255)
        if hints(self.graph).get("input") != "image":
            scale, gain = np.ones(channels), np.ones(channels)
        after = self._normalisation(name)
        if after is not None:
            node = self.graph.nodes[after]
            std = 1 / np.asarray(node.weight, dtype=np.float64)[range(channels), range(channels), 0, 0]
            zero = np.rint(-np.asarray(node.bias, dtype=np.float64) * std / scale)
            gain = scale / std
            self.rename[after] = f"{name}.encoder"
        self.nodes[name] = self.graph.nodes[name]
        self.nodes[f"{name}.encoder"] = InputEncoder(scale, zero)
        self.encoder_edges = [(name, f"{name}.encoder")]
        self.input_gain = {f"{name}.encoder": gain}
        self.input = name

    def _normalisation(self, name: str) -> str | None:
        """The diagonal 1x1 convolution right behind the input, if there is one."""
        behind = [target for source, target in self.graph.edges if source == name]
        node = self.graph.nodes.get(behind[0]) if len(behind) == 1 else None
        if not isinstance(node, nir.Conv2d) or node.weight.shape[2:] != (1, 1):
            return None
        matrix = node.weight[:, :, 0, 0]
        square = matrix.shape[0] == matrix.shape[1]
        diagonal = square and not np.any(matrix - np.diag(np.diag(matrix))) and np.all(np.diag(matrix) > 0)
        return behind[0] if diagonal else None

    def _edge(self, source: str, target: str) -> tuple[str, str] | None:
        source = self.rename.get(source, f"{source}.encoder" if source == self.input else source)
        if target in self.rename:
            return None  # the normalisation that became part of the encoder
        return source, target

    # scales

    def _rows(self, name: str) -> Real:
        """The real weights of a branch per output channel [out, n], in units of its integer inputs."""
        node = self.graph.nodes[name]
        weight = np.asarray(node.weight, dtype=np.float64)
        sources = self.into[name]["input"]
        if len(sources) == 1:
            fed = self.rename.get(sources[0], f"{sources[0]}.encoder")
            if fed in self.input_gain:
                weight = weight * self.input_gain[fed].reshape(1, -1, *(1,) * (weight.ndim - 2))
        return weight.reshape(len(weight), -1)

    def _decay(self, name: str) -> float:
        """c = dt / tau of a neuron layer."""
        return float(np.float32(self.dt) / np.float32(self.graph.nodes[name].tau.flat[0]))

    def _threshold(self, name: str) -> Real:
        """θ per channel, back from the largest float32 below it."""
        node = self.graph.nodes[name]
        written = np.asarray(node.v_threshold, dtype=np.float32)
        flat = written.reshape(len(written), -1)
        if np.ptp(flat, axis=1).max() > 0:
            raise UnsupportedError(
                f"neuron layer {name!r}: thresholds differ inside a channel; one per channel is supported"
            )
        return np.nextafter(flat[:, 0], np.float32(np.inf)).astype(np.float64)

    def _scale_stream(self, stream: Stream) -> None:
        """One K per channel: the coarsest branch's best grid, times the power of two that the threshold needs."""
        rows = {name: self._rows(name) for name in stream.branches}
        if self.options.granularity == "tensor":
            rows = {name: value.reshape(1, -1) for name, value in rows.items()}
        steps = np.stack([best_step(value, self.options.bits) for value in rows.values()])  # [branches, channels]
        channels = len(self.graph.nodes[stream.branches[0]].weight)
        base = steps.max(0)
        base = np.where(base > 0, base, np.max(base, initial=0) or 1.0)
        # thresholds per unit of K, of the neurons that the stream reaches
        units = np.stack([self._threshold(n) / self._decay(n) for n in stream.neurons])
        lowest, highest = units.min(0), units.max(0)
        if len(base) == 1:
            lowest, highest = lowest.min(keepdims=True), highest.max(keepdims=True)
        scale = 1 / base
        scale = scale * 2.0 ** np.maximum(0, np.ceil(np.log2(THRESHOLD_TARGET / (lowest * scale))))
        top = (1 << (THRESHOLD_BITS - 1)) - 1
        scale = scale * np.minimum(1.0, 2.0 ** np.floor(np.log2(top / (highest * scale))))
        for name in stream.branches:
            self.scale[name] = np.broadcast_to(scale, channels).copy()

    # nodes

    def _convert(self, name: str) -> nir.NIRNode:
        node = self.graph.nodes[name]
        if isinstance(node, nir.Conv2d):
            weight, exponent = self._integer_rows(name)
            shape = np.asarray(node.weight).shape
            stride, padding, dilation = (pair(value) for value in (node.stride, node.padding, node.dilation))
            return IntegerConv2d(
                weight.reshape(shape), exponent, self.scale[name], stride, padding, dilation, int(node.groups)
            )
        if isinstance(node, nir.Affine | nir.Linear):
            return self._linear(name, node)
        if isinstance(node, nir.LIF):
            return self._neuron(name)
        if isinstance(node, nir.AvgPool2d):
            height, width = pair(node.kernel_size)
            return IntegerSumPool2d((height, width), pair(node.stride), -int(np.log2(height * width)))
        if isinstance(node, nir.SumPool2d):
            return IntegerSumPool2d(pair(node.kernel_size), pair(node.stride), 0)
        if isinstance(node, TemporalMean):
            (source,) = self.into[name]["input"]
            return TemporalSum(1.0 / (self.scale[source][0] * int(hints(self.graph)["time_steps"])))
        return node

    def _integer_rows(self, name: str) -> tuple[Any, Any]:
        """``w K ≈ integer · 2^exponent``, with the smallest exponent whose best grid holds the row."""
        rows, scale, bits = self._rows(name), self.scale[name], self.options.bits
        grid = rows if self.options.granularity == "channel" else rows.reshape(1, -1)
        step = np.broadcast_to(best_step(grid, bits), len(rows))
        needed = np.where(step > 0, step * scale, 1.0)
        exponent = np.ceil(np.log2(needed) - 1e-9).astype(np.int64)
        return to_integers(rows, scale * 2.0**-exponent, bits), exponent

    def _linear(self, name: str, node: Any) -> IntegerLinear:
        readout = name not in self.scale
        if readout:  # classes are compared with each other: one scale for all
            step = best_step(self._rows(name).reshape(1, -1), self.options.bits)
            self.scale[name] = np.broadcast_to(1 / (step if step[0] > 0 else np.ones(1)), len(node.weight)).copy()
        weight, exponent = self._integer_rows(name)
        bias = np.zeros(len(weight))
        if readout and isinstance(node, nir.Affine):
            bias = np.rint(np.asarray(node.bias, dtype=np.float64) * self.scale[name])
        return IntegerLinear(weight, exponent, bias, self.scale[name])

    def _neuron(self, name: str) -> IntegerLIF:
        shape = self.shapes[name]
        rank = (-1, *(1,) * (len(shape) - 1))
        dv = round(self._decay(name) * (1 << DECAY_BITS))
        counted = counted_source(self.graph, name)
        if counted is not None:
            return self._count_neuron(name, dv, shape, rank)
        sources = weighted_sources(self.graph, name)
        if not sources:
            raise UnsupportedError(f"neuron layer {name!r}: no weighted current reaches it")
        scale = self.scale[sources[0]] * self._pooled(name)
        threshold = np.rint(self._threshold(name) * scale / self._decay(name)).astype(np.int64)
        bias = np.zeros(len(scale))
        for source in sources:
            node = self.graph.nodes[source]
            bias = bias + (np.asarray(node.bias, dtype=np.float64) if hasattr(node, "bias") else 0.0)
        mantissa, exponent = mantissa_and_exponent(bias * scale * (1 << CURRENT_SHIFT), BIAS_MANTISSA_BITS)
        return IntegerLIF(threshold.reshape(rank), dv, mantissa.reshape(rank), exponent.reshape(rank), shape)

    def _pooled(self, name: str) -> float:
        """A mean became a sum and a shift: what is left of the divisor is in the threshold."""
        factor = 1.0
        for sources in self.into[name].values():
            for source in sources:
                node = self.graph.nodes[source]
                if isinstance(node, nir.AvgPool2d):
                    size = int(np.prod(pair(node.kernel_size)))
                    factor *= size / 2 ** int(np.log2(size))
                if isinstance(node, nir.AvgPool2d | nir.Flatten):
                    factor *= self._pooled(source)
        return factor

    def _count_neuron(self, name: str, dv: int, shape: tuple[int, ...], rank: tuple[int, ...]) -> IntegerLIF:
        """``v >= θ`` exactly while membranes are multiples of 64: threshold (θ / c << k) - 1, compared strictly."""
        limit = self._threshold(name) / self._decay(name)
        k = COUNT_EXPONENT
        while k and np.max(limit) * 2**k >= largest_integer(THRESHOLD_BITS + 1) // 2:
            k -= 1
        threshold = np.ceil(limit * 2**k).astype(np.int64) - 1
        zeros = np.zeros_like(threshold).reshape(rank)
        return IntegerLIF(threshold.reshape(rank), dv, zeros, zeros, shape, input_exponent=k)
