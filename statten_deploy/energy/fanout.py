"""Which inputs a connection reaches: fan-out and fan-in of every site, and the dense number of products.

Along one axis an input i and an output y meet at tap k where ``i = y · stride - padding + k · dilation``. Convolutions
and pools are products of such relations over their axes, so the maps below are exact at borders, for any stride,
padding, dilation and number of groups. Weights that are zero connect nothing.
"""

from math import prod
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.ir import MaxPool2d, SpikeMaxPool2d
from statten_deploy.ir.integer import IntegerConv2d, IntegerLinear, IntegerSumPool2d
from statten_deploy.ir.shapes import Shape, explicit_padding, sizes

Int = NDArray[np.int64]

CONVOLUTIONS = (nir.Conv1d, nir.Conv2d, IntegerConv2d)
LINEAR = (nir.Affine, nir.Linear, IntegerLinear)
WEIGHTED = (*CONVOLUTIONS, *LINEAR)
"""Nodes with weights."""

WINDOWS = (nir.SumPool2d, nir.AvgPool2d, IntegerSumPool2d, SpikeMaxPool2d, MaxPool2d)
"""Pools: every input of a window counts once."""


def taps(node: Any, shape: Shape, out: Shape) -> list[NDArray[np.bool_]]:
    """Per spatial axis of a convolution or a pool: [kernel, input, output], True where the three meet."""
    if isinstance(node, CONVOLUTIONS):
        kernel = np.shape(node.weight)[2:]
        padding = [before for before, _ in explicit_padding(node)]
        dilation = sizes(node.dilation, len(kernel), "dilation")
    else:
        kernel = sizes(node.kernel_size, 2, "kernel_size")
        padding = list(sizes(getattr(node, "padding", 0), 2, "padding"))
        dilation = (1, 1)
    stride = sizes(node.stride, len(kernel), "stride")
    found = []
    for axis, length in enumerate(kernel):
        k = np.arange(length)[:, None, None]
        i = np.arange(shape[1 + axis])[None, :, None]
        y = np.arange(out[1 + axis])[None, None, :]
        found.append(i == y * stride[axis] - padding[axis] + k * dilation[axis])
    return found


def fan_out(node: Any, shape: Shape, out: Shape) -> Int:
    """How many outputs every input site reaches through a non-zero weight, int64 of the input's shape."""
    if isinstance(node, LINEAR):
        return np.asarray(np.count_nonzero(node.weight, axis=-2), dtype=np.int64)
    reached = [t.sum(2) for t in taps(node, shape, out)]  # [kernel, input]
    if isinstance(node, CONVOLUTIONS):
        return _product(_connected(node).sum(1).reshape(shape[0], *np.shape(node.weight)[2:]), reached)
    return _product(np.ones((shape[0], *(len(r) for r in reached)), dtype=np.int64), reached)


def fan_in(node: Any, shape: Shape, out: Shape) -> Int:
    """How many inputs reach every output through a non-zero weight, int64 of the output's shape."""
    if isinstance(node, LINEAR):
        return np.asarray(np.count_nonzero(node.weight, axis=-1), dtype=np.int64)
    reached = [t.sum(1) for t in taps(node, shape, out)]  # [kernel, output]
    if isinstance(node, CONVOLUTIONS):
        return _product(_connected(node).sum(2).reshape(out[0], *np.shape(node.weight)[2:]), reached)
    return _product(np.ones((out[0], *(len(r) for r in reached)), dtype=np.int64), reached)


def dense(node: Any, shape: Shape, out: Shape) -> int:
    """Products of one step as the literature counts them: outputs times taps, padding and zero weights included."""
    if isinstance(node, WEIGHTED):
        return prod(out) * prod(np.shape(node.weight)[1 if isinstance(node, CONVOLUTIONS) else -1 :])
    return prod(out) * prod(sizes(node.kernel_size, 2, "kernel_size"))


def _connected(node: Any) -> Int:
    """Non-zero weights as [groups, out/groups, in/groups, *kernel]."""
    weight = np.asarray(node.weight)
    groups = int(getattr(node, "groups", 1))
    split = (groups, weight.shape[0] // groups, *weight.shape[1:])
    return np.asarray((weight != 0).reshape(split), dtype=np.int64)


def _product(weights: Int, reached: list[Int]) -> Int:
    """``Σ_k weights[c, k...] · Π_axis reached[axis][k, site]``."""
    result = weights
    for axis_map in reached:  # each turn replaces the first kernel axis and appends the sites
        result = np.tensordot(result, axis_map, axes=(1, 0))
    return np.asarray(result, dtype=np.int64)
