"""The float simulator: runs any graph of stock nodes and ours, layer by layer, in float32."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import reduce
from math import prod
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from statten_deploy.errors import GraphError, InputError, UnsupportedError
from statten_deploy.ir.graph import hints, inline_subgraphs, input_names, output_names, predecessors
from statten_deploy.ir.integer import is_quantised
from statten_deploy.ir.nodes import STAttenAttention
from statten_deploy.ir.schedule import Loop, Signal, Sum, make_schedule, makes
from statten_deploy.ir.shapes import Shape, infer_shapes
from statten_deploy.ir.verify import SPIKING, time_step, verify
from statten_deploy.simulate.device import full_float32, usable_device
from statten_deploy.simulate.operators import OPERATORS, Context, Operator

ACTIVATION_BUDGET = 256 * 2**20
"""Bytes of live signals that the automatic micro-batch stays below (one sample at a time is the least)."""

NEURONS = (nir.LIF, nir.CubaLIF, nir.IF, nir.LI, nir.CubaLI, nir.I)
"""Nodes with a membrane: before the first step it is at rest."""

Signals = dict[Signal, Tensor]


@dataclass(frozen=True)
class Result:
    """What a run gave.

    outputs: per Output node [B, T, ...], or [B, ...] where a TemporalMean (anywhere before it) removed the time axis.
    recorded: per asked node its signal [T, B, ...]; [B, ...] behind a TemporalMean.
    spike_counts: per spiking node (LIF, CubaLIF, IF, Threshold) the spikes of each sample over all steps, int64 [B].
    """

    outputs: dict[str, NDArray[np.float32]]
    recorded: dict[str, NDArray[np.float32]]
    spike_counts: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class _Frames:
    """One input as [T, B, *shape], or [1, B, *shape] where the same frame is held over all steps."""

    array: NDArray[Any]
    held: bool

    def part(self, start: int, stop: int) -> Tensor:
        """Some samples as a float32 tensor of its own."""
        return torch.from_numpy(np.array(self.array[:, start:stop], dtype=np.float32, order="C"))


@dataclass
class _Collector:
    """The results of all micro-batches, written into arrays of the whole batch."""

    batch: int
    steps: int
    timeless: frozenset[str]
    arrays: dict[tuple[str, bool], NDArray[np.float32]] = field(default_factory=dict)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def store(self, name: str, x: Tensor, start: int, batch_first: bool) -> None:
        shape: Shape
        if name in self.timeless:
            value, rows, shape = x[0], 0, (self.batch, *x.shape[2:])
        else:
            value = x.expand(self.steps, *x.shape[1:])
            rows, shape = 1, (self.steps, self.batch, *x.shape[2:])
            if batch_first:
                value, rows, shape = value.transpose(0, 1), 0, (self.batch, self.steps, *x.shape[2:])
        array = self.arrays.setdefault((name, batch_first), np.empty(shape, dtype=np.float32))
        where = slice(start, start + x.shape[1])
        array[(slice(None),) * rows + (where,)] = value.cpu().numpy()

    def count(self, name: str, x: Tensor, start: int) -> None:
        flat = x.flatten(2)
        exact = torch.float32 if flat.shape[2] <= 2**24 else torch.float64  # float32 counts to 2^24 without a gap
        per_step = flat.sum(2, dtype=exact).to(torch.int64)
        total = per_step.sum(0) * (self.steps if x.shape[0] == 1 else 1)
        target = self.counts.setdefault(name, np.zeros(self.batch, dtype=np.int64))
        target[start : start + x.shape[1]] = total.cpu().numpy()


class Simulator:
    """Runs a graph of stock NIR nodes and ours, one Euler step of dt per time step.

    An acyclic graph runs layer by layer: each node once, on a block [T, B, ...], vectorised over everything but time.
    The nodes of a loop run step by step with the same operators; inside a loop, order is depth first from the node
    where a signal enters it, and the edges against that order (the recurrent ones) arrive one step later: at the first
    step with what their source gives in silence: the bias of recurrent weights, the rest of an integrator. Several
    edges into one port are added left to right in edge order.

    Args:
        graph: any graph that `statten_deploy.ir.verify` accepts; nested stock graphs are inlined.
        time_steps: T for static inputs; the graph's own hint by default. Inputs with a time axis bring their own T.
        dt: seconds per step; the graph's own hint by default, else 1e-4.
        device: where torch computes, ``cpu`` or ``cuda``.
        micro_batch: samples computed at a time; by default as many as keep live signals below 256 MiB.

    Raises:
        GraphError: the graph is not valid. UnsupportedError: it is a quantised graph.
        InputError: a device that does not exist, or numbers that are not positive.
    """

    def __init__(
        self,
        graph: nir.NIRGraph,
        *,
        time_steps: int | None = None,
        dt: float | None = None,
        device: str | torch.device = "cpu",
        micro_batch: int | None = None,
    ) -> None:
        self.graph = inline_subgraphs(graph)
        if is_quantised(self.graph):
            raise UnsupportedError(
                "the float simulator does not run quantised graphs; use statten_deploy.fixed_point.runner.IntegerRunner"
            )
        self.dt = _positive("dt", time_step(self.graph) if dt is None else float(dt))
        self._asked_steps = time_steps
        told = hints(self.graph).get("time_steps") if time_steps is None else time_steps
        self.time_steps = None if told is None else int(_positive("time_steps", int(told)))
        self.micro_batch = None if micro_batch is None else int(_positive("micro_batch", micro_batch))
        self.device = usable_device(device)
        verify(self.graph, dt=self.dt)
        self.shapes = infer_shapes(self.graph)
        self.schedule = make_schedule(self.graph)
        self._operators = {
            name: self._operator(name, [sources[0] for sources in into.values()])
            for name, into in predecessors(self.graph).items()
            if not isinstance(self.graph.nodes[name], nir.Input)
        }
        self._spiking = [name for name, node in self.graph.nodes.items() if isinstance(node, SPIKING)]

    def _operator(self, name: str, sources: list[str]) -> Operator:
        node = self.graph.nodes[name]
        context = Context(tuple(self.shapes[source] for source in sources), self.dt, self.device)
        try:
            return OPERATORS[type(node)](node, context)
        except GraphError as error:
            raise GraphError(f"{name!r}: {error}") from None

    # running

    def run(
        self,
        x: ArrayLike | Mapping[str, ArrayLike],
        record: str | Iterable[str] = (),
    ) -> Result:
        """Simulate a batch from the initial state.

        Args:
            x: [B, *shape] (the same frame at every step) or [B, T, *shape] (one frame per step); for a graph with
                several Inputs a mapping from their names.
            record: names of nodes whose signals to return, or ``"spikes"`` for every spiking node.

        Raises:
            InputError: a shape that does not fit the graph, an unknown name, T unknown or not a multiple of a window.
        """
        frames = self._frames(x)
        steps, batch = self._lengths(frames)
        wanted = self._wanted(record)
        collector = _Collector(batch, steps, self.schedule.timeless)
        size = self.micro_batch or self._automatic_batch(steps, frames)
        with torch.inference_mode(), full_float32(self.device):
            for start in range(0, batch, size):
                part = {name: frame.part(start, start + size).to(self.device) for name, frame in frames.items()}
                self._run_part(part, steps, start, wanted, collector)
        outputs = output_names(self.graph)
        return Result(
            outputs={name: collector.arrays[name, True] for name in outputs},
            recorded={name: collector.arrays[name, False] for name in wanted},
            spike_counts=collector.counts,
        )

    def _run_part(
        self, frames: Mapping[str, Tensor], steps: int, start: int, wanted: list[str], collector: _Collector
    ) -> None:
        signals: Signals = {}
        batch = next(iter(frames.values())).shape[1]
        keep, outputs, spiking = set(wanted), set(output_names(self.graph)), set(self._spiking)
        for task, release in zip(self.schedule.tasks, self.schedule.release, strict=True):
            if isinstance(task, Sum):
                signals[task.result] = signals[task.result[:-1]] + signals[task.result[-1:]]
            elif isinstance(task, Loop):
                signals.update(self._run_loop(task, signals, steps, batch))
            elif task.name in frames:
                signals[task.name,] = frames[task.name]
            else:
                inputs = [signals[signal] for signal in task.inputs]
                signals[task.name,], _ = self._operators[task.name](steps, None, *inputs)
            for name in [signal[0] for signal in makes(task) if len(signal) == 1]:
                if name in spiking:
                    collector.count(name, signals[name,], start)
                if name in keep:
                    collector.store(name, signals[name,], start, batch_first=False)
                if name in outputs:
                    collector.store(name, signals[name,], start, batch_first=True)
            for signal in release:
                del signals[signal]

    def _run_loop(self, loop: Loop, signals: Signals, steps: int, batch: int) -> Signals:
        """The nodes of a cycle, one step at a time."""
        states: dict[str, Any] = dict.fromkeys(loop.names)
        # What every node gave last: this step's value once it has run, the previous step's before that.
        latest = self._silence(loop, batch)
        history = {name: value.new_empty((steps, *value.shape[1:])) for name, value in latest.items()}

        def value(source: str, t: int) -> Tensor:
            if source in latest:
                return latest[source]
            outside = signals[source,]
            return outside[t : t + 1] if outside.shape[0] > 1 else outside

        for t in range(steps):
            for name in loop.names:
                inputs = [reduce(torch.add, [value(s, t) for s in sources]) for sources in loop.inputs[name]]
                latest[name], states[name] = self._operators[name](1, states[name], *inputs)
                history[name][t] = latest[name][0]
        return {(name,): values for name, values in history.items()}

    def _silence(self, loop: Loop, batch: int) -> dict[str, Tensor]:
        """What the nodes of a cycle give before the first step: nothing arrives from outside, no neuron has fired.

        Integrators are at rest. What has no memory is computed from there; delays hold nothing, but those of no steps.
        """

        def zeros(name: str) -> Tensor:
            return torch.zeros((1, batch, *self.shapes[name]), device=self.device)

        quiet = {name: zeros(name) for name in loop.names}
        neurons = {name for name in loop.names if isinstance(self.graph.nodes[name], NEURONS)}
        for name in neurons:
            node = self.graph.nodes[name]
            if not isinstance(node, SPIKING):
                rest = np.asarray(getattr(node, "v_leak", 0), dtype=np.float32)
                quiet[name] += torch.from_numpy(rest).to(self.device)
        if any(source not in neurons for source, _ in loop.recurrent):
            for name in loop.names:
                if name not in neurons:
                    inputs = [
                        reduce(torch.add, [quiet.get(s, zeros(s)) for s in sources]) for sources in loop.inputs[name]
                    ]
                    quiet[name], _ = self._operators[name](1, None, *inputs)
        return quiet

    # inputs

    def _frames(self, x: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, _Frames]:
        names = input_names(self.graph)
        if not isinstance(x, Mapping):
            if len(names) > 1:
                raise InputError(f"the graph has the inputs {', '.join(names)}; give a dict with one array for each")
            x = {names[0]: x}
        if set(x) != set(names):
            raise InputError(f"inputs given: {', '.join(map(str, x)) or 'none'}; the graph takes {', '.join(names)}")
        return {name: _frames(name, np.asarray(x[name]), self.shapes[name]) for name in names}

    def _lengths(self, frames: Mapping[str, _Frames]) -> tuple[int, int]:
        """(T, B) of this run, checked against each other and the windows."""
        batches = {name: frame.array.shape[1] for name, frame in frames.items()}
        if len(set(batches.values())) > 1:
            raise InputError(f"inputs differ in batch size: {batches}")
        lengths = {name: frame.array.shape[0] for name, frame in frames.items() if not frame.held}
        if len(set(lengths.values())) > 1:
            raise InputError(f"inputs differ in the number of steps: {lengths}")
        steps = next(iter(lengths.values()), self.time_steps)
        if steps is None:
            raise InputError("the graph does not say how many time steps to run; give time_steps")
        if self._asked_steps is not None and steps != self._asked_steps:
            raise InputError(f"the input has {steps} time steps, time_steps says {self._asked_steps}")
        for name, node in self.graph.nodes.items():
            if isinstance(node, STAttenAttention) and node.mode == "block" and steps % node.window:
                raise InputError(
                    f"{name!r} attends over chunks of {node.window} steps, but there are {steps} steps; "
                    f"expected a multiple of {node.window}"
                )
        return steps, next(iter(batches.values()))

    def _wanted(self, record: str | Iterable[str]) -> list[str]:
        if record == "spikes":
            return list(self._spiking)
        wanted = list(dict.fromkeys([record] if isinstance(record, str) else record))
        for name in wanted:
            if name not in self.graph.nodes:
                close = get_close_matches(name, self.graph.nodes, 3)
                hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
                raise InputError(f"cannot record {name!r}: the graph has no such node{hint}")
        return wanted

    def _automatic_batch(self, steps: int, frames: Mapping[str, _Frames]) -> int:
        """How many samples keep the live signals below the budget."""
        size: dict[Signal, int] = {}
        live = peak = 0
        for task, release in zip(self.schedule.tasks, self.schedule.release, strict=True):
            for signal in makes(task):
                name = signal[-1]
                length = frames[name].array.shape[0] if name in frames else steps
                size[signal] = 4 * length * prod(self.shapes[name])
                live += size[signal]
            peak = max(peak, live)
            live -= sum(size[signal] for signal in release)
        return max(1, ACTIVATION_BUDGET // max(peak, 1))


def _frames(name: str, array: NDArray[Any], shape: Shape) -> _Frames:
    """Tell a held frame from one frame per step by the number of axes."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"input {name!r} holds {array.dtype}, expected numbers")
    held = array.ndim == len(shape) + 1
    if not (held or array.ndim == len(shape) + 2) or array.shape[array.ndim - len(shape) :] != shape:
        sizes = ", ".join(map(str, shape))
        raise InputError(
            f"input {name!r} has shape {array.shape}, expected (batch, {sizes}) for one frame held over all steps "
            f"or (batch, steps, {sizes}) for one frame per step"
        )
    if array.size == 0:
        raise InputError(f"input {name!r} is empty: its shape is {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"input {name!r} holds NaN or infinite values")
    return _Frames(array[None] if held else array.swapaxes(0, 1), held)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise InputError(f"{name} must be positive, got {value:g}")
    return value
