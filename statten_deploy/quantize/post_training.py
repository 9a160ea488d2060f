"""Post-training quantisation of a float graph: every current gets a scale, every neuron an integer threshold.

A LIF neuron ``v += c (x - v)``, fire at θ, becomes a fixed-point neuron with ``a = K x``, threshold ``θ K / c`` and
``dv = 4096 c``, for one scale K per channel. Currents that are added share K; each weighted branch has its own power of
two.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.arithmetic import (
    BIAS_EXPONENT_MAX,
    BIAS_MANTISSA_BITS,
    CURRENT_SHIFT,
    DECAY_BITS,
)
from statten_deploy.fixed_point.observe import InputActivity
from statten_deploy.ir import TemporalMean, hints, infer_shapes, inline_subgraphs
from statten_deploy.ir.graph import is_cyclic, order_from
from statten_deploy.ir.integer import (
    IntArray,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.limits import MAX_BIAS, MAX_SHIFT
from statten_deploy.ir.nodes import pair
from statten_deploy.ir.shapes import explicit_padding
from statten_deploy.ir.verify import time_step
from statten_deploy.quantize.currents import WEIGHTED, Stream, mean_shift, streams, trace
from statten_deploy.quantize.encoder import encode_input, encoding_problems
from statten_deploy.quantize.neurons import FIRING, INTEGRATORS, NEURONS, NeuronForm, neuron_form
from statten_deploy.quantize.options import QuantizeOptions
from statten_deploy.quantize.rounding import (
    Grid,
    Real,
    Rows,
    common_grid,
    mantissa_and_exponent,
    shared_grid,
    to_integers,
)
from statten_deploy.quantize.scales import INTEGRATOR_OCTAVES, THRESHOLD_MAX, Plan
from statten_deploy.quantize.support import current_problems, node_bias, node_problems, shift_problems

COUNT_EXPONENT = 4
"""Counts are shifted by up to this, so that so many halvings of the membrane stay exact."""
BIAS_TOLERANCE = 1 / 1024
"""Biases are rounded to even numbers, for the same, as far as the error stays below this part of a threshold."""
COUNT_TOLERANCE = 1 / 256
"""Counts are shifted right only where all that is lost stays below this part of a threshold."""
PROOF_BITS = 56
"""Weights, inputs and exponents together; the rest of 64 bits is for sums behind, until scales come down."""
LEAST_IMPORTANCE = 1e-3
"""Of an input that never fired in calibration, relative to the mean: it may fire elsewhere."""


class Quantizer:
    """The choices for one float graph: `build` makes the integer graph of them, `lower` changes them.

    `activity`, of the integers that arrive at weighted nodes in a calibration run, weighs errors by how often they
    count and corrects biases by their mean.

    Raises:
        UnsupportedError: nodes without an integer form; all are named.
    """

    def __init__(
        self, graph: nir.NIRGraph, options: QuantizeOptions, activity: Mapping[str, InputActivity] | None = None
    ) -> None:
        self.graph = graph = inline_subgraphs(graph)
        self.options, self.activity = options, activity or {}
        dt, self.shapes = time_step(graph), infer_shapes(graph)
        _refuse(node_problems(graph, self.shapes, dt))
        self.order = order_from(graph, {name for name, node in graph.nodes.items() if isinstance(node, FIRING)})
        self.encoding = encode_input(graph, self.shapes)
        _refuse(encoding_problems(graph, self.encoding))
        self.traced = trace(graph, self.order, self.shapes, self.encoding.units)
        neurons = [name for name in self.order if isinstance(graph.nodes[name], NEURONS)]
        self.forms = {name: neuron_form(graph.nodes[name], self.shapes[name], dt) for name in neurons}
        _refuse([*self.traced.problems, *current_problems(graph, self.traced, self.forms)])
        if not options.shifts:
            _refuse(shift_problems(graph, self.traced, self.forms), " without exponents")
        self.biased = self._biased()
        self.plans = [self._plan(stream) for stream in streams(self.traced, neurons)]
        self.plan_of = {name: plan for plan in self.plans for name in (*plan.stream.branches, *plan.stream.neurons)}
        counting = [name for name in neurons if name not in self.plan_of]
        firing = [name for name in counting if isinstance(graph.nodes[name], FIRING)]
        _refuse(problem for name in firing for problem in self._count_problems(name))
        self.count_exponents = dict.fromkeys(counting, INTEGRATOR_OCTAVES if options.shifts else 0)
        self.count_exponents |= {name: self._count_exponent(name) for name in firing}
        self.readouts: dict[str, tuple[Real, IntArray]] = {
            name: common_grid(self.rows(name), options.bits, options.granularity == "channel", options.shifts)
            for name in self.order
            if isinstance(graph.nodes[name], WEIGHTED) and name not in {*self.plan_of, self.encoding.absorbed}
        }

    # choices

    def rows(self, name: str) -> Rows:
        """The real weights of a branch per output channel [out, n], in units of its integer inputs."""
        node, unit = self.graph.nodes[name], self.traced.arriving[name][0].unit
        weight = np.asarray(node.weight, dtype=np.float64)
        size = len(weight)
        if unit is not None and np.any(unit != 1):
            weight = weight * _per_input(node, unit)
        seen = self.activity.get(name)
        if seen is None:
            return Rows(weight.reshape(size, -1))
        counts = np.broadcast_to(_per_input(node, seen.square), weight.shape).reshape(size, -1)
        return Rows(weight.reshape(size, -1), counts + LEAST_IMPORTANCE * (counts.mean() or 1.0))

    def _biased(self) -> set[str]:
        """Branches that keep their biases: a bias of the neurons would not go through their synaptic memory."""
        arriving = (self.traced.arriving[name][0] for name, form in self.forms.items() if form.remembers)
        return {branch for signal in arriving for branch in signal.branches}

    def _grid(self, stream: Stream) -> Grid:
        rows = [self.rows(name) for name in stream.branches]
        bits, by_channel, shifts = self.options.bits, self.options.granularity == "channel", self.options.shifts
        if any(isinstance(self.graph.nodes[name], INTEGRATORS) for name in stream.neurons):
            # a readout: its numbers are compared with each other, so all have one scale
            if len(rows) == 1:
                scale, exponents = common_grid(rows[0], bits, by_channel, shifts)
                return Grid(scale, [exponents])
            by_channel = False
        return shared_grid(rows if by_channel else [branch.flat() for branch in rows], bits, shifts)

    def _plan(self, stream: Stream) -> Plan:
        grid = self._grid(stream)
        factors = {name: self.traced.arriving[name][0].factor for name in stream.neurons}
        firing = [name for name in stream.neurons if isinstance(self.graph.nodes[name], FIRING)]
        units = {name: self.forms[name].unit * factors[name] for name in firing}
        excess: dict[str, Real] = {}
        if self.activity:  # octaves change no integer weights, so what they are too large by is known already
            for name, exponent in zip(stream.branches, grid.exponents, strict=True):
                excess[name] = self._rounded(name, grid.scale, exponent)[1]
        biases = {name: self.bias(name, excess) * factor for name, factor in factors.items()}
        return Plan(stream, grid, units, biases, self.options.shifts, np.zeros(len(grid.scale), dtype=np.int64))

    def _count_exponent(self, name: str) -> int:
        limit = float(np.max(self._count_limit(name)))
        return min(COUNT_EXPONENT, int(np.floor(np.log2(THRESHOLD_MAX / limit))))

    def _count_problems(self, name: str) -> Iterator[str]:
        """Counts that must be shifted right so far that neurons would fire at other counts."""
        limit, exponent = self._count_limit(name), self._count_exponent(name)
        form, steps = self.forms[name], float(hints(self.graph).get("time_steps", np.inf))
        # a shift loses less than 1 a step, and neurons add that up for as long as they remember
        remembered = [rate / (1 << DECAY_BITS) for rate in (form.dv, form.du + 1)]
        lost = float(np.prod([min(steps, 1 / rate if rate else np.inf) for rate in remembered]))
        if exponent < 0 and (exponent < -MAX_SHIFT or lost > COUNT_TOLERANCE * limit.min() * 2.0**exponent):
            yield (
                f"{name} (it fires at counts of {limit.max():.3g}, expected at most {THRESHOLD_MAX}: "
                "lower v_threshold or its time constant, or put a weighted layer in front)"
            )

    def _count_limit(self, name: str) -> Real:
        """The count at which neurons that compare counts fire."""
        unit = self.traced.arriving[name][0].unit
        return self.forms[name].unit / (1.0 if unit is None else unit)

    def lower(self, name: str, octaves: IntArray) -> bool:
        """Take octaves from the currents into a neuron layer, per element of its leading axis; False: no room."""
        if name in self.plan_of:
            plan = self.plan_of[name]
            plan.lowered = plan.lowered + plan.folded(octaves.astype(np.float64)).astype(np.int64)
            return True
        before = self.count_exponents[name]
        self.count_exponents[name] = min(before, max(0, before - int(octaves.max())))
        return self.count_exponents[name] < before

    def spares(self, name: str) -> bool:
        """Whether the currents into an integrator have bits below the grid of the weights."""
        plan = self.plan_of.get(name)
        return self.count_exponents[name] > 0 if plan is None else bool(plan.octaves().min() > 0)

    # the graph of the choices

    def build(self) -> nir.NIRGraph:
        """The integer graph.

        Raises:
            UnsupportedError: weights, thresholds and biases too far apart for exponents; all are named.
        """
        _refuse(self._exponent_problems(PROOF_BITS))
        graph, encoding = self.graph, self.encoding
        nodes: dict[str, nir.NIRNode] = {encoding.source: graph.nodes[encoding.source], encoding.name: encoding.encoder}
        corrections: dict[str, Real] = {}
        for name in self.order:
            node = graph.nodes[name]
            if name in (encoding.source, encoding.absorbed):
                continue
            if isinstance(node, WEIGHTED):
                nodes[name], corrections[name] = self._weighted(name, node)
            elif isinstance(node, NEURONS):
                nodes[name] = self._neuron(name, corrections)
            else:
                nodes[name] = self._convert(name, node, nodes)
        if is_cyclic(graph):  # the order of building says nothing to a reader
            names = [encoding.source, encoding.name, *graph.nodes]
            nodes = {name: nodes[name] for name in names if name in nodes}
        behind = {encoding.source: encoding.name, encoding.absorbed: encoding.name}
        edges = [(behind.get(source, source), target) for source, target in graph.edges if target != encoding.absorbed]
        described = {"bits": self.options.bits, "granularity": self.options.granularity}
        metadata = {"statten": {**hints(graph), **described}}
        return nir.NIRGraph(nodes, [(encoding.source, encoding.name), *edges], metadata=metadata, type_check=False)

    def check_exponents(self) -> None:
        """Raises UnsupportedError where ranges are settled and an exponent is still too large."""
        _refuse(self._exponent_problems(None))

    def _exponent_problems(self, total_bits: int | None) -> Iterator[str]:
        for name in [*self.readouts, *(branch for plan in self.plans for branch in plan.stream.branches)]:
            node, readout = self.graph.nodes[name], name in self.readouts
            scale, exponent = self.scale_and_exponent(name)
            most = MAX_SHIFT
            if total_bits is not None:
                fan_in = node.weight.size // len(node.weight)
                most = total_bits - self.options.bits - 8 - int(np.ceil(np.log2(fan_in)))
            wrong = np.flatnonzero((exponent < -MAX_SHIFT) | (exponent > most))
            if len(wrong):
                channel = wrong[0]
                largest = float(self.rows(name).largest()[channel])
                beside = "those of other channels" if readout else "the thresholds and currents behind"
                yield (
                    f"{name} (channel {channel} has weights of at most {largest:.3g}, which an exponent of "
                    f"±{MAX_SHIFT} cannot bring near {beside}: rescale them, or set what is negligible to 0)"
                )
            elif (readout or name in self.biased) and np.any(np.abs(node_bias(node) * scale) > MAX_BIAS - 1):
                yield f"{name} (its bias is beyond 2^23 steps of its weights: rescale them, or leave out the bias)"

    def scale_and_exponent(self, name: str) -> tuple[Real, IntArray]:
        """K and exponent of a weighted node, per output channel."""
        size = len(self.graph.nodes[name].weight)
        plan = self.plan_of.get(name)
        scale, exponent = self.readouts[name] if plan is None else (plan.scale(), plan.exponents(name))
        return np.broadcast_to(scale, size).copy(), np.broadcast_to(exponent, size).copy()

    def _weighted(self, name: str, node: Any) -> tuple[nir.NIRNode, Real]:
        """(the integer node, by how much its currents are too large on average, in real units)."""
        scale, exponent = self.scale_and_exponent(name)
        weight, excess = self._rounded(name, scale, exponent)
        own = name in self.readouts or name in self.biased
        bias = np.rint((node_bias(node) - excess) * scale * own).astype(np.int64)
        if isinstance(node, nir.Conv2d):
            padding = [before for before, _ in explicit_padding(node)]
            windows = pair(node.stride), pair(padding), pair(node.dilation)
            weight = weight.reshape(node.weight.shape)
            return IntegerConv2d(weight, exponent, scale, *windows, groups=int(node.groups), bias=bias), excess
        return IntegerLinear(weight, exponent, bias, scale), excess

    def _rounded(self, name: str, scale: Real, exponent: IntArray) -> tuple[IntArray, Real]:
        """(integer weights [out, n], by how much their currents are too large on average, in real units)."""
        rows, node, seen = self.rows(name).weight, self.graph.nodes[name], self.activity.get(name)
        factor = np.broadcast_to(scale * 2.0**-exponent, len(rows))
        weight = to_integers(rows, factor, self.options.bits)
        if seen is None:
            return weight, np.zeros(len(rows))
        mean = np.broadcast_to(_per_input(node, seen.mean), node.weight.shape).reshape(rows.shape)
        return weight, np.asarray(((weight / factor[:, None] - rows) * mean).sum(1))

    def bias(self, name: str, corrections: Mapping[str, Real] | None = None) -> Real:
        """The constant current into a neuron layer, per element of its leading axis, less what branches overdo.

        Branches that keep their own biases have no part in it.
        """
        total, excess = np.zeros(self.shapes[name][0]), corrections or {}
        for branch, count in self.traced.arriving[name][0].branches.items():
            if branch in self.biased:
                continue
            bias = node_bias(self.graph.nodes[branch]) - excess.get(branch, 0.0)
            total = total + count * np.repeat(bias, len(total) // len(bias))
        return total

    def _neuron(self, name: str, corrections: Mapping[str, Real]) -> IntegerLIF | IntegerLI:
        shape, form = self.shapes[name], self.forms[name]
        rank = (-1, *(1,) * (len(shape) - 1))
        mantissa = exponent = np.zeros(shape[0], dtype=np.int64)
        shift = 0
        plan = self.plan_of.get(name)
        scale = np.ones(shape[0])
        if plan is None:
            shift = self.count_exponents[name]
        else:
            scale = np.broadcast_to(plan.scale(), len(self.graph.nodes[plan.stream.branches[0]].weight))
            scale = np.repeat(scale, shape[0] // len(scale)) * self.traced.arriving[name][0].factor
            bias = self.bias(name, corrections) * scale * (1 << CURRENT_SHIFT)
            least = self._bias_exponent(form, scale)
            mantissa, exponent = mantissa_and_exponent(bias, BIAS_MANTISSA_BITS, BIAS_EXPONENT_MAX, least)
        at = tuple(value.reshape(rank) for value in (mantissa, exponent))
        if form.threshold is None:
            unit = self.traced.arriving[name][0].unit
            scale = scale if unit is None else 2.0**shift / unit
            return IntegerLI(
                form.dv, *at, (1 << CURRENT_SHIFT) * scale / form.gain, shape, input_exponent=shift, du=form.du
            )
        limit = form.unit * scale if plan else self._count_limit(name) * 2**shift
        # strictly above one less is "at least" for currents and membranes that are whole
        threshold = np.ceil(limit).astype(np.int64) - 1
        return IntegerLIF(threshold.reshape(rank), form.dv, *at, shape, input_exponent=shift, du=form.du)

    def _bias_exponent(self, form: NeuronForm, scale: Real) -> int:
        """The least exponent of biases: membranes that stay whole when they are halved need not be truncated."""
        if form.threshold is None:
            return 0
        wanted = min(form.halvings(float(hints(self.graph).get("time_steps", 1))), CURRENT_SHIFT)
        lost = float(np.min(form.unit * scale)) * (1 << CURRENT_SHIFT) * BIAS_TOLERANCE
        return int(max(0, min(wanted, np.floor(np.log2(2 * lost)))))

    def _convert(self, name: str, node: Any, nodes: Mapping[str, nir.NIRNode]) -> nir.NIRNode:
        if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
            current = self.traced.signals[name].unit is None
            exponent = -mean_shift(node) if current and isinstance(node, nir.AvgPool2d) else 0
            return IntegerSumPool2d(pair(node.kernel_size), pair(node.stride), exponent)
        if isinstance(node, TemporalMean):
            signal = self.traced.arriving[name][0]
            source = signal.membrane or next(iter(signal.branches), "")
            unit = signal.unit[0] if signal.unit is not None else 1 / nodes[source].scale[0]
            # a float32, so that runtimes without float64 round the same product once
            return TemporalSum(np.float32(unit / int(hints(self.graph)["time_steps"])))
        return node


def _refuse(problems: Iterable[str], how: str = "") -> None:
    found = "; ".join(problems)
    if found:
        raise UnsupportedError(f"no fixed-point form{how} for: {found}")


def _per_input(node: Any, values: Real) -> Real:
    """A value per input element, shaped to go with the node's weight."""
    rest = (1,) * (np.ndim(node.weight) - 2)
    groups = int(getattr(node, "groups", 1))
    return np.repeat(values.reshape(groups, -1), len(node.weight) // groups, axis=0).reshape(
        -1, values.size // groups, *rest
    )
