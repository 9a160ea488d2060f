"""The operations NIR lacks, as `nir.NIRNode` subclasses.

They live in memory only: `nir` has no registry for foreign node types, so a file that held one could not
be read back. The NIR writer lowers them to stock nodes or to the compact form (docs/nir.md).

Shapes leave out batch and time: a signal of shape [C, H, W] is one step of one sample. Nodes with one input
take it on the port ``input``; a node with several is addressed as ``name.port`` in an edge, for instance
``("block.0.attn.q_lif", "block.0.attn.statten.q")``. Several edges into one port add up.
"""

from dataclasses import dataclass
from typing import Literal

import nir
import numpy as np

Shape = tuple[int, ...]
Pair = tuple[int, int]


def pair(value: object) -> Pair:
    """A kernel size, stride or padding as (height, width); a single number counts for both."""
    flat = np.asarray(value).reshape(-1)
    return (int(flat[0]), int(flat[-1]))


@dataclass(eq=False)
class SpikeMaxPool2d(nir.NIRNode):
    """OR over a window of binary spikes: ``y[c, i, j] = max of x[c, window(i, j)]``, outside counts as 0.

    Input [C, H, W] of 0/1, output [C, H', W'] of 0/1, H' = floor((H + 2 padding - kernel) / stride) + 1.
    """

    kernel_size: Pair
    stride: Pair
    padding: Pair

    def __post_init__(self) -> None:
        self.kernel_size, self.stride, self.padding = map(pair, (self.kernel_size, self.stride, self.padding))
        self.input_type = {"input": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class MaxPool2d(nir.NIRNode):
    """Maximum over a window of real currents; padding never wins. No spiking circuit computes it.

    Input [C, H, W], output [C, H', W'] as in `SpikeMaxPool2d`.
    """

    kernel_size: Pair
    stride: Pair
    padding: Pair

    def __post_init__(self) -> None:
        self.kernel_size, self.stride, self.padding = map(pair, (self.kernel_size, self.stride, self.padding))
        self.input_type = {"input": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class STAttenAttention(nir.NIRNode):
    """Spatial-temporal attention of binary spikes, in counts: ``A[t] = Q[t] · Σ_{s in W(t)} K[s]ᵀ V[s]``.

    Ports ``q``, ``k``, ``v``: [C, H, W] of 0/1. Output: integers A [C, H, W], 0 .. tokens · window · C/heads.
    Channel = head * d + j with d = C / num_heads; tokens are row-major over (H, W).

    W(t) is the set of steps a query of step t sees:
    ``block``    the chunk of `window` steps that holds t (not causal inside the chunk; T % window == 0);
    ``sliding``  steps t - window + 1 .. t.
    With `token_groups` G > 1 the token grid is cut into G groups of H / G contiguous rows and a query sees the
    keys and values of its own group only (``divide: token``; there `window` = T and `mode` = "block").

    Source: Lee et al., "Spiking Transformer with Spatial-Temporal Attention", CVPR 2025, section 4.
    """

    num_heads: int
    window: int
    mode: Literal["block", "sliding"] = "block"
    token_groups: int = 1

    def __post_init__(self) -> None:
        self.input_type = {"q": None, "k": None, "v": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class SpikeAnd(nir.NIRNode):
    """AND of two binary spikes: ``y = a · b``. Ports ``a`` [C, H, W] and ``b`` [C, H, W] or [C, 1, 1] (broadcast)."""

    def __post_init__(self) -> None:
        self.input_type = {"a": None, "b": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class TokenMaxPool(nir.NIRNode):
    """3x3 OR (stride 1, padding 1) over (token, channel inside the head), as the released SDT mode does on events.

    Input and output [C, H, W] of 0/1: per head the plane is [N, d] with N = H*W row-major tokens, d = C / num_heads.
    """

    num_heads: int

    def __post_init__(self) -> None:
        self.input_type = {"input": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class TemporalMean(nir.NIRNode):
    """Mean over all T steps: ``y = (1/T) Σ_t x[t]``. The output has no time axis any more."""

    def __post_init__(self) -> None:
        self.input_type = {"input": None}
        self.output_type = {"output": None}


EXTENSION_NODES: tuple[type[nir.NIRNode], ...] = (
    SpikeMaxPool2d,
    MaxPool2d,
    STAttenAttention,
    SpikeAnd,
    TokenMaxPool,
    TemporalMean,
)
"""Every node class this package adds to NIR, in one place."""
