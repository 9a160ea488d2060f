"""What every signal of a float graph means in integers, and which currents must share a scale."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from statten_deploy.ir import MaxPool2d, TemporalMean, predecessors
from statten_deploy.ir.nodes import pair
from statten_deploy.ir.shapes import Shape
from statten_deploy.quantize.neurons import FIRING, INTEGRATORS
from statten_deploy.quantize.rounding import Real

WEIGHTED = (nir.Conv2d, nir.Affine, nir.Linear)
"""Nodes whose output is a current with a scale that can be chosen."""
SUMMED = (nir.AvgPool2d, nir.SumPool2d)
"""Nodes that add up a window."""
CARRIERS = (MaxPool2d, nir.Flatten, *SUMMED)
"""Nodes that pass a current on."""


@dataclass(frozen=True)
class Signal:
    """What the integers on a signal stand for.

    Spikes, counts and encoded inputs: integer · `unit` is the real value, one unit per element of the leading axis.
    Currents: the integer is real value · K · `factor`, with the scale K that the weighted nodes in `branches` share;
    each of these is there with the number of times that its bias counts.
    Membranes: those of the integrators `membrane`.
    """

    unit: Real | None = None
    branches: Mapping[str, float] = field(default_factory=dict)
    factor: float = 1.0
    membrane: str = ""


@dataclass
class Trace:
    """The signals of a graph, what arrives at every port (several edges added up), and what stands in the way."""

    signals: dict[str, Signal] = field(default_factory=dict)
    arriving: dict[str, list[Signal]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def trace(graph: nir.NIRGraph, order: Iterable[str], shapes: Mapping[str, Shape], inputs: Mapping[str, Real]) -> Trace:
    """Follow every signal through the graph; `inputs` are the units of what the input encoder gives.

    Spikes are spikes whatever reaches the neurons, so `order` may have neurons that fire behind their readers.
    """
    found, into = Trace(), predecessors(graph)
    for name, node in graph.nodes.items():
        if isinstance(node, FIRING):
            found.signals[name] = Signal(unit=np.ones(shapes[name][0]))
    for name in order:
        node = graph.nodes[name]
        if name in inputs:
            found.signals[name] = Signal(unit=inputs[name])
            continue
        ports = [_sum(name, [found.signals[source] for source in sources], found) for sources in into[name].values()]
        found.arriving[name] = ports
        result = _result(name, node, ports, shapes[name], found)
        found.signals.setdefault(name, result)
    return found


def _sum(name: str, signals: list[Signal], found: Trace) -> Signal:
    first = signals[0]
    if all(signal is first for signal in signals):
        return first
    if any(signal.membrane for signal in signals):
        found.problems.append(f"{name} (membranes are added there: give each integrator an Output of its own)")
        return first
    units = [signal.unit for signal in signals if signal.unit is not None]
    if units and len(units) < len(signals):
        found.problems.append(
            f"{name} (spikes or counts and weighted currents add up there: they have no common scale)"
        )
        return first
    if units:
        if any(not np.array_equal(unit, units[0]) for unit in units):
            found.problems.append(f"{name} (signals of different scale add up there without weights)")
        return first
    if any(signal.factor != first.factor for signal in signals):
        found.problems.append(f"{name} (averages of different size add up there)")
    branches: dict[str, float] = {}
    for signal in signals:
        for branch, count in signal.branches.items():
            branches[branch] = branches.get(branch, 0.0) + count
    return Signal(branches=branches, factor=first.factor)


def _result(name: str, node: Any, ports: list[Signal], shape: Shape, found: Trace) -> Signal:
    membranes = [port.membrane for port in ports if port.membrane]
    if membranes and not isinstance(node, TemporalMean | nir.Output):
        found.problems.append(f"{name} (it reads the membranes of {membranes[0]}: integrators can only be read out)")
        return Signal(unit=np.ones(shape[0]))
    if isinstance(node, INTEGRATORS):
        return Signal(membrane=name)
    if isinstance(node, WEIGHTED):
        if ports[0].unit is None:
            found.problems.append(f"{name} (a current reaches it: put neurons in between)")
        return Signal(branches={name: 1.0})
    if not isinstance(node, (*CARRIERS, TemporalMean, nir.Output)):
        if not isinstance(node, FIRING) and any(port.unit is None for port in ports):
            found.problems.append(f"{name} (a current reaches it: it takes spikes)")
        return Signal(unit=np.ones(shape[0]))
    given = ports[0]
    if given.membrane:
        return given
    size = int(np.prod(pair(node.kernel_size))) if isinstance(node, SUMMED) else 1
    mean = isinstance(node, nir.AvgPool2d)
    if given.unit is not None:  # a mean of spikes stays a sum; its divisor goes to the weights or the threshold behind
        return Signal(unit=np.repeat(given.unit / (size if mean else 1), shape[0] // len(given.unit)))
    if mean:  # a power of two is shifted out, the rest of the divisor stays
        return Signal(branches=given.branches, factor=given.factor * size / 2 ** mean_shift(node))
    return Signal(branches={branch: count * size for branch, count in given.branches.items()}, factor=given.factor)


def mean_shift(node: nir.AvgPool2d) -> int:
    """The power of two by which the sum of a mean is shifted."""
    return int(np.prod(pair(node.kernel_size))).bit_length() - 1


@dataclass
class Stream:
    """Currents that are added somewhere, and so share a scale per channel; `branches` in order, each once."""

    branches: list[str] = field(default_factory=list)
    neurons: list[str] = field(default_factory=list)


def streams(traced: Trace, neurons: Iterable[str]) -> list[Stream]:
    """Group weighted nodes that are added in any neuron; one stream per group, in the order of the graph."""
    merged: list[Stream] = []
    for neuron in neurons:
        sources = list(traced.arriving[neuron][0].branches)
        if not sources:
            continue
        joined = Stream(sources, [neuron])
        apart: list[Stream] = []
        for stream in merged:
            if set(stream.branches) & set(joined.branches):
                joined.branches = stream.branches + [s for s in joined.branches if s not in stream.branches]
                joined.neurons = stream.neurons + [n for n in joined.neurons if n not in stream.neurons]
            else:
                apart.append(stream)
        merged = [*apart, joined]
    return merged
