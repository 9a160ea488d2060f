"""Leaky integrate-and-fire neurons, multi-step: one call takes all T steps, vectorised over everything but time.

    v[t] = v[t-1] + (x[t] - v[t-1]) / tau        s[t] = (v[t] >= theta)        v[t] = 0 where s[t]

Source: the released STAtten implementation (SpikingJelly's MultiStepLIFNode with decay_input, hard reset to 0). In
training a reset is a constant (`detach_reset`), and a spike has the derivative of a sigmoid:

    h[t] = g[t] · alpha · unit · σ'(alpha · unit · (v[t] - theta)) + (1 - 1/tau) · h[t+1] where not s[t]
    dL/dx[t] = h[t] / tau        dL/d(1/tau) = sum of h[t] · (x[t] - v[t-1])

with g = dL/ds. Backward runs through the steps again instead of keeping their membranes: of everything between input
and spikes only the input is stored. Both directions are plain loops over elementwise operations, which `torch.compile`
turns into one kernel each, in C++ on a CPU and in Triton on a GPU.
"""

from typing import Any

import torch
from torch import Tensor, nn

SURROGATE_ALPHA = 4.0


class FireFunction(torch.autograd.Function):
    """Spikes [T, ...] of currents [T, ...], both in the current's type; membranes in float32 or float64."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, decay: Tensor | float, threshold: float, unit: float) -> Tensor:
        kept = (decay,) if isinstance(decay, Tensor) else ()
        ctx.save_for_backward(current, *kept)
        ctx.decay, ctx.threshold, ctx.unit = None if kept else decay, threshold, unit
        v = torch.zeros_like(current[0], dtype=_wide(current))
        spikes = _Steps(current)
        for t, x in enumerate(current.unbind(0)):
            v = v + (x.to(v.dtype) - v) * decay
            spikes.put(t, v >= threshold)
            v = _reset(v, threshold)
        return spikes.together()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        current, *kept = ctx.saved_tensors
        decay: Tensor | float = kept[0] if kept else ctx.decay
        steep = SURROGATE_ALPHA * ctx.unit
        steps, upstream = current.to(_wide(current)).unbind(0), grad_outputs[0].unbind(0)
        rest = torch.zeros_like(steps[0])
        membranes = []  # before the reset of every step
        v = rest
        for x in steps:
            membranes.append(v + (x - v) * decay)
            v = _reset(membranes[-1], ctx.threshold)
        later = rest  # dL/dv after the reset of step t
        to_current, to_decay = _Steps(current), torch.zeros((), dtype=rest.dtype, device=rest.device)
        for t in reversed(range(len(steps))):
            v = membranes.pop()
            slope = torch.sigmoid(steep * (v - ctx.threshold))
            to_membrane = upstream[t].to(rest.dtype) * (steep * slope * (1 - slope))
            to_membrane = to_membrane + torch.where(v >= ctx.threshold, 0.0, later)
            to_current.put(t, to_membrane * decay)
            later = to_membrane * (1 - decay)
            if kept:
                earlier = _reset(membranes[t - 1], ctx.threshold) if t else rest
                to_decay = to_decay + (to_membrane * (steps[t] - earlier)).sum()
        return to_current.together(), to_decay.to(kept[0].dtype) if kept else None, None, None


class _Steps:
    """[T, ...] like another tensor, step by step: in place, or by a compiler that needs no copies for it."""

    def __init__(self, like: Tensor) -> None:
        self.dtype = like.dtype
        self.place = None if torch.compiler.is_compiling() else torch.empty_like(like)
        self.steps: dict[int, Tensor] = {}

    def put(self, t: int, value: Tensor) -> None:
        if self.place is None:
            self.steps[t] = value.to(self.dtype)
        else:
            self.place[t] = value

    def together(self) -> Tensor:
        if self.place is None:
            return torch.stack([self.steps[t] for t in range(len(self.steps))])
        return self.place


def _reset(v: Tensor, threshold: float) -> Tensor:
    return torch.where(v >= threshold, 0.0, v)


def _wide(current: Tensor) -> torch.dtype:
    return torch.float64 if current.dtype == torch.float64 else torch.float32


class LIF(nn.Module):
    """LIF neurons with time constant `tau` steps and threshold `theta`.

    `unit` is the size of the input's unit: an input counted in integers with ``unit = scale`` is compared with
    ``theta / scale``, so that the integers stay exact, while the surrogate gradient sees
    ``scale · (v - theta / scale)`` as if the input had been scaled. Every other layer has ``unit = 1``.

    Input and output: [T, ...], 0/1 out, in the input's type; membranes are float32 even for bfloat16 and float16
    currents (float64 for float64).
    """

    def __init__(self, theta: float = 1.0, tau: float = 2.0, unit: float = 1.0) -> None:
        super().__init__()
        self.theta = theta
        self.tau = tau
        self.unit = unit

    @property
    def threshold(self) -> float:
        """Threshold in the input's own unit."""
        return self.theta / self.unit

    def decay(self) -> Tensor | float:
        """1 / tau."""
        return 1.0 / self.tau

    def forward(self, current: Tensor) -> Tensor:
        spikes: Tensor = FireFunction.apply(current, self.decay(), self.threshold, self.unit)
        return spikes

    def extra_repr(self) -> str:
        return f"theta={self.theta}, tau={self.tau}, unit={self.unit}"


class PLIF(LIF):
    """Parametric LIF: ``1/tau = σ(w)`` with one learnt scalar `w` per layer (Fang et al., ICCV 2021)."""

    def __init__(self, theta: float = 1.0, tau: float = 2.0) -> None:
        super().__init__(theta, tau)
        self.w = nn.Parameter(-torch.log(torch.tensor(tau - 1.0)))

    def decay(self) -> Tensor:
        return torch.sigmoid(self.w)

    def extra_repr(self) -> str:
        return f"theta={self.theta}, 1/tau={self.decay().item():.4f}"
