"""Checks that a graph means something: called on what readers return, on what emitters get and after every pass."""

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any, TypeGuard

import nir
import numpy as np
from numpy.typing import ArrayLike, NDArray

from statten_deploy.errors import GraphError
from statten_deploy.ir.graph import (
    Predecessors,
    hints,
    input_names,
    is_cyclic,
    output_names,
    parse_endpoint,
    ports,
    predecessors,
    successors,
)
from statten_deploy.ir.integer import (
    INTEGER_NEURONS,
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
    is_quantised,
)
from statten_deploy.ir.limits import DEFAULT_BITS, integer_problems
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool
from statten_deploy.ir.shapes import NEURON_PARAMETERS, RULES, Shape, propagate, sizes

TIME_CONSTANTS = {
    nir.LIF: ("tau",),
    nir.LI: ("tau",),
    nir.CubaLIF: ("tau_syn", "tau_mem"),
    nir.CubaLI: ("tau_syn", "tau_mem"),
}
"""Fields that are time constants in seconds."""

STATEFUL = (nir.LIF, nir.CubaLIF, nir.IF, nir.LI, nir.CubaLI, nir.I, nir.Delay, *INTEGER_NEURONS, STAttenAttention)
"""Nodes whose output at one step depends on other steps."""

READOUTS = (TemporalMean, TemporalSum)
"""Nodes that take all steps together: what stands behind them has no time axis."""

SPIKING = (nir.LIF, nir.CubaLIF, nir.IF, nir.Threshold, IntegerLIF)
"""Neurons that emit 0/1; their spikes are what is counted."""

BINARY_INPUT = (SpikeMaxPool2d, SpikeAnd, TokenMaxPool, STAttenAttention)
"""Our nodes that are defined on 0/1 only."""

REAL_VALUED = (
    *(nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.AvgPool2d, nir.SumPool2d, nir.LI, nir.CubaLI, nir.I),
    *(InputEncoder, IntegerConv2d, IntegerLinear, IntegerSumPool2d, IntegerLI),
    *(MaxPool2d, STAttenAttention, *READOUTS),
)
"""Nodes whose output is not 0/1."""

EXACT_COUNT = 2**24
"""Integers below this are exact in float32."""


DEFAULT_DT = 1e-4
"""Seconds per step for graphs that do not say: what SpikingJelly assumes, snnTorch fixes and Norse is usually given."""


def delay_steps(delay: ArrayLike, dt: float) -> NDArray[np.int64]:
    """Delays of `delay` seconds in whole steps."""
    return np.rint(np.asarray(delay, dtype=np.float64) / dt).astype(np.int64)


def time_step(graph: nir.NIRGraph) -> float:
    """Seconds per time step: the graph's own hint, else `DEFAULT_DT`."""
    found = _hinted_dt(graph)
    return DEFAULT_DT if found is None else found


def verify(graph: nir.NIRGraph, *, dt: float | None = None) -> None:
    """Raise one `GraphError` that lists everything wrong with the graph; return None when nothing is.

    `dt`, in seconds, is the time step that time constants are held against; without it the graph's own hint counts,
    and without that only their sign is checked.

    Raises:
        GraphError: dangling or duplicate edges, unknown nodes or ports, ports without an edge, shapes that do not meet,
            no Input or Output, an Output that no Input reaches, NaN or infinite parameters, thresholds that are not
            above the reset, time constants that are not positive or are shorter than a step, integers outside the
            fixed-point widths, heads, groups or windows that do not divide, real-valued signals where 0/1 is defined,
            signals with and without a time axis mixed.
    """
    problems = list(_problems(graph, dt))
    if problems:
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        raise GraphError(f"the graph is not valid: {count}" + "; ".join(problems))


def _problems(graph: nir.NIRGraph, dt: float | None) -> Iterator[str]:
    unknown = list(_unknown_nodes(graph))
    yield from unknown
    if not input_names(graph):
        yield "it has no Input node"
    if not output_names(graph):
        yield "it has no Output node"
    yield from _hint_problems(graph)
    good: list[tuple[str, str]] = []
    yield from _bad_edges(graph, good)
    sound = nir.NIRGraph(graph.nodes, good, metadata=graph.metadata, type_check=False)
    into, after = predecessors(sound), successors(sound)
    yield from _connections(sound, into, after)
    step = dt if dt is not None else _hinted_dt(graph)
    for name, node in graph.nodes.items():
        yield from (f"{name!r} ({type(node).__name__}): {text}" for text in _parameters(node, step))
    shapes: dict[str, Shape] = {}
    if not unknown:
        shapes, disagreements = propagate(sound)
        yield from disagreements
    for name, node in graph.nodes.items():
        found = [*_extension(node, shapes.get(name), graph), *integer_problems(node, shapes.get(name), _bits(graph))]
        yield from (f"{name!r} ({type(node).__name__}): {text}" for text in found)
    yield from _binary_ports(graph, into)
    yield from _time_axis(graph, into, after)
    if is_cyclic(sound):
        yield from _loops(graph, after)


MAX_TIME_STEPS = 65536


def _hint_problems(graph: nir.NIRGraph) -> Iterator[str]:
    """What a file says about itself is input like everything else in it."""
    for key in ("time_steps", "window_steps", "classes"):
        value = hints(graph).get(key)
        whole = isinstance(value, int | float | np.number) and np.isfinite(value) and value == int(value)
        if value is not None and not (whole and 1 <= int(value) <= MAX_TIME_STEPS):
            yield f"metadata {key!r} is {value!r}, expected a whole number from 1 to {MAX_TIME_STEPS}"
    bits = hints(graph).get("bits")
    if bits is not None and not _is_bits(bits):
        yield f"metadata 'bits' is {bits!r}, expected a whole number from 2 to 8"
    granularity = hints(graph).get("granularity")
    if granularity is not None and granularity not in ("channel", "tensor"):
        yield f"metadata 'granularity' is {granularity!r}, expected 'channel' or 'tensor'"
    if is_quantised(graph) and hints(graph).get("time_steps") is None:
        yield "a quantised graph needs 'time_steps' in its metadata"
    dt = hints(graph).get("dt")
    if dt is not None and not (isinstance(dt, int | float | np.number) and np.isfinite(dt) and dt > 0):
        yield f"metadata 'dt' is {dt!r}, expected a positive number of seconds"


def _is_bits(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 8


def _bits(graph: nir.NIRGraph) -> int:
    """Width of the weights of a quantised graph, from its hints."""
    found = hints(graph).get("bits")
    return found if _is_bits(found) else DEFAULT_BITS


def _hinted_dt(graph: nir.NIRGraph) -> float | None:
    found = hints(graph).get("dt")
    return float(found) if isinstance(found, int | float | np.number) else None


def _unknown_nodes(graph: nir.NIRGraph) -> Iterator[str]:
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            yield f"{name!r} is a nested graph; inline it first (statten_deploy.ir.inline_subgraphs)"
        elif node is None:
            yield f"{name!r} is None: the tool that made the graph has no NIR node for this module; replace the module"
        elif type(node) not in RULES:
            known = ", ".join(sorted(kind.__name__ for kind in RULES))
            yield f"{name!r} has the unknown type {type(node).__name__}; known are {known}"


def _bad_edges(graph: nir.NIRGraph, good: list[tuple[str, str]]) -> Iterator[str]:
    """Edges that lead nowhere or exist twice; the sound ones are appended to `good`."""
    seen = set()
    for source, endpoint in graph.edges:
        try:
            target = parse_endpoint(graph, endpoint)
        except GraphError as error:
            yield str(error)
            continue
        if source not in graph.nodes:
            yield f"edge ({source!r}, {endpoint!r}): the graph has no node {source!r}"
        elif (source, *target) in seen:
            yield f"edge ({source!r}, {endpoint!r}) exists twice"
        else:
            seen.add((source, *target))
            good.append((source, endpoint))


def _connections(graph: nir.NIRGraph, into: Predecessors, after: dict[str, list[str]]) -> Iterator[str]:
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Input):
            if into[name].get("input"):
                yield f"Input {name!r} has an edge into it"
            continue
        if isinstance(node, nir.Output) and after[name]:
            yield f"Output {name!r} has an edge out of it, to {after[name][0]!r}"
        for port in ports(node):
            if not into[name][port]:
                yield f"{name!r} ({type(node).__name__}): no edge leads into its port {port!r}"
    reached = _reach(input_names(graph), after)
    for name in output_names(graph):
        if name not in reached and any(into[name].values()):
            yield f"Output {name!r} cannot be reached from any Input"


def _reach(starts: Iterable[str], after: dict[str, list[str]]) -> set[str]:
    """The nodes behind `starts`, which belong to them only if a path leads back."""
    found: set[str] = set()
    stack = [name for start in starts for name in after[start]]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += after[name]
    return found


# parameters


def _parameters(node: nir.NIRNode, dt: float | None) -> Iterator[str]:
    for field, value in getattr(node, "__dict__", {}).items():
        if isinstance(value, np.ndarray | np.floating | float) and np.asarray(value).dtype.kind == "f":
            bad = int(np.size(value) - np.count_nonzero(np.isfinite(value)))
            if bad:
                yield f"{field} holds {bad} NaN or infinite value{'s' if bad > 1 else ''}"
    if type(node) in NEURON_PARAMETERS:
        yield from _neuron(node, dt)
    elif isinstance(node, nir.Conv1d | nir.Conv2d | nir.Affine):
        yield from _bias(node)


def _neuron(node: nir.NIRNode, dt: float | None) -> Iterator[str]:
    found = {field: np.shape(getattr(node, field)) for field in NEURON_PARAMETERS[type(node)]}
    full = {shape for shape in found.values() if prod(shape) != 1}
    if len(full) > 1:
        yield "its parameters differ in shape: " + ", ".join(f"{field} {shape}" for field, shape in found.items())
    for field in TIME_CONSTANTS.get(type(node), ()):
        smallest = float(np.min(getattr(node, field), initial=np.inf))
        if smallest <= 0:
            yield f"{field} must be positive, found {smallest:g} s"
        elif dt is not None and smallest < dt * (1 - 1e-6):
            yield f"{field} {smallest:g} s is shorter than the time step {dt:g} s; use a smaller dt"
    if isinstance(node, nir.IF | nir.LIF | nir.CubaLIF):
        yield from _threshold(node)
    if isinstance(node, nir.Delay) and np.min(node.delay, initial=0.0) < 0:
        yield f"delay must not be negative, found {float(np.min(node.delay)):g} s"


def _threshold(node: Any) -> Iterator[str]:
    """A neuron that is above its threshold where a spike leaves it fires for ever."""
    threshold, reset = np.asarray(node.v_threshold, dtype=np.float64), np.asarray(node.v_reset, dtype=np.float64)
    if threshold.shape != reset.shape and 1 not in (threshold.size, reset.size):
        return  # said above
    never = threshold <= reset
    if never.any():
        at = np.unravel_index(int(np.argmax(never)), never.shape)
        low, high = (float(np.broadcast_to(value, never.shape)[at]) for value in (threshold, reset))
        yield f"v_threshold must be above v_reset, found {low:g} and {high:g}: such neurons fire at every step"


def _bias(node: Any) -> Iterator[str]:
    weight, bias = np.shape(node.weight), np.shape(node.bias)
    expected = weight[:1] if isinstance(node, nir.Conv1d | nir.Conv2d) else weight[:-1]
    if node.bias is not None and bias != expected:
        yield f"its bias has shape {bias}, expected {expected}"


# our own nodes


def _extension(node: nir.NIRNode, shape: Shape | None, graph: nir.NIRGraph) -> Iterator[str]:
    if isinstance(node, SpikeMaxPool2d | MaxPool2d):
        for kernel, pad in zip(
            sizes(node.kernel_size, 2, "kernel_size"), sizes(node.padding, 2, "padding"), strict=True
        ):
            if 2 * pad > kernel:
                yield f"padding {pad} is more than half of the kernel {kernel}"
    if isinstance(node, STAttenAttention):
        yield from _attention(node, shape, hints(graph).get("time_steps"))


def _attention(node: STAttenAttention, shape: Shape | None, time_steps: Any) -> Iterator[str]:
    if node.mode not in ("block", "sliding"):
        yield f"mode {node.mode!r} is neither 'block' nor 'sliding'"
    if node.window < 1:
        yield f"window must be at least 1 step, found {node.window}"
    elif node.mode == "block" and time_steps is not None and int(time_steps) % node.window:
        yield f"its chunks of {node.window} steps do not divide the {int(time_steps)} time steps of the graph"
    if shape is not None and node.num_heads > 0 and node.token_groups > 0:
        largest = prod(shape[1:]) // node.token_groups * node.window * (shape[0] // node.num_heads)
        if largest >= EXACT_COUNT:
            yield f"its counts can reach {largest}, and float32 holds integers only below {EXACT_COUNT}"


def _binary_ports(graph: nir.NIRGraph, into: Predecessors) -> Iterator[str]:
    for name, node in graph.nodes.items():
        if not isinstance(node, BINARY_INPUT):
            continue
        for port, sources in into[name].items():
            label = f"{name!r} ({type(node).__name__}), port {port!r}: takes one signal of 0/1"
            if len(sources) > 1:
                yield f"{label}, but {len(sources)} edges add up there: {', '.join(map(repr, sources))}"
            for source in sources:
                if isinstance(graph.nodes[source], REAL_VALUED):
                    yield f"{label}, but {source!r} ({type(graph.nodes[source]).__name__}) gives real values"


def _time_axis(graph: nir.NIRGraph, into: Predecessors, after: dict[str, list[str]]) -> Iterator[str]:
    readouts = {name: type(node).__name__ for name, node in graph.nodes.items() if isinstance(node, READOUTS)}
    final = _reach(readouts, after)
    without = final.union(readouts)
    readout = next(iter(readouts.values()), "")
    for name in graph.nodes:
        if name not in final:
            continue
        kind = type(graph.nodes[name]).__name__
        if isinstance(graph.nodes[name], (*STATEFUL, *READOUTS)):
            yield f"{name!r} ({kind}) needs a time axis, but stands behind a {readout}"
            continue
        timed = [source for sources in into[name].values() for source in sources if source not in without]
        if timed:
            yield f"{name!r} ({kind}): {timed[0]!r} has a time axis and the signal behind a {readout} has none"


def _loops(graph: nir.NIRGraph, after: dict[str, list[str]]) -> Iterator[str]:
    """Operations that need later steps cannot stand inside a loop."""
    for name, node in graph.nodes.items():
        whole = isinstance(node, READOUTS) or (
            isinstance(node, STAttenAttention) and node.mode == "block" and node.window > 1
        )
        if whole and name in _reach([name], after):
            yield f"{name!r} ({type(node).__name__}) needs several steps at once, so it cannot be part of a loop"
