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
    carried = b.streams and node.mode == "sliding" and node.window > 1
    function = b.variant(
        "IntegerSTAtten",
        key,
        lambda named: _attention_function(named, node, q.shape, b.time_steps, dtype, carried=carried),
    )
    inputs, outputs = [b.stepped(signal).value for signal in (q, k, v)], []
    if carried:
        d = q.shape[0] // node.num_heads
        past = b.state(f"{name}.kv", (node.window - 1, node.token_groups, node.num_heads, d, d), dtype)
        inputs, outputs = [*inputs, past.input], [past.output]
    b.call(function, inputs, name, outputs)
    return IntegerSignal(b.result_name(name), q.shape, "steps", dtype, b.ranges[name])


def _attention_function(
    name: str, node: STAttenAttention, shape: Shape, time_steps: int, dtype: FloatType, *, carried: bool = False
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
        before = node.window - 1 if carried else 0
        matrix = window_matrix(time_steps + before, node.window)[before:]
        band = body.constant(matrix, dtype, "window")
        by_step = body.op("Reshape", [kv, body.ints("step", time_steps, -1)], "kv_s")
        if carried:
            swap = [1, 0, 2, 3, 4, 5]  # batch and steps
            first = body.op("Transpose", ["past"], "past_t", perm=swap)
            known = [body.op("Reshape", [first, body.ints("past_rows", before, -1)], "past_s"), by_step]
            by_step = body.op("Concat", known, "known", axis=0)
            limits = [body.ints("last", time_steps), body.ints("end", time_steps + before), body.ints("axis", 0)]
            last = body.op("Slice", [by_step, *limits], "last_s")
            last = body.op("Reshape", [last, body.ints("last_apart", before, -1, groups, heads, d, d)], "last_t")
            body.op("Transpose", [last], "past_next", perm=swap)
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
    inputs, outputs = (["q", "k", "v", "past"], ["y", "past_next"]) if carried else (["q", "k", "v"], ["y"])
    return body.function(name, inputs, text, outputs)
