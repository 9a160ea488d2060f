"""Fixed-point neurons as a model-local function ``IntegerLIF``, unrolled over the time steps of the model.

    u = wrap(truncate(u · (4095 - du)) + x)          x = a << 6
    v = saturate(truncate(v · (4096 - dv)) + u + bias)
    y = v > threshold                                v = 0 where y

Membranes are whole numbers in float32, or in float64 where a product needs more than 24 bits. Scaling by a power of two
is exact there, and casting to an integer type and back rounds towards zero, which is what `truncate` asks for. Terms
that are proved to do nothing in a layer (`bounds.plan_neuron`) are left out: one function for each kind of layer.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import DTypeLike
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from statten_deploy.errors import GraphError
from statten_deploy.export.onnx.builder import BATCH, FUNCTION_DOMAIN, FunctionBody
from statten_deploy.export.onnx.integer.bounds import (
    FULL,
    HALF,
    ONE,
    NeuronPlan,
    neuron_bias,
)
from statten_deploy.export.onnx.integer.products import GAIN
from statten_deploy.export.onnx.integer.signals import ELEMENT, IntegerBuilder, IntegerSignal, channels_last
from statten_deploy.fixed_point.arithmetic import NO_SYNAPTIC_MEMORY, STATE_MAX
from statten_deploy.fixed_point.ranges import Interval
from statten_deploy.ir.integer import IntegerLI, IntegerLIF

FUNCTION = "IntegerLIF"
INTEGRATOR = "IntegerLI"
LOOP_FUNCTION = "IntegerLIFInLoop"
LOOP_INTEGRATOR = "IntegerLIInLoop"


def emit_lif(b: IntegerBuilder, name: str, node: IntegerLIF, x: IntegerSignal) -> IntegerSignal:
    """Call the function of the layer's kind; spikes are bytes."""
    inputs, plan, biased = _inputs(b, name, node, x)
    held = x.time == "held" and b.time_steps > 1
    key = (plan, biased, held)
    carried = [what for what in ("v", "u") if b.streams and (what == "v" or plan.du != NO_SYNAPTIC_MEMORY)]
    shape = channels_last(node.shape)
    states = [b.state(f"{name}.{what}", shape, plan.dtype) for what in carried]
    function = b.variant(FUNCTION, key, lambda named: _lif_function(b, named, plan, biased=biased, held=held))
    b.call(function, [*inputs, *(state.input for state in states)], name, [state.output for state in states])
    bounds = Interval(*(np.full(node.shape[0], end, dtype=np.int64) for end in (0, 1)))
    return b.declare(IntegerSignal(b.result_name(name), node.shape, "steps", np.uint8, bounds))


def emit_li(b: IntegerBuilder, name: str, node: IntegerLI, x: IntegerSignal) -> IntegerSignal:
    """The membranes of integrators, by a function that unrolls them over the steps."""
    inputs, plan, biased = _inputs(b, name, node, x)
    held = x.time == "held" and b.time_steps > 1
    key = (plan, biased, held)
    function = b.variant(INTEGRATOR, key, lambda named: _li_function(b, named, plan, biased=biased, held=held))
    b.call(function, inputs, name)
    return b.declare(IntegerSignal(b.result_name(name), node.shape, "steps", plan.dtype, b.ranges[name]))


def _inputs(
    b: IntegerBuilder, name: str, node: IntegerLIF | IntegerLI, x: IntegerSignal
) -> tuple[list[str], NeuronPlan, bool]:
    """(current, threshold of neurons that fire, bias if there is one to add; plan; whether there is)."""
    current, plan = _current(b, name, node, x), b.plans[name]
    if current.dtype == np.float64:
        plan = replace(plan, dtype=np.float64)
    bias = neuron_bias(node)
    biased = bool(np.any(bias)) and name not in b.biased_before
    inputs = [b.cast(current, plan.dtype).value]
    if isinstance(node, IntegerLIF):
        inputs.append(b.integers(f"{name}.threshold", node.threshold))
    if biased:
        inputs.append(b.integers(f"{name}.bias", bias))
    return inputs, plan, biased


def _current(b: IntegerBuilder, name: str, node: IntegerLIF | IntegerLI, x: IntegerSignal) -> IntegerSignal:
    """``(x << input_exponent) << 6``, rounded down for negative exponents, in a type that holds it."""
    e = node.input_exponent
    if e >= 0:  # a power of two costs no bits
        return b.regain(x, GAIN << e, name)
    plain = b.real(b.regain(x, 1, name), name)
    shifted = b.aux("Mul", [plain.value, b.number(2.0**e, plain.dtype)], name, "shifted")
    floored = b.aux("Floor", [shifted], name, "input")
    return b.regain(IntegerSignal(floored, x.shape, x.time, plain.dtype, x.range.shifted(e)), GAIN, name)


def _lif_function(b: IntegerBuilder, name: str, plan: NeuronPlan, *, biased: bool, held: bool) -> FunctionProto:
    """The function of one kind of layer; `held`: x is [batch, ...], the same at every step.

    In a stream, `v` and `u` come from the call before: `v` before its reset, so that it says whether it fired.
    """
    steps, recalls = b.time_steps, plan.du != NO_SYNAPTIC_MEMORY
    body = _Body(plan)
    limit = body.op("Mul", [body.real("threshold"), body.number(GAIN)], "limit")
    bias = body.real("bias") if biased else ""
    # What adds to the membrane, for all steps together where no step needs the one before.
    drive = "x" if recalls else body.plus(bias, body.wrapped("x", "u"), "drive")
    drives = [drive] * steps
    if not held and steps > 1:
        drives = [f"x{t}" for t in range(steps)]
        body.nodes.append(helper.make_node("Split", [drive], drives, axis=0, num_outputs=steps))
    silent: list[str] = []
    if b.streams:
        v, u = "v", "u"
        quiet = body.op("LessOrEqual", [v, limit], "s")
    else:
        u = drives[0] if not recalls else body.wrapped(drives[0], "u0")
        v = body.saturated(body.plus(bias, u, "d0") if recalls else u, "v0")
        quiet = body.op("LessOrEqual", [v, limit], "s0")
        silent.append(quiet)
    first = len(silent)
    if steps > first:
        kind = plan if recalls else replace(plan, wraps=False)
        step = b.variant(f"{FUNCTION}Step", (kind, biased and recalls), partial(_step_function, kind, biased=biased))
        b.register(step)
    for t in range(first, steps):
        inputs, outputs = [v, quiet, drives[t], limit], [f"v{t}", f"s{t}"]
        if recalls:
            inputs, outputs = [*inputs, u, *([bias] if biased else [])], [*outputs, f"u{t}"]
            u = outputs[-1]
        body.nodes.append(helper.make_node(step.name, inputs, outputs, domain=FUNCTION_DOMAIN))
        v, quiet = outputs[:2]
        silent.append(quiet)
    body.op("Concat", silent, "silent", axis=0)
    body.op("Cast", [body.op("Not", ["silent"], "fired")], "y", to=TensorProto.UINT8)
    text = f"{steps} steps of: {_equation(plan, biased)}\nx [{'' if held else 'steps*'}batch, ...]"
    inputs, outputs = ["x", "threshold", *(["bias"] if biased else [])], ["y"]
    if b.streams:
        inputs, outputs = [*inputs, "v", *(["u"] if recalls else [])], ["y", v, *([u] if recalls else [])]
    return body.function(name, inputs, text, outputs)


def _step_function(plan: NeuronPlan, name: str, *, biased: bool) -> FunctionProto:
    """One step: membrane `v` before the reset and silence `s` of the step before -> those of this step."""
    body = _Body(plan)
    inputs, outputs, drive = ["v", "s", "x", "limit"], ["v1", "s1"], "x"
    if plan.du != NO_SYNAPTIC_MEMORY:
        inputs, outputs = [*inputs, "u", *(["bias"] if biased else [])], [*outputs, "u1"]
        recalled = body.decayed("u", NO_SYNAPTIC_MEMORY - plan.du, "recalled")
        body.named(body.wrapped(body.plus(recalled, "x", "i"), "wrapped"), "u1")
        drive = body.plus("bias", "u1", "d") if biased else "u1"
    # A product with 0 or 1 is half the price of Where in onnxruntime.
    after = body.op("Mul", ["v", body.op("Cast", ["s"], "kept", to=body.element)], "after") if plan.dv != ONE else ""
    left = body.decayed(after, ONE - plan.dv, "left", whole=plan.exact)
    body.named(body.saturated(body.plus(left, drive, "sum"), "saturated"), "v1")
    body.op("LessOrEqual", ["v1", "limit"], "s1")
    text = "one step; s: no spike; v before the reset, which the next step does"
    return body.function(name, inputs, text, outputs)


def _li_function(b: IntegerBuilder, name: str, plan: NeuronPlan, *, biased: bool, held: bool) -> FunctionProto:
    """The function of one kind of integrators; `held`: x is [batch, ...], the same at every step."""
    steps, body = b.time_steps, _Body(plan)
    step = _loop_function(b, plan, biased=biased, fires=False)
    b.register(step)
    currents = ["x"] * steps
    if not held and steps > 1:
        currents = [f"x{t}" for t in range(steps)]
        body.nodes.append(helper.make_node("Split", ["x"], currents, axis=0, num_outputs=steps))
    states = [body.number(0)] * len(loop_states(plan))
    membranes = []
    for t, current in enumerate(currents):
        inputs = [current, *(["bias"] if biased else []), *states]
        states = [f"{state}{t}" for state in loop_states(plan)]
        body.nodes.append(helper.make_node(step.name, inputs, states, domain=FUNCTION_DOMAIN))
        membranes.append(states[0])
    body.op("Concat", membranes, "y", axis=0)
    text = f"{steps} steps of: {_equation(plan, biased, fires=False)}\nx [{'' if held else 'steps*'}batch, ...]"
    return body.function(name, ["x", *(["bias"] if biased else [])], text)


# one step, for neurons in a loop


def emit_in_loop(
    b: IntegerBuilder, name: str, node: IntegerLIF | IntegerLI, x: IntegerSignal, states: Sequence[str]
) -> tuple[IntegerSignal, list[str], DTypeLike]:
    """One step from the states `loop_states`: the result, the states after it, [batch, ...], and their type."""
    inputs, plan, biased = _inputs(b, name, node, x)
    fires = isinstance(node, IntegerLIF)
    function = _loop_function(b, plan, biased=biased, fires=fires)
    b.register(function)
    ends = [b.unique(f"{name}/{state}") for state in loop_states(plan)]
    result = b.result_name(name)
    outputs = [result, *ends] if fires else [result, *ends[1:]]
    b.append(function.name, [*inputs, *states], outputs, name, domain=FUNCTION_DOMAIN)
    dtype = np.uint8 if fires else plan.dtype
    signal = b.declare(IntegerSignal(result, node.shape, "steps", dtype, b.ranges[name]))
    return signal, (ends if fires else [result, *ends[1:]]), plan.dtype


def loop_states(plan: NeuronPlan) -> tuple[str, ...]:
    """What a neuron of a loop keeps from step to step: its membrane after the reset, its synaptic current."""
    return ("v", "u") if plan.du != NO_SYNAPTIC_MEMORY else ("v",)


def _loop_function(b: IntegerBuilder, plan: NeuronPlan, *, biased: bool, fires: bool) -> FunctionProto:
    """One step: x and the states -> spikes and the states after it; of integrators the membrane stands for both."""
    base = LOOP_FUNCTION if fires else LOOP_INTEGRATOR
    return b.variant(base, (plan, biased), partial(_write_loop_function, plan, biased=biased, fires=fires))


def _write_loop_function(plan: NeuronPlan, name: str, *, biased: bool, fires: bool) -> FunctionProto:
    body = _Body(plan)
    states = loop_states(plan)
    bias = body.real("bias") if biased else ""
    u, v = body.integrated("x", "u", "v", bias)
    memory = [body.op("Identity", [u], "u1")] if "u" in states else []
    inputs = ["x", *(["threshold"] if fires else []), *(["bias"] if biased else []), *states]
    text = f"one step of: {_equation(plan, biased, fires=fires)}\nv after the reset"
    if not fires:
        body.op("Identity", [v], "v1")
        return body.function(name, inputs, text, ["v1", *memory])
    limit = body.op("Mul", [body.real("threshold"), body.number(GAIN)], "limit")
    silent = body.op("LessOrEqual", [v, limit], "silent")
    body.op("Cast", [body.op("Not", [silent], "fired")], "y", to=TensorProto.UINT8)
    body.op("Mul", [v, body.op("Cast", [silent], "kept", to=body.element)], "v1")
    return body.function(name, inputs, text, ["y", "v1", *memory])


def _equation(plan: NeuronPlan, biased: bool, *, fires: bool = True) -> str:
    u, v = "x", ("u + bias" if biased else "u")
    if plan.du != NO_SYNAPTIC_MEMORY:
        u = f"trunc(u * {NO_SYNAPTIC_MEMORY - plan.du} / {ONE}) + x"
    u = f"wrap({u})" if plan.wraps else u
    v = f"trunc(v * {ONE - plan.dv} / {ONE}) + {v}"
    v = f"saturate({v})" if plan.saturates else v
    return f"u = {u};  v = {v};  " + (f"y = v > {GAIN} * threshold;  v = 0 where y" if fires else "y = v")


class _Body(FunctionBody):
    """The operations of a neuron; an empty name is a value that is 0."""

    def __init__(self, plan: NeuronPlan) -> None:
        super().__init__()
        self.plan, self.element = plan, ELEMENT[np.dtype(plan.dtype)]
        self._constants: dict[float, str] = {}
        self._outputs: set[str] = set()

    def number(self, value: float) -> str:
        if value not in self._constants:
            self._constants[value] = self.constant(value, self.plan.dtype, f"c{len(self._constants)}")
        return self._constants[value]

    def named(self, value: str, output: str) -> None:
        """Give `value` the name of an output of the function."""
        if self.nodes and value == self.nodes[-1].output[0] and value not in self._outputs:
            self.nodes[-1].output[0] = output
        else:
            self.op("Identity", [value], output)
        self._outputs.add(output)

    def real(self, parameter: str) -> str:
        """A parameter, stored in the smallest integer type, in the type of the membrane."""
        return self.op("Cast", [parameter], f"{parameter}_", to=self.element)

    def plus(self, a: str, c: str, output: str) -> str:
        return self.op("Add", [a, c], output) if a else c

    def decayed(self, state: str, factor: int, output: str, *, whole: bool = False) -> str:
        """``truncate(state · factor)``; `whole`: nothing is left to truncate."""
        if not state or not factor:
            return ""
        if factor == ONE:
            return state
        share = self.op("Mul", [state, self.number(factor / ONE)], output if whole else f"{output}_share")
        if whole:
            return share
        integer = TensorProto.INT32 if self.plan.dtype == np.float32 else TensorProto.INT64
        return self.op("Cast", [self.op("Cast", [share], f"{output}_whole", to=integer)], output, to=self.element)

    def integrated(self, x: str, u: str, v: str, bias: str) -> tuple[str, str]:
        """(synaptic current, membrane) after a step, from those before; `u` matters with a synaptic memory only."""
        if self.plan.du != NO_SYNAPTIC_MEMORY:
            recalled = self.decayed(u, NO_SYNAPTIC_MEMORY - self.plan.du, "recalled")
            x = self.plus(recalled, x, "current")
        u = self.wrapped(x, "wrapped")
        left = self.decayed(v, ONE - self.plan.dv, "left", whole=self.plan.exact)
        return u, self.saturated(self.plus(left, self.plus(bias, u, "drive"), "sum"), "saturated")

    def wrapped(self, u: str, output: str) -> str:
        """``u - 2^24 ((u > 2^23) - (u <= -2^23))``."""
        if not self.plan.wraps:
            return u
        above = self.op("Greater", [u, self.number(HALF)], "above")
        below = self.op("LessOrEqual", [u, self.number(-HALF)], "below")
        sides = [self.op("Cast", [side], f"{side}_", to=self.element) for side in (above, below)]
        turns = self.op("Mul", [self.op("Sub", sides, "turns"), self.number(FULL)], "turned")
        return self.op("Sub", [u, turns], output)

    def saturated(self, v: str, output: str) -> str:
        if not self.plan.saturates:
            return v
        return self.op("Clip", [v, self.number(-STATE_MAX), self.number(STATE_MAX)], output)


# what a checker reads


def neuron_calls(model: ModelProto) -> list[NodeProto]:
    """The calls of neuron functions, in the order of the graph; a call has the name of its layer."""
    names = {function.name for function in model.functions if _is_neuron(function)}
    return [node for node in model.graph.node if node.domain == FUNCTION_DOMAIN and node.op_type in names]


def _is_neuron(function: FunctionProto) -> bool:
    return function.domain == FUNCTION_DOMAIN and function.name.split("_")[0] == FUNCTION


def integrator_calls(model: ModelProto) -> list[NodeProto]:
    """The calls of the functions of integrators."""
    return [node for node in model.graph.node if _calls(node, INTEGRATOR)]


def _calls(node: NodeProto, base: str) -> bool:
    return bool(node.domain == FUNCTION_DOMAIN and node.op_type.split("_")[0] == base)


def _loops(model: ModelProto) -> list[tuple[NodeProto, GraphProto]]:
    """Every Scan of a loop with its body."""
    scans = [node for node in model.graph.node if node.op_type == "Scan"]
    return [(node, attribute.g) for node in scans for attribute in node.attribute if attribute.name == "body"]


def loop_calls(model: ModelProto) -> list[str]:
    """The neuron layers that are called in the body of a loop."""
    return [node.name for _, body in _loops(model) for node in body.node if _calls(node, LOOP_FUNCTION)]


def show_loop_membranes(model: ModelProto) -> dict[str, str]:
    """Give every loop its neurons' membranes after the reset as more results: layer -> value [T, batch, ...]."""
    shown = {}
    for scan, body in _loops(model):
        states = {value.name: value for value in body.input}
        for node in list(body.node):
            if not _calls(node, LOOP_FUNCTION):
                continue
            shown[node.name] = f"{node.name}/membranes"
            before = next(name for name in node.input if name in states and name.startswith(f"{node.name}/v/"))
            body.node.append(helper.make_node("Identity", [node.output[1]], [f"{node.name}/membranes/step"]))
            body.output.append(states[before])
            body.output[-1].name = f"{node.name}/membranes/step"
            scan.output.append(shown[node.name])
    return shown


def show_membranes(model: ModelProto) -> None:
    """Give every neuron function a second output ``membranes``: those after the reset, [steps*batch, ...]."""
    for function in filter(_is_neuron, model.functions):
        makers = {output: node for node in function.node for output in node.output}
        if "silent" not in makers:
            raise GraphError(f"function {function.name!r} is not a neuron that this package wrote")
        after = []
        for silent in makers["silent"].input:
            maker = makers[silent]
            before = maker.input[0] if maker.op_type == "LessOrEqual" else maker.output[0]
            after.append(f"after_{silent}")
            function.node.append(helper.make_node("CastLike", [silent, before], [f"kept_{silent}"]))
            function.node.append(helper.make_node("Mul", [before, f"kept_{silent}"], [after[-1]]))
        function.node.append(helper.make_node("Concat", after, ["after"], axis=0))
        function.node.append(helper.make_node("Cast", ["after"], ["membranes"], to=TensorProto.INT32))
        function.output.append("membranes")


# spikes of a layer, counted


def emit_spike_count(b: IntegerBuilder, output: str, spikes: IntegerSignal) -> None:
    """One more output of the model: int64 [batch], the spikes of a layer over all steps and neurons."""
    function = b.variant("IntegerSpikeCount", (), lambda named: _count_function(named, b.time_steps))
    b.call(function, [spikes.value], output)
    declared = b.model.graph.output.add(name=output)
    declared.type.tensor_type.elem_type = TensorProto.INT64
    declared.type.tensor_type.shape.dim.add(dim_param=BATCH)


def _count_function(name: str, time_steps: int) -> FunctionProto:
    """uint8 has no sum and int32 is enough for one step of one sample; int64 for all of them."""
    body = FunctionBody()
    neurons = body.op("Cast", [body.op("Flatten", ["x"], "neurons", axis=1)], "wide", to=TensorProto.INT32)
    step_counts = body.op("ReduceSum", [neurons, body.ints("neuron", 1)], "step_counts", keepdims=0)
    exact = body.op("Cast", [step_counts], "exact", to=TensorProto.INT64)
    by_step = body.op("Reshape", [exact, body.ints("step_shape", time_steps, -1)], "by_step")
    body.op("ReduceSum", [by_step, body.ints("step", 0)], "y", keepdims=0)
    text = "spikes over all steps and neurons\nx [steps*batch, ...]; y [batch]"
    return body.function(name, ["x"], text)
