"""What happens inside an integer run: how large currents get, what wraps, what saturates, how active inputs are.

The runner hands over what arrives at every neuron layer and every weight; the neurons are run again on it and watched.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.fixed_point.arithmetic import (
    CURRENT_SHIFT,
    DECAY_BITS,
    NO_SYNAPTIC_MEMORY,
    Int,
    li_step,
    lif_step,
    shift,
    synapse_step,
    truncate,
)
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.ir.graph import hints, predecessors
from statten_deploy.ir.integer import INTEGER_NEURONS, IntegerConv2d, IntegerLI, IntegerLIF, IntegerLinear
from statten_deploy.ir.shapes import infer_shapes

AT_ONCE = 8
"""Samples run together: more leave the cache, fewer spend their time in Python."""


@dataclass
class NeuronActivity:
    """One neuron layer over all samples and steps.

    `largest_input`: largest absolute a per channel [C], after `input_exponent`. `largest_current`: largest absolute u
    before it wraps, in units of a (the same without synaptic memory). `largest_membrane`: largest absolute v before it
    saturates. `spikes`: per channel. `wraps`, `saturations`: how often, of `count` = neurons x steps x samples.
    """

    largest_input: Int
    largest_current: Int
    largest_membrane: Int
    spikes: Int
    wraps: int = 0
    saturations: int = 0
    count: int = 0


@dataclass
class InputActivity:
    """Integers that arrive at a weighted node, per element of the leading axis [C]: mean and mean square."""

    mean: NDArray[np.float64]
    square: NDArray[np.float64]


@dataclass
class Observation:
    """Of `observe`: neuron layers and weighted nodes by name; `spikes` [T, B, ...] where asked for."""

    samples: int
    neurons: dict[str, NeuronActivity] = field(default_factory=dict)
    inputs: dict[str, InputActivity] = field(default_factory=dict)
    spikes: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


def observe(graph: nir.NIRGraph, x: NDArray[Any], *, spikes: bool = False) -> Observation:
    """Run x [B, C, H, W] or [B, T, C, H, W] through a quantised graph, a few samples at a time, and watch."""
    shapes, into = infer_shapes(graph), predecessors(graph)
    neurons = {name: node for name, node in graph.nodes.items() if isinstance(node, INTEGER_NEURONS)}
    weighted = {name for name, node in graph.nodes.items() if isinstance(node, IntegerConv2d | IntegerLinear)}
    given = {name: shapes[into[name]["input"][0]] for name in (*neurons, *weighted)}
    runner, steps = IntegerRunner(graph), int(hints(graph)["time_steps"])
    seen = Observation(len(x))
    trains: dict[str, list[NDArray[np.bool_]]] = {n: [] for n, node in neurons.items() if isinstance(node, IntegerLIF)}

    def watch(name: str, arrived: Int) -> None:
        if name not in given:
            return
        signal = arrived.reshape(-1, arrived.shape[-len(given[name]) - 1], *given[name])  # [T or 1, B, ...]
        if name in weighted:
            _add_input(seen.inputs, name, signal, len(x))
            return
        node = neurons[name]
        train = _replay(node, signal, steps, seen.neurons.setdefault(name, _silent(shapes[name][0])))
        if spikes and name in trains:
            trains[name].append(train)

    for start in range(0, len(x), AT_ONCE):
        runner.run(x[start : start + AT_ONCE], watch=watch)
    if spikes:
        seen.spikes = {name: np.concatenate(train, axis=1) for name, train in trains.items()}
    return seen


def _silent(channels: int) -> NeuronActivity:
    zeros = np.zeros(channels, dtype=np.int64)
    return NeuronActivity(zeros, zeros, zeros, zeros)


def _add_input(inputs: dict[str, InputActivity], name: str, x: Int, samples: int) -> None:
    """Add the samples of x [T, B, C, ...] one after the other: the same sums however many come at a time."""
    axes = (0, *range(3, x.ndim))
    size = x[:, 0, 0].size
    total = inputs.setdefault(name, InputActivity(np.zeros(x.shape[2]), np.zeros(x.shape[2])))
    for mean, square in zip(x.sum(axes) / size, (x * x).sum(axes) / size, strict=True):
        total.mean += mean / samples
        total.square += square / samples


def _replay(node: IntegerLIF | IntegerLI, x: Int, steps: int, activity: NeuronActivity) -> NDArray[np.bool_]:
    """Run the layer on its input sum x [T or 1, B, *shape] and add what happens to `activity`."""
    bias = shift(node.bias_mantissa, node.bias_exponent)
    fired = np.empty((steps, x.shape[1], *node.shape), dtype=np.bool_)
    v = u = np.zeros(fired.shape[1:], dtype=np.int64)
    for t, current in enumerate(_each_step(x, steps)):
        a = shift(current, node.input_exponent)
        left = np.left_shift(a, CURRENT_SHIFT)
        unwrapped = left if node.du == NO_SYNAPTIC_MEMORY else truncate(u * (NO_SYNAPTIC_MEMORY - node.du)) + left
        u = synapse_step(u, a, node.du)
        unclipped = truncate(v * ((1 << DECAY_BITS) - node.dv)) + u + bias
        if isinstance(node, IntegerLIF):
            spikes, v, before = lif_step(v, u, dv=node.dv, bias=bias, threshold=node.threshold)
        else:
            v = before = li_step(v, u, dv=node.dv, bias=bias)
            spikes = np.zeros_like(v)
        fired[t] = spikes
        activity.largest_input = np.maximum(activity.largest_input, _peak(a))
        activity.largest_current = np.maximum(activity.largest_current, -(-_peak(unwrapped) >> CURRENT_SHIFT))
        activity.largest_membrane = np.maximum(activity.largest_membrane, _peak(unclipped))
        activity.wraps += int((unwrapped != u).sum())
        activity.saturations += int((unclipped != before).sum())
        activity.spikes = activity.spikes + spikes.sum((0, *range(2, spikes.ndim)))
        activity.count += spikes.size
    return fired


def _each_step(x: Int, steps: int) -> Iterator[Int]:
    for t in range(steps):
        yield x[t if len(x) > 1 else 0]


def _peak(x: Int) -> Int:
    """The largest magnitude per channel of x [B, C, ...]."""
    axes = (0, *range(2, x.ndim))
    return np.asarray(np.maximum(x.max(axes), -x.min(axes)))
