"""STAttenAttention -> a circuit of gates that counts key-value pairs, and of gates that weigh them with the queries."""

import nir
import numpy as np

from statten_deploy.errors import UnsupportedError
from statten_deploy.ir.graph import hints, output_names, topological_order
from statten_deploy.ir.nodes import STAttenAttention
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.ir.verify import time_step
from statten_deploy.passes.circuit_parts import Parts, Profile, digits_of
from statten_deploy.passes.latency import Aligner, delay_of
from statten_deploy.passes.rewiring import origin

PAIRS_PER_GROUP = 1024
"""Pairs (head, key channel, value channel) wired together in portable, where every layer on them is a dense matrix."""

LARGEST_COUNT = 2**14
"""Gates tell integers up to here apart: they are off by 1e-5 of what they read at this step and the last."""


def statten_to_circuit(graph: nir.NIRGraph, profile: Profile = "core") -> tuple[nir.NIRGraph, bool]:
    """Replace every `STAttenAttention` by stock nodes that give the same counts A[t], and keep the graph in step.

    With N tokens in G groups, d channels per head, P = C d pairs (head, j, i) and n = bit length of S N / G:

    ``p.pair``      P x N gates: key i AND value j at a token
    ``p.count``     their sums per group; with those of the steps before, W = sum over the window of K[s]^T V[s]
    ``p.digit<b>``  P G n gates: W in binary, so that what goes on to the tokens is spikes
    ``p.and<b>``    P x N x n gates: query i AND digit b, at every token
    ``p.out<b>``    2^b times the sum over i. These add up to A.

    A sliding window needs W at every step. A block window needs it at the last step of a chunk: a clock lets the digits
    fire then only, they are held for S steps, and queries and all that bypasses the attention wait S - 1 steps.
    The graph's hints then hold ``latency_steps`` (the largest) and ``latency`` (per Output): outputs come that much
    later, so run T + latency_steps steps and leave out the first. Before its time a layer may fire.

    Requires: a valid, acyclic graph; dt from its hints, else 1e-4 s; ports of 0/1. Ensures: no `STAttenAttention` is
    left, other nodes are the same objects, edges into one port keep their order. Idempotent.
    Returns (graph, whether anything changed).

    Raises:
        GraphError: a cyclic graph, a node that has a name of the circuit already.
        UnsupportedError: counts of 2^14 or more, windows the clock cannot tell, nodes that cannot wait or restart.
    """
    names = [name for name, node in graph.nodes.items() if isinstance(node, STAttenAttention)]
    if not names:
        return graph, False
    shapes, order = infer_shapes(graph), topological_order(graph)
    parts = Parts(profile, time_step(graph), origin(graph, shapes, order))
    parts.shapes = dict(shapes)
    parts.nodes = {name: node for name, node in graph.nodes.items() if name not in names}
    stands_for = {name: [name] for name in parts.nodes}
    aligner = Aligner(parts, graph, stands_for)
    stuck = list(aligner.problems())
    if stuck:
        raise UnsupportedError(
            f"behind a block window, {', '.join(stuck)} cannot be brought to rest; LIF and IF neurons that leak and "
            "reset to 0 can, and block windows; use the compact form"
        )
    for name in order:
        node = graph.nodes[name]
        fed = aligner.fed(name)
        if isinstance(node, STAttenAttention):
            stands_for[name] = _Attention(parts, name, node, aligner.arrival[name]).build(fed)
            continue
        single = len(fed) == 1
        parts.edges += [(s, name if single else f"{name}.{port}") for port, group in fed.items() for s in group]
        parts.edges += aligner.restart(name)
    metadata = graph.metadata
    late = {name: aligner.arrival[name] for name in output_names(graph) if aligner.arrival[name]}
    if late:
        told = {**hints(graph), "latency_steps": max(late.values()), "latency": late}
        metadata = {**metadata, "statten": told}
    return nir.NIRGraph(parts.nodes, parts.edges, metadata=metadata, type_check=False), True


def pair_groups(profile: Profile, heads: int, pairs: int) -> list[range]:
    """Heads wired together; `pairs` is d^2 per head."""
    size = max(1, min(heads, PAIRS_PER_GROUP // pairs)) if profile == "portable" else heads
    return [range(first, min(first + size, heads)) for first in range(0, heads, size)]


def count_bits(node: STAttenAttention, tokens: int) -> int:
    """n, the binary digits of the largest entry of a window's K^T V: S N / G."""
    return (node.window * tokens // node.token_groups).bit_length()


class _Attention:
    """Builds one circuit; `arrival` is the step at which its keys, values and queries start."""

    def __init__(self, parts: Parts, name: str, node: STAttenAttention, arrival: int) -> None:
        self.parts, self.name, self.node, self.arrival = parts, name, node, arrival
        self.steps = node.window
        self.wait = delay_of(node)

    def build(self, fed: dict[str, list[str]]) -> list[str]:
        parts, name, node = self.parts, self.name, self.node
        (q,), (k,), (v,) = fed["q"], fed["k"], fed["v"]
        self.channels, self.grid = parts.shapes[q][0], parts.shapes[q][1:]
        largest = self.steps * int(np.prod(self.grid)) // node.token_groups
        if largest >= LARGEST_COUNT:
            raise UnsupportedError(
                f"{name!r} (STAttenAttention): a pair counts up to {largest}, and its circuit is exact below "
                f"{LARGEST_COUNT}; use the compact form"
            )
        self.bits = count_bits(node, int(np.prod(self.grid)))
        if parts.portable:
            keys = [parts.delayed(f"{name}.k", k, s) for s in range(self.steps)]
            values = keys if k == v else [parts.delayed(f"{name}.v", v, s) for s in range(self.steps)]
        else:
            keys, values = [k], [v]
        query = parts.delayed(f"{name}.q", q, self.wait)
        groups = pair_groups(parts.profile, node.num_heads, (self.channels // node.num_heads) ** 2)
        found: list[str] = []
        for index, heads in enumerate(groups):
            prefix = name if len(groups) == 1 else f"{name}.part{index}"
            totals = self._window(prefix, heads, keys, values)
            found += self._readout(prefix, heads, query, digits_of(parts, prefix, self.bits, totals))
        return found

    def _select(self, heads: range, which: str) -> np.ndarray:
        """[P, C] that gives every pair (head, j, i) its channel: i of the keys and queries, j of the values."""
        d = self.channels // self.node.num_heads
        head, j, i = (axis.reshape(-1) for axis in np.meshgrid(heads, range(d), range(d), indexing="ij"))
        weight = np.zeros((len(head), self.channels), dtype=np.float32)
        weight[np.arange(len(head)), head * d + (j if which == "v" else i)] = 1
        return weight

    def _window(self, prefix: str, heads: range, keys: list[str], values: list[str]) -> list[str]:
        """Nodes [P, G, 1] that add up to the counts of the window; to less than 0 where no digit may fire."""
        parts = self.parts
        height, width = self.grid
        rows = height // self.node.token_groups
        totals = []
        for step, (k, v) in enumerate(zip(keys, values, strict=True)):
            then = f"{step}" if step else ""
            key = parts.conv(f"{prefix}.key{then}", self._select(heads, "k"), 0, k)
            value = parts.conv(f"{prefix}.value{then}", self._select(heads, "v"), 0, v)
            pair = parts.gate(f"{prefix}.pair{then}", 1.5, key, value)
            totals.append(parts.sums(f"{prefix}.count{then}", (rows, width), (rows, width), (0, 0), pair))
        if not parts.portable:  # a count can wait itself; in portable only spikes can
            totals += [parts.delayed(f"{prefix}.count", totals[0], s) for s in range(1, self.steps)]
        if self.wait:
            clock = parts.clock(self.steps, self.arrival)
            more = float(self.steps * rows * width + 1)
            wait = parts.times(f"{prefix}.wait", more, clock, bias=-more)
            totals.append(parts.fill(f"{prefix}.chunk", wait, parts.shapes[totals[0]], 1.0))
        return totals

    def _readout(self, prefix: str, heads: range, query: str, digits: list[str]) -> list[str]:
        """2^b times the pairs whose query spikes and whose digit b is set, summed over i: [C, H, W] per digit."""
        parts = self.parts
        asked = parts.conv(f"{prefix}.query", self._select(heads, "q"), 0, query)
        result = self._select(heads, "v").T
        found = []
        for b, digit in enumerate(digits):
            terms, threshold = self._held(f"{prefix}.digit{b}", f"{prefix}.all{b}", digit)
            both = parts.gate(f"{prefix}.and{b}", threshold, asked, *terms)
            found.append(parts.conv(f"{prefix}.out{b}", result * np.float32(2.0**b), 0, both))
        return found

    def _held(self, name: str, spread: str, digit: str) -> tuple[list[str], float]:
        """A digit, held for the chunk, at all tokens; and the threshold of a gate that ANDs it with a spike."""
        parts, grid = self.parts, (self.grid[0], self.grid[1])
        if not self.wait:
            return parts.spread(spread, grid, digit), 1.5
        if not parts.portable:
            held = [digit] + [parts.delayed(name, digit, s) for s in range(1, self.steps)]
            return parts.spread(spread, grid, *held), 1.5
        quiet = digit
        for step in range(1, self.steps):  # NOT (one of the last step + 1 was set), one neuron each
            quiet = parts.nor(f"{name}.quiet{step}", quiet, inverted=step > 1)
        return parts.spread(spread, grid, quiet, factor=-1.0), 0.5  # q AND (1 - quiet)
