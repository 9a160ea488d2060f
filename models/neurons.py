"""Leaky integrate-and-fire neurons, multi-step: one call takes all T steps, vectorised over everything but time.

    v[t] = v[t-1] + (x[t] - v[t-1]) / tau        s[t] = (v[t] >= theta)        v[t] = 0 where s[t]

Source: the released STAtten implementation (SpikingJelly's MultiStepLIFNode with decay_input, hard reset to 0).
"""

from typing import Any

import torch
from torch import Tensor, nn

SURROGATE_ALPHA = 4.0


class SpikeFunction(torch.autograd.Function):
    """Heaviside step forward, derivative of a sigmoid backward: ``ds/dx = alpha · σ(alpha x) (1 - σ(alpha x))``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(SURROGATE_ALPHA * x)
        return grad_outputs[0] * (SURROGATE_ALPHA * sigmoid * (1 - sigmoid))


class LIF(nn.Module):
    """LIF neurons with time constant `tau` steps and threshold `theta`.

    `unit` is the size of the input's unit: an input counted in integers with ``unit = scale`` is compared with
    ``theta / scale``, so that the integers stay exact, while the surrogate gradient sees
    ``scale · (v - theta / scale)`` as if the input had been scaled. Every other layer has ``unit = 1``.

    Input and output: [T, ...], 0/1 out; membranes are float32 even under autocast (float64 for float64 input).
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
        decay = self.decay()
        steps = (current if current.dtype == torch.float64 else current.float()).unbind(0)
        v = torch.zeros_like(steps[0])
        spikes = []
        for x in steps:
            v = v + (x - v) * decay
            overshoot = v - self.threshold
            s: Tensor = SpikeFunction.apply(overshoot if self.unit == 1.0 else overshoot * self.unit)
            v = torch.where(s.detach() > 0, 0.0, v)
            spikes.append(s)
        return torch.stack(spikes)

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
