"""Neurons as model-local ONNX functions, unrolled over the time steps of the model.

One function per neuron type, in the domain ``statten``; its inputs are the current and the neuron's parameters, its
output is one value per step, time-major. A second one, ``<type>Held``, takes a current that is the same at every step
and is stored once. Parameters that are neutral in every neuron of that type in the model (r = 1, v_leak = 0,
v_reset = 0) do not appear: leaving them out changes no bit of the result.

The float operations are those of `statten_deploy.simulate`, in its order. A membrane starts at v_leak (at 0 without a
leak) and a synaptic current at 0, so the first step is written without them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from onnx import FunctionProto, ModelProto, TensorProto, helper

from statten_deploy.export.onnx.builder import (
    BATCH,
    FUNCTION_DOMAIN,
    Array,
    Builder,
    FunctionBody,
    ModelWriter,
    Signal,
    compact,
)
from statten_deploy.ir.integer import INTEGER_NEURONS

State = tuple[str, ...]
Step = Callable[["Body", str, State, int], tuple[str, State]]
"""(body, current, state or () at the first step, step) -> (output, next state)."""


class Body(FunctionBody):
    """The nodes of a neuron's function under construction; the value ``v`` of step 3 is called ``v_3``."""

    def __init__(self, terms: frozenset[str]) -> None:
        super().__init__()
        self.terms = terms
        self._scaled: dict[tuple[str, str], str] = {}

    def scaled(self, factor: str, value: str, result: str) -> str:
        """``factor · value``, or `value` where the factor is 1 in every neuron. Computed once for a held value."""
        if factor not in self.terms:
            return value
        if (factor, value) not in self._scaled:
            self._scaled[factor, value] = self.op("Mul", [factor, value], result)
        return self._scaled[factor, value]

    def synapse(self, current: str, i: State, t: int) -> str:
        """One Euler step of the synaptic current: ``i + decay_syn · (w_in · S - i)``."""
        target = self.scaled("w_in", current, f"w_in_s_{t}")
        if not i:
            return self.op("Mul", ["decay_syn", target], f"i_{t}")
        change = self.op("Mul", ["decay_syn", self.op("Sub", [target, i[0]], f"di_target_{t}")], f"di_{t}")
        return self.op("Add", [i[0], change], f"i_{t}")

    def relax(self, current: str, v: State, t: int) -> str:
        """One Euler step of a leaky membrane: ``v + decay · ((v_leak - v) + r · I)``."""
        drive = self.scaled("r", current, f"r_i_{t}")
        rest = "v_leak" if "v_leak" in self.terms else ""
        if not v:  # starts at rest, so nothing pulls back yet
            charge = self.op("Mul", ["decay", drive], f"dv_{t}" if rest else f"v_{t}")
            return self.op("Add", [rest, charge], f"v_{t}") if rest else charge
        if rest:
            target = self.op("Add", [self.op("Sub", [rest, v[0]], f"rest_{t}"), drive], f"dv_target_{t}")
        else:
            target = self.op("Sub", [drive, v[0]], f"dv_target_{t}")  # (0 - v) + r I, without the 0
        return self.op("Add", [v[0], self.op("Mul", ["decay", target], f"dv_{t}")], f"v_{t}")

    def integrate(self, current: str, v: State, t: int) -> str:
        """One Euler step without leak: ``v + gain · I`` with gain = dt · r."""
        drive = self.scaled("gain", current, f"dv_{t}")
        return self.op("Add", [v[0], drive], f"v_{t}") if v else drive

    def fire(self, v: str, t: int) -> tuple[str, str]:
        """(spike as bool, membrane after the reset): ``s = v > v_threshold``, ``v = v_reset where s``."""
        fired = self.op("Greater", [v, "v_threshold"], f"fired_{t}")
        if "v_reset" in self.terms:
            return fired, self.op("Where", [fired, "v_reset", v], f"v_after_{t}")
        # v · (not fired) is v or 0: what Where would give, in half the time (measured in onnxruntime 1.32).
        kept = self.op("Cast", [self.op("Not", [fired], f"silent_{t}")], f"kept_{t}", to=TensorProto.FLOAT)
        return fired, self.op("Mul", [v, kept], f"v_after_{t}")


# one step of each neuron type


def _lif(body: Body, current: str, state: State, t: int) -> tuple[str, State]:
    fired, v = body.fire(body.relax(current, state, t), t)
    return fired, (v,)


def _if(body: Body, current: str, state: State, t: int) -> tuple[str, State]:
    fired, v = body.fire(body.integrate(current, state, t), t)
    return fired, (v,)


def _cuba_lif(body: Body, current: str, state: State, t: int) -> tuple[str, State]:
    i = body.synapse(current, state[:1], t)
    fired, v = body.fire(body.relax(i, state[1:], t), t)
    return fired, (i, v)


def _li(body: Body, current: str, state: State, t: int) -> tuple[str, State]:
    v = body.relax(current, state, t)
    return v, (v,)


def _i(body: Body, current: str, state: State, t: int) -> tuple[str, State]:
    v = body.integrate(current, state, t)
    return v, (v,)


def _cuba_li(body: Body, current: str, state: State, t: int) -> tuple[str, State]:
    i = body.synapse(current, state[:1], t)
    v = body.relax(i, state[1:], t)
    return v, (i, v)


# parameters: function input -> float32 array, from the node and dt


def _ratio(dt: float, tau: Array) -> Array:
    return np.asarray(np.float32(dt) / np.asarray(tau, dtype=np.float32))


def _gain(dt: float, r: Array) -> Array:
    return np.asarray(np.float32(dt) * np.asarray(r, dtype=np.float32))


def _leaky(node: Any, dt: float) -> dict[str, Array]:
    return {"decay": _ratio(dt, node.tau), "r": node.r, "v_leak": node.v_leak}


def _cuba(node: Any, dt: float) -> dict[str, Array]:
    synapse = {"decay_syn": _ratio(dt, node.tau_syn), "w_in": node.w_in}
    return {**synapse, "decay": _ratio(dt, node.tau_mem), "r": node.r, "v_leak": node.v_leak}


def _firing(node: Any) -> dict[str, Array]:
    return {"v_threshold": node.v_threshold, "v_reset": node.v_reset}


NEUTRAL = {"r": 1.0, "gain": 1.0, "w_in": 1.0, "v_leak": 0.0, "v_reset": 0.0}
"""Values with which a term may be left out."""


@dataclass(frozen=True)
class Neuron:
    """A neuron type: its function's name, one step of it, its parameters, whether its output is spikes."""

    name: str
    step: Step
    parameters: Callable[[Any, float], dict[str, Array]]
    spiking: bool
    equation: str
    states: State = ("v",)
    """What it remembers from step to step."""


_LEAKY = "v += decay * ((v_leak - v) + r * x)"
_INTEGRATE = "v += gain * x"
_SYNAPSE = "i += decay_syn * (w_in * x - i);  v += decay * ((v_leak - v) + r * i)"
_FIRE = ";  y = v > v_threshold;  v = v_reset where y"

NEURONS: dict[type[nir.NIRNode], Neuron] = {
    nir.LIF: Neuron("LIF", _lif, lambda n, dt: {**_leaky(n, dt), **_firing(n)}, True, _LEAKY + _FIRE),
    nir.IF: Neuron("IF", _if, lambda n, dt: {"gain": _gain(dt, n.r), **_firing(n)}, True, _INTEGRATE + _FIRE),
    nir.CubaLIF: Neuron(
        "CubaLIF", _cuba_lif, lambda n, dt: {**_cuba(n, dt), **_firing(n)}, True, _SYNAPSE + _FIRE, ("i", "v")
    ),
    nir.LI: Neuron("LI", _li, _leaky, False, _LEAKY + ";  y = v"),
    nir.I: Neuron("I", _i, lambda n, dt: {"gain": _gain(dt, n.r)}, False, _INTEGRATE + ";  y = v"),
    nir.CubaLI: Neuron("CubaLI", _cuba_li, _cuba, False, _SYNAPSE + ";  y = v", ("i", "v")),
}
"""Every neuron type with a membrane."""


def has_memory(node: nir.NIRNode) -> bool:
    """Whether a node of a loop has a state from step to step."""
    return type(node) in NEURONS or isinstance(node, (nir.Delay, *INTEGER_NEURONS))


def terms_in_use(nodes: Iterable[nir.NIRNode], dt: float) -> dict[str, frozenset[str]]:
    """For each neuron type (by function name), the parameters that some neuron of the graph needs."""
    used: dict[str, set[str]] = {}
    for node in nodes:
        neuron = NEURONS.get(type(node))
        if neuron is not None:
            used.setdefault(neuron.name, set()).update(
                key
                for key, value in neuron.parameters(node, dt).items()
                if key not in NEUTRAL or bool(np.any(np.asarray(value, dtype=np.float32) != NEUTRAL[key]))
            )
    return {name: frozenset(terms) for name, terms in used.items()}


def emit_neuron(b: Builder, name: str, node: nir.NIRNode, current: Signal) -> Signal:
    """Call the function of the node's type with its parameters."""
    neuron = NEURONS[type(node)]
    terms = b.terms[neuron.name]
    parameters = {key: value for key, value in neuron.parameters(node, b.dt).items() if key in terms}
    held = current.time == "held"
    function = neuron_function(neuron, b.time_steps, tuple(parameters), held=held, carried=b.streams)
    values = {key: b.floats(f"{name}.{key}", compact(value)) for key, value in parameters.items()}
    states = [b.state(f"{name}.{what}", current.shape) for what in neuron.states] if b.streams else []
    before = [state.input for state in states]
    if states and "v_leak" in values:
        before[-1] = from_rest(b, name, before[-1], values["v_leak"], len(current.shape))
    b.call(function, [current.value, *before, *values.values()], name, [state.output for state in states])
    return b.declare(name, current.shape, "steps")


def from_rest(b: ModelWriter, name: str, v: str, v_leak: str, rank: int) -> str:
    """The membrane before the call: at rest where nothing came before, since states start as zeros."""
    fresh = b.aux("Equal", [b.elapsed().input, b.ints(0)], name, "fresh")
    column = b.reshape(fresh, (-1, *(1,) * rank), name, "fresh_sample")
    return b.aux("Where", [column, v_leak, v], name, "v")


def neuron_function(
    neuron: Neuron, time_steps: int, terms: tuple[str, ...], *, held: bool, carried: bool = False
) -> FunctionProto:
    """The function of a neuron type over `time_steps` steps, with the parameters `terms` as inputs.

    `carried`: its state is an input and, after the last step, an output.
    """
    body = Body(frozenset(terms))
    if held or time_steps == 1:
        currents = ["x"] * time_steps
    else:
        currents = [f"x_{t}" for t in range(time_steps)]
        body.nodes.append(helper.make_node("Split", ["x"], currents, name="steps", axis=0, num_outputs=time_steps))
    before: State = neuron.states if carried else ()
    state = before
    outputs = []
    for t, current in enumerate(currents):
        output, state = neuron.step(body, current, state, t)
        outputs.append(output)
    if neuron.spiking:
        # The reset after the last step leads nowhere, unless to the next call.
        while not carried and body.nodes[-1].output[0] != outputs[-1]:
            body.nodes.pop()
        body.op("Cast", [body.op("Concat", outputs, "fired", axis=0)], "y", to=TensorProto.FLOAT)
    else:
        body.op("Concat", outputs, "y", axis=0)
    layout = "x: [batch, ...], the same at every step" if held else "x: [steps*batch, ...], time-major"
    for what, value in zip(before, state, strict=False):
        body.rename(value, f"{what}_next")
    carrying = f"\n{', '.join(before)}: [batch, ...], zeros at the start" if before else ""
    return body.function(
        neuron.name + ("Held" if held else ""),
        ["x", *before, *terms],
        f"{time_steps} steps of: {neuron.equation}\n{layout}; y: [steps*batch, ...], time-major{carrying}",
        ["y", *(f"{what}_next" for what in before)],
    )


# one step, for neurons in a loop


def emit_neuron_step(b: Builder, name: str, node: nir.NIRNode, current: Signal, states: State) -> tuple[Signal, State]:
    """Call the function of one step; `states` as in `Neuron.states` -> (output, states after the step)."""
    neuron = NEURONS[type(node)]
    terms = b.terms[neuron.name]
    parameters = {key: value for key, value in neuron.parameters(node, b.dt).items() if key in terms}
    function, after = _step_function(neuron, tuple(parameters))
    values = [b.floats(f"{name}.{key}", compact(value)) for key, value in parameters.items()]
    b.register(function)
    result = b.result_name(name)
    outputs = {function.output[0]: result} | {v: b.unique(f"{name}/{v}") for v in function.output[1:]}
    b.append(function.name, [current.value, *states, *values], list(outputs.values()), name, domain=FUNCTION_DOMAIN)
    return b.declare(name, current.shape, "steps"), tuple(outputs[value] for value in after)


def resting_states(b: Builder, name: str, node: Any) -> State:
    """The states before the first step: the membrane's rest as a constant, nothing for zeros."""
    neuron = NEURONS[type(node)]
    leaks = "v_leak" in b.terms[neuron.name]
    rest = b.floats(f"{name}.rest", compact(node.v_leak)) if leaks else ""
    return tuple(rest if state == "v" else "" for state in neuron.states)


def _step_function(neuron: Neuron, terms: tuple[str, ...]) -> tuple[FunctionProto, State]:
    """The function ``<type>Step`` and which of its values are the states after the step."""
    body = Body(frozenset(terms))
    output, after = neuron.step(body, "x", neuron.states, 1)
    if neuron.spiking:
        output = body.op("Cast", [output], "y", to=TensorProto.FLOAT)
    outputs = (output, *(value for value in after if value != output))
    text = f"one step of: {neuron.equation}\nx, states, outputs [batch, ...]"
    return body.function(f"{neuron.name}Step", ["x", *neuron.states, *terms], text, outputs), after


# without a membrane


def emit_threshold(b: Builder, name: str, node: nir.Threshold, x: Signal) -> Signal:
    """``y = x > threshold``, at every step by itself."""
    body = Body(frozenset())
    body.op("Cast", [body.op("Greater", ["x", "threshold"], "fired")], "y", to=TensorProto.FLOAT)
    function = body.function("Threshold", ["x", "threshold"], "y = x > threshold")
    b.call(function, [x.value, b.floats(f"{name}.threshold", compact(node.threshold))], name)
    return b.declare(name, x.shape, x.time)


SPIKING_FUNCTIONS = frozenset(
    {"Threshold"}
    | {neuron.name + suffix for neuron in NEURONS.values() if neuron.spiking for suffix in ("", "Held", "Step")}
)
"""Functions whose output is the spikes of a layer."""


def spike_values(model: ModelProto) -> dict[str, str]:
    """The spiking layers of a model: layer -> name of the value that holds its spikes.

    Time-major [T*batch, ...]; [batch, ...] for a Threshold of a static image, whose spikes are the same at every step.
    Layers of a loop are called in its body, and the node behind the loop that has their name holds all steps.
    """
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.name == "body"]
    fires = {
        node.name
        for graph in (model.graph, *bodies)
        for node in graph.node
        if node.domain == FUNCTION_DOMAIN and node.op_type in SPIKING_FUNCTIONS
    }
    return {node.name: node.output[0] for node in model.graph.node if node.name in fires}


# spikes of a layer, counted


def emit_spike_count(b: Builder, output: str, spikes: Signal) -> None:
    """One more output of the model: int64 [batch], the spikes of a layer over all steps and neurons."""
    value = b.stepped(spikes).value
    if not spikes.shape:
        value = b.aux("Unsqueeze", [value, b.ints(1)], output, "column")
    b.call(_count_function(b.time_steps), [value], output)
    declared = b.model.graph.output.add(name=output)
    declared.type.tensor_type.elem_type = TensorProto.INT64
    declared.type.tensor_type.shape.dim.add(dim_param=BATCH)


def _count_function(time_steps: int) -> FunctionProto:
    """float32 sums of ones are exact up to 2^24, so only one channel's plane is summed in float32."""
    body = Body(frozenset())
    ints = body.ints
    planes = body.op("Reshape", ["x", ints("plane_shape", 0, 0, -1)], "planes")
    plane_counts = body.op("ReduceSum", [planes, ints("plane", 2)], "plane_counts", keepdims=0)
    exact = body.op("Cast", [plane_counts], "exact", to=TensorProto.INT64)
    step_counts = body.op("ReduceSum", [exact, ints("channel", 1)], "step_counts", keepdims=0)
    by_step = body.op("Reshape", [step_counts, ints("step_shape", time_steps, -1)], "by_step")
    body.op("ReduceSum", [by_step, ints("step", 0)], "y", keepdims=0)
    text = "Spikes over all steps and neurons\nx: [steps*batch, channels, ...] of 0 and 1; y: int64 [batch]"
    return body.function("SpikeCount", ["x"], text)
