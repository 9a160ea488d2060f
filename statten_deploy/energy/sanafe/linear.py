"""What lies between spikes and a neuron, as sparse matrices: one entry per synapse, none where a weight is zero.

A matrix has a row per element of the node's input and a column per element of its output, both flattened.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from statten_deploy.energy.fanout import CONVOLUTIONS, LINEAR, taps
from statten_deploy.fixed_point import shift
from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, TokenMaxPool
from statten_deploy.ir.integer import IntegerConv2d, IntegerLinear, IntegerSumPool2d
from statten_deploy.ir.shapes import Shape

Real = NDArray[np.float64]
Matrix = Any
"""A `scipy.sparse` array of float64; integers below 2^53 are exact."""

CONSTANT = (nir.Conv1d, nir.Conv2d, nir.Affine, IntegerLinear)
"""Nodes with a bias."""


def is_linear(node: nir.NIRNode) -> bool:
    """Whether a node is exactly a matrix: a shift to the right rounds a sum, so it is not."""
    if isinstance(node, IntegerConv2d | IntegerLinear | IntegerSumPool2d):
        return bool(np.all(np.asarray(node.exponent) >= 0))
    return isinstance(node, (nir.Flatten, nir.Scale, nir.SumPool2d, *CONVOLUTIONS, *LINEAR))


def matrix(node: Any, shape: Shape, out: Shape) -> Matrix:
    """The synapses of a linear node, or of a gate from one of its ports, whose signal has `shape`."""
    if isinstance(node, CONVOLUTIONS):
        return _convolution(node, shape, out)
    if isinstance(node, LINEAR):
        return _matrix(_weights(node).T, (prod(shape), prod(out)))
    if isinstance(node, nir.SumPool2d | SpikeMaxPool2d | MaxPool2d):
        return _pool(node, shape, out)
    if isinstance(node, IntegerSumPool2d):
        return _pool(node, shape, out) * float(1 << node.exponent)
    if isinstance(node, TokenMaxPool):
        plane = (node.num_heads, shape[0] // node.num_heads, prod(shape[1:]))
        return _pool(SpikeMaxPool2d((3, 3), (1, 1), (1, 1)), plane, plane)
    if isinstance(node, SpikeAnd) and shape != out:
        each = prod(out) // prod(shape)
        rows = np.repeat(np.arange(prod(shape)), each)
        return _entries(rows, np.arange(prod(out)), np.ones(prod(out)), (prod(shape), prod(out)))
    if isinstance(node, nir.Scale):
        return sparse.diags_array(np.broadcast_to(node.scale, shape).reshape(-1).astype(np.float64), format="csr")
    return sparse.eye_array(prod(shape), format="csr")


def constant(node: Any, out: Shape) -> Real | None:
    """What a node adds at every step, flattened; None where it adds nothing."""
    bias = np.asarray(node.bias, dtype=np.float64) if isinstance(node, CONSTANT) else np.zeros(1)
    if not bias.any():
        return None
    return np.broadcast_to(bias.reshape(-1, *(1,) * (len(out) - 1)), out).reshape(-1)


def _weights(node: Any) -> Real:
    """Weights with their exponents."""
    weight = np.asarray(node.weight)
    if isinstance(node, IntegerConv2d | IntegerLinear):
        weight = shift(weight, node.exponent.reshape(-1, *(1,) * (weight.ndim - 1)))
    return weight.astype(np.float64)


def _convolution(node: Any, shape: Shape, out: Shape) -> Matrix:
    weight, groups = _weights(node), int(node.groups)
    per_group, each = weight.shape[1], len(weight) // groups
    flat = weight.reshape(*weight.shape[:2], -1)
    found = []
    for index, (site_in, site_out) in enumerate(_sites(node, shape, out)):
        values = flat[:, :, index]
        o, c = np.nonzero(values)
        channel = c + o // each * per_group
        rows = channel[:, None] * prod(shape[1:]) + site_in
        columns = o[:, None] * prod(out[1:]) + site_out
        found.append((rows, columns, np.broadcast_to(values[o, c][:, None], rows.shape)))
    rows, columns, values = (np.concatenate([part.reshape(-1) for part in parts]) for parts in zip(*found, strict=True))
    return _entries(rows, columns, values, (prod(shape), prod(out)))


def _pool(node: Any, shape: Shape, out: Shape) -> Matrix:
    site_in, site_out = (np.concatenate(parts) for parts in zip(*_sites(node, shape, out), strict=True))
    channel = np.arange(shape[0])[:, None]
    rows = (channel * prod(shape[1:]) + site_in).reshape(-1)
    columns = (channel * prod(out[1:]) + site_out).reshape(-1)
    return _entries(rows, columns, np.ones(len(rows)), (prod(shape), prod(out)))


def _sites(node: Any, shape: Shape, out: Shape) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Per tap of a kernel (the last axis fastest) the pairs of positions (flattened, in and out) that it connects."""
    axes = taps(node, shape, out)
    for tap in np.ndindex(*(len(axis) for axis in axes)):
        site_in = site_out = np.zeros(1, dtype=np.int64)
        for k, axis in zip(tap, axes, strict=True):
            i, y = np.nonzero(axis[k])
            site_in = (site_in[:, None] * axis.shape[1] + i).reshape(-1)
            site_out = (site_out[:, None] * axis.shape[2] + y).reshape(-1)
        yield site_in, site_out


def _entries(rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any], size: tuple[int, int]) -> Matrix:
    return sparse.csr_array((values.astype(np.float64), (rows, columns)), shape=size)


def _matrix(weight: Real, size: tuple[int, int]) -> Matrix:
    rows, columns = np.nonzero(weight)
    return _entries(rows, columns, weight[rows, columns], size)
