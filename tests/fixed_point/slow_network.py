"""The integer network again, in Python's own integers and loops, written from docs/fixed_point.md."""

import nir
import numpy as np

from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool, hints
from statten_deploy.ir.graph import predecessors, topological_order
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)


def floor_shift(value, exponent):
    """Python's own shifts on unbounded integers."""
    exponents = np.broadcast_to(np.asarray(exponent, dtype=object), np.shape(value))
    pairs = [(int(a), int(e)) for a, e in zip(np.ravel(value), exponents.ravel(), strict=True)]
    return np.array([a << e if e >= 0 else a >> -e for a, e in pairs], dtype=object).reshape(np.shape(value))


def decayed(x, decay):
    product = x * (4096 - decay)
    return (abs(product) >> 12) * (1 if product >= 0 else -1)


def neuron(u, v, a, du, dv, bias, threshold):
    """(spike, current, membrane) after one step."""
    u = decayed(u, du + 1) + (a << 6)
    if u > 2**23:
        u -= 2**24
    elif u <= -(2**23):
        u += 2**24
    v = max(-(2**23) + 1, min(2**23 - 1, decayed(v, dv) + u + bias))
    return (True, u, 0) if v > threshold << 6 else (False, u, v)


def pool(x, kernel, stride, padding, reduce, fill):
    *lead, height, width = x.shape
    padded = np.full((*lead, height + 2 * padding[0], width + 2 * padding[1]), fill, dtype=object)
    padded[..., padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    rows = range(0, padded.shape[-2] - kernel[0] + 1, stride[0])
    columns = range(0, padded.shape[-1] - kernel[1] + 1, stride[1])
    out = [[reduce(padded[..., i : i + kernel[0], j : j + kernel[1]]) for j in columns] for i in rows]
    return np.moveaxis(np.array(out, dtype=object), (0, 1), (-2, -1))


def convolve(node, x):
    weight = node.weight.astype(object)
    (ph, pw), (sh, sw) = node.padding, node.stride
    padded = np.zeros((len(x), x.shape[1] + 2 * ph, x.shape[2] + 2 * pw), dtype=object)
    padded[:, ph : ph + x.shape[1], pw : pw + x.shape[2]] = x
    kh, kw = weight.shape[2:]
    out = [
        [(weight * padded[:, i : i + kh, j : j + kw]).sum((1, 2, 3)) for j in range(0, padded.shape[2] - kw + 1, sw)]
        for i in range(0, padded.shape[1] - kh + 1, sh)
    ]
    sums = np.moveaxis(np.array(out, dtype=object), (0, 1), (-2, -1))
    return floor_shift(sums, node.exponent.reshape(-1, 1, 1))


def attend(node, q, k, v, t):
    """Counts at step t for lists of steps [C, H, W]: explicit loops over steps, heads and tokens."""
    C, H, W = q[t].shape
    d, n = C // node.num_heads, H * W // node.token_groups
    start = t // node.window * node.window if node.mode == "block" else max(0, t - node.window + 1)
    steps = range(start, start + node.window) if node.mode == "block" else range(start, t + 1)
    out = np.zeros((C, H * W), dtype=object)
    flat = [[x.reshape(C, H * W) for x in part] for part in (q, k, v)]
    for head in range(node.num_heads):
        rows = slice(head * d, (head + 1) * d)
        for group in range(node.token_groups):
            tokens = slice(group * n, (group + 1) * n)
            kv = sum(flat[1][s][rows, tokens] @ flat[2][s][rows, tokens].T for s in steps)
            out[rows, tokens] = kv.T @ flat[0][t][rows, tokens]
    return out.reshape(C, H, W)


def run_slowly(graph, x):
    """One sample x [1, ...]: (spikes, membranes) per neuron layer [T, 1, ...], and the integer logits [1, classes]."""
    steps = int(hints(graph)["time_steps"])
    into = predecessors(graph)
    values, spikes, membranes = {}, {}, {}
    for name in topological_order(graph):
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            held = x[0].ndim == len(node.input_type["input"])
            values[name] = [x[0] if held else x[0][t] for t in range(steps)]
            continue
        ports = [[sum(values[s][t] for s in sources) for t in range(steps)] for sources in into[name].values()]
        operation = OPERATIONS[type(node)]
        values[name] = operation(node, *ports)
        if isinstance(node, IntegerLIF):
            values[name], history = values[name]
            spikes[name] = np.stack(values[name]).astype(bool)[:, None]
            membranes[name] = np.stack(history).astype(np.int32)[:, None]
    return spikes, membranes, np.asarray(values["logits"][0], dtype=np.int64)[None]


def each(function):
    return lambda node, x: [function(node, step) for step in x]


def encode(node, x):
    zero = node.zero_point.reshape(-1, 1, 1)
    stored = np.clip(np.rint(x.astype(np.float64) / node.scale.reshape(-1, 1, 1)), 0, 255) - zero
    return stored.astype(np.int64).astype(object)


def fire(node, x):
    parameters = [
        np.broadcast_to(value, node.shape).ravel()
        for value in (node.threshold, floor_shift(node.bias_mantissa, node.bias_exponent))
    ]
    u = v = [0] * int(np.prod(node.shape))
    out, history = [], []
    for current in x:
        a = floor_shift(np.broadcast_to(current, node.shape), node.input_exponent).ravel()
        after = [
            neuron(u[i], v[i], int(a[i]), node.du, node.dv, int(parameters[1][i]), int(parameters[0][i]))
            for i in range(len(v))
        ]
        u, v = [current for _, current, _ in after], [membrane for _, _, membrane in after]
        out.append(np.array([int(s) for s, _, _ in after], dtype=object).reshape(node.shape))
        history.append(np.array(v, dtype=object).reshape(node.shape))
    return out, history


def total(windows):
    return windows.sum((-2, -1))


def largest(windows):
    return windows.max((-2, -1))


def sum_pool(node, x):
    return floor_shift(pool(x, node.kernel_size, node.stride, (0, 0), total, 0), node.exponent)


def max_pool(node, x):
    return pool(x, node.kernel_size, node.stride, node.padding, largest, -(10**9))


def token_pool(node, x):
    C, H, W = x.shape
    planes = x.reshape(node.num_heads, C // node.num_heads, H * W)
    return pool(planes, (3, 3), (1, 1), (1, 1), largest, 0).reshape(C, H, W)


def linear(node, x):
    return floor_shift(node.weight.astype(object) @ x, node.exponent) + node.bias.astype(object)


OPERATIONS = {
    nir.Output: lambda node, x: x,
    nir.Flatten: each(lambda node, x: x.reshape(-1)),
    InputEncoder: each(encode),
    IntegerConv2d: each(convolve),
    IntegerLinear: each(linear),
    IntegerLIF: fire,
    IntegerSumPool2d: each(sum_pool),
    MaxPool2d: each(max_pool),
    SpikeMaxPool2d: each(max_pool),
    STAttenAttention: lambda node, q, k, v: [attend(node, q, k, v, t) for t in range(len(q))],
    SpikeAnd: lambda node, a, b: [x * y for x, y in zip(a, b, strict=True)],
    TokenMaxPool: each(token_pool),
    TemporalSum: lambda node, x: [sum(x)] * len(x),
}
