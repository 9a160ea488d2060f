"""What has a fixed-point form; everything that has none is named at once."""

from collections.abc import Iterator, Mapping
from typing import Any

import nir
import numpy as np

from statten_deploy.ir import (
    MaxPool2d,
    SpikeAnd,
    SpikeMaxPool2d,
    STAttenAttention,
    TemporalMean,
    TokenMaxPool,
    predecessors,
)
from statten_deploy.ir.nodes import pair
from statten_deploy.ir.schedule import loops, windows_in_loops
from statten_deploy.ir.shapes import Shape, explicit_padding
from statten_deploy.quantize.currents import SUMMED, WEIGHTED, Trace
from statten_deploy.quantize.neurons import FIRING, NEURONS, PARAMETERS, NeuronForm, neuron_problems

SUPPORTED: frozenset[type[nir.NIRNode]] = frozenset(
    {
        nir.Input,
        nir.Output,
        nir.Flatten,
        MaxPool2d,
        SpikeMaxPool2d,
        STAttenAttention,
        SpikeAnd,
        TokenMaxPool,
        TemporalMean,
        *WEIGHTED,
        *SUMMED,
        *NEURONS,
    }
)
"""Float nodes with an integer form."""
REMEDIES: dict[type[nir.NIRNode], str] = {
    nir.Scale: "fold its factors into the weights next to it",
    nir.Delay: "train without delays; --target onnx takes them",
    nir.Threshold: "use IF neurons, or --target onnx",
    nir.Conv1d: "write it as a Conv2d of height 1",
}
"""What to do about float nodes without an integer form."""
LARGEST = float(np.finfo(np.float32).max)


def node_problems(graph: nir.NIRGraph, shapes: Mapping[str, Shape], dt: float) -> Iterator[str]:
    """Nodes and parameters that no fixed-point graph can hold."""
    inputs = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        yield f"{', '.join(inputs)} (one input is supported)"
    for name, node in graph.nodes.items():
        if type(node) not in SUPPORTED:
            remedy = f": {REMEDIES[type(node)]}" if type(node) in REMEDIES else ""
            yield f"{name} ({type(node).__name__}{remedy})"
            continue
        found = _values(node)
        if not found:
            shape = shapes[name]
            found = list(neuron_problems(node, shape, dt)) if isinstance(node, NEURONS) else _shape(node, shape)
        yield from (f"{name} ({what})" for what in found)
    yield from windows_in_loops(graph)
    fires = {name for name, node in graph.nodes.items() if isinstance(node, FIRING)}
    quiet = [(source, target) for source, target in graph.edges if source not in fires]
    for names in loops(nir.NIRGraph(graph.nodes, quiet, type_check=False)):
        yield f"{', '.join(names)} (a loop without neurons that fire: put a LIF, IF or CubaLIF into it)"


def _values(node: Any) -> list[str]:
    """Checked before any arithmetic: these numbers would spread."""
    fields = PARAMETERS[type(node)] if isinstance(node, NEURONS) else ("weight", "bias")
    wrong = []
    for field in fields if isinstance(node, (*NEURONS, *WEIGHTED)) else ():
        values = getattr(node, field, None)
        if values is not None and not np.all(np.abs(np.asarray(values, dtype=np.float64)) < LARGEST):
            wrong.append(f"{field} holds NaN, infinite or numbers beyond float32: mend the training run or the file")
    return wrong


def _shape(node: Any, shape: Shape) -> list[str]:
    if isinstance(node, nir.Conv2d) and any(before != after for before, after in explicit_padding(node)):
        return ["padding must be the same on both sides"]
    if isinstance(node, nir.Affine | nir.Linear) and np.ndim(node.weight) != 2:
        return ["its weight must have two axes"]
    if isinstance(node, SUMMED) and any(pair(node.padding)):
        return ["padding must be 0"]
    if isinstance(node, nir.Flatten) and len(shape) != 1:
        return ["it must flatten all axes"]
    return []


def current_problems(graph: nir.NIRGraph, traced: Trace, forms: Mapping[str, NeuronForm]) -> Iterator[str]:
    """Currents that no choice of scales can carry."""
    into = predecessors(graph)
    counted = {branch for name in forms for branch in traced.arriving[name][0].branches}
    for name in forms:
        branches = traced.arriving[name][0].branches
        if len({len(graph.nodes[branch].weight) for branch in branches}) > 1:
            yield f"{name} (currents of {' and '.join(branches)} add up there: their channels differ)"
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.Output | TemporalMean):
            continue
        signal = traced.arriving[name][0]
        if signal.unit is not None:
            if np.ptp(signal.unit) > 0 or (isinstance(node, nir.Output) and signal.unit[0] != 1):
                yield f"{name} (give spikes, or a current behind a dense layer)"
            continue
        sources = into[name]["input"]
        if signal.membrane and isinstance(node, TemporalMean) and np.ptp(forms[signal.membrane].gain) > 0:
            yield f"{signal.membrane} (one r and w_in per layer in front of a mean over time)"
        if signal.membrane and sources == [signal.membrane]:
            continue
        behind = graph.nodes[sources[0]]
        if len(sources) > 1 or not isinstance(behind, (*WEIGHTED, TemporalMean)):
            yield f"{name} (one weighted node, without pools in between, can be the readout)"
        if set(signal.branches) & counted:
            yield f"{name} (its current also reaches neurons: give them a readout of their own)"


def shift_problems(graph: nir.NIRGraph, traced: Trace, forms: Mapping[str, NeuronForm]) -> Iterator[str]:
    """What needs an exponent other than 0."""
    for name, node in graph.nodes.items():
        if isinstance(node, nir.AvgPool2d) and traced.signals[name].unit is None:
            yield f"{name} (the mean of a current)"
    for name in forms:
        if not traced.arriving[name][0].branches:
            yield f"{name} (neurons that compare counts)"


def node_bias(node: Any) -> Any:
    """The bias of a weighted node, 0 where it has none."""
    bias = getattr(node, "bias", None)
    return np.zeros(len(node.weight)) if bias is None else np.asarray(bias, dtype=np.float64)
