"""What the emitters write into: the model under construction, its names, constants and signals."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
Array = NDArray[Any]
Time = Literal["steps", "held", "final"]
"""How a signal depends on time:

``steps``  one value per step, stored time-major as [T*batch, ...];
``held``   the same value at every step (a static image before the first neuron), stored once as [batch, ...];
``final``  no time axis any more (after the temporal mean), stored as [batch, ...].
"""

BATCH = "batch"
OPSET = 20
IR_VERSION = 9  # the first that knows opset 20; older runtimes refuse what they do not know, so no higher than needed
FUNCTION_DOMAIN = "statten"


Layout = Literal["sequence", "stream"]
"""``sequence``: a call takes all T steps and starts at rest. ``stream``: a call takes a few steps, and what neurons,
delays, windows and means remember goes in and out as tensors."""


@dataclass(frozen=True)
class State:
    """What one call leaves for the next: an input and an output of the model, [batch, *shape], zeros at the start."""

    input: str
    output: str
    shape: Shape
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Signal:
    """A value of the ONNX graph that carries a signal of the spiking graph; `shape` is one step of one sample."""

    value: str
    shape: Shape
    time: Time


class ModelWriter:
    """Collects nodes and initialisers directly in a `ModelProto`, so that weights exist once.

    Names: a node of the spiking graph gives its name to the ONNX node that computes its result and to that result.
    Auxiliary nodes and values are called ``<name>/<what>``, weights ``<name>.<parameter>``.
    """

    def __init__(self, shapes: Mapping[str, Shape], time_steps: int, layout: Layout = "sequence") -> None:
        self.shapes = shapes  # of every graph node
        self.time_steps = time_steps  # of one call
        self.streams = layout == "stream"
        self.states: list[State] = []
        self._elapsed: State | None = None
        self.model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="statten-deploy")
        self.model.opset_import.add(domain="", version=OPSET)
        self.graph = self.model.graph
        """Where nodes go: the model's graph, or the body of a loop."""
        self.aliases: dict[str, str] = {}
        self.told: dict[str, str] = {}  # what else `metadata_props` say about the file itself
        self._taken = set(shapes)
        self._ints: dict[tuple[int, ...], str] = {}
        self._functions: set[str] = set()

    def step(self, names: Sequence[str]) -> Self:
        """A builder of one step of the nodes `names`: the body of a loop, with constants and functions of the model."""
        inner = copy.copy(self)
        inner.time_steps = 1
        inner.graph = onnx.GraphProto(name=f"{names[0]}/loop")
        inner.aliases = {name: self.unique(f"{name}/step") for name in names}
        return inner

    # names

    def unique(self, name: str) -> str:
        """`name`, or `name` with a number when a node or value of that name exists already."""
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def is_taken(self, name: str) -> bool:
        """Whether a node or value has this name."""
        return name in self._taken

    def result_name(self, name: str) -> str:
        """The value that holds the result of graph node `name`."""
        return self.aliases.get(name, name)

    # constants

    def ints(self, *values: int) -> str:
        """An int64 vector (a shape, axes, ...); equal vectors are one initialiser."""
        if values not in self._ints:
            name = self.unique("ints/" + ",".join(map(str, values)))
            self._ints[values] = self.initializer(name, np.asarray(values, dtype=np.int64))
        return self._ints[values]

    def initializer(self, name: str, array: Array) -> str:
        """A constant of the dtype that the array has."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    # nodes

    def append(self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any) -> None:
        """Append a node."""
        self.graph.node.append(helper.make_node(op, inputs, outputs, name=name, **attributes))

    def aux(self, op: str, inputs: Sequence[str], name: str, what: str = "", **attributes: Any) -> str:
        """Append an auxiliary node ``<name>/<what>`` with one output; returns the output."""
        full = self.unique(f"{name}/{what}" if what else name)
        self.append(op, inputs, [full], full, **attributes)
        return full

    def result(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> None:
        """Append the node that computes `name`: the result of a graph node or an output of the model."""
        self.append(op, inputs, [self.result_name(name)], name, **attributes)

    def rows(self, time: Time) -> str:
        """Name of the leading axis: ``batch``, or ``4*batch`` for a signal of four steps."""
        return f"{self.time_steps}*{BATCH}" if time == "steps" and self.time_steps > 1 else BATCH

    def register(self, function: onnx.FunctionProto) -> None:
        """Make a model-local function part of the model."""
        if not self._functions:
            self.model.opset_import.add(domain=FUNCTION_DOMAIN, version=1)
        if function.name not in self._functions:
            self._functions.add(function.name)
            self.model.functions.append(function)

    def call(
        self, function: onnx.FunctionProto, inputs: Sequence[str], name: str, more_outputs: Sequence[str] = ()
    ) -> None:
        """`result` by a call of a model-local function."""
        self.register(function)
        outputs = [self.result_name(name), *more_outputs]
        self.append(function.name, inputs, outputs, name, domain=FUNCTION_DOMAIN)

    def reshape(self, value: str, shape: Sequence[int], name: str, what: str) -> str:
        """An auxiliary Reshape to constant sizes, one of them -1."""
        return self.aux("Reshape", [value, self.ints(*shape)], name, what)

    def zeros(self, shape: Shape, element: int, name: str) -> str:
        """Zeros [batch, *shape]."""
        batch = self.aux("Shape", [self.model.graph.input[0].name], name, BATCH, start=0, end=1)
        sizes = self.aux("Concat", [batch, self.ints(*shape)], name, "sizes", axis=0) if shape else batch
        zero = helper.make_tensor("zero", element, [1], [0])
        return self.aux("ConstantOfShape", [sizes], name, "zeros", value=zero)

    # what is carried from call to call

    def state(self, name: str, shape: Shape, dtype: DTypeLike = np.float32) -> State:
        """Something carried from call to call, ``state/<name>`` in and ``next/<name>`` out; the caller computes it."""
        state = State(self.unique(f"state/{name}"), self.unique(f"next/{name}"), shape, np.dtype(dtype))
        self.states.append(state)
        return state

    def elapsed(self) -> State:
        """Steps since the start, int64 [batch], before and after this call; one state for all who count."""
        if self._elapsed is None:
            self._elapsed = self.state("steps", (), np.int64)
            inputs = [self._elapsed.input, self.ints(self.time_steps)]
            self.append("Add", inputs, [self._elapsed.output], self.unique("steps"))
        return self._elapsed

    def declare_states(self) -> None:
        """Make the states inputs and outputs of the model, behind the others."""
        for state in self.states:
            element = helper.np_dtype_to_tensor_dtype(state.dtype)
            dims: list[str | int | None] = [BATCH, *state.shape]
            self.model.graph.input.append(helper.make_tensor_value_info(state.input, element, dims))
            self.model.graph.output.append(helper.make_tensor_value_info(state.output, element, dims))

    def steps_first(self, value: str, steps: int, shape: Shape, name: str, what: str) -> str:
        """[batch, steps, *shape] as [steps, batch * size of shape]."""
        if steps > 1:
            value = self.aux("Transpose", [value], name, f"{what}_time_first", perm=[1, 0, *range(2, len(shape) + 2)])
        return self.reshape(value, (steps, -1), name, what)

    def batch_first(self, value: str, steps: int, shape: Shape, name: str, output: str) -> None:
        """[steps, batch * size of shape] as [batch, steps, *shape], called `output`."""
        what = self.unique(f"{name}/batch_first")
        if steps == 1:
            self.append("Reshape", [value, self.ints(-1, 1, *shape)], [output], what)
            return
        split = self.reshape(value, (steps, -1, *shape), name, "steps_apart")
        self.append("Transpose", [split], [output], what, perm=[1, 0, *range(2, len(shape) + 2)])


class Builder(ModelWriter):
    """The model of a float graph under construction."""

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        time_steps: int,
        dt: float,
        terms: Mapping[str, frozenset[str]],
        layout: Layout = "sequence",
    ) -> None:
        super().__init__(shapes, time_steps, layout)
        self.dt = dt
        self.terms = terms  # parameters that the neuron functions take, by function name
        self._sums: dict[tuple[str, ...], Signal] = {}
        self._tiled: dict[str, str] = {}

    def step(self, names: Sequence[str]) -> Self:
        inner = super().step(names)
        inner._sums, inner._tiled = {}, {}
        return inner

    def floats(self, name: str, array: ArrayLike) -> str:
        """A float32 initialiser."""
        return self.initializer(self.unique(name), np.asarray(array, dtype=np.float32))

    def main(self, op: str, inputs: Sequence[str], name: str, shape: Shape, time: Time, **attributes: Any) -> Signal:
        """`result` of a graph node, with its shape; returns the signal."""
        self.result(op, inputs, name, **attributes)
        return self.declare(name, shape, time)

    def declare(self, name: str, shape: Shape, time: Time) -> Signal:
        """Record the shape of the result of graph node `name`, for readers and for the checker."""
        signal = Signal(self.result_name(name), shape, time)
        if signal.value == name:  # else it is an output of the model, which is declared there
            self.graph.value_info.append(float_value(signal.value, [self.rows(time), *shape]))
        return signal

    def total(self, sources: Sequence[tuple[str, Signal]]) -> Signal:
        """Sum of several contributions, left to right; a common prefix of two sums is computed once.

        A chain of L residual blocks therefore costs O(L) additions, in the same float order as the simulator's.
        """
        names = tuple(name for name, _ in sources)
        result = sources[0][1]
        for count in range(2, len(sources) + 1):
            prefix = names[:count]
            if prefix not in self._sums:
                left, right = self.aligned(result, sources[count - 1][1])
                value = self.aux("Add", [left.value, right.value], prefix[-1], "sum")
                self.graph.value_info.append(float_value(value, [self.rows(left.time), *left.shape]))
                self._sums[prefix] = Signal(value, left.shape, left.time)
            result = self._sums[prefix]
        return result

    def aligned(self, a: Signal, b: Signal) -> tuple[Signal, Signal]:
        """Two signals with the same leading axis: a held one is repeated when the other changes over time."""
        if a.time == b.time:
            return a, b
        return self.stepped(a), self.stepped(b)

    def stepped(self, signal: Signal) -> Signal:
        """A held signal written out as [T*batch, ...]; others unchanged."""
        if signal.time != "held" or self.time_steps == 1:
            return Signal(signal.value, signal.shape, "steps") if signal.time == "held" else signal
        if signal.value not in self._tiled:
            repeats = self.ints(self.time_steps, *(1 for _ in signal.shape))
            self._tiled[signal.value] = self.aux("Tile", [signal.value, repeats], signal.value, "repeated")
        return Signal(self._tiled[signal.value], signal.shape, "steps")


class FunctionBody:
    """The nodes of a model-local function under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node; returns its output."""
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: ArrayLike, dtype: DTypeLike, output: str) -> str:
        """A constant; returns its name."""
        if dtype == np.float32 and np.ndim(value) == 0:
            return self.op("Constant", [], output, value_float=float(np.asarray(value)))
        return self.op("Constant", [], output, value=numpy_helper.from_array(np.asarray(value, dtype=dtype)))

    def ints(self, output: str, *values: int) -> str:
        """An int64 vector; returns its name."""
        return self.op("Constant", [], output, value_ints=list(values))

    def name_last(self, output: str) -> None:
        """Call the output of the node written last `output`."""
        self.nodes[-1].output[0] = output

    def rename(self, value: str, output: str) -> None:
        """Call `value` `output` wherever it is written or read."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == value:
                        names[index] = output

    def function(
        self, name: str, inputs: Sequence[str], text: str, outputs: Sequence[str] = ("y",)
    ) -> onnx.FunctionProto:
        """The function of these nodes."""
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == FUNCTION_DOMAIN for node in self.nodes):
            opsets.append(helper.make_opsetid(FUNCTION_DOMAIN, 1))
        return helper.make_function(FUNCTION_DOMAIN, name, inputs, outputs, self.nodes, opsets, doc_string=text)


def float_value(name: str, dims: Sequence[str | int]) -> onnx.ValueInfoProto:
    """Declaration of a float32 value."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def compact(parameter: Array, dtype: DTypeLike = np.float32) -> Array:
    """A per-neuron parameter in the smallest shape that broadcasts to it: axes without variation get size 1.

    A parameter that is the same everywhere becomes a scalar.
    """
    values = np.asarray(parameter, dtype=dtype)
    for axis in range(values.ndim):
        first = values.take([0], axis)
        if np.array_equal(np.broadcast_to(first, values.shape), values):
            values = first
    return values.reshape(()) if math.prod(values.shape) == 1 else values
