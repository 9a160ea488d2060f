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
    """Run x [B, C, H, W] or [B, T, C, H, W] through a quantised graph, sample by sample, and watch."""
    shapes, into = infer_shapes(graph), predecessors(graph)
    neurons = {name: node for name, node in graph.nodes.items() if isinstance(node, INTEGER_NEURONS)}
    weighted = [name for name, node in graph.nodes.items() if isinstance(node, IntegerConv2d | IntegerLinear)]
    given = {name: shapes[into[name]["input"][0]] for name in (*neurons, *weighted)}
    runner, steps = IntegerRunner(graph), int(hints(graph)["time_steps"])
    seen = Observation(len(x))
    trains: dict[str, list[NDArray[np.bool_]]] = {n: [] for n, node in neurons.items() if isinstance(node, IntegerLIF)}
    for sample in range(len(x)):
        found = runner.run(x[sample : sample + 1], inputs=given).inputs
        # one sample: time is the only axis in front, if there is one
        signals = {name: found[name].reshape(-1, *shape) for name, shape in given.items()}
        for name in weighted:
            _add_input(seen.inputs, name, signals[name], len(x))
        for name, node in neurons.items():
            train = _replay(node, signals[name], steps, seen.neurons.setdefault(name, _silent(shapes[name][0])))
            if spikes and name in trains:
                trains[name].append(train)
    if spikes:
        seen.spikes = {name: np.stack(train, axis=1) for name, train in trains.items()}
    return seen


def _silent(channels: int) -> NeuronActivity:
    zeros = np.zeros(channels, dtype=np.int64)
    return NeuronActivity(zeros, zeros, zeros, zeros)


def _add_input(inputs: dict[str, InputActivity], name: str, x: Int, samples: int) -> None:
    flat = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.float64)
    total = inputs.setdefault(name, InputActivity(np.zeros(len(flat)), np.zeros(len(flat))))
    total.mean += flat.mean(1) / samples
    total.square += (flat**2).mean(1) / samples


def _replay(node: IntegerLIF | IntegerLI, x: Int, steps: int, activity: NeuronActivity) -> NDArray[np.bool_]:
    """Run the layer on its input sum x [T or 1, *shape] and add what happens to `activity`."""
    bias = shift(node.bias_mantissa, node.bias_exponent)
    fired = np.empty((steps, *node.shape), dtype=np.bool_)
    v = u = np.zeros(node.shape, dtype=np.int64)
    for t, current in enumerate(_each_step(x.astype(np.int64), steps)):
        a = shift(current, node.input_exponent)
        unwrapped = truncate(u * (NO_SYNAPTIC_MEMORY - node.du)) + (a << CURRENT_SHIFT)
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
        activity.spikes = activity.spikes + spikes.reshape(len(spikes), -1).sum(1)
        activity.count += spikes.size
    return fired


def _each_step(x: Int, steps: int) -> Iterator[Int]:
    for t in range(steps):
        yield x[t if len(x) > 1 else 0]


def _peak(x: Int) -> Int:
    return np.asarray(np.abs(x).reshape(len(x), -1).max(1))
