"""The integer network again, in Python's own integers and loops, written from docs/fixed_point.md."""

import nir
import numpy as np

from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool, hints
from statten_deploy.ir.graph import predecessors, topological_order
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.ir.shapes import infer_shapes


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
    return floor_shift(sums, node.exponent.reshape(-1, 1, 1)) + node.bias.astype(object).reshape(-1, 1, 1)


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
        if isinstance(node, IntegerLIF | IntegerLI):
            values[name], history = values[name]
            if isinstance(node, IntegerLIF):
                spikes[name] = np.stack(values[name]).astype(bool)[:, None]
            membranes[name] = np.stack(history).astype(np.int32)[:, None]
    return spikes, membranes, np.asarray(values["logits"][0], dtype=np.int64)[None]


def run_loops_slowly(graph, x, late):
    """One sample x [1, T, ...] of a graph with loops: values of every node, {name: [T, ...]}, and membranes.

    The edges in `late` are read one step later; before the first step neurons are silent and nothing comes in. Every
    value is asked for where it is needed, so no order has to be found.
    """
    steps, into = int(hints(graph)["time_steps"]), predecessors(graph)
    shapes = infer_shapes(graph)
    known, states = {}, {}

    def value(name, t):
        if (name, t) not in known:
            known[name, t] = compute(name, t)
        return known[name, t]

    def compute(name, t):
        node = graph.nodes[name]
        neurons = isinstance(node, IntegerLIF | IntegerLI)
        if t < 0 and (neurons or isinstance(node, nir.Input)):
            return np.zeros(shapes[name], dtype=np.int64).astype(object)
        if isinstance(node, nir.Input):
            return x[0][t]
        ports = [
            sum(value(source, t - 1 if (source, name) in late else t) for source in sources)
            for sources in into[name].values()
        ]
        if not neurons:
            return OPERATIONS[type(node)](node, *([port] for port in ports))[0]
        for earlier in range(t):
            value(name, earlier)
        fire(node, [ports[0]], states.setdefault(name, ([0] * ports[0].size, [0] * ports[0].size, [])))
        return states[name][2][-1][0]

    values = {name: np.stack([value(name, t) for t in range(steps)]) for name in graph.nodes}
    return values, {name: np.stack([membrane for _, membrane in state[2]]) for name, state in states.items()}


def each(function):
    return lambda node, x: [function(node, step) for step in x]


def encode(node, x):
    zero, scale = (value.reshape(-1, *(1,) * (x.ndim - 1)) for value in (node.zero_point, node.scale))
    stored = np.clip(np.rint(x.astype(np.float64) / scale), 0, 255) - zero
    return stored.astype(np.int64).astype(object)


def fire(node, x, state=None):
    """Outputs and membranes per step; `state` (u, v, what came out) is carried on from call to call."""
    bias = floor_shift(node.bias_mantissa, node.bias_exponent)
    limits = node.threshold if isinstance(node, IntegerLIF) else np.full(bias.shape, 1 << 40)
    bias, limits = (np.broadcast_to(values, node.shape).ravel() for values in (bias, limits))
    size = int(np.prod(node.shape))
    u, v, told = state or ([0] * size, [0] * size, [])
    for current in x:
        a = floor_shift(np.broadcast_to(current, node.shape), node.input_exponent).ravel()
        after = [neuron(u[i], v[i], int(a[i]), node.du, node.dv, int(bias[i]), int(limits[i])) for i in range(size)]
        u[:], v[:] = [current for _, current, _ in after], [membrane for _, _, membrane in after]
        spikes = np.array([int(s) for s, _, _ in after], dtype=object).reshape(node.shape)
        membranes = np.array(v, dtype=object).reshape(node.shape)
        told.append((spikes if isinstance(node, IntegerLIF) else membranes, membranes))
    return [out for out, _ in told], [membrane for _, membrane in told]


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
    IntegerLI: fire,
    IntegerSumPool2d: each(sum_pool),
    MaxPool2d: each(max_pool),
    SpikeMaxPool2d: each(max_pool),
    STAttenAttention: lambda node, q, k, v: [attend(node, q, k, v, t) for t in range(len(q))],
    SpikeAnd: lambda node, a, b: [x * y for x, y in zip(a, b, strict=True)],
    TokenMaxPool: each(token_pool),
    TemporalSum: lambda node, x: [sum(x)] * len(x),
}
