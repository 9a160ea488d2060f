"""A second opinion on what a graph computes: numpy, one time step after the other, straight from NIR's equations.

Written without looking at the exporter: it walks the graph itself, knows every node by its published definition, and
works in float32 with the operations in the order of the equations (one Euler step of dt per time step).
"""

from typing import Any

import nir
import numpy as np

from statten_deploy.ir import MaxPool2d, SpikeAnd, SpikeMaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool

F32 = np.float32


def run_steps(
    graph: nir.NIRGraph, inputs: dict[str, np.ndarray], time_steps: int, dt: float = 1e-4
) -> dict[str, np.ndarray]:
    """Every node's output as [B, T, ...]; [B, ...] behind a TemporalMean.

    An input of one axis less than [B, T, ...] is the same at every step.
    """
    values: dict[str, np.ndarray] = {}
    timeless: set[str] = set()
    into = _incoming(graph)
    waiting = list(graph.nodes)
    while waiting:
        for name in waiting:
            ports = into[name]
            if all(source in values for sources in ports.values() for source in sources):
                break
        else:
            raise AssertionError(f"no order for {waiting}")
        waiting.remove(name)
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            x = np.asarray(inputs[name], dtype=F32)
            if x.ndim == len(node.input_type["input"]) + 1:
                x = np.repeat(x[:, None], time_steps, axis=1)
            values[name] = x
            continue
        arrived = []
        for sources in ports.values():
            total = values[sources[0]]
            for source in sources[1:]:
                total = (total + values[source]).astype(F32)
            arrived.append(total)
        if any(source in timeless for sources in ports.values() for source in sources):
            values[name] = _compute(node, [x[:, None] for x in arrived], dt)[:, 0]
            timeless.add(name)
        else:
            values[name] = _compute(node, arrived, dt)
            if isinstance(node, TemporalMean):
                timeless.add(name)
        assert values[name].dtype == F32, name
    return values


def _incoming(graph: nir.NIRGraph) -> dict[str, dict[str, list[str]]]:
    ports = {STAttenAttention: "qkv", SpikeAnd: "ab"}
    into: dict[str, dict[str, list[str]]] = {
        name: {p: [] for p in ports.get(type(node), ["input"])} if not isinstance(node, nir.Input) else {}
        for name, node in graph.nodes.items()
    }
    for source, target in graph.edges:
        name, port = (target, "input") if target in graph.nodes else target.rsplit(".", 1)
        into[name][port].append(source)
    return into


def _compute(node: Any, arrived: list[np.ndarray], dt: float) -> np.ndarray:
    x = arrived[0]
    if isinstance(node, nir.Output):
        return x
    if isinstance(node, TemporalMean):
        return x.astype(np.float64).mean(axis=1).astype(F32)
    if isinstance(node, STAttenAttention):
        return attention(node, *arrived)
    if type(node) in NEURONS:
        return NEURONS[type(node)](node, x, dt)
    if isinstance(node, nir.Delay):
        return delay(node, x, dt)
    # no memory: samples and steps are alike
    lead = x.shape[:2]
    rows = [a.reshape(-1, *a.shape[2:]) for a in arrived]
    y = STATELESS[type(node)](node, *rows)
    return y.reshape(*lead, *y.shape[1:]).astype(F32)


# neurons


def _spread(parameter: Any) -> np.ndarray:
    return np.asarray(parameter, dtype=F32)


def _reset(node: Any, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = v > _spread(node.v_threshold)
    return s.astype(F32), np.where(s, _spread(node.v_reset), v).astype(F32)


def lif(node: nir.LIF, x: np.ndarray, dt: float) -> np.ndarray:
    k, out = F32(dt) / _spread(node.tau), np.empty_like(x)
    v = np.zeros_like(x[:, 0]) + _spread(node.v_leak)
    for t in range(x.shape[1]):
        v = v + k * ((_spread(node.v_leak) - v) + _spread(node.r) * x[:, t])
        out[:, t], v = _reset(node, v)
    return out


def li(node: nir.LI, x: np.ndarray, dt: float) -> np.ndarray:
    k, out = F32(dt) / _spread(node.tau), np.empty_like(x)
    v = np.zeros_like(x[:, 0]) + _spread(node.v_leak)
    for t in range(x.shape[1]):
        v = v + k * ((_spread(node.v_leak) - v) + _spread(node.r) * x[:, t])
        out[:, t] = v
    return out


def integrate(node: Any, x: np.ndarray, dt: float) -> np.ndarray:
    gain, out, v = F32(dt) * _spread(node.r), np.empty_like(x), np.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        v = v + gain * x[:, t]
        if isinstance(node, nir.IF):
            out[:, t], v = _reset(node, v)
        else:
            out[:, t] = v
    return out


def cuba(node: Any, x: np.ndarray, dt: float) -> np.ndarray:
    ks, km = F32(dt) / _spread(node.tau_syn), F32(dt) / _spread(node.tau_mem)
    out, i = np.empty_like(x), np.zeros_like(x[:, 0])
    v = np.zeros_like(i) + _spread(node.v_leak)
    for t in range(x.shape[1]):
        i = i + ks * (_spread(node.w_in) * x[:, t] - i)
        v = v + km * ((_spread(node.v_leak) - v) + _spread(node.r) * i)
        if isinstance(node, nir.CubaLIF):
            out[:, t], v = _reset(node, v)
        else:
            out[:, t] = v
    return out


NEURONS = {
    nir.LIF: lif,
    nir.LI: li,
    nir.IF: integrate,
    nir.I: integrate,
    nir.CubaLIF: cuba,
    nir.CubaLI: cuba,
}


def delay(node: nir.Delay, x: np.ndarray, dt: float) -> np.ndarray:
    steps = np.broadcast_to(np.rint(np.asarray(node.delay, dtype=np.float64) / dt).astype(int), x.shape[2:])
    out = np.zeros_like(x)
    for index in np.ndindex(*x.shape[2:]):
        d = steps[index]
        for t in range(d, x.shape[1]):
            out[(slice(None), t, *index)] = x[(slice(None), t - d, *index)]
    return out


# operations without memory, on [M, ...]


def _pair(value: Any) -> tuple[int, int]:
    flat = np.ravel(value)
    return int(flat[0]), int(flat[-1])


def conv(node: Any, x: np.ndarray) -> np.ndarray:
    w = np.asarray(node.weight, dtype=np.float64)
    flat = w.ndim == 3
    if flat:  # one axis: a plane of height 1
        w, x = w[:, :, None], x[:, :, None]
        stride, dilation = (1, int(np.ravel(node.stride)[0])), (1, int(np.ravel(node.dilation)[0]))
    else:
        stride, dilation = _pair(node.stride), _pair(node.dilation)
    kernel = w.shape[2:]
    if node.padding == "same":
        pads = [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for d, k in zip(dilation, kernel, strict=True)]
    elif node.padding == "valid":
        pads = [(0, 0), (0, 0)]
    else:
        p = (0, int(np.ravel(node.padding)[0])) if flat else _pair(node.padding)
        pads = [(p[0], p[0]), (p[1], p[1])]
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    size = [(x.shape[2 + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)]
    out = np.zeros((len(x), len(w), *size))
    per_in, per_out = w.shape[1], len(w) // node.groups
    for o in range(len(w)):
        g = o // per_out
        for i, row, column in np.ndindex(per_in, *kernel):
            top, left = row * dilation[0], column * dilation[1]
            part = x[
                :,
                g * per_in + i,
                top : top + (size[0] - 1) * stride[0] + 1 : stride[0],
                left : left + (size[1] - 1) * stride[1] + 1 : stride[1],
            ]
            out[:, o] += w[o, i, row, column] * part
    if node.bias is not None:
        out += np.asarray(node.bias, dtype=np.float64)[:, None, None]
    return (out[:, :, 0] if flat else out).astype(F32)


def _windows(node: Any, x: np.ndarray, outside: float) -> np.ndarray:
    """[M, C, H', W', kernel elements]."""
    (kh, kw), (sh, sw), (ph, pw) = _pair(node.kernel_size), _pair(node.stride), _pair(node.padding)
    x = np.pad(x, [(0, 0), (0, 0), (ph, ph), (pw, pw)], constant_values=outside)
    rows, columns = (x.shape[2] - kh) // sh + 1, (x.shape[3] - kw) // sw + 1
    out = np.empty((*x.shape[:2], rows, columns, kh * kw), dtype=np.float64)
    for i, j in np.ndindex(rows, columns):
        out[:, :, i, j] = x[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw].reshape(*x.shape[:2], -1)
    return out


def linear(node: Any, x: np.ndarray) -> np.ndarray:
    w = np.asarray(node.weight, dtype=np.float64)
    y = np.einsum("...oi,m...i->m...o", w, x.astype(np.float64))
    return y + np.asarray(node.bias, dtype=np.float64) if isinstance(node, nir.Affine) else y


def flatten(node: nir.Flatten, x: np.ndarray) -> np.ndarray:
    shape = list(x.shape[1:])
    start, end = node.start_dim % len(shape), node.end_dim % len(shape)
    return x.reshape(len(x), *shape[:start], int(np.prod(shape[start : end + 1])), *shape[end + 1 :])


def token_pool(node: TokenMaxPool, x: np.ndarray) -> np.ndarray:
    m, c, h, w = x.shape
    d, n = c // node.num_heads, h * w
    plane = x.reshape(m, node.num_heads, d, n).swapaxes(2, 3)  # [token, channel in the head]
    padded = np.pad(plane, [(0, 0), (0, 0), (1, 1), (1, 1)])
    out = np.max([padded[:, :, i : i + n, j : j + d] for i in range(3) for j in range(3)], axis=0)
    return out.swapaxes(2, 3).reshape(x.shape)


STATELESS = {
    nir.Affine: linear,
    nir.Linear: linear,
    nir.Conv1d: conv,
    nir.Conv2d: conv,
    nir.Scale: lambda node, x: x * _spread(node.scale),
    nir.Threshold: lambda node, x: x > _spread(node.threshold),
    nir.Flatten: flatten,
    nir.SumPool2d: lambda node, x: _windows(node, x, 0).sum(-1),
    nir.AvgPool2d: lambda node, x: _windows(node, x, 0).mean(-1),
    SpikeMaxPool2d: lambda node, x: _windows(node, x, 0).max(-1),
    MaxPool2d: lambda node, x: _windows(node, x, -np.inf).max(-1),
    SpikeAnd: lambda node, a, b: a * b,
    TokenMaxPool: token_pool,
}


# attention


def attention(node: STAttenAttention, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Query by query: the spikes that q, k and v share, summed over every key the query sees."""
    batch, steps, channels, height, width = q.shape
    d, tokens = channels // node.num_heads, height * width
    rows = [x.reshape(batch, steps, node.num_heads, d, tokens) for x in (q, k, v)]
    out = np.zeros_like(rows[0])
    for t in range(steps):
        first = t // node.window * node.window
        seen = range(first, first + node.window) if node.mode == "block" else range(t - node.window + 1, t + 1)
        for n in range(tokens):
            group = n // (tokens // node.token_groups)
            for s in (s for s in seen if s >= 0):
                for key in range(tokens):
                    if key // (tokens // node.token_groups) == group:
                        match = np.einsum("bhi,bhi->bh", rows[0][:, t, :, :, n], rows[1][:, s, :, :, key])
                        out[:, t, :, :, n] += match[..., None] * rows[2][:, s, :, :, key]
    return out.reshape(q.shape)
