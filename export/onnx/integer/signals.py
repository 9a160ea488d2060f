"""The builder of integer models: signals are whole numbers, channels last, in the type that holds them exactly."""

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper

from statten_deploy.export.onnx.builder import BATCH, FUNCTION_DOMAIN, Array, Layout, ModelWriter, Shape, Time
from statten_deploy.export.onnx.integer.bounds import NeuronPlan, exact_float
from statten_deploy.fixed_point.ranges import Interval

ELEMENT = {
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.int64): TensorProto.INT64,
}


@dataclass(frozen=True)
class IntegerSignal:
    """A value that carries integers; `shape` is one step of one sample as in the graph, [C, H, W].

    Stored as [rows, H, W, C] in `dtype`, which holds every number of `range` exactly: uint8 for spikes, int64 behind a
    temporal sum, else float32 or float64. The value is `gain` times the integer: currents travel as ``a << 6``, ready
    for the membrane.
    """

    value: str
    shape: Shape
    time: Time
    dtype: DTypeLike
    range: Interval
    gain: int = 1

    @property
    def magnitude(self) -> int:
        """Largest absolute integer."""
        return self.range.magnitude

    @property
    def is_spikes(self) -> bool:
        """Whether it is 0 or 1, proved."""
        return self.dtype == np.uint8 and bool(self.range.high.max(initial=0) <= 1)


class IntegerBuilder(ModelWriter):
    """The model of a quantised graph under construction."""

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        time_steps: int,
        ranges: Mapping[str, Interval],
        layout: Layout = "sequence",
    ) -> None:
        super().__init__(shapes, time_steps, layout)
        self.ranges = ranges  # of every graph node's result
        self.plans: Mapping[str, NeuronPlan] = {}  # of every neuron layer
        self.currents_of_neurons: Collection[str] = ()  # weighted nodes whose results are written as ``a << 6``
        self.neuron_biases: Mapping[str, Array] = {}  # weighted node -> the bias of the neurons behind, [C]
        self.biased_before: Container[str] = ()  # neuron layers whose bias is added there
        self.sample_steps = time_steps  # of a sample, which is several calls of a stream
        self.powers: Array = np.ones(1)  # 2^e for the exponents of all weighted nodes
        self._numbers: dict[tuple[float, str], str] = {}
        self._variants: dict[tuple[Any, ...], onnx.FunctionProto] = {}
        self._counts: dict[str, int] = {}
        self._sums: dict[tuple[str, ...], IntegerSignal] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self.whole: IntegerBuilder = self
        """The builder of the model's graph, for what the body of a loop need not compute at every step."""

    def step(self, names: Sequence[str]) -> Self:
        inner = super().step(names)
        inner._sums, inner._made = {}, {}
        return inner

    # nodes, constants and functions

    def aux(self, op: str, inputs: Sequence[str], name: str, what: str = "", **attributes: Any) -> str:
        """As in the float export, but without a name of its own: that of the output says as much."""
        full = self.unique(f"{name}/{what}" if what else name)
        self.append(op, inputs, [full], "", **attributes)
        return full

    def array(self, name: str, values: Array) -> str:
        """An initialiser of the dtype that the array has."""
        return self.initializer(self.unique(name), values)

    def integers(self, name: str, values: Array) -> str:
        """One integer per channel, or one for all, in the smallest type that holds them."""
        flat: Array = np.asarray(values).reshape(-1)
        limits = int(flat.min(initial=0)), int(flat.max(initial=0))
        if np.all(flat == flat[:1]):
            flat = flat[:1].reshape(())
        kinds = (np.int8, np.int16, np.int32, np.int64)
        dtype = next(kind for kind in kinds if np.iinfo(kind).min <= limits[0] and limits[1] <= np.iinfo(kind).max)
        return self.array(name, flat.astype(dtype))

    def number(self, value: float, dtype: DTypeLike) -> str:
        """A scalar; equal ones are one initialiser."""
        key = (float(value), np.dtype(dtype).name)
        if key not in self._numbers:
            self._numbers[key] = self.array(f"number/{key[1]}/{value:g}", np.asarray(value, dtype=dtype))
        return self._numbers[key]

    def variant(self, base: str, key: tuple[Any, ...], make: Callable[[str], onnx.FunctionProto]) -> onnx.FunctionProto:
        """The model-local function for `key`: called `base`, a further one `base` with a number."""
        if (base, *key) not in self._variants:
            self._counts[base] = self._counts.get(base, 0) + 1
            count = self._counts[base]
            self._variants[base, *key] = make(base if count == 1 else f"{base}_{count}")
        return self._variants[base, *key]

    def call_aux(self, function: onnx.FunctionProto, inputs: Sequence[str], name: str, what: str) -> str:
        """A call whose output is auxiliary; returns the output."""
        self.register(function)
        return self.aux(function.name, inputs, name, what, domain=FUNCTION_DOMAIN)

    def once(self, key: tuple[Any, ...], make: Callable[[], str]) -> str:
        """A value that several nodes share, written when first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # signals

    def declare(self, signal: IntegerSignal) -> IntegerSignal:
        """Record type and shape of the value of a signal, for those who read it out of the model."""
        dims: list[str | int | None] = [self.rows(signal.time), *channels_last(signal.shape)]
        info = helper.make_tensor_value_info(signal.value, ELEMENT[np.dtype(signal.dtype)], dims)
        self.graph.value_info.append(info)
        return signal

    def cast(self, signal: IntegerSignal, dtype: DTypeLike) -> IntegerSignal:
        """The same signal in another type, which must hold it."""
        if np.dtype(signal.dtype) == np.dtype(dtype):
            return signal
        name = np.dtype(dtype).name
        value = self.once(
            (signal.value, name),
            lambda: self.aux("Cast", [signal.value], signal.value, name, to=ELEMENT[np.dtype(dtype)]),
        )
        return replace(signal, value=value, dtype=dtype)

    def real(self, signal: IntegerSignal, name: str) -> IntegerSignal:
        """The signal in a float type: uint8 has little arithmetic."""
        return self.cast(signal, exact_float(signal.magnitude, name)) if signal.dtype == np.uint8 else signal

    def regain(self, signal: IntegerSignal, gain: int, name: str) -> IntegerSignal:
        """The signal with another gain, a power of two as the old one."""
        if gain == signal.gain:
            return signal
        signal = self.real(signal, name)
        factor = self.number(gain / signal.gain, signal.dtype)
        value = self.once(
            (signal.value, "gain", gain), lambda: self.aux("Mul", [signal.value, factor], signal.value, f"times_{gain}")
        )
        return replace(signal, value=value, gain=gain)

    def total(self, sources: Sequence[tuple[str, IntegerSignal]]) -> IntegerSignal:
        """Sum of several contributions, left to right; a common prefix of two sums is computed once."""
        names = tuple(name for name, _ in sources)
        result = sources[0][1]
        for count in range(2, len(sources) + 1):
            prefix = names[:count]
            if prefix not in self._sums:
                self._sums[prefix] = self._add(result, sources[count - 1][1], prefix[-1])
            result = self._sums[prefix]
        return result

    def _add(self, a: IntegerSignal, b: IntegerSignal, name: str) -> IntegerSignal:
        bounds, gain = a.range + b.range, max(a.gain, b.gain)
        if a.time != b.time:
            a, b = self.stepped(a), self.stepped(b)
        dtype = exact_float(max(bounds.magnitude, a.magnitude, b.magnitude), f"{name}/sum")
        a, b = (self.regain(self.cast(s, dtype), gain, name) for s in (a, b))
        value = self.aux("Add", [a.value, b.value], name, "sum")
        return IntegerSignal(value, a.shape, a.time, dtype, bounds, gain)

    def stepped(self, signal: IntegerSignal) -> IntegerSignal:
        """A held signal written out as [T*batch, ...]; others unchanged."""
        if signal.time != "held":
            return signal
        if self.time_steps == 1:
            return replace(signal, time="steps")
        repeats = self.ints(self.time_steps, *(1 for _ in signal.shape))
        value = self.once(
            (signal.value, "steps"), lambda: self.aux("Tile", [signal.value, repeats], signal.value, "repeated")
        )
        return replace(signal, value=value, time="steps")

    def turned(self, value: str, rank: int, name: str, what: str, *, channels_last: bool) -> str:
        """[rows, C, ...] as [rows, ..., C], or back."""
        if rank < 2:
            return value
        axes = list(range(1, rank + 1))
        perm = [0, *axes[1:], 1] if channels_last else [0, rank, *axes[:-1]]
        return self.aux("Transpose", [value], name, what, perm=perm)

    def name_last(self, name: str) -> None:
        """Make the node written last the one that computes the result of graph node `name`."""
        node = self.graph.node[-1]
        node.name, node.output[0] = name, self.result_name(name)

    def one(self) -> str:
        """The number 1 as float32 [1], from the size of the batch.

        onnxruntime joins an integer product with the scaling behind it into one kernel, but only where the scale is
        not a constant that it can fold away. The result is the same without.
        """

        b = self.whole

        def write() -> str:
            batch = b.aux("Shape", [b.model.graph.input[0].name], "one", BATCH, start=0, end=1)
            return b.aux("Cast", [b.aux("Min", [batch, b.ints(1)], "one", "whole")], "one", to=TensorProto.FLOAT)

        return b.once(("one",), write)


def channels_last(shape: Shape) -> Shape:
    """[C, H, W] -> [H, W, C]."""
    return (*shape[1:], *shape[:1])
