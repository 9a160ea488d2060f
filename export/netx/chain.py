"""Which part of a quantised graph is a chain that lava-dl's netx can hold, and what is in the way of the rest.

netx reads a list of layers, each a convolution or a dense matrix with its neurons. It has no residual sums, no pools,
no attention and no readout; its layers have no exponents, one threshold, and biases in multiples of 64.
"""

from dataclasses import dataclass

import nir

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.export.netx.limits import number_problems
from statten_deploy.fixed_point.ranges import integer_ranges
from statten_deploy.ir.graph import Predecessors, output_names, predecessors, successors, topological_order
from statten_deploy.ir.integer import InputEncoder, IntegerConv2d, IntegerLIF, IntegerLinear
from statten_deploy.ir.schedule import loops
from statten_deploy.ir.shapes import Shape, infer_shapes
from statten_deploy.passes.part_until import part_until, upstream

INTEGER_CHAIN = (nir.Input, nir.Output, nir.Flatten, InputEncoder, IntegerConv2d, IntegerLinear, IntegerLIF)
FLOAT_CHAIN = (nir.Conv2d, nir.Affine, nir.Linear, nir.LIF, nir.CubaLIF)
"""What becomes integers."""
NEURONS = (IntegerLIF, nir.LIF, nir.CubaLIF)


@dataclass(frozen=True)
class Layer:
    """Weights with the neurons behind them (and their name); `flattened` where a Flatten stands in front."""

    name: str
    weights: IntegerConv2d | IntegerLinear
    neurons: IntegerLIF
    flattened: bool


@dataclass(frozen=True)
class Chain:
    """What a `.net` file holds; `shape` is that of the input, `output` the name of the graph's Output."""

    shape: Shape
    encoder: InputEncoder
    layers: tuple[Layer, ...]
    output: str


def sequential_part(graph: nir.NIRGraph, until: str | None = None) -> nir.NIRGraph:
    """The chain from the input to the neuron layer `until`, as a graph whose output is that layer's spikes.

    Takes float and quantised graphs. Without `until` the graph itself, if it is a chain.

    Raises:
        InputError: no neuron layer of that name. UnsupportedError: not a chain of convolutions, dense layers and
            neurons (everything in the way is named, with what to use instead).
    """
    _refuse_loops(graph)
    into = predecessors(graph)
    if until is None:
        _refuse(graph, _structure(graph, into, topological_order(graph)) + _forks(graph))
        return graph
    if not isinstance(graph.nodes.get(until), NEURONS):
        layers = ", ".join(_ends(graph)) or "none"
        raise InputError(f"--until {until}: is not a neuron layer of the graph; a chain leads to these: {layers}")
    _refuse(graph, _structure(graph, into, upstream(into, until)))
    return part_until(graph, until)


def read_chain(graph: nir.NIRGraph) -> Chain:
    """A quantised graph as netx's list of layers.

    Raises:
        UnsupportedError: whatever netx cannot hold, all of it by name, and what to use instead.
    """
    _refuse_loops(graph)
    order = topological_order(graph)
    _refuse(graph, _structure(graph, predecessors(graph), order, INTEGER_CHAIN) + _forks(graph))
    shapes = infer_shapes(graph)
    layers, problems = _layers(graph, order, shapes)
    for layer in layers:
        problems += number_problems(layer.name, layer.weights, layer.neurons, integer_ranges(graph)[1][layer.name])
    if problems:
        raise UnsupportedError(
            f"netx cannot hold this: {'; '.join(problems)}; quantise with one scale per layer, without exponents, and "
            "round the biases; or use --target lava"
        )
    (encoder,) = (node for node in graph.nodes.values() if isinstance(node, InputEncoder))
    return Chain(shapes[order[0]], encoder, tuple(layers), output_names(graph)[0])


def _layers(graph: nir.NIRGraph, order: list[str], shapes: dict[str, Shape]) -> tuple[list[Layer], list[str]]:
    """Pairs of weights and neurons along a chain, and what does not pair up."""
    layers, problems = [], []
    waiting, flattened = "", False
    for name, before in zip(order[1:], order, strict=False):
        node = graph.nodes[name]
        if isinstance(node, nir.Flatten):
            if len(shapes[name]) > 1 or waiting:
                problems.append(f"{name!r} must flatten all axes, of spikes")
            flattened = len(shapes[before]) > 1
        elif isinstance(node, IntegerConv2d | IntegerLinear):
            problems += _pending(waiting)
            waiting = name
        elif isinstance(node, IntegerLIF):
            weights = graph.nodes.get(waiting)
            if isinstance(weights, IntegerConv2d | IntegerLinear):
                layers.append(Layer(name, weights, node, flattened))
            else:
                problems.append(f"{name!r} has no convolution or dense layer in front")
            waiting, flattened = "", False
    problems += _pending(waiting)
    if not isinstance(graph.nodes[order[1]], InputEncoder):
        problems.append("no input encoder behind the input")
    if not layers and not problems:
        problems.append("no layers")
    return layers, problems


def _pending(waiting: str) -> list[str]:
    return [f"{waiting!r} has no neurons right behind it"] if waiting else []


def _structure(
    graph: nir.NIRGraph,
    into: Predecessors,
    names: list[str],
    kinds: tuple[type[nir.NIRNode], ...] = (*INTEGER_CHAIN, *FLOAT_CHAIN),
) -> list[str]:
    """What no chain has, kind by kind."""
    found: dict[str, list[str]] = {}
    for name in names:
        node = graph.nodes[name]
        if not isinstance(node, kinds):
            found.setdefault(type(node).__name__, []).append(name)
        if any(len(sources) > 1 for sources in into[name].values()):
            found.setdefault("sum of branches", []).append(name)
    return [f"{kind} ({', '.join(where)})" for kind, where in sorted(found.items())]


def _refuse_loops(graph: nir.NIRGraph) -> None:
    found = [name for names in loops(graph) for name in names]
    if found:
        raise UnsupportedError(
            f"netx holds one chain of conv, dense and LIF layers, not loops ({', '.join(found)}); use --target lava"
        )


def _forks(graph: nir.NIRGraph) -> list[str]:
    forks = [name for name, targets in successors(graph).items() if len(targets) > 1]
    return [f"branching ({', '.join(forks)})"] if forks else []


def _refuse(graph: nir.NIRGraph, problems: list[str]) -> None:
    if problems:
        ends = _ends(graph)
        part = f", or --until {ends[-1]} for the layers up to there" if ends else ""
        raise UnsupportedError(
            f"netx holds one chain of conv, dense and LIF layers, not {'; '.join(problems)}; use --target lava{part}"
        )


def _ends(graph: nir.NIRGraph) -> list[str]:
    """The neuron layers that a chain leads to, shortest chain first."""
    into = predecessors(graph)
    chains = {name: upstream(into, name) for name in topological_order(graph) if isinstance(graph.nodes[name], NEURONS)}
    return sorted(
        (n for n, chain in chains.items() if not _structure(graph, into, chain)), key=lambda n: len(chains[n])
    )
