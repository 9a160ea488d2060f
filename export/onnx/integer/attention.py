"""Spatial-temporal attention in counts: ``A[t] = Q[t] · Σ_{s in W(t)} K[s]ᵀ V[s]``, tokens as rows.

Counts are whole numbers below 2^24, for which float32 products are exact in any order (float64 where they can get
larger). A block window joins the tokens of its steps, so that one product sums over the window.
"""

import numpy as np
from onnx import FunctionProto

from statten_deploy.export.onnx.attention import window_matrix
from statten_deploy.export.onnx.builder import FunctionBody, Shape
from statten_deploy.export.onnx.integer.bounds import FloatType, exact_float
from statten_deploy.export.onnx.integer.signals import ELEMENT, IntegerBuilder, IntegerSignal
from statten_deploy.ir.nodes import STAttenAttention


def emit_attention(
    b: IntegerBuilder, name: str, node: STAttenAttention, q: IntegerSignal, k: IntegerSignal, v: IntegerSignal
) -> IntegerSignal:
    """Two products per head, token group and chunk of steps; the result is counts, in float."""
    dtype = exact_float(b.ranges[name].magnitude, name)
    key = (node.num_heads, node.window, node.mode, node.token_groups, q.shape, np.dtype(dtype).name)
    function = b.variant(
        "IntegerSTAtten", key, lambda named: _attention_function(named, node, q.shape, b.time_steps, dtype)
    )
    b.call(function, [b.stepped(signal).value for signal in (q, k, v)], name)
    return IntegerSignal(b.result_name(name), q.shape, "steps", dtype, b.ranges[name])


def _attention_function(
    name: str, node: STAttenAttention, shape: Shape, time_steps: int, dtype: FloatType
) -> FunctionProto:
    channels, height, width = shape
    heads, groups, tokens = node.num_heads, node.token_groups, height * width // node.token_groups
    d = channels // heads
    joined = node.window if node.mode == "block" else 1
    body = FunctionBody()
    split = body.ints("split", time_steps // joined, joined, -1, groups, tokens, heads, d)
    rows = body.ints("rows", -1, joined * tokens, d)

    def planes(port: str) -> str:
        value = body.op("Reshape", [port, split], f"{port}_s")
        # chunk, batch, group, head, step, token, d
        value = body.op("Transpose", [value], f"{port}_t", perm=[0, 2, 3, 5, 1, 4, 6])
        value = body.op("Reshape", [value, rows], f"{port}_r")
        return body.op("Cast", [value], f"{port}_", to=ELEMENT[np.dtype(dtype)])

    queries, keys, values = map(planes, "qkv")
    kv = body.op("MatMul", [body.op("Transpose", [keys], "kt", perm=[0, 2, 1]), values], "kv")
    if node.mode == "sliding" and node.window > 1:
        band = body.constant(window_matrix(time_steps, node.window), dtype, "window")
        by_step = body.op("Reshape", [kv, body.ints("step", time_steps, -1)], "kv_s")
        total = body.op("MatMul", [band, by_step], "kv_w")
        kv = body.op("Reshape", [total, body.ints("square", -1, d, d)], "kv_h")
    counts = body.op("MatMul", [queries, kv], "a")
    apart = body.ints("apart", time_steps // joined, -1, groups, heads, joined, tokens, d)
    counts = body.op("Reshape", [counts, apart], "counts_s")
    counts = body.op("Transpose", [counts], "counts_t", perm=[0, 4, 1, 2, 5, 3, 6])
    body.op("Reshape", [counts, body.ints("grid", -1, height, width, channels)], "y")
    window = f"{node.mode} window of {node.window}" + (f", {groups} token groups" if groups > 1 else "")
    text = (
        f"y[t] = q[t] · sum of kᵀ v over the window, {heads} heads, {window}\ncounts; q, k, v, y [steps*batch, H, W, C]"
    )
    return body.function(name, ["q", "k", "v"], text)
