"""Fixed-point LIF neurons in torch integers: the equations of `statten_deploy.fixed_point.arithmetic` on tensors."""

from math import gcd

import numpy as np
import torch
from torch import Tensor

from statten_deploy.fixed_point.arithmetic import (
    CURRENT_SHIFT,
    DECAY_BITS,
    NO_SYNAPTIC_MEMORY,
    STATE_BITS,
    STATE_MAX,
    Int,
    shift,
)
from statten_deploy.fixed_point.ranges import CURRENT_LIMIT, Interval
from statten_deploy.ir.integer import IntegerLI, IntegerLIF

State = tuple[Tensor, Tensor]
"""Membrane after reset, synaptic current."""


class IntegerNeurons:
    """One layer of fixed-point neurons or integrators on one device.

    int32 where every intermediate value fits, which the range `current` of the inputs and the decays tell, else int64.
    Thresholds and biases are spread over the layer: long rows of equal shape run faster than broadcast ones.
    """

    def __init__(
        self, node: IntegerLIF | IntegerLI, inputs: Interval, current: Interval, steps: int, device: torch.device
    ) -> None:
        self.node, self.steps = node, steps
        self.fires = isinstance(node, IntegerLIF)
        self.kept, self.bits = _reduced((1 << DECAY_BITS) - node.dv)
        self.memory = _reduced(NO_SYNAPTIC_MEMORY - node.du)
        self.remembers = node.du != NO_SYNAPTIC_MEMORY
        outside = int(current.low.min()) <= -CURRENT_LIMIT or int(current.high.max()) > CURRENT_LIMIT
        self.wraps = self.remembers or outside
        bias = shift(node.bias_mantissa, node.bias_exponent)
        # the largest membrane there is: integrators never get above it
        limit = node.threshold << CURRENT_SHIFT if isinstance(node, IntegerLIF) else np.full_like(bias, STATE_MAX)
        largest = max(inputs.magnitude, current.magnitude << CURRENT_SHIFT, int(np.abs(limit).max()))
        # 23 bits of a membrane times 8 of a decay; three such terms are added
        narrow = max(largest, int(np.abs(bias).max())) < 1 << 29 and self.kept < 1 << 8
        self.dtype = torch.int32 if narrow and not self.remembers else torch.int64
        self.limit = self._spread(limit, device)
        """Neurons fire above this membrane."""
        self.bias = self._spread(bias, device)

    def _spread(self, value: Int, device: torch.device) -> Tensor:
        return torch.from_numpy(np.broadcast_to(value, self.node.shape).copy()).to(device, self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Membranes before reset [T, B, ...] from whole numbers [T, B, ...], or [1, B, ...] held over all steps."""
        return self.run(x, self.steps)[0]

    def run(self, x: Tensor, steps: int, state: State | None = None) -> tuple[Tensor, State]:
        """As a call, over so many steps and from a state; with the state after them."""
        a = x.to(self.dtype)
        if x.shape[0] == 1:
            a = a.expand(1, x.shape[1], *self.node.shape)
        e = self.node.input_exponent
        a = (a << (e + CURRENT_SHIFT)) if e >= 0 else (a >> -e) << CURRENT_SHIFT
        if not self.remembers:
            a = (self._wrap(a) if self.wraps else a) + self.bias
        before = a.new_empty((steps, *a.shape[1:]))
        v, u = state if state is not None else (torch.zeros_like(before[0]), torch.zeros_like(before[0]))
        for t, now in enumerate(before):
            current = a[t if len(a) > 1 else 0]
            if self.remembers:
                u = self._wrap(self._decayed(u, *self.memory) + current)
                current = u + self.bias
            torch.add(self._decayed(v, self.kept, self.bits), current, out=now)
            now.clamp_(-STATE_MAX, STATE_MAX)
            v = torch.where(now > self.limit, 0, now)
        return before, (v, u)

    def output(self, before: Tensor, dtype: torch.dtype) -> Tensor:
        """Spikes, or the membranes of integrators."""
        return (before > self.limit).to(torch.float32) if self.fires else before.to(dtype)

    def reset(self, before: Tensor) -> Tensor:
        """Membranes after reset, from `before`."""
        return torch.where(before > self.limit, 0, before)

    def _decayed(self, v: Tensor, factor: int, bits: int) -> Tensor:
        """``v · factor / 2^bits`` rounded towards zero: negative numbers are raised by 2^bits - 1 before the shift."""
        product = v if factor == 1 else v * factor
        sign = product >> (31 if self.dtype == torch.int32 else 63)
        return sign.bitwise_and_((1 << bits) - 1).add_(product).bitwise_right_shift_(bits)

    def _wrap(self, x: Tensor) -> Tensor:
        half, full = 1 << (STATE_BITS - 1), 1 << STATE_BITS
        return torch.where(x > half, x - full, torch.where(x <= -half, x + full, x))


def _reduced(numerator: int) -> tuple[int, int]:
    """``numerator / 4096`` in lowest terms, as (numerator, bits of the denominator): small factors need few bits."""
    common = gcd(numerator, 1 << DECAY_BITS)
    return numerator // common, DECAY_BITS + 1 - common.bit_length()
