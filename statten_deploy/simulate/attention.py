"""STAtten attention on blocks of time."""

from typing import Any

import torch
from torch import Tensor

from statten_deploy.ir.nodes import STAttenAttention
from statten_deploy.ir.shapes import Shape


class Attention:
    """``A[t] = Q[t] · Σ_{s in W(t)} K[s]ᵀ V[s]`` per head and token group, in counts (see `STAttenAttention`).

    K[s]ᵀ V[s] is a d x d matrix of integers per step; it is summed over the window before Q touches it, so the cost
    grows with d, not with the number of tokens squared. Everything stays an integer below 2^24, hence exact.
    Sliding windows carry the matrices of the last window - 1 steps as their state; block windows have none.
    """

    def __init__(self, node: STAttenAttention, shape: Shape) -> None:
        channels, height, width = shape
        self.window = node.window
        self.sliding = node.mode == "sliding"
        self.heads, self.groups = node.num_heads, node.token_groups
        self.split = (self.heads, channels // self.heads, self.groups, height * width // self.groups)
        self.shape = shape

    def __call__(self, steps: int, state: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
        Q, K, V = (self._per_head(x) for x in (q, k, v))
        products = K @ V.transpose(-1, -2)  # [n, B, h, G, d_k, d_v]
        if self.sliding:
            sums, state = self._slide(products, steps, state)
        else:
            sums = self._chunks(products, steps)
        counts = sums.transpose(-1, -2) @ Q  # [n, B, h, G, d_v, N/G]
        return counts.transpose(-2, -3).reshape(*counts.shape[:2], *self.shape), state

    def _per_head(self, x: Tensor) -> Tensor:
        """[n, B, C, H, W] -> [n, B, h, G, d, N/G]."""
        return x.reshape(*x.shape[:2], *self.split).transpose(-2, -3)

    def _chunks(self, products: Tensor, steps: int) -> Tensor:
        """The sum over its chunk for every step; one matrix for all steps when nothing changes over time."""
        if products.shape[0] == 1:
            return products * self.window
        sums = products.reshape(steps // self.window, self.window, *products.shape[1:]).sum(1)
        return sums.repeat_interleave(self.window, 0)

    def _slide(self, products: Tensor, steps: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum over the last `window` steps for every step; before the first step there is nothing."""
        before = self.window - 1
        past = state if state is not None else products.new_zeros((before, *products.shape[1:]))
        known = torch.cat([past, products.expand(steps, *products.shape[1:])])
        total = known.cumsum(0)  # differences of sums of integers are exact
        sums = total[before:].clone()
        sums[1:] -= total[: steps - 1]
        return sums, known[steps:]
