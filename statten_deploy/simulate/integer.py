"""Runs a quantised graph in torch, on the CPU or a GPU, to the same integers as the numpy reference.

Neurons compute in torch integers. Between them signals are floats that hold whole numbers: spikes, counts and currents.
A product of matrices adds numbers below the mantissa, 2^24 for float32 and 2^53 for float64, so it is exact in any
order of summation, on any device; proven ranges tell which type is enough. What must not happen is another algorithm
or a shorter mantissa: `exact_floats` rules them out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from math import prod
from typing import Any

import nir
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.fixed_point.ranges import Interval, integer_ranges
from statten_deploy.fixed_point.runner import IntegerResult, refuse_windows_in_loops, sources
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool, predecessors
from statten_deploy.ir.graph import hints
from statten_deploy.ir.integer import (
    INTEGER_NEURONS,
    InputEncoder,
    IntegerConv2d,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.schedule import Loop, Run, Sum, make_schedule, makes
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.simulate.device import usable_device
from statten_deploy.simulate.integer_neurons import IntegerNeurons, State
from statten_deploy.simulate.operators import OPERATORS, Context, Operator

FLOAT32_EXACT, FLOAT64_EXACT = 1 << 24, 1 << 53
ACTIVATION_BUDGET = 64 * 2**20
"""Bytes of live signals that a micro-batch stays below (one sample at a time is the least)."""
SHARED = (SpikeMaxPool2d, MaxPool2d, STAttenAttention, SpikeAnd, TokenMaxPool, nir.Flatten, nir.Output)
"""Nodes that act on whole numbers as they do on floats: the float simulator's operators run them."""
OWN = (nir.Input, InputEncoder, IntegerConv2d, IntegerLinear, IntegerSumPool2d, *INTEGER_NEURONS, TemporalSum)
Observer = Callable[[str, IntegerNeurons, Tensor], None]


class IntegerNetwork:
    """A quantised graph as torch operations on one device; signals are [T, B, ...], or [1, B, ...] while held.

    Raises:
        UnsupportedError: nodes without an integer operation (all are named), or sums too large for float64.
        InputError: a device that does not exist.
    """

    def __init__(self, graph: nir.NIRGraph, device: str | torch.device = "cpu") -> None:
        self.graph, self.device = graph, usable_device(device)
        kinds = {name: type(node) for name, node in graph.nodes.items()}
        unknown = [f"{name} ({kind.__name__})" for name, kind in kinds.items() if kind not in (*SHARED, *OWN)]
        if unknown:
            raise UnsupportedError(f"not a quantised graph: no integer operation for {', '.join(unknown)}")
        refuse_windows_in_loops(graph)
        schedule = make_schedule(graph)
        self.tasks: list[Run | Loop] = [task for task in schedule.tasks if not isinstance(task, Sum)]
        self.timeless = schedule.timeless
        self.order = [signal[0] for task in self.tasks for signal in makes(task)]
        self.into = predecessors(graph)
        self.time_steps = int(hints(graph)["time_steps"])
        self.shapes = infer_shapes(graph)
        self.ranges, self.currents = integer_ranges(graph)
        self.last_use = {name: index for index, task in enumerate(self.tasks) for name in sources(task)}
        self.neurons: dict[str, IntegerNeurons] = {}
        self.weights: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.constants: dict[str, tuple[Tensor, Tensor]] = {}
        self.operators: dict[str, Operator] = {}
        self.types = {name: self._float_type(name) for name in self.order}
        for name in self.order:
            self._prepare(name, graph.nodes[name])

    # what is known before the first input

    def _prepare(self, name: str, node: Any) -> None:
        if isinstance(node, IntegerConv2d | IntegerLinear):
            scaled = node.weight * 2.0 ** node.exponent.reshape(-1, *(1,) * (node.weight.ndim - 1))
            bias = self._tensor(name, node.bias) if isinstance(node, IntegerLinear) or node.bias.any() else None
            self.weights[name] = self._tensor(name, scaled), bias
        elif isinstance(node, InputEncoder):
            rank = (-1, *(1,) * (len(self.shapes[name]) - 1))
            scale, zero = (
                torch.from_numpy(np.asarray(value, dtype=np.float64)).reshape(rank).to(self.device)
                for value in (node.scale, node.zero_point)
            )
            self.constants[name] = scale, zero
        elif isinstance(node, INTEGER_NEURONS):
            inputs = _total([self.ranges[source] for source in self.into[name]["input"]])
            self.neurons[name] = IntegerNeurons(node, inputs, self.currents[name], self.time_steps, self.device)
        elif isinstance(node, SHARED):
            shapes = tuple(self.shapes[sources[0]] for sources in self.into[name].values())
            self.operators[name] = OPERATORS[type(node)](node, Context(shapes, 1.0, self.device))

    def _tensor(self, name: str, value: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64)).to(self.device, self.types[name])

    def _float_type(self, name: str) -> torch.dtype:
        """The type that holds every partial sum of a node and of its inputs."""
        node = self.graph.nodes[name]
        inputs = max((_bound(self.ranges, sources) for sources in self.into[name].values()), default=0)
        bound = max(inputs, self.ranges[name].magnitude)
        if isinstance(node, IntegerConv2d | IntegerLinear):
            # A row scaled by 2^e sums multiples of 2^e: as exact as the row of integers.
            rows = int(np.abs(node.weight).reshape(len(node.weight), -1).sum(1).max(initial=0))
            bound = max(bound, rows * max(inputs, 1))
        elif isinstance(node, IntegerSumPool2d):
            bound = max(bound, inputs * prod(node.kernel_size))
        elif isinstance(node, STAttenAttention):
            height, width = self.shapes[name][1:]
            bound = max(bound, self.time_steps * height * width * max(inputs, 1) ** 2)
        if bound >= FLOAT64_EXACT:
            raise UnsupportedError(f"node {name!r}: sums of up to {bound:.1e} do not fit the 53 bits of float64")
        return torch.float32 if bound < FLOAT32_EXACT else torch.float64

    # running

    def run(self, x: Tensor, keep: Iterable[str] = (), observe: Observer | None = None) -> dict[str, Tensor]:
        """Signals of the Output nodes and of the nodes in `keep`, from x [B, C, H, W] or [B, T, C, H, W] in real units.

        `observe` sees the membranes before reset of every neuron layer.
        """
        wanted = {name for name in self.order if isinstance(self.graph.nodes[name], nir.Output)} | set(keep)
        kept: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        with exact_floats(self.device):
            for index, task in enumerate(self.tasks):
                if isinstance(task, Loop):
                    values |= self._loop(task, values, observe)
                elif isinstance(self.graph.nodes[task.name], nir.Input):
                    values[task.name] = self._frames(task.name, x)
                else:
                    values[task.name] = self.step(task.name, self._operands(task.name, values), observe)
                kept |= {name: values[name] for (name,) in makes(task) if name in wanted}
                for source in sources(task):
                    if self.last_use[source] == index:
                        del values[source]
        return kept

    def _operands(self, name: str, values: Mapping[str, Tensor]) -> list[Tensor]:
        return [self._sum(name, [values[source] for source in given]) for given in self.into[name].values()]

    def _loop(self, loop: Loop, values: Mapping[str, Tensor], observe: Observer | None) -> dict[str, Tensor]:
        """The nodes of a loop, step by step: as `statten_deploy.simulate.Simulator` does it."""
        batch = next(iter(values.values())).shape[1]
        latest = self._silence(loop, batch)
        states: dict[str, State] = {}
        history: dict[str, list[Tensor]] = {name: [] for name in loop.names}
        membranes: dict[str, list[Tensor]] = {name: [] for name in loop.names if name in self.neurons}
        outside = {source: values[source] for source in sources(loop)}
        for t in range(self.time_steps):
            now = {source: x[t : t + 1] if len(x) > 1 else x for source, x in outside.items()}
            for name in loop.names:
                operands = self._operands(name, {**now, **latest})
                if name in self.neurons:
                    before, states[name] = self.neurons[name].run(operands[0], 1, states.get(name))
                    latest[name] = self.neurons[name].output(before, self.types[name])
                    membranes[name].append(before)
                else:
                    latest[name] = self.step(name, operands, None)
                history[name].append(latest[name])
        if observe is not None:
            for name, steps in membranes.items():
                observe(name, self.neurons[name], torch.cat(steps))
        return {name: torch.cat(steps) for name, steps in history.items()}

    def _silence(self, loop: Loop, batch: int) -> dict[str, Tensor]:
        """What the nodes of a loop give before the first step: nothing arrives, no neuron has fired."""
        names = {*loop.names, *sources(loop)}
        quiet = {
            name: torch.zeros((1, batch, *self.shapes[name]), device=self.device, dtype=self.types[name])
            for name in names
        }
        for name in loop.names:
            if name not in self.neurons:
                quiet[name] = self.step(name, self._operands(name, quiet), None)
        return {name: quiet[name] for name in loop.names}

    def _frames(self, name: str, x: Tensor) -> Tensor:
        """[T or 1, B, ...]: a static image keeps one step until its first neuron."""
        shape = self.shapes[name]
        if tuple(x.shape[1:]) == shape:
            return x[None]
        if tuple(x.shape[1:]) == (self.time_steps, *shape):
            return x.transpose(0, 1)
        expected = ", ".join(map(str, shape))
        raise InputError(
            f"input of shape {list(x.shape)}: expected [batch, {expected}] or [batch, {self.time_steps}, {expected}]"
        )

    def _sum(self, name: str, values: list[Tensor]) -> Tensor:
        if isinstance(self.graph.nodes[name], InputEncoder):
            return values[0]
        return reduce(torch.add, [value.to(self.types[name]) for value in values])

    def step(self, name: str, operands: list[Tensor], observe: Observer | None) -> Tensor:
        """The result of one node."""
        node: Any = self.graph.nodes[name]
        if isinstance(node, INTEGER_NEURONS):
            return self.fire(name, operands[0], observe)
        if isinstance(node, IntegerConv2d):
            return self._convolve(node, operands[0], *self.weights[name])
        if isinstance(node, IntegerLinear):
            weight, bias = self.weights[name]
            product = _floored(F.linear(operands[0], weight), node.exponent)
            return product if bias is None else product + bias
        if isinstance(node, IntegerSumPool2d):
            (x,) = operands
            total = F.avg_pool2d(x.flatten(0, 1), node.kernel_size, node.stride, divisor_override=1)
            return _by_steps(_floored(total * 2.0**node.exponent, node.exponent), x)
        if isinstance(node, InputEncoder):
            scale, zero = self.constants[name]
            stored = torch.clamp(torch.round(operands[0].to(self.device, torch.float64) / scale), 0, 255)
            return (stored - zero).to(torch.float32)
        if isinstance(node, TemporalSum):
            return operands[0].sum(0) * (self.time_steps // len(operands[0]))  # a held signal counts at every step
        result, _ = self.operators[name](self.time_steps, None, *operands)
        return result

    def fire(self, name: str, x: Tensor, observe: Observer | None) -> Tensor:
        """Spikes [T, B, ...] of a neuron layer, or membranes of integrators."""
        layer = self.neurons[name]
        before = layer(x)
        if observe is not None:
            observe(name, layer, before)
        return layer.output(before, self.types[name])

    def _convolve(self, node: IntegerConv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = x.flatten(0, 1)
        convolve = F.conv2d if self.device.type == "cpu" else conv2d_by_patches
        result = convolve(flat, weight, None, node.stride, node.padding, node.dilation, node.groups)
        floored = _floored(result, node.exponent)
        return _by_steps(floored if bias is None else floored + bias.reshape(-1, 1, 1), x)


class TorchIntegerRunner:
    """Runs a quantised graph in torch: what `statten_deploy.fixed_point.runner.IntegerRunner` gives, bit for bit.

    Args:
        graph: as `statten_deploy.quantize.quantize` makes it.
        device: ``cpu`` or ``cuda``.

    Raises:
        UnsupportedError, InputError: as `IntegerNetwork`.
    """

    def __init__(self, graph: nir.NIRGraph, device: str | torch.device = "cpu") -> None:
        self.network = IntegerNetwork(graph, device)

    def run(self, x: NDArray[Any], *, spikes: bool = False, membranes: bool = False) -> IntegerResult:
        """Run x [B, C, H, W] (the same frame at every step) or [B, T, C, H, W]; real values, encoded by the graph.

        `spikes` and `membranes` (after reset) keep [T, B, ...] per neuron layer.

        Raises:
            InputError: x has another shape.
        """
        samples = np.asarray(x)
        size = self._micro_batch()
        starts = range(0, max(len(samples), 1), size)
        parts = [self._part(samples[start : start + size], spikes, membranes) for start in starts]
        joined: dict[str, Any] = {}
        for kind, axis in (("outputs", 0), ("spikes", 1), ("membranes", 1), ("spike_counts", 0)):
            names = getattr(parts[0], kind)
            joined[kind] = {name: np.concatenate([getattr(part, kind)[name] for part in parts], axis) for name in names}
        return IntegerResult(**joined)

    def _part(self, x: NDArray[Any], spikes: bool, membranes: bool) -> IntegerResult:
        result = IntegerResult({})

        def observe(name: str, layer: IntegerNeurons, before: Tensor) -> None:
            if layer.fires:
                fired = before > layer.limit
                result.spike_counts[name] = fired.sum(dim=(0, *range(2, fired.ndim))).cpu().numpy()
                if spikes:
                    result.spikes[name] = fired.cpu().numpy()
            if membranes:
                result.membranes[name] = layer.reset(before).to(torch.int32).cpu().numpy()

        with torch.inference_mode():
            outputs = self.network.run(torch.from_numpy(np.array(x, order="C")), observe=observe)
        for name, value in outputs.items():
            if name not in self.network.timeless:
                value = value.expand(self.network.time_steps, *value.shape[1:]).transpose(0, 1)
            result.outputs[name] = value.to(torch.int64).cpu().numpy()
        return result

    def _micro_batch(self) -> int:
        """How many samples keep the live signals below the budget."""
        network = self.network
        size: dict[str, int] = {}
        live = peak = 0
        for index, task in enumerate(network.tasks):
            work = 0
            for (name,) in makes(task):
                node = network.graph.nodes[name]
                size[name] = 4 * network.time_steps * prod(network.shapes[name])
                live += size[name]
                if isinstance(node, INTEGER_NEURONS):
                    work += 2 * size[name]  # currents and membranes as integers
                elif isinstance(node, IntegerConv2d) and network.device.type != "cpu":
                    patches = 1 + prod(node.weight.shape[1:]) // node.weight.shape[0]
                    work += size[name] * patches
                else:
                    work += size[name]
            peak = max(peak, live + work)
            live -= sum(size[source] for source in sources(task) if network.last_use[source] == index)
        return max(1, ACTIVATION_BUDGET // max(peak, 1))


def conv2d_by_patches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """`torch.nn.functional.conv2d` as patches times weights.

    cuDNN is free to take Winograd's or Fourier's algorithm, which compute with fractions; a matrix product cannot.
    """
    out, _, kh, kw = weight.shape
    height, width = (
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, pad, gap, kernel, step in zip(x.shape[2:], padding, dilation, (kh, kw), stride, strict=True)
    )
    patches = F.unfold(x, (kh, kw), dilation, padding, stride) if (kh, kw, *stride) != (1,) * 4 or any(padding) else x
    patches = patches.reshape(len(x), groups, -1, height * width)  # [B, groups, in · kh · kw, H' W']
    result = (weight.reshape(groups, out // groups, -1) @ patches).reshape(len(x), out, height, width)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


@contextmanager
def exact_floats(device: torch.device) -> Iterator[None]:
    """Products with the whole mantissa and by multiply and add: no TF32, no bfloat16, no autocast, no NNPACK.

    TF32 keeps 11 bits and bfloat16 8; NNPACK convolves by Winograd and Fourier transforms, whose fractions round.
    """
    switches: list[Any] = [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.backends.nnpack.flags(enabled=False))
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, precision in zip(switches, before, strict=True):
                switch.fp32_precision = precision


class _Floor(torch.autograd.Function):
    """Rounds down; gradients pass straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.floor(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def _floored(x: Tensor, exponent: int | NDArray[Any]) -> Tensor:
    """What was scaled by 2^exponent, with the fractions cut that a right shift drops."""
    result: Tensor = _Floor.apply(x) if np.min(exponent) < 0 else x
    return result


def _by_steps(y: Tensor, x: Tensor) -> Tensor:
    """[T · B, ...] -> [T, B, ...], T and B as in x."""
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _total(intervals: list[Interval]) -> Interval:
    return reduce(lambda a, b: a + b, intervals)


def _bound(ranges: dict[str, Interval], sources: list[str]) -> int:
    """No partial sum of what arrives is larger."""
    return sum(ranges[source].magnitude for source in sources)
