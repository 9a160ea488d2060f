"""A quantised graph as one ONNX model in integers, for the whole sequence or for a few steps of a stream."""

from collections.abc import Callable, Mapping, Sequence

import nir
import numpy as np
import onnx
from numpy.typing import NDArray

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx.build import steps_per_call
from statten_deploy.export.onnx.builder import Layout
from statten_deploy.export.onnx.checks import refuse_loops, refuse_options, refuse_stream, refuse_unknown
from statten_deploy.export.onnx.files import write_metadata
from statten_deploy.export.onnx.integer import ops
from statten_deploy.export.onnx.integer.attention import emit_attention
from statten_deploy.export.onnx.integer.bounds import neuron_bias, plan_neuron
from statten_deploy.export.onnx.integer.loops import IntegerLoop
from statten_deploy.export.onnx.integer.neurons import emit_li, emit_lif, emit_spike_count
from statten_deploy.export.onnx.integer.products import GAIN, emit_conv, emit_linear, powers_of_two
from statten_deploy.export.onnx.integer.signals import IntegerBuilder, IntegerSignal
from statten_deploy.fixed_point.arithmetic import NO_SYNAPTIC_MEMORY
from statten_deploy.fixed_point.ranges import integer_ranges
from statten_deploy.ir.graph import (
    Predecessors,
    hints,
    inline_subgraphs,
    input_names,
    predecessors,
    successors,
)
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool
from statten_deploy.ir.schedule import Loop, Run, Sum, loops, make_schedule
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.ir.verify import time_step, verify

Emitter = Callable[..., IntegerSignal]

EMITTERS: dict[type[nir.NIRNode], Emitter] = {
    nir.Flatten: ops.emit_flatten,
    InputEncoder: ops.emit_encoder,
    IntegerConv2d: emit_conv,
    IntegerLinear: emit_linear,
    IntegerLIF: emit_lif,
    IntegerLI: emit_li,
    IntegerSumPool2d: ops.emit_sum_pool,
    MaxPool2d: ops.emit_max_pool,
    SpikeMaxPool2d: ops.emit_max_pool,
    STAttenAttention: emit_attention,
    SpikeAnd: ops.emit_spike_and,
    TokenMaxPool: ops.emit_token_max_pool,
    TemporalSum: ops.emit_temporal_sum,
}
"""Every node the export can write: (builder, name, node, the signal on each port) -> the node's result."""

FLAVOUR = "integer"
"""What `metadata_props` call these models under ``flavour``."""


def build_integer_onnx(
    graph: nir.NIRGraph,
    *,
    spike_counts: bool = False,
    metadata: Mapping[str, str] | None = None,
    layout: Layout = "sequence",
) -> onnx.ModelProto:
    """Write a quantised graph as ONNX in integers: inputs and outputs as in docs/onnx.md, weights in int8.

    Every spike, every membrane and the integer readout are those of `statten_deploy.fixed_point.runner`, on every
    input and in every runtime. Real numbers are divided in the input encoder and multiplied behind the readout only;
    float tensors in between hold whole numbers, in a type that is proved to hold them exactly.

    Args:
        graph: a quantised graph, as `statten_deploy.quantize.quantize` makes it; nested graphs are inlined.
        spike_counts: one more output ``spike_counts/<node>`` (int64 [batch]) for every neuron layer.
        metadata: written into `metadata_props` beside the hints.
        layout: one call for all T steps (``sequence``), or for `steps_per_call` of them (``stream``).

    Raises:
        ConfigError: `metadata` contradicts the model.
        GraphError: the graph is malformed.
        UnsupportedError: nodes that are not integer or loops that cannot be written (all are named), or numbers that
            can get too large for 53 bits.
    """
    graph = inline_subgraphs(graph)
    refuse_unknown(graph, {nir.Input, nir.Output, *EMITTERS})
    verify(graph)
    refuse_loops(graph)
    if layout == "stream":
        refuse_stream(graph, (IntegerLI,))
    _refuse_inputs(graph)
    shapes, dt, time_steps = infer_shapes(graph), time_step(graph), int(hints(graph)["time_steps"])
    refuse_options(graph, shapes, time_steps, dt)

    into = predecessors(graph)
    tasks = [task for task in make_schedule(graph).tasks if not isinstance(task, Sum)]
    ranges, currents = integer_ranges(graph)
    # A stream may go on for ever: what is left out there must be proved for any number of steps.
    call_steps, proved = (steps_per_call(graph), None) if layout == "stream" else (time_steps, time_steps)
    b = IntegerBuilder(shapes, call_steps, ranges, layout)
    b.sample_steps = time_steps
    b.plans = {name: plan_neuron(name, graph.nodes[name], a, proved) for name, a in currents.items()}
    b.powers = powers_of_two(n for n in graph.nodes.values() if isinstance(n, IntegerConv2d | IntegerLinear))
    b.currents_of_neurons = _currents_of_neurons(graph)
    b.neuron_biases, b.biased_before = _biases_in_products(b, graph, into)
    b.model.graph.name = str(hints(graph).get("name") or "graph")
    signals = _emit(b, graph, tasks, into)
    if spike_counts:
        for name in (name for name in currents if isinstance(graph.nodes[name], IntegerLIF)):
            emit_spike_count(b, b.unique(f"spike_counts/{name}"), signals[name])
    b.declare_states()
    write_metadata(b, graph, time_steps, dt, metadata or {}, flavour=FLAVOUR)
    return b.model


def _refuse_inputs(graph: nir.NIRGraph) -> None:
    """One Input, and nothing but encoders behind it.

    Raises:
        UnsupportedError: otherwise; the message names the nodes.
    """
    names = input_names(graph)
    bare = [
        f"{target!r} ({type(graph.nodes[target]).__name__})"
        for name in names
        for target in successors(graph)[name]
        if not isinstance(graph.nodes[target], InputEncoder)
    ]
    if len(names) != 1 or bare:
        raise UnsupportedError(
            f"the graph has {len(names)} inputs, expected 1"
            if len(names) != 1
            else f"{', '.join(bare)} takes real numbers from {names[0]!r}; expected an InputEncoder in between"
        )


def _currents_of_neurons(graph: nir.NIRGraph) -> set[str]:
    """Weighted nodes that something else than a readout takes: their results travel as ``a << 6``."""
    after = successors(graph)
    return {
        name
        for name, node in graph.nodes.items()
        if isinstance(node, IntegerConv2d | IntegerLinear)
        and not all(isinstance(graph.nodes[target], TemporalSum | nir.Output) for target in after[name])
    }


def _biases_in_products(
    b: IntegerBuilder, graph: nir.NIRGraph, into: Predecessors
) -> tuple[dict[str, NDArray[np.int64]], set[str]]:
    """Biases that can be added by the product before their neurons, where that is one more number in its kernel.

    Weighted node -> bias, and the neuron layers that need not add theirs. The neurons must be all that the product
    feeds, through max-pools at most (``max(x) + b = max(x + b)``); nothing may come between ``a << 6`` and the bias.
    """
    after = successors(graph)
    looped = {name for names in loops(graph) for name in names}
    biases: dict[str, NDArray[np.int64]] = {}
    layers: set[str] = set()
    for name, plan in b.plans.items():
        node = graph.nodes[name]
        bias = neuron_bias(node).reshape(-1)
        source = _only_source(graph, name, into, after)
        if source is None or plan.wraps or plan.du != NO_SYNAPTIC_MEMORY or node.input_exponent or not bias.any():
            continue
        if source in looped and after[source] != [name]:  # an edge to the pool may be recurrent: it starts with 0
            continue
        if GAIN * b.ranges[source].magnitude + int(np.abs(bias).max()) < 1 << 24:
            biases[source] = bias
            layers.add(name)
    return biases, layers


def _only_source(graph: nir.NIRGraph, name: str, into: Predecessors, after: Mapping[str, list[str]]) -> str | None:
    """The weighted node that feeds `name` and nothing else, if there is one."""
    while True:
        sources = [source for group in into[name].values() for source in group]
        if len(sources) != 1 or after[sources[0]] != [name]:
            return None
        name = sources[0]
        if isinstance(graph.nodes[name], IntegerConv2d | IntegerLinear):
            return name
        if not isinstance(graph.nodes[name], MaxPool2d):
            return None


def _emit(
    b: IntegerBuilder, graph: nir.NIRGraph, tasks: Sequence[Run | Loop], into: Predecessors
) -> dict[str, IntegerSignal]:
    """Write every node; returns the results."""
    signals: dict[str, IntegerSignal] = {}
    image = hints(graph).get("input") == "image"
    for task in tasks:
        if isinstance(task, Loop):
            signals.update(IntegerLoop(b, task, graph, signals, EMITTERS).emit())
            continue
        name = task.name
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            signals[name] = ops.emit_input(b, name, b.shapes[name], image=image)
            continue
        inputs = [b.total([(source, signals[source]) for source in sources]) for sources in into[name].values()]
        if isinstance(node, nir.Output):
            ops.emit_output(b, name, inputs[0], graph.nodes[into[name]["input"][0]])
        else:
            signals[name] = EMITTERS[type(node)](b, name, node, *inputs)
    return signals
