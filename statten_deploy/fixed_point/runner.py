"""Runs a quantised graph in numpy, in integers: layer by layer over all steps, loops step by step.

Sums of products go through floating-point matrix products whose every partial sum is a whole number below the mantissa
(2^24 for float32, 2^53 for float64): they are exact in any order. Which one is enough is decided from the weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.fixed_point.arithmetic import Int, li_step, lif_step, shift, synapse_step
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool, predecessors
from statten_deploy.ir.graph import hints, input_names
from statten_deploy.ir.integer import (
    INTEGER_NEURONS,
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.schedule import Loop, Run, Sum, make_schedule, uses, windows_in_loops
from statten_deploy.ir.shapes import infer_shapes

FLOAT32_EXACT = 1 << 24
PATCH_BYTES = 4 << 20
"""Convolutions gather the patches of as many images at a time as stay below this."""
SIGNAL_BYTES = 64 << 20
"""The largest signal of a micro-batch stays below this, or is that of one sample."""

Watch = Callable[[str, Int], None]


@dataclass
class IntegerResult:
    """What a run gave.

    outputs: per Output node [B, T, ...], or [B, ...] behind a sum over time.
    spikes, membranes: what was recorded per neuron layer, [T, B, ...]; membranes after reset. Integrators have
        membranes only.
    spike_counts: spikes of every layer that fires over all steps, per sample [B].
    """

    outputs: dict[str, Int]
    spikes: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    membranes: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    spike_counts: dict[str, Int] = field(default_factory=dict)


class IntegerRunner:
    """Runs a quantised graph, as `statten_deploy.quantize.quantize` makes it.

    Raises:
        UnsupportedError: the graph holds nodes without an integer operation; all are named.
    """

    def __init__(self, graph: nir.NIRGraph) -> None:
        self.graph = graph
        kinds = {name: type(node) for name, node in graph.nodes.items()}
        unknown = [f"{name} ({kind.__name__})" for name, kind in kinds.items() if kind not in OPERATIONS]
        if unknown:
            raise UnsupportedError(f"not a quantised graph: no integer operation for {', '.join(unknown)}")
        refuse_windows_in_loops(graph)
        schedule = make_schedule(graph)
        self.tasks: list[Run | Loop] = [task for task in schedule.tasks if not isinstance(task, Sum)]
        self.timeless = schedule.timeless
        self.into = predecessors(graph)
        self.time_steps = int(hints(graph)["time_steps"])
        self.last_use = {name: index for index, task in enumerate(self.tasks) for name in sources(task)}
        self.shapes = infer_shapes(graph)
        largest = max(int(np.prod(shape)) for shape in self.shapes.values())
        self.at_once = max(1, SIGNAL_BYTES // (8 * self.time_steps * largest))

    def run(
        self,
        x: NDArray[Any],
        *,
        spikes: bool = False,
        membranes: bool = False,
        watch: Watch | None = None,
    ) -> IntegerResult:
        """Run x [B, C, H, W] (the same frame at every step) or [B, T, C, H, W]; real values, encoded by the graph.

        `spikes` and `membranes` (after reset) keep [T, B, ...] per neuron layer. `watch` is called with a node's name
        and what arrives at it (its first port, added up) when the node has run: [T, B', ...], or [1, B', ...] where it
        never changes, [B', ...] behind a sum over time, for a part B' of the batch after the other.

        Raises:
            InputError: x has another shape.
        """
        name = input_names(self.graph)[0]
        shape = tuple(int(n) for n in self.graph.nodes[name].input_type["input"])
        frames = _frames(np.asarray(x), shape, self.time_steps)
        starts = range(0, max(len(x), 1), self.at_once)
        parts = [self._run(frames[:, start : start + self.at_once], spikes, membranes, watch) for start in starts]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _run(self, frames: NDArray[Any], spikes: bool, membranes: bool, watch: Watch | None) -> IntegerResult:
        result = IntegerResult({})
        values: dict[str, NDArray[Any]] = {}
        state = _State(self.time_steps, result, spikes, membranes, watch=watch)
        for index, task in enumerate(self.tasks):
            if isinstance(task, Loop):
                self._loop(task, values, state)
            elif isinstance(self.graph.nodes[task.name], nir.Input):
                values[task.name] = frames
            else:
                self._node(task.name, values, state)
            for source in sources(task):
                if self.last_use[source] == index:
                    del values[source]
        return result

    def _node(self, name: str, values: dict[str, NDArray[Any]], state: "_State") -> None:
        """One node over all steps."""
        node = self.graph.nodes[name]
        operands = [_sum([values[source] for source in sources]) for sources in self.into[name].values()]
        state.name = name
        values[name] = OPERATIONS[type(node)](node, state, *operands)
        if state.watch is not None:
            state.watch(name, operands[0])
        if isinstance(node, nir.Output):
            value = values[name]
            state.result.outputs[name] = value if name in self.timeless else self._every_step(value)

    def _loop(self, loop: Loop, values: dict[str, NDArray[Any]], state: "_State") -> None:
        """The nodes of a loop, step by step: as `statten_deploy.simulate.Simulator` does it."""
        batch = next(iter(values.values())).shape[1]
        one = _State(1, IntegerResult({}), spikes=False, membranes=True, memory={})
        latest = self._silence(loop, batch, one)
        history = {name: np.empty((self.time_steps, batch, *self.shapes[name]), dtype=np.int64) for name in loop.names}
        arrived: dict[str, list[Int]] = {name: [] for name in loop.names}
        after: dict[str, list[NDArray[np.int32]]] = {
            name: [] for name in loop.names if isinstance(self.graph.nodes[name], INTEGER_NEURONS)
        }

        def value(source: str, t: int) -> Int:
            if source in latest:
                return latest[source]
            outside = values[source]
            return outside[t : t + 1] if len(outside) > 1 else outside

        for t in range(self.time_steps):
            for name in loop.names:
                operands = [_sum([value(source, t) for source in sources]) for sources in loop.inputs[name]]
                node, one.name = self.graph.nodes[name], name
                latest[name] = OPERATIONS[type(node)](node, one, *operands)
                history[name][t] = latest[name][0]
                if name in after:
                    after[name].append(one.result.membranes[name])
                if state.watch is not None:
                    arrived[name].append(operands[0])
        for name, output in history.items():
            values[name] = output
            if name in after:
                state.record(name, self.graph.nodes[name], output, np.concatenate(after[name]))
            if state.watch is not None:
                state.watch(name, np.concatenate(arrived[name]))

    def _silence(self, loop: Loop, batch: int, one: "_State") -> dict[str, Int]:
        """What the nodes of a loop give before the first step: nothing arrives, no neuron has fired."""

        def zeros(name: str) -> Int:
            return np.zeros((1, batch, *self.shapes[name]), dtype=np.int64)

        quiet = {name: zeros(name) for name in loop.names}
        for name in loop.names:
            node = self.graph.nodes[name]
            if not isinstance(node, INTEGER_NEURONS):
                inputs = [_sum([quiet.get(s, zeros(s)) for s in sources]) for sources in loop.inputs[name]]
                quiet[name] = OPERATIONS[type(node)](node, one, *inputs)
        return quiet

    def _every_step(self, x: Int) -> Int:
        """[T, B, ...] or a held [1, B, ...] as [B, T, ...]."""
        return np.broadcast_to(x, (self.time_steps, *x.shape[1:])).swapaxes(0, 1)


def refuse_windows_in_loops(graph: nir.NIRGraph) -> None:
    """Raises UnsupportedError where attention over several steps is part of a loop."""
    problems = windows_in_loops(graph)
    if problems:
        raise UnsupportedError(f"not possible in integers: {'; '.join(problems)}")


def sources(task: Run | Loop) -> set[str]:
    """The nodes outside of a task whose results it reads."""
    return {name for signal in uses(task) for name in signal}


def _joined(parts: list[IntegerResult]) -> IntegerResult:
    def join(kind: str, axis: int) -> dict[str, NDArray[Any]]:
        first: dict[str, NDArray[Any]] = getattr(parts[0], kind)
        return {name: np.concatenate([getattr(part, kind)[name] for part in parts], axis) for name in first}

    kinds = {"outputs": 0, "spikes": 1, "membranes": 1, "spike_counts": 0}
    return IntegerResult(**{kind: join(kind, axis) for kind, axis in kinds.items()})


def real_outputs(graph: nir.NIRGraph, outputs: Mapping[str, Int]) -> dict[str, NDArray[np.float32]]:
    """Integer outputs in real units: a sum over time times its scale, a current over its scale, spikes as they are."""
    into = predecessors(graph)
    real = {}
    for name, value in outputs.items():
        source = graph.nodes[into[name]["input"][0]]
        factor: Any = 1.0
        if isinstance(source, TemporalSum):
            factor = source.scale
        elif isinstance(source, IntegerConv2d | IntegerLinear | IntegerLI):
            axes = len(source.shape) if isinstance(source, IntegerLI) else source.weight.ndim - 1
            factor = (1 / source.scale).reshape(-1, *(1,) * (axes - 1))
        real[name] = (value * factor).astype(np.float32)
    return real


@dataclass
class _State:
    """`memory` keeps (u, v) of neurons from call to call, where a loop calls them step by step."""

    time_steps: int
    result: IntegerResult
    spikes: bool
    membranes: bool
    name: str = ""
    memory: dict[str, tuple[Int, Int]] | None = None
    watch: "Watch | None" = None

    def record(self, name: str, node: nir.NIRNode, output: Int, membranes: NDArray[np.int32] | None) -> None:
        """Keep what is asked for of a neuron layer: its `output` and its membranes, [T, B, ...]."""
        if self.membranes and membranes is not None:
            self.result.membranes[name] = membranes
        if isinstance(node, IntegerLIF):
            if self.spikes:
                self.result.spikes[name] = output.astype(np.bool_)
            self.result.spike_counts[name] = output.sum(axis=(0, *range(2, output.ndim)))


def _frames(x: NDArray[Any], shape: tuple[int, ...], time_steps: int) -> NDArray[Any]:
    """[T or 1, B, ...]: a static image keeps one step until its first neuron."""
    if x.shape[1:] == shape:
        return x[None]
    if x.shape[1:] == (time_steps, *shape):
        return x.swapaxes(0, 1)
    expected = ", ".join(map(str, shape))
    raise InputError(
        f"input of shape {list(x.shape)}: expected [batch, {expected}] or [batch, {time_steps}, {expected}]"
    )


def _sum(values: list[NDArray[Any]]) -> NDArray[Any]:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def exact_dtype(weight: Int, largest_input: int) -> type[np.floating[Any]]:
    """The float type whose whole numbers hold every partial sum of ``Σ w s`` with \\|s\\| <= largest_input."""
    bound = int(np.abs(weight).reshape(len(weight), -1).sum(1).max(initial=0)) * max(largest_input, 1)
    return np.float32 if bound < FLOAT32_EXACT else np.float64


def _encode(node: InputEncoder, state: _State, x: NDArray[Any]) -> Int:
    scale, zero = (value.reshape(-1, *(1,) * (x.ndim - 3)) for value in (node.scale, node.zero_point))
    stored = np.clip(np.rint(x.astype(np.float64) / scale), 0, 255)
    return np.asarray(stored.astype(np.int64) - zero)


def _conv(node: IntegerConv2d, state: _State, x: Int) -> Int:
    steps, batch = x.shape[:2]
    (ph, pw), (sh, sw), (dh, dw) = node.padding, node.stride, node.dilation
    out, per_group, kh, kw = node.weight.shape
    dtype = exact_dtype(node.weight, int(np.abs(x).max(initial=0)))
    padded = np.pad(x.reshape(steps * batch, *x.shape[2:]).astype(dtype), ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = _views(padded, ((kh - 1) * dh + 1, (kw - 1) * dw + 1))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]  # [T·B, in, H', W', kh, kw]
    height, width = windows.shape[2:4]
    result = np.empty((steps * batch, out, height, width), dtype=np.int64)
    each = out // node.groups
    at_once = max(1, PATCH_BYTES // (per_group * kh * kw * height * width * np.dtype(dtype).itemsize))
    for group in range(node.groups):
        weight = node.weight[group * each : (group + 1) * each].reshape(each, -1).astype(dtype)
        channels = slice(group * per_group, (group + 1) * per_group)
        for start in range(0, steps * batch, at_once):
            some = slice(start, start + at_once)
            patches = windows[some, channels].transpose(1, 4, 5, 0, 2, 3).reshape(per_group * kh * kw, -1)
            product = (weight @ patches).reshape(each, -1, height, width)
            result[some, group * each : (group + 1) * each] = product.swapaxes(0, 1)
    shifted = shift(result, node.exponent.reshape(-1, 1, 1)) + node.bias.reshape(-1, 1, 1)
    return shifted.reshape(steps, batch, out, height, width)


def _linear(node: IntegerLinear, state: _State, x: Int) -> Int:
    dtype = exact_dtype(node.weight, int(np.abs(x).max(initial=0)))
    product = (x.astype(dtype) @ node.weight.T.astype(dtype)).astype(np.int64)
    return shift(product, node.exponent) + node.bias


def _neurons(node: IntegerLIF | IntegerLI, state: _State, x: Int) -> Int:
    """Spikes, or the membranes of integrators."""
    held = x.shape[0] == 1  # a static image: the same current at every step
    a = shift(np.broadcast_to(x, (1, *x.shape[1:2], *node.shape)) if held else x, node.input_exponent)
    bias = shift(node.bias_mantissa, node.bias_exponent)
    zeros = np.zeros(a.shape[1:], dtype=np.int64)
    u, v = (state.memory or {}).get(state.name, (zeros, zeros))
    out = np.empty((state.time_steps, *v.shape), dtype=np.int64)
    membranes = np.empty(out.shape, dtype=np.int32) if state.membranes else None
    for t in range(state.time_steps):
        u = synapse_step(u, a[0 if held else t], node.du)
        if isinstance(node, IntegerLIF):
            out[t], v, _ = lif_step(v, u, dv=node.dv, bias=bias, threshold=node.threshold)
        else:
            out[t] = v = li_step(v, u, dv=node.dv, bias=bias)
        if membranes is not None:
            membranes[t] = v
    if state.memory is not None:
        state.memory[state.name] = u, v
    state.record(state.name, node, out, membranes)
    return out


def _windows(x: Int, kernel: tuple[int, int], stride: tuple[int, int]) -> Int:
    return _views(x, kernel)[..., :: stride[0], :: stride[1], :, :]


def _views(x: NDArray[Any], kernel: tuple[int, int]) -> NDArray[Any]:
    """Every window of the last two axes, without a copy: [..., H', W', kh, kw]."""
    return np.asarray(sliding_window_view(x, kernel, axis=(-2, -1)))  # type: ignore[call-overload]


def _sum_pool(node: IntegerSumPool2d, state: _State, x: Int) -> Int:
    return shift(_windows(x, node.kernel_size, node.stride).sum((-2, -1)), node.exponent)


def _max_pool(node: Any, state: _State, x: Int) -> Int:
    lowest = np.iinfo(np.int64).min  # padding never wins
    (ph, pw), rest = node.padding, ((0, 0),) * (x.ndim - 2)
    padded = np.pad(x, (*rest, (ph, ph), (pw, pw)), constant_values=lowest)
    return np.asarray(_windows(padded, node.kernel_size, node.stride).max((-2, -1)))


def _attention(node: STAttenAttention, state: _State, q: Int, k: Int, v: Int) -> Int:
    T, B, C, H, W = q.shape
    heads, groups = node.num_heads, node.token_groups
    d, n = C // heads, H * W // groups
    queries, keys, values = (
        x.reshape(T, B, heads, d, groups, n).transpose(0, 1, 2, 4, 3, 5).astype(np.float64) for x in (q, k, v)
    )  # [T, B, h, G, d, n]
    kv = keys @ values.swapaxes(-1, -2)  # [T, B, h, G, d, d]
    if node.mode == "block":
        chunk = np.arange(T) // node.window
        seen = np.stack([kv[chunk == c].sum(0) for c in range(T // node.window)])[chunk]
    else:
        seen = np.stack([kv[max(0, t - node.window + 1) : t + 1].sum(0) for t in range(T)])
    counts = (seen.swapaxes(-1, -2) @ queries).astype(np.int64)  # [T, B, h, G, d, n]
    return np.asarray(counts.transpose(0, 1, 2, 4, 3, 5).reshape(T, B, C, H, W))


def _and(node: SpikeAnd, state: _State, a: Int, b: Int) -> Int:
    return a * b


def _token_pool(node: TokenMaxPool, state: _State, x: Int) -> Int:
    T, B, C, H, W = x.shape
    planes = x.reshape(T, B, node.num_heads, C // node.num_heads, H * W)
    return _max_pool(SpikeMaxPool2d((3, 3), (1, 1), (1, 1)), state, planes).reshape(x.shape)


def _flatten(node: nir.Flatten, state: _State, x: Int) -> Int:
    rank = x.ndim - 2
    start, end = (int(axis) % rank + 2 for axis in (node.start_dim, node.end_dim))
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


def _temporal_sum(node: TemporalSum, state: _State, x: Int) -> Int:
    return np.asarray(x.sum(0) * (state.time_steps // len(x)))  # a held signal counts at every step


def _output(node: nir.Output, state: _State, x: Int) -> Int:
    return x


OPERATIONS: dict[type[nir.NIRNode], Callable[..., NDArray[Any]]] = {
    nir.Input: _output,
    nir.Output: _output,
    nir.Flatten: _flatten,
    InputEncoder: _encode,
    IntegerConv2d: _conv,
    IntegerLinear: _linear,
    IntegerLIF: _neurons,
    IntegerLI: _neurons,
    IntegerSumPool2d: _sum_pool,
    MaxPool2d: _max_pool,
    SpikeMaxPool2d: _max_pool,
    STAttenAttention: _attention,
    SpikeAnd: _and,
    TokenMaxPool: _token_pool,
    TemporalSum: _temporal_sum,
}
"""What a quantised graph may hold, and how each node acts on integers [T, B, ...]."""
