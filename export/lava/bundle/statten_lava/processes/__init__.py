"""The operations that Lava has no fixed-point process for, each as one process with one model.

Signals are int32, [B, ...] per step for B samples side by side. A stage receives and sends in the same step, so a chain
of stages takes no time; `Attention` in chunks and `Delay` are the only ones that take steps, `latency` many.
``time_step`` counts from 1; `start` is the first step (from 0) that carries the first sample at a stage's input.

Lava's compiler imports every file beside that of a process, once per process: this one stands alone in its folder.
"""

from collections import deque
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

LOWEST = np.iinfo(np.int32).min
"""Padding that never wins a maximum."""


def shift(a: Array, exponent: Any) -> Array:
    """``a · 2^exponent`` on integers; a negative exponent rounds towards minus infinity."""
    e = np.asarray(exponent, dtype=np.int64)
    return np.where(e >= 0, np.left_shift(a, np.maximum(e, 0)), np.right_shift(a, np.maximum(-e, 0)))


def windows(x: Array, kernel: Any, stride: Any, dilation: Any = (1, 1)) -> Array:
    """Every window of the last two axes as a view: [..., H', W', kh, kw]."""
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    reach = ((kh - 1) * dh + 1, (kw - 1) * dw + 1)
    view = sliding_window_view(x, reach, axis=(-2, -1))  # type: ignore[call-overload]
    return np.asarray(view[..., ::sh, ::sw, ::dh, ::dw])


def padded(x: Array, padding: Any, value: int) -> Array:
    """x with the last two axes padded."""
    (ph, pw), rest = padding, ((0, 0),) * (x.ndim - 2)
    return np.pad(x, (*rest, (ph, ph), (pw, pw)), constant_values=value)


class Stage(AbstractProcess):
    """One signal in, one out. Several connections into ``a_in`` add up."""

    def __init__(self, *, shape_in: Shape, shape_out: Shape, name: str, **options: Any) -> None:
        super().__init__(name=name, shape_in=shape_in, shape_out=shape_out, **options)
        self.a_in = InPort(shape=shape_in)
        self.s_out = OutPort(shape=shape_out)


class PyStage(PyLoihiProcessModel):
    """Receives, computes and sends within one step."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def run_spk(self) -> None:
        self.s_out.send(self.step(self.a_in.recv()).astype(np.int32).reshape(self.proc_params["shape_out"]))

    def step(self, x: Array) -> Array:
        """One step of the operation on [B, ...]."""
        raise NotImplementedError

    def local_step(self) -> int:
        """Steps since the first sample reached the input; negative before."""
        return int(self.time_step) - 1 - int(self.proc_params["start"])


class Conv(Stage):
    """``a[o] = shift(Σ w[o] s, exponent[o]) + bias[o]``: weight [out, in, kh, kw], and what a convolution has."""


@implements(proc=Conv, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyConv(PyStage):
    """Exact integer sums as float products: `dtype` was chosen so that no partial sum leaves its whole numbers."""

    def __init__(self, proc_params: Any = None) -> None:
        super().__init__(proc_params)
        dtype, weight = np.dtype(proc_params["dtype"]), proc_params["weight"]
        groups, out = proc_params["groups"], len(weight)
        self.kernel = weight.shape[2:]
        self.rows = weight.reshape(groups, out // groups, -1).astype(dtype)
        self.exponent, self.bias = (proc_params[name].reshape(-1, 1) for name in ("exponent", "bias"))

    def step(self, x: Array) -> Array:
        options = self.proc_params
        x = padded(x.astype(self.rows.dtype), options["padding"], 0)
        view = windows(x, self.kernel, options["stride"], options["dilation"])  # [B, in, H', W', kh, kw]
        sums = [self._sums(image) for image in view]  # one image at a time bounds the memory of its patches
        return np.asarray(shift(np.stack(sums), self.exponent) + self.bias)

    def _sums(self, image: Array) -> Array:
        height, width = image.shape[1:3]
        patches = image.transpose(0, 3, 4, 1, 2).reshape(len(self.rows), -1, height * width)
        return np.asarray((self.rows @ patches).astype(np.int64)).reshape(-1, height * width)


class Linear(Stage):
    """``a[o] = shift(Σ w[o] s, exponent[o]) + bias[o]``: weight [out, in]."""


@implements(proc=Linear, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyLinear(PyStage):
    """As `PyConv`."""

    def __init__(self, proc_params: Any = None) -> None:
        super().__init__(proc_params)
        self.weight = proc_params["weight"].T.astype(proc_params["dtype"])

    def step(self, x: Array) -> Array:
        sums = (x.astype(self.weight.dtype) @ self.weight).astype(np.int64)
        return np.asarray(shift(sums, self.proc_params["exponent"]) + self.proc_params["bias"])


class SumPool(Stage):
    """``a = shift(sum over the window, exponent)``."""


@implements(proc=SumPool, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySumPool(PyStage):
    """Integer sums."""

    def step(self, x: Array) -> Array:
        view = windows(x.astype(np.int64), self.proc_params["kernel"], self.proc_params["stride"])
        return shift(view.sum((-2, -1)), self.proc_params["exponent"])


class MaxPool(Stage):
    """Largest of the window, of spikes or of currents; padding never wins."""


@implements(proc=MaxPool, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyMaxPool(PyStage):
    """Integer maxima."""

    def step(self, x: Array) -> Array:
        x = padded(x, self.proc_params["padding"], LOWEST)
        return np.asarray(windows(x, self.proc_params["kernel"], self.proc_params["stride"]).max((-2, -1)))


class TokenMaxPool(Stage):
    """3x3 maximum over (channel inside the head, token), stride 1, padding 1."""


@implements(proc=TokenMaxPool, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyTokenMaxPool(PyStage):
    """Integer maxima."""

    def step(self, x: Array) -> Array:
        batch, channels = x.shape[:2]
        heads = self.proc_params["heads"]
        planes = padded(x.reshape(batch, heads, channels // heads, -1), (1, 1), LOWEST)
        return np.asarray(windows(planes, (3, 3), (1, 1)).max((-2, -1)))


class Flatten(Stage):
    """[B, C, H, W] to [B, C H W]."""


@implements(proc=Flatten, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyFlatten(PyStage):
    """The same numbers."""

    def step(self, x: Array) -> Array:
        return x


class Shift(Stage):
    """``a · 2^exponent``: the exponent that a layer of neurons applies to the sum of its inputs."""


@implements(proc=Shift, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyShift(PyStage):
    """Integer shift."""

    def step(self, x: Array) -> Array:
        return shift(x.astype(np.int64), self.proc_params["exponent"])


class Delay(Stage):
    """The signal of `latency` steps ago, zero before: a branch that waits for a slower one."""


@implements(proc=Delay, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyDelay(PyStage):
    """A queue."""

    def __init__(self, proc_params: Any = None) -> None:
        super().__init__(proc_params)
        zeros = np.zeros(proc_params["shape_in"], dtype=np.int32)
        self.waiting = deque([zeros] * proc_params["latency"])

    def step(self, x: Array) -> Array:
        self.waiting.append(x)
        return self.waiting.popleft()


class Previous(Stage):
    """The signal of one step ago, zero at the first step of a sample: what comes back in a loop."""


@implements(proc=Previous, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPrevious(PyStage):
    """Sends before it receives, so that nobody in a loop waits for himself."""

    kept: Array | None = None

    def run_spk(self) -> None:
        new_sample = self.local_step() % self.proc_params["time_steps"] == 0
        silent = self.kept is None or new_sample
        self.s_out.send(np.zeros(self.proc_params["shape_out"], dtype=np.int32) if silent else self.kept)
        self.kept = self.a_in.recv().astype(np.int32)


class Leaky(Stage):
    """Integrators: Lava's bit-accurate LIF without threshold and reset, which sends its membrane at every step.

    u = wrap(trunc(u (4095 - du)) + (a << 6))      v = saturate(trunc(v (4096 - dv)) + u + bias)
    """


@implements(proc=Leaky, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyLeaky(PyStage):
    """Starts over with every sample."""

    u: Array | int = 0
    v: Array | int = 0

    def step(self, x: Array) -> Array:
        options = self.proc_params
        if self.local_step() % options["time_steps"] == 0:
            self.u = self.v = 0
        bias = np.left_shift(options["bias_mantissa"].astype(np.int64), options["bias_exponent"])
        u = self._decayed(self.u, 4095 - options["du"]) + (x.astype(np.int64) << 6)
        self.u = np.where(u > 1 << 23, u - (1 << 24), np.where(u <= -(1 << 23), u + (1 << 24), u))
        limit = (1 << 23) - 1
        self.v = np.clip(self._decayed(self.v, 4096 - options["dv"]) + self.u + bias, -limit, limit)
        return np.asarray(self.v)

    @staticmethod
    def _decayed(x: Array | int, factor: int) -> Any:
        product = np.asarray(x) * factor
        return np.sign(product) * (np.abs(product) >> 12)


class TemporalSum(Stage):
    """Sum of a sample's steps so far; its last step is the result."""


@implements(proc=TemporalSum, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyTemporalSum(PyStage):
    """Starts over with every sample."""

    total: Array | int = 0

    def step(self, x: Array) -> Array:
        new_sample = self.local_step() % self.proc_params["time_steps"] == 0
        self.total = x if new_sample else self.total + x
        return np.asarray(self.total)


class And(AbstractProcess):
    """``y = a · b`` of spikes; b may have one value per channel."""

    def __init__(self, *, shapes: dict[str, Shape], shape_out: Shape, name: str, **options: Any) -> None:
        super().__init__(name=name, shape_out=shape_out, **options)
        self.a = InPort(shape=shapes["a"])
        self.b = InPort(shape=shapes["b"])
        self.s_out = OutPort(shape=shape_out)


@implements(proc=And, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyAnd(PyLoihiProcessModel):
    """Integer product."""

    a: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    b: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def run_spk(self) -> None:
        self.s_out.send(self.a.recv() * self.b.recv())


class Attention(AbstractProcess):
    """``A[t] = Q[t] · Σ_{s in W(t)} K[s]ᵀ V[s]`` per head and token group, in counts; one step in, one step out.

    ``sliding``: W(t) = t - window + 1 .. t, sent in the same step. ``block``: W(t) = the chunk of `window` steps around
    t, so the first step of a chunk can leave when its last has come: `window` - 1 steps late, the others behind it.
    """

    def __init__(self, *, shape_out: Shape, name: str, **options: Any) -> None:
        super().__init__(name=name, shape_out=shape_out, **options)
        self.q = InPort(shape=shape_out)
        self.k = InPort(shape=shape_out)
        self.v = InPort(shape=shape_out)
        self.s_out = OutPort(shape=shape_out)


@implements(proc=Attention, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyAttention(PyLoihiProcessModel):
    """Counts as float products, exact as in `PyConv`."""

    q: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    k: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    v: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any = None) -> None:
        super().__init__(proc_params)
        self.window = int(proc_params["window"])
        self.dtype = np.dtype(proc_params["dtype"])
        self.products: deque[Array] = deque(maxlen=self.window)
        self.queries: deque[Array] = deque(maxlen=self.window)
        self.seen: Array | None = None

    def run_spk(self) -> None:
        q, k, v = (self._tokens(port.recv()) for port in (self.q, self.k, self.v))
        step = int(self.time_step) - 1 - int(self.proc_params["start"])
        respond = self._block if self.proc_params["mode"] == "block" else self._sliding
        counts = respond(step, q, k @ v.swapaxes(-1, -2)) if step >= 0 else None
        shape = self.proc_params["shape_out"]
        if counts is None:
            self.s_out.send(np.zeros(shape, dtype=np.int32))
        else:  # [B, h, G, d, n] to [B, h, d, G, n]
            self.s_out.send(counts.transpose(0, 1, 3, 2, 4).reshape(shape).astype(np.int32))

    def _tokens(self, x: Array) -> Array:
        """[B, C, H, W] to [B, heads, groups, d, tokens]."""
        heads, groups = self.proc_params["heads"], self.proc_params["groups"]
        split = x.reshape(x.shape[0], heads, x.shape[1] // heads, groups, -1)
        return split.transpose(0, 1, 3, 2, 4).astype(self.dtype)

    def _sliding(self, step: int, q: Array, kv: Array) -> Array:
        if step % self.proc_params["time_steps"] == 0:  # a new sample
            self.products.clear()
        self.products.append(kv)
        return self._answer(q, sum(self.products))

    def _block(self, step: int, q: Array, kv: Array) -> Array | None:
        self.queries.append(q)
        self.products.append(kv)
        if step % self.window == self.window - 1:  # the chunk is complete
            self.seen = np.asarray(sum(self.products))
        # the oldest waiting query belongs to the chunk that `seen` was made of
        return None if self.seen is None else self._answer(self.queries[0], self.seen)

    @staticmethod
    def _answer(q: Array, seen: Any) -> Array:
        return np.asarray(seen.swapaxes(-1, -2) @ q)


class SpikeProbe(AbstractProcess):
    """Writes what it receives to a file, one row per step from `start` on."""

    def __init__(self, *, shape: Shape, name: str, **options: Any) -> None:
        super().__init__(name=name, shape=shape, **options)
        self.a_in = InPort(shape=shape)


class MembraneProbe(AbstractProcess):
    """Reads a membrane after every step, behind the reset of neurons that fired, and writes it as `SpikeProbe` does."""

    def __init__(self, *, shape: Shape, name: str, **options: Any) -> None:
        super().__init__(name=name, shape=shape, **options)
        self.v = RefPort(shape=shape)


class PyProbe(PyLoihiProcessModel):
    """A memory-mapped file [rows, *shape] that the runner made and will read."""

    def __init__(self, proc_params: Any = None) -> None:
        super().__init__(proc_params)
        shape = (proc_params["rows"], *proc_params["shape"])
        self.record = np.memmap(proc_params["path"], dtype=proc_params["dtype"], mode="r+", shape=shape)

    def write(self, x: Array) -> None:
        """Row of the present step, if it is one of the wanted."""
        step = int(self.time_step) - 1 - int(self.proc_params["start"])
        if 0 <= step < len(self.record):
            self.record[step] = x


@implements(proc=SpikeProbe, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikeProbe(PyProbe):
    """In the spiking phase."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def run_spk(self) -> None:
        self.write(self.a_in.recv())


@implements(proc=MembraneProbe, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyMembraneProbe(PyProbe):
    """In the management phase behind it."""

    v: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32)

    def post_guard(self) -> bool:
        return True

    def run_post_mgmt(self) -> None:
        self.write(self.v.read())
