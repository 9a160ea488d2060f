"""Fixed-point neurons, one step after the other.

    u = wrap(truncate(u · (4095 - du)) + x)          x = a << 6
    v = saturate(truncate(v · (4096 - dv)) + u + bias)
    y = v > threshold                                v = 0 where y

Membranes are whole numbers in float32 (in float64 where numbers need more than 24 bits). Scaling by a power of two is
exact there. Terms that are proved to do nothing in a layer (`bounds.plan_neuron`) are left out.

At step t of a layer ``n/t`` holds its spikes and ``n/t/v`` its membranes before the reset, where ``n`` is the layer's
name; `metadata_props` say under ``neurons`` which layers there are, for those who read them out (`probes`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import DTypeLike
from onnx import TensorProto

from statten_deploy.export.onnx.builder import Shape
from statten_deploy.export.onnx.integer.bounds import FULL, HALF, ONE, NeuronPlan, neuron_bias
from statten_deploy.export.onnx.integer.signals import ELEMENT, GAIN, IntegerBuilder, IntegerSignal
from statten_deploy.fixed_point.arithmetic import CURRENT_SHIFT, NO_SYNAPTIC_MEMORY, STATE_MAX, shift
from statten_deploy.fixed_point.ranges import Interval
from statten_deploy.ir.integer import IntegerLI, IntegerLIF

Neurons = IntegerLIF | IntegerLI


def emit_neurons(b: IntegerBuilder, name: str, node: Neurons, x: IntegerSignal) -> IntegerSignal:
    """Spikes of neurons, membranes of integrators, over all steps of the model; a stream carries the states."""
    cell = _Cell(b, name, node, x)
    at = _reserve(b, name)
    states = [b.state(f"{name}.{what}", cell.stored, cell.dtype) for what in (cell.kept_states if b.streams else ())]
    v, u = ([state.input for state in states] + ["", ""])[:2]
    left = cell.decayed(v, cell.kept, f"{name}/before", 0) if v else ""
    values = []
    for step, drive in enumerate(b.each(cell.drive)):
        label = f"{at}/{step}"
        u = cell.current(u, drive, label)
        membrane = cell.membrane(left, u, label)
        value = cell.result(membrane, label)
        values.append(value)
        last = step == b.time_steps - 1
        if states and last:
            b.append("Identity", [cell.after(membrane, value, label)], [states[0].output], "")
            if len(states) > 1:
                b.append("Identity", [u], [states[1].output], "")
        elif not last:
            left = cell.left(membrane, value, label, whole=step < cell.plan.whole)
    b.neurons.append(cell.described(at))
    return cell.signal(tuple(values))


def _reserve(b: IntegerBuilder, name: str) -> str:
    """A prefix under which all values of a layer that others read can have the names they are looked for by."""
    at = name
    while any(b.is_taken(f"{at}/{step}{end}") for step in range(b.time_steps) for end in ("", "/v")):
        at += "_"
    return at


def loop_states(plan: NeuronPlan) -> tuple[str, ...]:
    """What a neuron keeps from step to step: its membrane after the reset, its synaptic current."""
    return ("v", "u") if plan.du != NO_SYNAPTIC_MEMORY else ("v",)


def emit_in_loop(
    b: IntegerBuilder, name: str, node: Neurons, x: IntegerSignal, states: Sequence[str]
) -> tuple[IntegerSignal, list[str], DTypeLike]:
    """One step from the states `loop_states`: the result, the states after it, and their type."""
    cell = _Cell(b, name, node, x)
    label = b.unique(f"{name}/cell")
    v, u = [*states, ""][:2]
    u = cell.current(u, cell.drive.value, label)
    membrane = cell.membrane(cell.decayed(v, cell.kept, label, 0), u, label)
    value = b.rename(cell.result(membrane, label), name)
    ends = [cell.after(membrane, value, label), u][: len(states)]
    return cell.signal((value,)), ends, cell.dtype


class _Cell:
    """A layer: what reaches it, its constants, and the operations of a step; an empty name is a value that is 0."""

    def __init__(self, b: IntegerBuilder, name: str, node: Neurons, x: IntegerSignal) -> None:
        self.b, self.name, self.node = b, name, node
        plan, current = b.plans[b.originals.get(name, name)], _current(b, name, node, x)
        if current.dtype == np.float64:
            plan = replace(plan, dtype=np.float64, splits=(False, False))
        elif plan.dtype is np.float64:
            b.float_type(1 << 24, name)  # refused, where there is no float64
        self.plan, self.dtype, self.element = plan, plan.dtype, ELEMENT[np.dtype(plan.dtype)]
        self.kept, self.recalled = ONE - plan.dv, NO_SYNAPTIC_MEMORY - plan.du
        self.kept_states = loop_states(plan)
        self.fires, self.fired = isinstance(node, IntegerLIF), ""
        self.shape = node.shape
        heads = current.heads
        self.stored: Shape = b.stored(node.shape)
        if heads:
            self.stored = (heads[0], *(heads[1:] if heads[1] > 1 else ()), -1, node.shape[0] // heads[0])
            self.stored = tuple(int(np.prod(node.shape[1:])) // heads[1] if s == -1 else s for s in self.stored)
        bias = neuron_bias(node).reshape(-1)
        self.after_wrap = ""
        if self.recalled or plan.wraps:  # the bias does not pass the register of the current
            current = b.plain(current, name)
            if bias.any():
                self.after_wrap = b.per_channel(f"{name}.bias", bias, plan.dtype, current)
            current = b.cast(current, plan.dtype)
            if plan.wraps and not self.recalled:
                current = b.apply(current, "wrapped", lambda value: self.wrapped(value, value))
            if self.after_wrap and not self.recalled:
                current, self.after_wrap = self._plus(current, self.after_wrap, "biased"), ""
        else:
            current = b.cast(current, plan.dtype)
            missing = bias - (0 if current.offset is None else current.offset)
            if missing.any():
                current = self._plus(current, b.per_channel(f"{name}.bias", missing, plan.dtype, current), "biased")
        self.drive = replace(current, offset=None)
        if self.fires:
            threshold = shift(node.threshold.reshape(-1), CURRENT_SHIFT)
            self.limit = b.per_channel(f"{name}.threshold", threshold, plan.dtype, current)

    def _plus(self, current: IntegerSignal, constant: str, what: str) -> IntegerSignal:
        b = self.b
        return b.apply(current, f"{what}/{self.name}", lambda v: b.aux("Add", [v, constant], v, what))

    # a step

    def current(self, u: str, drive: str, label: str) -> str:
        """The synaptic current; without memory it is what arrives."""
        if not self.recalled:
            return drive
        recalled = self.decayed(u, self.recalled, f"{label}/u", 1) if u else ""
        return self.wrapped(self._sum(recalled, drive, label, "current"), label)

    def membrane(self, left: str, u: str, label: str) -> str:
        """``saturate(left + u + bias)``."""
        b = self.b
        drive = self._sum(self.after_wrap, u, label, "drive") if self.recalled else u
        value = self._sum(left, drive, label, "v_sum")
        if self.plan.saturates:
            limits = [b.number(end, self.dtype) for end in (-STATE_MAX, STATE_MAX)]
            value = b.aux("Clip", [value, *limits], label, "v_clipped")
        # under a name of its own, also where nothing had to be computed
        return b.aux("Identity", [value], label, "v")

    def result(self, membrane: str, label: str) -> str:
        """Spikes, or the membrane of an integrator, under the name of the step."""
        b = self.b
        if not self.fires:
            return b.aux("Identity", [membrane], label)
        self.fired = b.aux("Greater", [membrane, self.limit], label, "fired")
        return b.aux("Cast", [self.fired], label, to=TensorProto.FLOAT if b.planar else TensorProto.UINT8)

    def left(self, membrane: str, spikes: str, label: str, *, whole: bool) -> str:
        """What the next step still has of a membrane: ``truncate(v · (4096 - dv))``, 0 where it fired.

        `whole`: nothing is left to truncate.
        """
        if not self.kept:
            return ""
        split = self.plan.splits[0] and not whole
        if not self.fires or self.b.planar or split or self.dtype is np.float64:
            return self.decayed(self.after(membrane, spikes, label), self.kept, label, 0, whole=whole)
        # reset and decay in one product: silence times the share
        share = self._silence(spikes, self.kept / ONE, label)
        value = self.b.aux("Mul", [membrane, share], label, "share" if self.kept != ONE and not whole else "left")
        return value if whole or self.kept == ONE else self._truncated(value, label, "left")

    def after(self, membrane: str, spikes: str, label: str) -> str:
        """The membrane after the reset."""
        b = self.b
        if not self.fires:
            return membrane
        if b.planar:
            return b.aux("Where", [self.fired, b.number(0, self.dtype), membrane], label, "after")
        if self.dtype is np.float32:
            return b.aux("Mul", [membrane, self._silence(spikes, 1.0, label)], label, "after")
        silent = b.aux("Not", [b.aux("Cast", [spikes], label, "again", to=TensorProto.BOOL)], label, "silent")
        return b.aux("Mul", [membrane, b.aux("Cast", [silent], label, "kept", to=self.element)], label, "after")

    def _silence(self, spikes: str, share: float, label: str) -> str:
        """`share` where there is no spike, else 0: ``(spikes - 1) · (-share)``, what DequantizeLinear computes.

        A product with it is a fifteenth of the price of Where in onnxruntime.
        """
        b = self.b
        scale, zero = b.number(-share, np.float32), b.number(1, np.uint8)
        return b.aux("DequantizeLinear", [spikes, scale, zero], label, "kept")

    def decayed(self, state: str, factor: int, label: str, which: int, *, whole: bool = False) -> str:
        """``truncate(state · factor / 4096)``; `which` state: 0 is the membrane, 1 the current."""
        b = self.b

        def number(value: float) -> str:
            return b.number(value, self.dtype)

        if not state or not factor:
            return ""
        if factor == ONE:
            return state
        if whole or not self.plan.splits[which]:
            share = b.aux("Mul", [state, number(factor / ONE)], label, "share")
            return share if whole else self._truncated(share, label, "left")
        # The product needs more than 24 bits: the upper and the lower 12 bits of the state apart.
        upper = self._truncated(b.aux("Mul", [state, number(1 / ONE)], label, "turns"), label, "upper")
        lower = b.aux("Sub", [state, b.aux("Mul", [upper, number(ONE)], label, "upper_part")], label, "lower")
        share = self._truncated(b.aux("Mul", [lower, number(factor / ONE)], label, "share"), label, "lower_left")
        return b.aux("Add", [b.aux("Mul", [upper, number(factor)], label, "upper_left"), share], label, "left")

    def _truncated(self, value: str, label: str, what: str) -> str:
        """Rounded towards zero."""
        b = self.b
        if b.planar:  # OpenVINO joins these to one kernel with their neighbours, but not casts
            zero = b.number(0, self.dtype)
            down = b.aux("Max", [b.aux("Floor", [value], label, f"{what}_floor"), zero], label, f"{what}_positive")
            up = b.aux("Min", [b.aux("Ceil", [value], label, f"{what}_ceil"), zero], label, f"{what}_negative")
            return b.aux("Add", [down, up], label, what)
        integer = TensorProto.INT32 if self.dtype is np.float32 else TensorProto.INT64
        whole = b.aux("Cast", [value], label, f"{what}_whole", to=integer)
        return b.aux("Cast", [whole], label, what, to=self.element)

    def wrapped(self, u: str, label: str) -> str:
        """``u - 2^24 ((u > 2^23) - (u <= -2^23))``."""
        b = self.b
        if not self.plan.wraps:
            return u
        above = b.aux("Greater", [u, b.number(HALF, self.dtype)], label, "above")
        below = b.aux("LessOrEqual", [u, b.number(-HALF, self.dtype)], label, "below")
        sides = [
            b.aux("Cast", [side], label, what, to=self.element) for side, what in ((above, "over"), (below, "under"))
        ]
        turns = b.aux("Sub", sides, label, "turns")
        turned = b.aux("Mul", [turns, b.number(FULL, self.dtype)], label, "turned")
        return b.aux("Sub", [u, turned], label, "wrapped")

    def _sum(self, a: str, c: str, label: str, what: str) -> str:
        if not a or not c:
            return a or c
        return self.b.aux("Add", [a, c], label, what)

    # what a layer gives

    def signal(self, values: tuple[str, ...]) -> IntegerSignal:
        b, channels = self.b, self.shape[0]
        if not self.fires:
            return IntegerSignal(values, self.shape, "steps", self.dtype, b.ranges[self.name], heads=self.drive.heads)
        bounds = Interval(np.zeros(channels, dtype=np.int64), np.ones(channels, dtype=np.int64))
        dtype: DTypeLike = np.float32 if b.planar else np.uint8
        return IntegerSignal(values, self.shape, "steps", dtype, bounds, heads=self.drive.heads)

    def described(self, at: str) -> dict[str, object]:
        """For `metadata_props`: where the values of the layer are, and how."""
        told: dict[str, object] = {"name": self.name, "values": at, "shape": list(self.shape)}
        if self.drive.heads:
            told["heads"] = list(self.drive.heads)
        return told if self.fires else {**told, "integrates": True}


def _current(b: IntegerBuilder, name: str, node: Neurons, x: IntegerSignal) -> IntegerSignal:
    """``(x << input_exponent) << 6``, rounded down for negative exponents, in a type that holds it."""
    e = node.input_exponent
    if e >= 0:  # a power of two costs no bits
        return b.regain(b.real(x, name), GAIN << e, name)
    plain = b.real(b.whole_numbers(x, name), name)

    def shifted(value: str) -> str:
        share = b.aux("Mul", [value, b.number(2.0**e, plain.dtype)], value, f"shifted_{-e}")
        return b.aux("Floor", [share], value, f"shifted_{-e}/floor")

    return b.regain(b.apply(plain, f"shifted_{-e}", shifted, range=x.range.shifted(e)), GAIN, name)
