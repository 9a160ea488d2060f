"""Spatial-temporal attention in counts: ``A[t] = Q[t] · Σ_{s in W(t)} K[s]ᵀ V[s]``, for each head and token group.

Counts are whole numbers below 2^24, for which float32 products are exact in any order (float64 where they can get
larger). In the `integer` flavour spikes are multiplied as bytes, and so are the counts where they are bytes too; the
result stays apart by heads until somebody needs it otherwise, so that spikes are turned instead of numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import nir
import numpy as np
from onnx import TensorProto

from statten_deploy.export.onnx.integer.signals import ELEMENT, IntegerBuilder, IntegerSignal
from statten_deploy.ir.nodes import STAttenAttention


class JointAttention(nir.NIRNode):
    """`STAttenAttention` whose q, k and v come as channels of one signal [3C, H, W]."""

    def __init__(self, node: STAttenAttention) -> None:
        self.node = node
        self.input_type = {"input": None}
        self.output_type = {"output": None}


def emit_attention(
    b: IntegerBuilder, name: str, node: STAttenAttention, q: IntegerSignal, k: IntegerSignal, v: IntegerSignal
) -> IntegerSignal:
    """From three signals."""
    return _Attention(b, name, node, (q, k, v)).emit()


def emit_joint_attention(b: IntegerBuilder, name: str, node: JointAttention, x: IntegerSignal) -> IntegerSignal:
    """From one signal that holds all three."""
    return _Attention(b, name, node.node, (x,)).emit()


@dataclass
class _Attention:
    """One attention node under construction."""

    b: IntegerBuilder
    name: str
    node: STAttenAttention
    given: Sequence[IntegerSignal]

    def __post_init__(self) -> None:
        b, node = self.b, self.node
        self.given = [b.ungrouped(b.whole_numbers(x, self.name)) for x in self.given]
        self.channels, height, width = b.shapes[self.name]
        self.heads, self.groups = node.num_heads, node.token_groups
        self.d, self.tokens = self.channels // self.heads, height * width // self.groups
        bounds = [int(x.range.high.max(initial=0)) for x in self.given] * (3 // len(self.given))
        steps = min(node.window, b.sample_steps)
        kv = steps * self.tokens * bounds[1] * bounds[2]
        self.dtype = b.float_type(b.ranges[self.name].magnitude, self.name)
        whole = not b.planar and all(x.is_bytes for x in self.given) and not self._carried
        self.integer = whole, whole and kv < 256
        """Whether kᵀv, and its product with the queries, are products of bytes."""
        self.given = [b.cast(x, np.uint8 if whole else self.dtype) for x in self.given]
        self.gain = b.gains.get(self.name, 1)

    @property
    def _carried(self) -> bool:
        """Whether a stream carries the products of the steps before."""
        return self.b.streams and self.node.mode == "sliding" and self.node.window > 1

    def emit(self) -> IntegerSignal:
        b, node, shape = self.b, self.node, self.b.shapes[self.name]
        if b.planar and node.mode == "block" and b.time_steps > 1:
            value = self._all_blocks(min(node.window, b.time_steps))
            return IntegerSignal(
                (value,), shape, "steps", self.dtype, b.ranges[self.name], self.gain, None, joined=True
            )
        parts = [self._parts(step) for step in range(b.time_steps)]
        products = [self._product(step, k, v) for step, (_, k, v) in enumerate(parts)]
        windows = self._blocks(products) if node.mode == "block" else self._sliding(products)
        values = [self._counts(step, q, kv) for step, ((q, _, _), kv) in enumerate(zip(parts, windows, strict=True))]
        heads = None if b.planar else (self.heads, self.groups)
        return IntegerSignal(
            tuple(values), shape, "steps", self.dtype, b.ranges[self.name], self.gain, None, False, heads
        )

    def _all_blocks(self, window: int) -> str:
        """All steps at once: of planes, whose steps are samples among others, that takes two products."""
        b, name, chunks = self.b, self.name, self.b.time_steps // window
        values = [b.all_steps(b.stepped(x)) for x in self.given]
        if len(values) == 1:
            parts = b.several("Split", [self._by_head(values[0], 3, name)], 3, name, "qkv", axis=1, num_outputs=3)
        else:
            parts = [self._by_head(value, 1, f"{name}/{port}") for port, value in zip("qkv", values, strict=True)]
        last = [0, 1, 3, 2] if self.groups == 1 else [0, 1, 2, 4, 3]
        turned = b.aux("Transpose", [parts[1]], name, "k_transposed", perm=last)
        kv = b.aux("MatMul", [parts[2], turned], name, "kv")
        kv = b.reshape(kv, (chunks, window, -1, self.d, self.d), name, "kv_by_chunk")
        if window > 1:
            kv = b.aux("ReduceSum", [kv, b.ints(1)], name, "kv_of_chunk", keepdims=1)
        if self.gain != 1:
            kv = b.aux("Mul", [kv, b.number(self.gain, self.dtype)], name, "kv_gained")
        queries = b.reshape(parts[0], (chunks, window, -1, self.d, self.tokens), name, "q_by_chunk")
        counts = b.aux("MatMul", [kv, queries], name, "counts")
        if self.groups > 1:
            counts = b.reshape(counts, (-1, self.heads, self.groups, self.d, self.tokens), name, "counts_by_group")
            counts = b.aux("Transpose", [counts], name, "counts_by_channel", perm=[0, 1, 3, 2, 4])
        return b.rename(b.reshape(counts, (-1, *b.shapes[name]), name, "planes"), name)

    def _parts(self, step: int) -> list[str]:
        """q, k and v of a step by heads: [batch, heads, (groups,) tokens, d], or of planes [..., d, tokens]."""
        b, label = self.b, self.b.label(self.name, step)
        values = [b.each(b.stepped(x))[step] for x in self.given]
        if len(values) == 1:
            return b.several("Split", [self._by_head(values[0], 3, label)], 3, label, "qkv", axis=1, num_outputs=3)
        return [self._by_head(value, 1, f"{label}/{port}") for port, value in zip("qkv", values, strict=True)]

    def _by_head(self, value: str, times: int, label: str) -> str:
        """The channels of `times` signals by heads."""
        b, heads, grouped = self.b, times * self.heads, self.groups > 1
        if b.planar:
            sizes = (heads, self.d, self.groups, self.tokens) if grouped else (heads, self.d, self.tokens)
            split = b.reshape(value, (-1, *sizes), label, "by_head")
            return b.aux("Transpose", [split], label, "by_group", perm=[0, 1, 3, 2, 4]) if grouped else split
        sizes = (self.groups, self.tokens, heads, self.d) if grouped else (self.tokens, heads, self.d)
        split = b.reshape(value, (-1, *sizes), label, "by_head")
        return b.aux("Transpose", [split], label, "heads", perm=[0, 3, 1, 2, 4] if grouped else [0, 2, 1, 3])

    def _product(self, step: int, k: str, v: str) -> str:
        """``kᵀ v`` of one step, [batch, heads, (groups,) d, d]; of planes transposed."""
        b, label = self.b, self.b.label(self.name, step)
        last = [0, 1, 3, 2] if self.groups == 1 else [0, 1, 2, 4, 3]
        if self.integer[0]:
            turned = b.aux("Transpose", [k], label, "k_transposed", perm=last)
            return b.aux("MatMulInteger", [turned, v], label, "kv")
        turned = b.aux("Transpose", [k], label, "k_transposed", perm=last)
        return b.aux("MatMul", [v, turned] if b.planar else [turned, v], label, "kv")

    def _blocks(self, products: list[str]) -> list[str]:
        """The sum over each chunk of steps, once for all of its steps."""
        b, window = self.b, min(self.node.window, self.b.time_steps)
        found = []
        for first in range(0, b.time_steps, window):
            label = b.label(self.name, first)
            total = self._sum(products[first : first + window], label)
            found += [self._for_queries(total, label)] * window
        return found

    def _sliding(self, products: list[str]) -> list[str]:
        """The sum over the last `window` steps; a stream carries those of the calls before."""
        b, window = self.b, self.node.window
        known = products
        if self._carried:
            sizes = (self.heads, *((self.groups,) if self.groups > 1 else ()), self.d, self.d)
            past = b.state(f"{self.name}.kv", (window - 1, *sizes), self.dtype)
            before = [past.input]
            if window > 2:
                before = b.several("Split", [past.input], window - 1, self.name, "past", axis=1, num_outputs=window - 1)
            known = [b.reshape(value, (-1, *sizes), self.name, f"past_{i}") for i, value in enumerate(before)]
            known += products
            last = [b.reshape(v, (-1, 1, *sizes), self.name, "kept") for v in known[len(known) - window + 1 :]]
            b.append("Concat", last, [past.output], b.unique(f"{self.name}/next"), axis=1)
        first = len(known) - len(products)
        found = []
        for step in range(len(products)):
            label = b.label(self.name, step)
            end = first + step + 1
            found.append(self._for_queries(self._sum(known[max(0, end - window) : end], label), label))
        return found

    def _sum(self, terms: list[str], label: str) -> str:
        total, *rest = terms
        for index, term in enumerate(rest, 1):
            total = self.b.aux("Add", [total, term], label, f"kv_sum_{index}")
        return total

    def _for_queries(self, total: str, label: str) -> str:
        """A sum of products in the type that queries are multiplied in, times the gain unless that is bytes."""
        b = self.b
        if self.integer[1]:
            return b.aux("Cast", [total], label, "kv_of_window", to=TensorProto.UINT8)
        if self.integer[0]:
            total = b.aux("Cast", [total], label, "kv_of_window", to=ELEMENT[np.dtype(self.dtype)])
        if self.gain == 1:
            return total
        return b.aux("Mul", [total, b.number(self.gain, self.dtype)], label, "kv_gained")

    def _counts(self, step: int, q: str, kv: str) -> str:
        """``q · kv`` of one step, times the gain."""
        b, label = self.b, self.b.label(self.name, step)
        if self.integer[1]:
            counts = b.aux("MatMulInteger", [q, kv], label, "sum")
            counts = b.aux("Cast", [counts], label, "counts", to=ELEMENT[np.dtype(self.dtype)])
            if self.gain != 1:
                scale = b.number(self.gain, self.dtype)
                if self.dtype is np.float32:  # as in products
                    scale = b.aux("Mul", [b.one(), scale], label, "scale")
                counts = b.aux("Mul", [counts, scale], label, "gained")
        else:
            if self.integer[0]:
                q = b.aux("Cast", [q], label, "queries", to=ELEMENT[np.dtype(self.dtype)])
            counts = b.aux("MatMul", [kv, q] if b.planar else [q, kv], label, "counts")
        if b.planar:
            if self.groups > 1:
                counts = b.aux("Transpose", [counts], label, "tokens", perm=[0, 1, 3, 2, 4])
            counts = b.reshape(counts, (-1, *b.shapes[self.name]), label, "planes")
        return b.rename(counts, self.name, step)
