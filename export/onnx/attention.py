"""Spatial-temporal attention: ``A[t] = Q[t] · Σ_{s in W(t)} K[s]ᵀ V[s]`` in counts, exact in float32.

Everything stays channel-first, as the signals are: with K, V, Q as [rows, d, N] planes (d channels of a head, N tokens)

    (KᵀV)ᵀ = V Kᵀ   [rows, d, d]        Aᵀ = (Σ KᵀV)ᵀ Q   [rows, d, N]

so that only K is transposed (onnxruntime folds that into the product) and the result needs no transpose.
"""

import numpy as np

from statten_deploy.export.onnx.builder import Array, Builder, Signal
from statten_deploy.ir.nodes import STAttenAttention

_END = np.iinfo(np.int64).max  # of a Slice: to the end


def emit_attention(b: Builder, name: str, node: STAttenAttention, q: Signal, k: Signal, v: Signal) -> Signal:
    """Products per step, their sum over the window, and the product with the queries."""
    channels, height, width = q.shape
    heads, groups, tokens = node.num_heads, node.token_groups, height * width // node.token_groups
    d = channels // heads
    planes = [_planes(b, name, port, b.stepped(s), heads, d, groups) for port, s in zip("qkv", (q, k, v), strict=True)]
    perm = [0, 1, 3, 2] if groups == 1 else [0, 1, 2, 4, 3]
    k_transposed = b.aux("Transpose", [planes[1]], name, "k_transposed", perm=perm)
    kv = b.aux("MatMul", [planes[2], k_transposed], name, "kv")
    if node.window == 1:
        counts = b.aux("MatMul", [kv, planes[0]], name, "counts")
    elif node.mode == "block":
        counts = _block(b, name, kv, planes[0], node.window, d, tokens)
    else:
        counts = _sliding(b, name, kv, planes[0], node.window, heads, groups, d)
    if groups > 1:
        split = b.reshape(counts, (-1, heads, groups, d, tokens), name, "counts_by_group")
        counts = b.aux("Transpose", [split], name, "counts_by_channel", perm=[0, 1, 3, 2, 4])
    return b.main("Reshape", [counts, b.ints(-1, *q.shape)], name, q.shape, "steps")


def _planes(b: Builder, name: str, port: str, signal: Signal, heads: int, d: int, groups: int) -> str:
    """[T*batch, heads, d, N]; with token groups [T*batch, heads, groups, d, N/groups]."""
    tokens = signal.shape[1] * signal.shape[2]
    if groups == 1:
        return b.reshape(signal.value, (-1, heads, d, tokens), name, port)
    split = b.reshape(signal.value, (-1, heads, d, groups, tokens // groups), name, f"{port}_by_channel")
    return b.aux("Transpose", [split], name, port, perm=[0, 1, 3, 2, 4])


def _block(b: Builder, name: str, kv: str, q: str, window: int, d: int, tokens: int) -> str:
    """Sum over each chunk once; its queries share it by broadcasting. [chunks, window, batch*heads*groups, d, ...]."""
    chunks = b.time_steps // window
    split = b.reshape(kv, (chunks, window, -1, d, d), name, "kv_by_chunk")
    total = b.aux("ReduceSum", [split, b.ints(1)], name, "kv_of_chunk", keepdims=1)
    queries = b.reshape(q, (chunks, window, -1, d, tokens), name, "q_by_chunk")
    return b.aux("MatMul", [total, queries], name, "counts")


def _sliding(b: Builder, name: str, kv: str, q: str, window: int, heads: int, groups: int, d: int) -> str:
    """Sum over the last `window` steps, as one product with a band of ones; a stream carries window - 1 steps."""
    rows = (heads, d, d) if groups == 1 else (heads, groups, d, d)
    steps, band = b.reshape(kv, (b.time_steps, -1), name, "kv_by_step"), window_matrix(b.time_steps, window)
    if b.streams:
        before = window - 1
        past = b.state(f"{name}.kv", (before, *rows))
        known = [b.steps_first(past.input, before, rows, name, "kv_before"), steps]
        steps, band = (
            b.aux("Concat", known, name, "kv_known", axis=0),
            window_matrix(b.time_steps + before, window)[before:],
        )
        last = b.aux("Slice", [steps, b.ints(-before), b.ints(_END), b.ints(0)], name, "kv_last")
        b.batch_first(last, before, rows, name, past.output)
    total = b.aux("MatMul", [b.floats(f"{name}.window", band), steps], name, "kv_of_window")
    return b.aux("MatMul", [b.reshape(total, (-1, *rows), name, "kv_by_head"), q], name, "counts")


def window_matrix(time_steps: int, window: int) -> Array:
    """[T, T]; row t has ones in columns t - window + 1 .. t."""
    step = np.arange(time_steps)
    age = step[:, None] - step[None, :]
    return ((age >= 0) & (age < window)).astype(np.float32)
