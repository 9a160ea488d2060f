"""One implementation per operation, on blocks of time.

An operator takes signals [n, B, *shape] and the number of steps, and returns its output and its state after the last
step; given that state back, it continues where it stopped. A signal that is the same at every step has n = 1: stateless
operators keep it so (the first convolution of a static image runs once), stateful ones read it at every step.
Everything is float32. `OPERATORS` at the end is the whole list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import frexp, prod
from typing import Any

import nir
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from statten_deploy.errors import GraphError
from statten_deploy.ir.nodes import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool
from statten_deploy.ir.shapes import Shape, explicit_padding, sizes
from statten_deploy.simulate.attention import Attention

State = Any
Operator = Callable[..., tuple[Tensor, State]]
"""(steps, state or None, *inputs [n, B, *shape]) -> (output [n, B, *shape], state)."""

Value = float | Tensor
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Context:
    """What an operator is built from besides its node: input shapes, seconds per step, where to compute."""

    shapes: tuple[Shape, ...]
    dt: float
    device: torch.device

    def tensor(self, array: ArrayLike) -> Tensor:
        """float32 on the device; shares memory with `array` where that is possible."""
        values = np.asarray(array, dtype=np.float32, order="C")
        return torch.from_numpy(values if values.flags.writeable else values.copy()).to(self.device)

    def value(self, array: ArrayLike) -> Value:
        """A parameter as one number where all elements agree (most layers), as a tensor otherwise."""
        values = np.asarray(array, dtype=np.float32)
        first = values.reshape(-1)[:1]
        return float(first[0]) if values.size and bool((values == first).all()) else self.tensor(values)


def _stateless(function: Function) -> Operator:
    """An operator from a function of [M, *shape]."""

    def run(steps: int, state: State, x: Tensor) -> tuple[Tensor, State]:
        y = function(x.flatten(0, 1))
        return y.view(*x.shape[:2], *y.shape[1:]), None

    return run


# neurons


class Neuron:
    """Every neuron model of NIR, one Euler step of dt per time step:

        synapse   i <- i + (dt / tau_syn) (w_in S - i)                 (CubaLI, CubaLIF; otherwise i is the input)
        membrane  v <- v + (dt / tau) ((v_leak - v) + r i)             or, without a leak, v <- v + (dt r) i
        fire      s = v > v_threshold;  v <- v_reset where s           (LIF, CubaLIF, IF; otherwise the output is v)

    Time constants are divided in float32. The membrane starts at v_leak (IF and I: at 0), the synapse at 0.
    """

    def __init__(self, node: Any, context: Context) -> None:
        step = np.float32(context.dt)
        cuba = isinstance(node, nir.CubaLIF | nir.CubaLI)
        leaky = not isinstance(node, nir.IF | nir.I)
        self.synapse: Value | None = context.value(step / _f32(node.tau_syn)) if cuba else None
        self.w_in: Value = context.value(node.w_in) if cuba else 1.0
        tau = (node.tau_mem if cuba else node.tau) if leaky else None
        self.decay: Value | None = context.value(step / _f32(tau)) if leaky else None
        self.gain: Value = context.value(_f32(node.r) if leaky else step * _f32(node.r))
        self.leak: Value = context.value(node.v_leak) if leaky else 0.0
        self.fires = isinstance(node, nir.LIF | nir.CubaLIF | nir.IF)
        self.threshold: Value = context.value(node.v_threshold) if self.fires else 0.0
        self.reset: Value = context.value(node.v_reset) if self.fires else 0.0

    def __call__(self, steps: int, state: State, x: Tensor) -> tuple[Tensor, State]:
        v, i = state if state is not None else self._start(x[0])
        out = x.new_empty((steps, *x.shape[1:]))
        buffer = torch.empty_like(v)
        for t, spikes_or_v in enumerate(out):
            current = x[t] if x.shape[0] > 1 else x[0]
            if i is not None:
                torch.sub(_times(current, self.w_in), i, out=buffer)
                _add_scaled(i, buffer, self.synapse)
                current = i
            self._integrate(v, _times(current, self.gain), buffer)
            if self.fires:
                self._fire(v, spikes_or_v, buffer)
            else:
                spikes_or_v.copy_(v)
        return out, (v, i)

    def _start(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        v = torch.zeros_like(like, memory_format=torch.contiguous_format).add_(self.leak)
        return v, None if self.synapse is None else torch.zeros_like(v)

    def _integrate(self, v: Tensor, drive: Tensor, buffer: Tensor) -> None:
        if self.decay is None:
            v.add_(drive)
            return
        if isinstance(self.leak, float) and self.leak == 0:
            torch.sub(drive, v, out=buffer)  # (0 - v) + r i, bit for bit
        else:
            torch.sub(torch.as_tensor(self.leak, device=v.device), v, out=buffer)
            buffer.add_(drive)
        _add_scaled(v, buffer, self.decay)

    def _fire(self, v: Tensor, spikes: Tensor, buffer: Tensor) -> None:
        torch.gt(v, self.threshold, out=spikes)
        if isinstance(self.reset, float) and self.reset == 0:
            torch.le(v, self.threshold, out=buffer)
            v.mul_(buffer)
        else:
            v.copy_(torch.where(v > self.threshold, self.reset, v))


def _f32(array: Any) -> Any:
    return np.asarray(array, dtype=np.float32)


def _times(x: Tensor, factor: Value) -> Tensor:
    return x if isinstance(factor, float) and factor == 1 else x * factor


def _add_scaled(target: Tensor, change: Tensor, factor: Value | None) -> None:
    """``target += factor * change`` with the product rounded; overwrites `change`.

    A power of two rounds nothing, so there the fused form gives the same bits in one pass less.
    """
    if isinstance(factor, float) and frexp(factor)[0] == 0.5:
        target.add_(change, alpha=factor)
    else:
        target.add_(change.mul_(factor))  # type: ignore[arg-type]


def _threshold(node: nir.Threshold, context: Context) -> Operator:
    """``z = x > threshold``."""
    threshold = context.value(node.threshold)
    return _stateless(lambda x: torch.gt(x, threshold).to(torch.float32))


class Delay:
    """``y(t) = x(t - delay)``, zero before; delays are whole steps and may differ between elements."""

    def __init__(self, node: nir.Delay, context: Context) -> None:
        exact = np.asarray(node.delay, dtype=np.float64) / context.dt
        steps = np.rint(exact)
        if exact.size and float(np.max(np.abs(exact - steps))) > 1e-3:
            worst = float(np.asarray(node.delay).reshape(-1)[np.argmax(np.abs(exact - steps))])
            raise GraphError(
                f"Delay of {worst:g} s is not a whole number of time steps of {context.dt:g} s; choose another dt"
            )
        self.longest = int(steps.max(initial=0))
        self.index: Tensor | None = None
        if steps.size and steps.min() != self.longest:
            ahead = self.longest - np.broadcast_to(steps, context.shapes[0])
            self.index = torch.from_numpy(ahead.astype(np.int64)).to(context.device)

    def __call__(self, steps: int, state: State, x: Tensor) -> tuple[Tensor, State]:
        past = state if state is not None else x.new_zeros((self.longest, *x.shape[1:]))
        known = torch.cat([past, x.expand(steps, *x.shape[1:])])
        if self.index is None:
            return known[:steps], known[steps:]
        clock = torch.arange(steps, device=x.device).view(-1, *[1] * (x.ndim - 1))
        return known.gather(0, (self.index + clock).expand(steps, *x.shape[1:])), known[steps:]


# linear maps


def _linear(node: Any, context: Context) -> Operator:
    """``y = W x + b``; leading axes of W beyond (out, in) are independent copies."""
    weight = context.tensor(node.weight)
    bias = context.tensor(node.bias) if isinstance(node, nir.Affine) and node.bias is not None else None
    if weight.ndim == 2:
        return _stateless(lambda x: F.linear(x, weight, bias))
    if bias is None:
        return _stateless(lambda x: (weight @ x.unsqueeze(-1)).squeeze(-1))
    return _stateless(lambda x: (weight @ x.unsqueeze(-1)).squeeze(-1) + bias)


def _conv(node: Any, context: Context) -> Operator:
    """Convolution (cross-correlation, as NIR and torch define it), 1d or 2d."""
    weight = context.tensor(node.weight)
    bias = None if node.bias is None else context.tensor(node.bias)
    axes = weight.ndim - 2
    convolve: Callable[..., Tensor] = F.conv1d if axes == 1 else F.conv2d
    stride, dilation = sizes(node.stride, axes, "stride"), sizes(node.dilation, axes, "dilation")
    groups = int(node.groups)
    padding = explicit_padding(node)
    if all(before == after for before, after in padding):
        even = tuple(before for before, _ in padding)
        return _stateless(lambda x: convolve(x, weight, bias, stride, even, dilation, groups))
    margins = _margins(padding)
    return _stateless(lambda x: convolve(F.pad(x, margins), weight, bias, stride, 0, dilation, groups))


def _margins(padding: tuple[tuple[int, int], ...]) -> list[int]:
    """Padding per axis in the order that `torch.nn.functional.pad` wants: last axis first."""
    return [amount for pair in reversed(padding) for amount in pair]


# windows


def _window_of(node: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    kernel, stride, padding = (sizes(getattr(node, f), 2, f) for f in ("kernel_size", "stride", "padding"))
    return kernel, stride, padding


def _average(node: Any, context: Context) -> Operator:
    """Mean over a window; padding counts as zeros, as in torch and in every importer."""
    return _pool_sum(node, None)


def _sum(node: Any, context: Context) -> Operator:
    """Sum over a window."""
    return _pool_sum(node, 1)


def _pool_sum(node: Any, divisor: int | None) -> Operator:
    kernel, stride, padding = _window_of(node)
    divisor = divisor or prod(kernel)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):  # more than torch's pooling takes
        margins = _margins(tuple((pad, pad) for pad in padding))
        return _stateless(lambda x: F.avg_pool2d(F.pad(x, margins), kernel, stride, divisor_override=divisor))
    return _stateless(lambda x: F.avg_pool2d(x, kernel, stride, padding, divisor_override=divisor))


def _max(node: Any, context: Context) -> Operator:
    """Largest value in a window; padding never wins, which for 0/1 is the same as padding with 0."""
    kernel, stride, padding = _window_of(node)
    return _stateless(lambda x: F.max_pool2d(x, kernel, stride, padding))


def _token_max(node: TokenMaxPool, context: Context) -> Operator:
    """3x3 OR over (channel inside the head, token); the order of the two axes does not matter."""
    channels, height, width = context.shapes[0]
    plane = (channels // node.num_heads, height * width)

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x.reshape(-1, *plane), 3, 1, 1).view_as(x)

    return _stateless(pool)


# the rest


def _identity(node: nir.NIRNode, context: Context) -> Operator:
    return lambda steps, state, x: (x, None)


def _flatten(node: nir.Flatten, context: Context) -> Operator:
    axes = len(context.shapes[0])
    start, end = (int(d) % axes + 1 for d in (node.start_dim, node.end_dim))
    return _stateless(lambda x: x.flatten(start, end))


def _scale(node: nir.Scale, context: Context) -> Operator:
    factor = context.value(node.scale)
    return _stateless(lambda x: x * factor)


def _spike_and(node: SpikeAnd, context: Context) -> Operator:
    return lambda steps, state, a, b: (a * b, None)


def _temporal_mean(node: TemporalMean, context: Context) -> Operator:
    """Mean over the steps of the block; only ever called with all of them."""
    return lambda steps, state, x: (x.mean(0, keepdim=True), None)


def _attention(node: STAttenAttention, context: Context) -> Operator:
    return Attention(node, context.shapes[0])


OPERATORS: dict[type[nir.NIRNode], Callable[[Any, Context], Operator]] = {
    nir.Output: _identity,
    nir.Affine: _linear,
    nir.Linear: _linear,
    nir.Conv1d: _conv,
    nir.Conv2d: _conv,
    nir.AvgPool2d: _average,
    nir.SumPool2d: _sum,
    nir.Flatten: _flatten,
    nir.Scale: _scale,
    nir.Threshold: _threshold,
    nir.Delay: Delay,
    nir.I: Neuron,
    nir.IF: Neuron,
    nir.LI: Neuron,
    nir.LIF: Neuron,
    nir.CubaLI: Neuron,
    nir.CubaLIF: Neuron,
    SpikeMaxPool2d: _max,
    MaxPool2d: _max,
    STAttenAttention: _attention,
    SpikeAnd: _spike_and,
    TokenMaxPool: _token_max,
    TemporalMean: _temporal_mean,
}
"""Every node type except Input, with what computes it."""
