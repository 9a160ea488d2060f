"""The builder of integer models: signals are whole numbers, one value a step, in the type that holds them exactly.

Two flavours keep signals in different shapes: `integer` has channels last, tokens as rows [batch, H*W, C], so that
every product is one of rows; `qdq` has planes as in the graph, [batch, C, H, W].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike
from onnx import TensorProto

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx.builder import BATCH, Array, Layout, ModelWriter, Shape, Time
from statten_deploy.export.onnx.integer.bounds import FloatType, NeuronPlan, exact_float, significant
from statten_deploy.fixed_point.arithmetic import CURRENT_SHIFT, Int
from statten_deploy.fixed_point.ranges import Interval

Flavour = Literal["integer", "qdq"]
GAIN = 1 << CURRENT_SHIFT
"""Currents travel as ``a << 6``."""

ELEMENT = {
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.int64): TensorProto.INT64,
}


@dataclass(frozen=True)
class IntegerSignal:
    """A signal of integers; `shape` is one step of one sample as in the graph, [C, H, W].

    `values`: one for each step; one in all where `time` is not ``steps`` or `joined` says that all steps stand in it,
    one after the other along the builder's `join_axis`. They hold ``gain · integer + offset`` in `dtype`, which is
    exact for every integer of `range`: bytes (or float32 of 0 and 1) for spikes, int64 behind a temporal sum, else a
    float type. `offset` is a constant per channel [C]: biases that were added early. `heads`: stored as
    [batch, heads, (groups,) tokens, channels of a head], as attention leaves it.
    """

    values: tuple[str, ...]
    shape: Shape
    time: Time
    dtype: DTypeLike
    range: Interval
    gain: int = 1
    offset: Int | None = None
    joined: bool = False
    heads: tuple[int, int] | None = None

    @property
    def value(self) -> str:
        """The only value."""
        (value,) = self.values
        return value

    @property
    def magnitude(self) -> int:
        """Largest absolute integer; with an offset, of what is stored, without the factors of 2 that all of it has."""
        if self.offset is None:
            return self.range.magnitude
        return significant(self.gain * self.range.magnitude, self.gain, self.offset)

    @property
    def is_bytes(self) -> bool:
        """Whether every number is a byte, proved."""
        low, high = int(self.range.low.min(initial=0)), int(self.range.high.max(initial=0))
        return self.offset is None and self.gain == 1 and low >= 0 and high < 256

    @property
    def is_spikes(self) -> bool:
        """Whether it is 0 or 1, proved."""
        return self.is_bytes and bool(self.range.high.max(initial=0) <= 1)


class IntegerBuilder(ModelWriter):
    """The model of a quantised graph under construction."""

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        time_steps: int,
        ranges: Mapping[str, Interval],
        layout: Layout = "sequence",
        flavour: Flavour = "integer",
    ) -> None:
        super().__init__(shapes, time_steps, layout)
        self.flavour = flavour
        self.planar = flavour == "qdq"
        self.join_axis = 0 if self.planar else 1
        self.ranges = ranges  # of every graph node's result
        self.plans: Mapping[str, NeuronPlan] = {}  # of every neuron layer
        self.gains: Mapping[str, int] = {}  # of the results of weighted nodes and attention; others keep what they get
        self.addends: Mapping[str, Int] = {}  # weighted node -> biases of neurons behind that it adds already, [C]
        self.ones: list[str] = []
        self.integers: dict[str, str] = {}  # output -> the value that holds its integers
        self.dequantised: set[str] = set()  # float values that are bytes taken back, so that nobody does it again
        self.neurons: list[dict[str, Any]] = []  # where spikes and membranes are, for those who read them out
        self.originals: Mapping[str, str] = {}  # node that is written twice, in a loop -> the node of the graph
        self.sample_steps = time_steps  # of a sample, which is several calls of a stream
        self.whole: IntegerBuilder = self
        """The builder of the model's graph, for what the body of a loop need not compute at every step."""
        self._numbers: dict[tuple[float, str], str] = {}
        self._sums: dict[tuple[str, ...], IntegerSignal] = {}
        self._made: dict[Any, Any] = {}

    # nodes and constants

    def step(self, names: Sequence[str]) -> Self:
        inner = super().step(names)
        inner._sums, inner._made = {}, {}
        return inner

    def aux(self, op: str, inputs: Sequence[str], name: str, what: str = "", **attributes: Any) -> str:
        """As in the float export, but without a name of its own: that of the output says as much."""
        full = self.unique(f"{name}/{what}" if what else name)
        self.append(op, inputs, [full], "", **attributes)
        return full

    def several(self, op: str, inputs: Sequence[str], count: int, name: str, what: str, **attributes: Any) -> list[str]:
        """An auxiliary node with `count` outputs."""
        outputs = [self.unique(f"{name}/{what}/{i}") for i in range(count)]
        self.append(op, inputs, outputs, "", **attributes)
        return outputs

    def array(self, name: str, values: Array) -> str:
        """An initialiser of the dtype that the array has."""
        return self.initializer(self.unique(name), values)

    def number(self, value: float, dtype: DTypeLike) -> str:
        """A scalar; equal ones are one initialiser."""
        key = (float(value), np.dtype(dtype).name)
        if key not in self._numbers:
            self._numbers[key] = self.array(f"number/{key[1]}/{value:g}", np.asarray(value, dtype=dtype))
        return self._numbers[key]

    def per_channel(self, name: str, values: Array, dtype: DTypeLike, like: IntegerSignal) -> str:
        """One number per channel [C], shaped to go with the values of `like`; a scalar where all are equal."""
        flat = np.asarray(values).reshape(-1)
        if np.all(flat == flat[:1]):
            return self.number(float(flat[0]), dtype)
        if like.heads:
            heads, groups = like.heads
            flat = flat.reshape(heads, *((1,) if groups > 1 else ()), 1, -1)
        elif self.planar:
            flat = flat.reshape(1, -1, *(1,) * (len(like.shape) - 1))
        return self.array(name, flat.astype(dtype))

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """A value that several nodes share, written when first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def float_type(self, magnitude: int, name: str) -> FloatType:
        """The float type that is exact up to `magnitude`; `qdq` is for runtimes that have float32 only.

        Raises:
            UnsupportedError: there is none.
        """
        dtype = exact_float(magnitude, name)
        if self.planar and dtype is np.float64:
            raise UnsupportedError(
                f"{name!r}: its numbers can reach {magnitude} or more, and --flavour qdq has only float32, exact below "
                "2^24; use --flavour integer"
            )
        return dtype

    # names

    def named(self, name: str, step: int | None) -> str:
        """The name of graph node `name`'s result, or of its result at a step."""
        return self.result_name(name) if step is None or self.time_steps == 1 else self.unique(f"{name}/{step}")

    def label(self, name: str, step: int | None) -> str:
        """What auxiliary values of a step are called after."""
        return name if step is None or self.time_steps == 1 else f"{name}/{step}"

    def rename(self, value: str, name: str, step: int | None = None) -> str:
        """Make the node written last, which gives `value`, the one that computes the result of graph node `name`."""
        node, written = self.graph.node[-1], self.named(name, step)
        assert list(node.output) == [value]
        node.output[0] = written
        if written == name:
            node.name = name
        return written

    # steps

    def each(self, signal: IntegerSignal) -> tuple[str, ...]:
        """One value for each step of the model."""
        if signal.time == "held":
            return signal.values * self.time_steps
        if not signal.joined:
            return signal.values
        count, axis = self.time_steps, self.join_axis

        def split() -> tuple[str, ...]:
            return tuple(
                self.several("Split", [signal.value], count, signal.value, "step", axis=axis, num_outputs=count)
            )

        steps: tuple[str, ...] = self.once((signal.value, "each"), split)
        return steps

    def all_steps(self, signal: IntegerSignal) -> str:
        """All steps in one value, along `join_axis`; of a held signal the one it has."""
        if signal.joined or len(signal.values) == 1:
            return signal.value
        name = signal.values[0].rpartition("/")[0]
        joined: str = self.once(
            (signal.values, "all"), lambda: self.aux("Concat", signal.values, name, "steps", axis=self.join_axis)
        )
        return joined

    def stepped(self, signal: IntegerSignal) -> IntegerSignal:
        """A held signal as one that has a value for each step; others unchanged."""
        return replace(signal, values=self.each(signal), time="steps") if signal.time == "held" else signal

    def apply(self, signal: IntegerSignal, what: str, make: Callable[[str], str], **changes: Any) -> IntegerSignal:
        """An operation on every value; `what` names it, so that nobody computes it twice."""
        values = tuple(self.once((value, what), partial(make, value)) for value in signal.values)
        return replace(signal, values=values, **changes)

    # arithmetic

    def cast(self, signal: IntegerSignal, dtype: DTypeLike) -> IntegerSignal:
        """The same signal in another type, which must hold it."""
        if np.dtype(signal.dtype) == np.dtype(dtype):
            return signal
        name, element = np.dtype(dtype).name, ELEMENT[np.dtype(dtype)]
        return self.apply(signal, name, lambda v: self.aux("Cast", [v], v, name, to=element), dtype=dtype)

    def real(self, signal: IntegerSignal, name: str) -> IntegerSignal:
        """The signal in a float type: bytes have little arithmetic."""
        return self.cast(signal, self.float_type(signal.magnitude, name)) if signal.dtype == np.uint8 else signal

    def regain(self, signal: IntegerSignal, gain: int, name: str) -> IntegerSignal:
        """The signal with another gain, a power of two as the old one; without an offset, unless it has it already."""
        if gain == signal.gain:
            return signal
        signal = self.real(self.plain(signal, name), name)
        factor, what = self.number(gain / signal.gain, signal.dtype), f"times_{gain}"
        return self.apply(signal, what, lambda v: self.aux("Mul", [v, factor], v, what), gain=gain)

    def plain(self, signal: IntegerSignal, name: str) -> IntegerSignal:
        """The signal without its offset."""
        if signal.offset is None:
            return signal
        back = self.per_channel(f"{name}.offset", -signal.offset, signal.dtype, signal)
        return self.apply(signal, "plain", lambda v: self.aux("Add", [v, back], v, "plain"), offset=None)

    def whole_numbers(self, signal: IntegerSignal, name: str) -> IntegerSignal:
        """The integers themselves."""
        return self.regain(self.plain(signal, name), 1, name)

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
        if a.gain != b.gain:
            a, b = (self.regain(s, max(a.gain, b.gain), name) for s in (a, b))
        a, b = self.ungrouped(a), self.ungrouped(b)
        if not (a.time == b.time and a.joined == b.joined):
            a, b = (replace(s, values=self.each(s), time="steps", joined=False) for s in (a, b))
        offset = a.offset if b.offset is None else b.offset if a.offset is None else a.offset + b.offset
        result = replace(a, range=a.range + b.range, offset=offset)
        if result.magnitude >= 1 << 24 > result.range.magnitude:  # float32 holds it without the biases
            a, b = self.plain(a, f"{name}/left"), self.plain(b, name)
            result = replace(a, range=result.range)
        dtype = self.float_type(max(result.magnitude, a.magnitude, b.magnitude), f"{name}/sum")
        a, b = self.cast(a, dtype), self.cast(b, dtype)
        values = tuple(self.aux("Add", [x, y], y, "sum") for x, y in zip(a.values, b.values, strict=True))
        return replace(result, values=values, dtype=dtype)

    # shapes

    def stored(self, shape: Shape) -> Shape:
        """How one step of one sample of a signal of the graph is kept."""
        return shape if self.planar else (int(np.prod(shape[1:], dtype=np.int64)), shape[0])

    def planes(self, value: str, shape: Shape, label: str, what: str = "planes") -> str:
        """A stored value as in the graph, [batch, C, H, W]."""
        if self.planar:
            return value
        if self.stored(shape)[0] == 1:
            return self.reshape(value, (-1, *shape), label, what)
        rank = len(shape)
        if rank > 2:
            value = self.reshape(value, (-1, *shape[1:], shape[0]), label, f"{what}/grid")
        return self.aux("Transpose", [value], label, what, perm=[0, rank, *range(1, rank)])

    def unplanes(self, value: str, shape: Shape, label: str, what: str = "rows") -> str:
        """[batch, C, H, W] as it is stored."""
        if self.planar:
            return value
        rank, rows = len(shape), self.stored(shape)[0]
        if rows > 1:
            value = self.aux("Transpose", [value], label, f"{what}/grid", perm=[0, *range(2, rank + 1), 1])
        return value if rank == 2 and rows > 1 else self.reshape(value, (-1, *self.stored(shape)), label, what)

    def ungrouped(self, signal: IntegerSignal) -> IntegerSignal:
        """A signal stored by heads as others are."""
        if signal.heads is None:
            return signal
        _, groups = signal.heads
        perm = [0, 2, 1, 3] if groups == 1 else [0, 2, 3, 1, 4]

        def tokens_first(value: str) -> str:
            apart = self.aux("Transpose", [value], value, "tokens", perm=perm)
            return self.reshape(apart, (-1, *self.stored(signal.shape)), value, "rows")

        return self.apply(signal, "ungrouped", tokens_first, heads=None)

    def part(self, signal: IntegerSignal, sizes: Sequence[int], index: int) -> IntegerSignal:
        """One of several groups of channels of a spiking signal."""
        if len(sizes) == 1:
            return signal
        axis, first = 1 if self.planar else 2, sum(sizes[:index])

        def split(value: str) -> list[str]:
            inputs = [value, self.ints(*sizes)]
            return self.several("Split", inputs, len(sizes), value, "channels", axis=axis)

        channels = slice(first, first + sizes[index])
        return replace(
            signal,
            values=tuple(self.once((value, "channels"), partial(split, value))[index] for value in signal.values),
            shape=(sizes[index], *signal.shape[1:]),
            range=Interval(signal.range.low[channels], signal.range.high[channels]),
        )

    def one(self) -> str:
        """The number 1 as float32 [1], another one at each call, which `write_ones` computes from the batch's size.

        onnxruntime joins an integer product with the scaling behind it into one kernel, but only where the scale is
        not a constant that it can fold away, and where no other product has the same. The result is the same without,
        as in loops: there it is a constant.
        """
        if self.graph is not self.model.graph:  # OpenVINO takes what a Scan's body reads from outside for its states
            fixed: str = self.once(("one",), lambda: self.array("one/loop", np.ones(1, dtype=np.float32)))
            return fixed
        ones = self.whole.ones
        ones.append(self.unique("one"))
        return ones[-1]

    def write_ones(self) -> None:
        """Compute what `one` promised, in front of everything else."""
        if not self.ones:
            return
        count, behind = len(self.ones), list(self.graph.node)
        del self.graph.node[:]
        batch = self.aux("Shape", [self.graph.input[0].name], "ones", BATCH, start=0, end=1)
        whole = self.aux("Min", [batch, self.ints(*(1,) * count)], "ones", "whole")
        if count == 1:
            self.append("Cast", [whole], self.ones, "", to=TensorProto.FLOAT)
        else:
            real = self.aux("Cast", [whole], "ones", "real", to=TensorProto.FLOAT)
            self.append("Split", [real], self.ones, "", axis=0, num_outputs=count)
        self.graph.node.extend(behind)
