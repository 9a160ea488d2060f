"""What quantising did to a network, layer by layer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.fixed_point.arithmetic import BIAS_EXPONENT_MAX, CURRENT_SHIFT, shift
from statten_deploy.fixed_point.observe import NeuronActivity, observe
from statten_deploy.fixed_point.ranges import CURRENT_LIMIT
from statten_deploy.ir.graph import hints, is_cyclic, topological_order
from statten_deploy.ir.integer import INTEGER_NEURONS, IntegerConv2d, IntegerLI, IntegerLIF, IntegerLinear
from statten_deploy.quantize.limits import current_bounds, input_bounds, saturating
from statten_deploy.quantize.options import QuantizeOptions
from statten_deploy.quantize.post_training import Quantizer
from statten_deploy.quantize.rounding import Real, largest_integer
from statten_deploy.quantize.scales import BIAS_MAX

Bound = Literal["proved", "calibrated", "unproved"]


MANY_CLIPPED = 0.15
"""Share of a layer's weights beyond the largest integer that is worth a warning: at 2 bits, not at 3."""


@dataclass(frozen=True)
class WeightReport:
    """A weighted node. `clipped` of its `weights` lie beyond the largest integer of their grid."""

    name: str
    kind: str
    scale_min: float
    scale_max: float
    exponent_min: int
    exponent_max: int
    clipped: int
    weights: int


@dataclass(frozen=True)
class NeuronReport:
    """A neuron layer.

    `bias_error`: largest difference to the real bias, corrections included, as a part of the threshold.
    `clipped_biases`: channels whose real bias is beyond the largest integer. `input_bound`: no input gives a larger
    absolute a. `bound`: whether currents are proved to stay clear of the wrap at 2^17, were bounded on calibration
    data, or neither. The rest was seen on the samples: the largest absolute a, how many times the largest current fits
    (None: there was none), wraps, saturations, channels that never fired, spikes, and the share of spikes that differ
    from the float network (None: not compared). Integrators (kinds LI and I) have threshold 0 and no spikes; their
    `bias_error` is a part of the largest bias.
    """

    name: str
    kind: str
    threshold_min: int
    threshold_max: int
    bias_error: float
    clipped_biases: int
    input_bound: int
    bound: Bound
    largest_input: int
    margin: float | None
    wraps: int
    saturations: int
    dead_channels: int
    channels: int
    spikes: int
    spike_drift: float | None


@dataclass(frozen=True)
class QuantisationReport:
    """Of `quantisation_report`: layers in the order of the graph, and on how many samples they were watched.

    `input_error`: share of the samples' values that the input encoder cannot hold: of images those outside [0, 1], of
    other inputs those that are not whole numbers from 0 to 255.
    """

    bits: int
    granularity: str
    samples: int
    input_error: float
    weights: list[WeightReport]
    neurons: list[NeuronReport]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """What may make the integer network another one, a line each; silent layers are the verification's to tell."""
        found = []
        if self.input_error:
            found.append(
                f"{100 * self.input_error:.2g} % of the input values are lost: the encoder holds images in [0, 1], "
                "else whole numbers from 0 to 255; rescale the inputs"
            )
        beyond = [layer.name for layer in self.weights if layer.clipped > MANY_CLIPPED * layer.weights]
        if beyond:
            more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
            found.append(
                f"{', '.join(beyond[:3])}{more}: more than {100 * MANY_CLIPPED:.0f} % of the weights overflow "
                f"{self.bits} bits and are clipped; use more bits, or weights trained for them (--qat-bits {self.bits})"
            )
        unproved = [layer.name for layer in self.neurons if layer.bound == "unproved"]
        if unproved:
            more = f" and {len(unproved) - 3} more" if len(unproved) > 3 else ""
            found.append(
                f"{', '.join(unproved[:3])}{more}: currents may wrap at 2^17, nothing proves or bounds them; give "
                "calibration data"
            )
        for layer in self.neurons:
            if layer.clipped_biases:
                found.append(
                    f"{layer.name}: biases of {layer.clipped_biases} of {layer.channels} channels are clipped, off by "
                    f"up to {layer.bias_error:.2g} thresholds; lower them"
                )
            if layer.wraps or layer.saturations:
                found.append(
                    f"{layer.name}: {layer.wraps} wraps and {layer.saturations} saturations seen on the samples; "
                    "give calibration data that is as active"
                )
        return found

    def summary(self) -> str:
        """One line for a terminal."""
        kinds = [layer.bound for layer in self.neurons]
        bounds = ", ".join(
            f"{kinds.count(kind)} {kind}" for kind in ("proved", "calibrated", "unproved") if kind in kinds
        )
        clipped, total = sum(layer.clipped for layer in self.weights), sum(layer.weights for layer in self.weights)
        parts = [
            f"{self.bits}-bit weights per {self.granularity}, {100 * clipped / max(total, 1):.2g} % clipped",
            f"ranges of {len(kinds)} neuron layers: {bounds}",
            f"on {self.samples} samples {sum(layer.wraps for layer in self.neurons)} wraps, "
            f"{sum(layer.saturations for layer in self.neurons)} saturations, "
            f"{sum(layer.dead_channels for layer in self.neurons)} of "
            f"{sum(layer.channels for layer in self.neurons)} channels silent",
        ]
        drifts = [layer.spike_drift for layer in self.neurons if layer.spike_drift is not None]
        if drifts:
            parts.append(f"spikes differ from float by {100 * sum(drifts) / len(drifts):.2g} % per layer")
        return "; ".join(parts)


def quantisation_report(
    float_graph: nir.NIRGraph,
    integer_graph: nir.NIRGraph,
    samples: NDArray[Any],
    float_spikes: Mapping[str, NDArray[np.bool_]] | None = None,
) -> QuantisationReport:
    """Compare a float graph with the integer graph made of it and watch the latter run.

    `samples` as the graphs take them [B, ...] or [B, T, ...]; `float_spikes` [T, B, ...] of the float graph on the same
    samples, per neuron layer.
    """
    told = hints(integer_graph)
    options = QuantizeOptions(int(told["bits"]), told["granularity"])
    original = Quantizer(float_graph, options)
    seen = observe(integer_graph, samples, spikes=float_spikes is not None)
    inputs = input_bounds(integer_graph)
    currents = current_bounds(integer_graph, inputs)
    weights, neurons = [], []
    full = saturating(integer_graph)
    for name in list(integer_graph.nodes) if is_cyclic(integer_graph) else topological_order(integer_graph):
        node = integer_graph.nodes[name]
        if isinstance(node, IntegerConv2d | IntegerLinear):
            weights.append(_weights(name, node, original))
        if isinstance(node, INTEGER_NEURONS):
            fits = currents[name].max(initial=0) <= CURRENT_LIMIT and name not in full
            bound: Bound = "proved" if fits else "calibrated" if name in told.get("calibrated", {}) else "unproved"
            drift = None
            if float_spikes is not None and name in float_spikes:
                drift = float((seen.spikes[name] != float_spikes[name]).mean())
            biases = _bias_error(name, node, integer_graph, original)
            neurons.append(_neurons(name, node, seen.neurons[name], biases, int(inputs[name].max()), bound, drift))
    lost = _input_error(original, samples)
    return QuantisationReport(options.bits, options.granularity, len(samples), lost, weights, neurons)


def _input_error(original: Quantizer, samples: NDArray[Any]) -> float:
    """The share of values that are not what the encoder makes of them."""
    encoding = original.encoding
    rank = len(original.shapes[encoding.source])
    steps = samples.astype(np.float64) / encoding.encoder.scale.reshape(-1, *(1,) * (rank - 1))
    stored = np.clip(np.rint(steps), 0, 255)
    # pixels are rounded to bytes; events and counts are whole already, or not what they are taken for
    room = 0.5 if hints(original.graph).get("input") == "image" else 0.0
    return float((~(np.abs(steps - stored) <= room + 1e-4)).mean())


def _weights(name: str, node: IntegerConv2d | IntegerLinear, original: Quantizer) -> WeightReport:
    scaled = np.abs(original.rows(name).weight) * (node.scale * 2.0**-node.exponent)[:, None]
    top = largest_integer(original.options.bits) * (1 + 1e-9)
    return WeightReport(
        name=name,
        kind=type(original.graph.nodes[name]).__name__,
        scale_min=float(node.scale.min()),
        scale_max=float(node.scale.max()),
        exponent_min=int(node.exponent.min()),
        exponent_max=int(node.exponent.max()),
        clipped=int((scaled > top).sum()),
        weights=int(node.weight.size),
    )


def _bias_error(name: str, node: IntegerLIF | IntegerLI, graph: nir.NIRGraph, original: Quantizer) -> tuple[float, int]:
    """(largest error as a part of the threshold, channels that are clipped)."""
    signal = original.traced.arriving[name][0]
    written = shift(node.bias_mantissa, node.bias_exponent).reshape(-1) / (1 << CURRENT_SHIFT)
    wanted: Real = np.zeros(len(written))
    if signal.branches:
        scale = graph.nodes[next(iter(signal.branches))].scale * signal.factor
        wanted = original.bias(name) * np.repeat(scale, len(written) // len(scale))
    whole = np.abs(wanted).max(initial=1.0) if isinstance(node, IntegerLI) else node.threshold.reshape(-1) + 1
    error = float((np.abs(written - wanted) / whole).max(initial=0.0))
    step = 1 << BIAS_EXPONENT_MAX
    return error, int((np.abs(wanted) * (1 << CURRENT_SHIFT) > BIAS_MAX + step).sum())


def _neurons(
    name: str,
    node: IntegerLIF | IntegerLI,
    seen: NeuronActivity,
    biases: tuple[float, int],
    input_bound: int,
    bound: Bound,
    drift: float | None,
) -> NeuronReport:
    largest = int(seen.largest_current.max(initial=0))
    fires = isinstance(node, IntegerLIF)
    thresholds = node.threshold if isinstance(node, IntegerLIF) else np.zeros(1, dtype=np.int64)
    return NeuronReport(
        name=name,
        kind=("LIF" if node.dv else "IF") if fires else ("LI" if node.dv else "I"),
        threshold_min=int(thresholds.min()),
        threshold_max=int(thresholds.max()),
        bias_error=biases[0],
        clipped_biases=biases[1],
        input_bound=input_bound,
        bound=bound,
        largest_input=int(seen.largest_input.max(initial=0)),
        margin=CURRENT_LIMIT / largest if largest else None,
        wraps=seen.wraps,
        saturations=seen.saturations,
        dead_channels=int((seen.spikes == 0).sum()) if fires else 0,
        channels=len(seen.spikes),
        spikes=int(seen.spikes.sum()),
        spike_drift=drift,
    )
