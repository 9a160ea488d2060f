"""The counts again: one spike at a time, in plain loops, from the recorded signal of every node."""

from itertools import product

import nir
import numpy as np

from statten_deploy.ir import SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool


def pairs(value, axes=2):
    flat = [int(v) for v in np.asarray(value).reshape(-1)]
    return flat * axes if len(flat) == 1 else flat


def reached(node, site, out):
    """Every (output, weight) that one input site reaches."""
    if isinstance(node, nir.Linear | nir.Affine):
        for row in range(node.weight.shape[0]):
            yield (row,), node.weight[row, site[0]]
        return
    pool = not isinstance(node, nir.Conv1d | nir.Conv2d)
    axes = len(site) - 1
    kernel = pairs(node.kernel_size) if pool else list(node.weight.shape[2:])
    stride, padding = pairs(node.stride, axes), pairs(getattr(node, "padding", 0), axes)
    dilation = [1] * axes if pool else pairs(node.dilation, axes)
    if pool:
        channels = [site[0]]
    else:
        inputs, outputs = node.weight.shape[1], node.weight.shape[0] // node.groups
        group = site[0] // inputs
        channels = range(group * outputs, (group + 1) * outputs)
    for tap in product(*map(range, kernel)):
        target = []
        for axis, k in enumerate(tap):
            position = site[1 + axis] + padding[axis] - k * dilation[axis]
            if position % stride[axis] == 0 and 0 <= position // stride[axis] < out[1 + axis]:
                target.append(position // stride[axis])
        if len(target) == axes:
            for channel in channels:
                weight = 1 if pool else node.weight[(channel, site[0] % inputs, *tap)]
                yield (channel, *target), weight


def synops(node, signal, out):
    """Synapses reached by every event of [T, B, *shape]."""
    count = 0
    for index in np.argwhere(signal != 0):
        count += sum(1 for _, weight in reached(node, tuple(index[2:]), out) if weight != 0)
    return count


def gate_ops(node, port, signal, out):
    """A gate counts every event that reaches it."""
    if isinstance(node, SpikeAnd):
        return int(np.count_nonzero(signal)) * (np.prod(out) // np.prod(signal.shape[2:]) if port == "b" else 1)
    if isinstance(node, TokenMaxPool):
        channels, height, width = out
        d, tokens = channels // node.num_heads, height * width
        count = 0
        for _, _, c, i, j in np.argwhere(signal != 0):
            near = [(c % d + a, i * width + j + b) for a, b in product((-1, 0, 1), repeat=2)]
            count += sum(0 <= channel < d and 0 <= token < tokens for channel, token in near)
        return count
    assert isinstance(node, SpikeMaxPool2d)
    return synops(node, signal, out)


def attention(node: STAttenAttention, q, k, v):
    """(accumulations, removals, reads), token by token."""
    T, B, C, H, W = q.shape
    d = C // node.num_heads
    added = removed = reads = 0
    for t, b, head, i, j in product(range(T), range(B), range(node.num_heads), range(H), range(W)):
        channels = slice(head * d, (head + 1) * d)
        met = sum(1 for x in k[t, b, channels, i, j] for y in v[t, b, channels, i, j] if x and y)
        added += met
        if node.mode == "sliding" and t + node.window < T:
            removed += met
        reads += sum(d for x in q[t, b, channels, i, j] if x)
    return added, removed, reads
