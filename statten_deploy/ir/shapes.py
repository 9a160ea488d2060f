"""Shape inference for every stock NIR node and ours, independent of `nir`'s own (which reads one kernel axis only).

A shape is one step of one sample: no batch axis, no time axis. Sizes may be Python numbers, numpy scalars or arrays,
as HDF5 gives them back. Recurrent graphs work too: parameter arrays of neurons say what the loop leaves open.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import GraphError
from statten_deploy.ir.graph import is_cyclic, predecessors, topological_order
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
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool

Shape = tuple[int, ...]
Rule = Callable[..., Shape]

NEURON_PARAMETERS: dict[type[nir.NIRNode], tuple[str, ...]] = {
    nir.LIF: ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    nir.CubaLIF: ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    nir.IF: ("r", "v_threshold", "v_reset"),
    nir.LI: ("tau", "r", "v_leak"),
    nir.CubaLI: ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    nir.I: ("r",),
    nir.Threshold: ("threshold",),
    nir.Scale: ("scale",),
    nir.Delay: ("delay",),
}
"""Nodes that act on every element by itself, with the parameters whose common shape is the shape of the signal."""


def infer_shapes(graph: nir.NIRGraph) -> dict[str, Shape]:
    """The shape of every node's output, without batch and time. `TemporalMean` keeps the shape.

    Raises:
        GraphError: shapes that do not meet (all of them are listed), or that nothing determines.
    """
    shapes, problems = propagate(graph)
    if problems:
        raise GraphError("shapes do not meet: " + "; ".join(problems))
    return shapes


def propagate(graph: nir.NIRGraph) -> tuple[dict[str, Shape], list[str]]:
    """Shapes as far as they can be known, and every disagreement found. Edges must name existing nodes and ports."""
    into = predecessors(graph)
    shapes = {name: shape for name, node in graph.nodes.items() if (shape := declared_shape(node)) is not None}
    failed = _fill(graph, into, shapes)
    problems = list(failed.values())
    for name, node in graph.nodes.items():
        if name in failed or name not in shapes:
            continue
        problems += _disagreements(name, node, into[name], shapes)
    if not problems:
        problems += [
            f"{name!r} ({type(node).__name__}): nothing determines its shape; give an Input or a neuron "
            "before it full parameter arrays"
            for name, node in graph.nodes.items()
            if name not in shapes and any(into[name].values())
        ]
    return shapes, problems


def _fill(graph: nir.NIRGraph, into: Mapping[str, Mapping[str, list[str]]], shapes: dict[str, Shape]) -> dict[str, str]:
    """Apply the rules until nothing new is known; returns what failed. A loop is entered at any known source."""
    failed: dict[str, str] = {}
    order = graph.nodes if is_cyclic(graph) else topological_order(graph)  # one pass suffices where an order exists
    waiting = [name for name in order if name not in shapes]
    progress = True
    while waiting and progress:
        progress = False
        for name in list(waiting):
            inputs = [next((shapes[s] for s in sources if s in shapes), None) for sources in into[name].values()]
            if not inputs or any(shape is None for shape in inputs):
                continue
            waiting.remove(name)
            progress = True
            try:
                shapes[name] = _output_shape(graph.nodes[name], *inputs)
            except ValueError as error:
                failed[name] = _located(name, graph.nodes[name], error)
    return failed


def _disagreements(
    name: str, node: nir.NIRNode, into: Mapping[str, list[str]], shapes: Mapping[str, Shape]
) -> list[str]:
    """What is wrong at one node: sources of one port that differ, or a source that the node cannot take."""
    problems = []
    first: list[Shape] = []
    for port, sources in into.items():
        known = [(source, shapes[source]) for source in sources if source in shapes]
        first += [shape for _, shape in known[:1]]
        problems += [
            f"{name!r} ({type(node).__name__}), port {port!r}: {known[0][0]!r} gives {known[0][1]} and {source!r} "
            f"gives {shape}; edges into one port add up, so their shapes must be equal"
            for source, shape in known[1:]
            if shape != known[0][1]
        ]
    if problems or len(first) != len(into) or isinstance(node, nir.Input):
        return problems
    try:
        found = _output_shape(node, *first)
    except ValueError as error:
        origin = ", ".join(repr(source) for group in into.values() for source in group[:1])
        return [f"{_located(name, node, error)} (from {origin})"]
    if found != shapes[name]:
        problems.append(f"{name!r} ({type(node).__name__}): declares {shapes[name]} but {found} arrives")
    return problems


def _located(name: str, node: nir.NIRNode, error: ValueError) -> str:
    return f"{name!r} ({type(node).__name__}): {error}"


def _output_shape(node: nir.NIRNode, *inputs: Shape | None) -> Shape:
    rule = RULES.get(type(node))
    if rule is None:
        raise ValueError(f"unknown node type; known are {', '.join(sorted(kind.__name__ for kind in RULES))}")
    return rule(node, *inputs)


def declared_shape(node: nir.NIRNode) -> Shape | None:
    """The output shape a node states by itself, whatever feeds it; None where only the input tells."""
    if isinstance(node, nir.Input):
        return _as_shape(node.input_type["input"])
    if isinstance(node, nir.Output):
        return _as_shape(node.output_type["output"])
    if type(node) in NEURON_PARAMETERS:
        shape = parameter_shape(node)
        return shape if prod(shape) > 1 else None
    if isinstance(node, nir.Affine | nir.Linear):
        weight = np.shape(node.weight)
        return (*weight[:-2], weight[-2])
    if isinstance(node, INTEGER_NEURONS):
        return node.shape
    return None


def _as_shape(value: object) -> Shape | None:
    if value is None:
        return None
    return tuple(int(size) for size in np.asarray(value).reshape(-1))


def parameter_shape(node: nir.NIRNode) -> Shape:
    """The shape of a neuron's parameter arrays; the largest where they differ (which `verify` reports)."""
    found = [np.shape(getattr(node, field)) for field in NEURON_PARAMETERS[type(node)]]
    return max(found, key=lambda shape: (prod(shape), len(shape)))


# sizes as files hold them


def sizes(value: object, axes: int, what: str) -> tuple[int, ...]:
    """`value` as one int per axis; a single number counts for all of them.

    Raises:
        ValueError: another number of values.
    """
    flat = [int(v) for v in np.asarray(value).reshape(-1)]
    if len(flat) == 1:
        flat *= axes
    if len(flat) != axes:
        raise ValueError(f"{what} has {len(flat)} values, expected {axes}")
    return tuple(flat)


def explicit_padding(node: Any) -> tuple[tuple[int, int], ...]:
    """Padding of a convolution as (before, after) per axis; resolves ``'same'`` and ``'valid'``.

    ``'same'`` pads d(k - 1) in total and puts the odd one after, as torch does; it needs stride 1.
    """
    kernel = np.shape(node.weight)[2:]
    axes = len(kernel)
    padding = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    if not isinstance(padding, str):
        return tuple((p, p) for p in sizes(padding, axes, "padding"))
    if padding == "valid":
        return ((0, 0),) * axes
    if padding != "same":
        raise ValueError(f"padding {padding!r} is neither numbers nor 'same' nor 'valid'")
    if any(s != 1 for s in sizes(node.stride, axes, "stride")):
        raise ValueError("padding 'same' needs stride 1; write the padding as numbers")
    totals = [d * (k - 1) for d, k in zip(sizes(node.dilation, axes, "dilation"), kernel, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _window(size: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int) -> int:
    if min(kernel, stride, dilation) < 1 or min(pad) < 0:
        raise ValueError(f"kernel {kernel}, stride {stride}, dilation {dilation} must be positive, padding {pad} >= 0")
    result = (size + pad[0] + pad[1] - dilation * (kernel - 1) - 1) // stride + 1
    if result < 1:
        raise ValueError(f"a window of {dilation * (kernel - 1) + 1} does not fit into {size} with padding {pad}")
    return result


# one rule per kind of node: (node, shape on each port) -> output shape; ValueError says what does not fit


def _elementwise(node: nir.NIRNode, x: Shape) -> Shape:
    shape = parameter_shape(node)
    if prod(shape) > 1 and shape != x:
        raise ValueError(f"its parameters have shape {shape}, the signal has {x}")
    return x


def _conv(node: Any, x: Shape) -> Shape:
    weight = np.shape(node.weight)
    axes = 1 if isinstance(node, nir.Conv1d) else 2
    if len(weight) != axes + 2:
        raise ValueError(f"its weight has shape {weight}, expected {axes + 2} axes (out, in, kernel)")
    if len(x) != axes + 1:
        raise ValueError(f"takes a signal of {axes + 1} axes (channels first), got {x}")
    groups = int(node.groups)
    if groups < 1 or weight[0] % groups:
        raise ValueError(f"groups {groups} does not divide its {weight[0]} output channels")
    if x[0] != weight[1] * groups:
        raise ValueError(f"its weight {weight} with groups {groups} takes {weight[1] * groups} channels, got {x}")
    stride, dilation = (sizes(v, axes, n) for v, n in ((node.stride, "stride"), (node.dilation, "dilation")))
    padding = explicit_padding(node)
    return (weight[0], *map(_window, x[1:], weight[2:], stride, padding, dilation))


def _pool(node: Any, x: Shape) -> Shape:
    if len(x) != 3:
        raise ValueError(f"takes a signal (channels, height, width), got {x}")
    kernel, stride = (sizes(getattr(node, f), 2, f) for f in ("kernel_size", "stride"))
    padding = sizes(getattr(node, "padding", 0), 2, "padding")
    return (x[0], *(_window(*args, 1) for args in zip(x[1:], kernel, stride, ((p, p) for p in padding), strict=True)))


def _linear(node: Any, x: Shape) -> Shape:
    weight = np.shape(node.weight)
    if len(weight) < 2:
        raise ValueError(f"its weight has shape {weight}, expected (out, in)")
    if x != (*weight[:-2], weight[-1]):
        raise ValueError(f"its weight {weight} takes {(*weight[:-2], weight[-1])}, got {x}")
    return (*weight[:-2], weight[-2])


def _flatten(node: Any, x: Shape) -> Shape:
    start, end = (int(d) + len(x) if int(d) < 0 else int(d) for d in (node.start_dim, node.end_dim))
    if not 0 <= start <= end < len(x):
        raise ValueError(f"cannot flatten axes {node.start_dim} to {node.end_dim} of {x}")
    return (*x[:start], prod(x[start : end + 1]), *x[end + 1 :])


def _output(node: Any, x: Shape) -> Shape:
    shape = _as_shape(node.output_type["output"])
    if shape is not None and shape != x:
        raise ValueError(f"declares shape {shape}, got {x}")
    return x


def _attention(node: STAttenAttention, q: Shape, k: Shape, v: Shape) -> Shape:
    if not q == k == v:
        raise ValueError(f"q, k and v must have one shape, got {q}, {k} and {v}")
    if len(q) != 3:
        raise ValueError(f"takes signals (channels, height, width), got {q}")
    if node.num_heads < 1 or q[0] % node.num_heads:
        raise ValueError(f"num_heads {node.num_heads} does not divide the {q[0]} channels of {q}")
    if node.token_groups < 1 or q[1] % node.token_groups:
        raise ValueError(f"token_groups {node.token_groups} does not divide the {q[1]} rows of {q}")
    return q


def _spike_and(node: SpikeAnd, a: Shape, b: Shape) -> Shape:
    if b != a and (len(a) != 3 or b != (a[0], 1, 1)):
        raise ValueError(f"port b must have the shape of a, {a}, or (channels, 1, 1), got {b}")
    return a


def _token_pool(node: TokenMaxPool, x: Shape) -> Shape:
    if len(x) != 3:
        raise ValueError(f"takes a signal (channels, height, width), got {x}")
    if node.num_heads < 1 or x[0] % node.num_heads:
        raise ValueError(f"num_heads {node.num_heads} does not divide the {x[0]} channels of {x}")
    return x


def _integer_neuron(node: IntegerLIF | IntegerLI, x: Shape) -> Shape:
    if x != node.shape:
        raise ValueError(f"its neurons have shape {node.shape}, the signal has {x}")
    return x


def _unchanged(node: nir.NIRNode, x: Shape) -> Shape:
    return x


def _input(node: nir.NIRNode) -> Shape:
    raise ValueError("has no shape")


RULES: dict[type[nir.NIRNode], Rule] = {
    nir.Input: _input,
    nir.Output: _output,
    nir.Affine: _linear,
    nir.Linear: _linear,
    nir.Conv1d: _conv,
    nir.Conv2d: _conv,
    nir.AvgPool2d: _pool,
    nir.SumPool2d: _pool,
    nir.Flatten: _flatten,
    **dict.fromkeys(NEURON_PARAMETERS, _elementwise),
    SpikeMaxPool2d: _pool,
    MaxPool2d: _pool,
    STAttenAttention: _attention,
    SpikeAnd: _spike_and,
    TokenMaxPool: _token_pool,
    TemporalMean: _unchanged,
    InputEncoder: _unchanged,
    IntegerConv2d: _conv,
    IntegerLinear: _linear,
    IntegerSumPool2d: _pool,
    IntegerLIF: _integer_neuron,
    IntegerLI: _integer_neuron,
    TemporalSum: _unchanged,
}
"""Every node type that this package understands, with its shape rule."""
