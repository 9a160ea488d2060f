"""A quantised graph as one ONNX model in integers, for the whole sequence or for a few steps of a stream."""

import json
from collections.abc import Callable, Mapping, Sequence

import nir
import onnx

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx.build import steps_per_call
from statten_deploy.export.onnx.builder import Layout
from statten_deploy.export.onnx.checks import refuse_loops, refuse_options, refuse_unknown
from statten_deploy.export.onnx.files import write_metadata
from statten_deploy.export.onnx.integer import ops
from statten_deploy.export.onnx.integer.attention import JointAttention, emit_attention, emit_joint_attention
from statten_deploy.export.onnx.integer.biases import place_biases
from statten_deploy.export.onnx.integer.bounds import plan_neuron
from statten_deploy.export.onnx.integer.fuse import Known, Part, fuse_heads
from statten_deploy.export.onnx.integer.loops import IntegerLoop
from statten_deploy.export.onnx.integer.neurons import emit_neurons
from statten_deploy.export.onnx.integer.planes import hold_scales
from statten_deploy.export.onnx.integer.signals import GAIN, Flavour, IntegerBuilder, IntegerSignal
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
    IntegerConv2d: ops.emit_weighted,
    IntegerLinear: ops.emit_weighted,
    IntegerLIF: emit_neurons,
    IntegerLI: emit_neurons,
    IntegerSumPool2d: ops.emit_sum_pool,
    MaxPool2d: ops.emit_max_pool,
    SpikeMaxPool2d: ops.emit_max_pool,
    STAttenAttention: emit_attention,
    SpikeAnd: ops.emit_spike_and,
    TokenMaxPool: ops.emit_token_max_pool,
    TemporalSum: ops.emit_temporal_sum,
}
"""Every node the export can write: (builder, name, node, the signal on each port) -> the node's result."""

FLAVOURS: tuple[Flavour, ...] = ("integer", "qdq")
"""What these models are called in `metadata_props` under ``flavour``."""


def build_integer_onnx(
    graph: nir.NIRGraph,
    *,
    flavour: Flavour = "integer",
    spike_counts: bool = False,
    metadata: Mapping[str, str] | None = None,
    layout: Layout = "sequence",
) -> onnx.ModelProto:
    """Write a quantised graph as ONNX in integers: inputs and outputs as in docs/onnx.md, weights in int8.

    Every spike, every membrane and the integer readout are those of `statten_deploy.fixed_point.runner`, on every
    input, but where a runtime computes the float64 in a file of ``integer`` as float32. Real numbers are divided in the
    input encoder and multiplied behind the readout only; float tensors in between hold whole numbers, in a type that is
    proved to hold them exactly.

    Args:
        graph: a quantised graph, as `statten_deploy.quantize.quantize` makes it; nested graphs are inlined.
        flavour: how products are written: ``integer`` for onnxruntime, ``qdq`` for OpenVINO. Results are the same.
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
    if flavour == "qdq" and loops(graph):
        raise UnsupportedError(
            f"{', '.join(loops(graph)[0])} (a loop): --flavour qdq has no loops; export with --flavour integer"
        )
    _refuse_inputs(graph)
    time_steps, dt = int(hints(graph)["time_steps"]), time_step(graph)
    known = Known(infer_shapes(graph), *integer_ranges(graph, endless=layout == "stream"))
    refuse_options(graph, known.shapes, time_steps, dt)
    neurons = [name for name in known.currents if isinstance(graph.nodes[name], IntegerLIF)]

    fused, parts = fuse_heads(graph, known)
    tasks = [task for task in make_schedule(fused).tasks if not isinstance(task, Sum)]
    # A stream may go on for ever: what is left out there must be proved for any number of steps.
    call_steps, proved = (steps_per_call(graph), None) if layout == "stream" else (time_steps, time_steps)
    b = IntegerBuilder(known.shapes, call_steps, known.ranges, layout, flavour)
    b.sample_steps = time_steps
    layers = {name: a for name, a in known.currents.items() if name in fused.nodes}
    b.plans = {name: plan_neuron(name, fused.nodes[name], a, proved) for name, a in layers.items()}
    b.gains = _gains(fused)
    order = [task.name for task in tasks if isinstance(task, Run)]
    currents = [name for name in b.gains if not isinstance(fused.nodes[name], STAttenAttention | JointAttention)]
    b.addends = place_biases(fused, order, b.plans, b.ranges, currents)
    b.model.graph.name = str(hints(graph).get("name") or "graph")
    signals = _emit(b, fused, tasks, predecessors(fused))
    if spike_counts:
        for name in neurons:
            part = parts.get(name, Part(name, known.shapes[name][:1], 0))
            layer = b.part(signals[part.layer], part.sizes, part.index)
            ops.emit_spike_count(b, b.unique(f"spike_counts/{name}"), layer)
    if b.planar:
        hold_scales(b)
    b.write_ones()
    b.declare_states()
    b.told = {"neurons": json.dumps(_described(b, parts, known)), "integers": json.dumps(b.integers)}
    write_metadata(b, graph, time_steps, dt, metadata or {}, flavour=flavour)
    return b.model


def _described(b: IntegerBuilder, parts: Mapping[str, Part], known: Known) -> list[dict[str, object]]:
    """Where every layer's values are; of a joint layer, which channels."""
    found: list[dict[str, object]] = []
    for layer in b.neurons:
        members = {name: part for name, part in parts.items() if part.layer == layer["name"]}
        found += [
            {**layer, "name": name, "shape": list(known.shapes[name]), "channels": part.sizes, "part": part.index}
            for name, part in members.items()
        ] or [layer]
    return found


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


def _gains(graph: nir.NIRGraph) -> dict[str, int]:
    """What results are multiplied with where they are computed: currents that neurons read travel as ``a << 6``.

    Weighted nodes that something else than a readout takes, and attention in front of one layer of neurons, with what
    that shifts its counts by.
    """
    after, found = successors(graph), {}
    for name, node in graph.nodes.items():
        readers = [graph.nodes[target] for target in after[name]]
        if isinstance(node, IntegerConv2d | IntegerLinear):
            if not all(isinstance(reader, TemporalSum | nir.Output) for reader in readers):
                found[name] = GAIN
        elif isinstance(node, STAttenAttention | JointAttention) and len(readers) == 1:
            (reader,) = readers
            if isinstance(reader, IntegerLIF | IntegerLI) and reader.input_exponent >= 0:
                found[name] = GAIN << reader.input_exponent
    return found


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
        elif isinstance(node, JointAttention):
            signals[name] = emit_joint_attention(b, name, node, *inputs)
        else:
            signals[name] = EMITTERS[type(node)](b, name, node, *inputs)
    return signals
