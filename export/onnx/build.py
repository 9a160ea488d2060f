"""The spiking graph as one ONNX model in float32, for the whole sequence or for a few steps of a stream."""

import math
from collections.abc import Callable, Container, Mapping

import nir
import numpy as np
import onnx

from statten_deploy.errors import ConfigError
from statten_deploy.export.onnx import ops
from statten_deploy.export.onnx.attention import emit_attention
from statten_deploy.export.onnx.builder import Builder, Layout, Signal
from statten_deploy.export.onnx.checks import refuse_loops, refuse_options, refuse_unknown
from statten_deploy.export.onnx.files import write_metadata
from statten_deploy.export.onnx.loops import FloatLoop
from statten_deploy.export.onnx.neurons import emit_neuron, emit_spike_count, emit_threshold, terms_in_use
from statten_deploy.ir.graph import (
    Predecessors,
    hints,
    inline_subgraphs,
    predecessors,
)
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool
from statten_deploy.ir.schedule import Loop, Run, Sum, make_schedule
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.ir.verify import SPIKING, time_step, verify

Emitter = Callable[..., Signal]

EMITTERS: dict[type[nir.NIRNode], Emitter] = {
    nir.Affine: ops.emit_affine,
    nir.Linear: ops.emit_affine,
    nir.Scale: ops.emit_scale,
    nir.Conv1d: ops.emit_conv,
    nir.Conv2d: ops.emit_conv,
    nir.AvgPool2d: ops.emit_avg_pool,
    nir.SumPool2d: ops.emit_sum_pool,
    nir.Flatten: ops.emit_flatten,
    nir.Threshold: emit_threshold,
    nir.Delay: ops.emit_delay,
    nir.LIF: emit_neuron,
    nir.IF: emit_neuron,
    nir.LI: emit_neuron,
    nir.I: emit_neuron,
    nir.CubaLIF: emit_neuron,
    nir.CubaLI: emit_neuron,
    SpikeMaxPool2d: ops.emit_max_pool,
    MaxPool2d: ops.emit_max_pool,
    STAttenAttention: emit_attention,
    SpikeAnd: ops.emit_spike_and,
    TokenMaxPool: ops.emit_token_max_pool,
    TemporalMean: ops.emit_temporal_mean,
}
"""Every node the export can write: (builder, name, node, the signal on each port) -> the node's result."""


def build_onnx(
    graph: nir.NIRGraph,
    *,
    time_steps: int | None = None,
    dt: float | None = None,
    spike_counts: bool = False,
    metadata: Mapping[str, str] | None = None,
    layout: Layout = "sequence",
) -> onnx.ModelProto:
    """Write a graph as ONNX: inputs and outputs as in docs/onnx.md, time unrolled, weights in float32.

    Args:
        graph: nodes of stock NIR and of `statten_deploy.ir`; nested graphs are inlined.
        time_steps: T; by default what the graph's hints say.
        dt: seconds per step; by default what the hints say, else 1e-4.
        spike_counts: one more output ``spike_counts/<node>`` (int64 [batch]) for every spiking node.
        metadata: written into `metadata_props` beside the hints.
        layout: one call for all T steps (``sequence``), or for `steps_per_call` of them (``stream``).

    Raises:
        ConfigError: no number of time steps, or values that make no sense.
        GraphError: the graph is malformed.
        UnsupportedError: nodes or loops that the export cannot write (all are named).
    """
    graph = inline_subgraphs(graph)
    refuse_unknown(graph, {nir.Input, nir.Output, *EMITTERS})
    time_steps, dt = _time(graph, time_steps, dt)
    verify(graph, dt=dt)
    refuse_loops(graph, dt)
    shapes = infer_shapes(graph)
    refuse_options(graph, shapes, time_steps, dt)

    into = predecessors(graph)
    tasks = [task for task in make_schedule(graph).tasks if not isinstance(task, Sum)]
    order = [name for task in tasks for name in (task.names if isinstance(task, Loop) else (task.name,))]
    image = hints(graph).get("input") == "image"
    call_steps = steps_per_call(graph) if layout == "stream" else time_steps
    b = Builder(shapes, call_steps, dt, terms_in_use(graph.nodes.values(), dt), layout)
    b.model.graph.name = str(hints(graph).get("name") or "graph")
    b.aliases = _aliases(graph, order, into)
    signals = _emit(b, graph, tasks, into, image=image)
    if spike_counts:
        for name in order:
            if isinstance(graph.nodes[name], SPIKING):
                emit_spike_count(b, b.unique(f"spike_counts/{name}"), signals[name])
    b.declare_states()
    write_metadata(b, graph, time_steps, dt, metadata or {}, flavour="float32")
    return b.model


def steps_per_call(graph: nir.NIRGraph) -> int:
    """Steps that one call of a stream takes: a whole block of every attention that has blocks, else one."""
    nodes = graph.nodes.values()
    return math.lcm(*(node.window for node in nodes if isinstance(node, STAttenAttention) and node.mode == "block"))


def _time(graph: nir.NIRGraph, time_steps: int | None, dt: float | None) -> tuple[int, float]:
    """T and dt: the caller's word first, then the graph's hints."""
    found = hints(graph)
    steps = int(found.get("time_steps", 0)) if time_steps is None else time_steps
    if steps < 1:
        raise ConfigError(
            "the number of time steps is not known: the graph has no hint `time_steps`; pass time_steps=T"
            if time_steps is None
            else f"time_steps must be at least 1, got {time_steps}"
        )
    step = time_step(graph) if dt is None else dt
    if not (math.isfinite(step) and step > 0):
        raise ConfigError(f"dt must be a positive number of seconds, got {step}")
    return steps, step


def _aliases(graph: nir.NIRGraph, order: list[str], into: Predecessors) -> dict[str, str]:
    """Nodes whose result is an output of the model as it stands, and so carries the output's name.

    That needs a result without time axis; others are turned batch-first by `emit_output`.
    """
    aliases: dict[str, str] = {}
    timeless: set[str] = set()
    for name in order:
        sources = [source for group in into[name].values() for source in group]
        if isinstance(graph.nodes[name], TemporalMean) or not timeless.isdisjoint(sources):
            timeless.add(name)
        if isinstance(graph.nodes[name], nir.Output) and len(sources) == 1 and sources[0] in timeless:
            aliases.setdefault(sources[0], name)
    return aliases


def _emit(
    b: Builder, graph: nir.NIRGraph, tasks: list[Run | Loop], into: Predecessors, *, image: bool
) -> dict[str, Signal]:
    """Write every node; returns the results."""
    signals: dict[str, Signal] = {}
    siblings = conv_siblings(graph, into, {task.name for task in tasks if isinstance(task, Run)})
    for task in tasks:
        if isinstance(task, Loop):
            signals.update(FloatLoop(b, task, graph, signals, EMITTERS).emit())
            continue
        name = task.name
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            signals[name] = ops.emit_input(b, name, b.shapes[name], image=image)
            continue
        if name in signals:  # written with a sibling
            continue
        inputs = [b.total([(source, signals[source]) for source in sources]) for sources in into[name].values()]
        if isinstance(node, nir.Output):
            ops.emit_output(b, name, inputs[0])
        elif name in siblings:
            names = siblings[name]
            results = ops.emit_conv_siblings(b, names, [graph.nodes[n] for n in names], inputs[0])
            signals.update(zip(names, results, strict=True))
        else:
            signals[name] = EMITTERS[type(node)](b, name, node, *inputs)
    return signals


def conv_siblings(graph: nir.NIRGraph, into: Predecessors, names: Container[str]) -> dict[str, tuple[str, ...]]:
    """Convolutions that read the same signal and differ in their weights only, such as q, k and v: name -> group.

    Dense convolutions (groups = 1) among `names` only; a group has at least two members.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, node in graph.nodes.items():
        if name in names and isinstance(node, nir.Conv1d | nir.Conv2d) and int(node.groups) == 1:
            options = tuple((key, tuple(value)) for key, value in ops.conv_attributes(node).items() if key != "group")
            sources = tuple(into[name]["input"])
            groups.setdefault((sources, options, np.shape(node.weight)[1:], node.bias is None), []).append(name)
    return {name: tuple(names) for names in groups.values() if len(names) > 1 for name in names}
