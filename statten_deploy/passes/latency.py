"""Keeping a graph in step when some of its nodes answer late.

A node behind a block window of S steps runs S - 1 steps behind the input. Whatever else it reads has to wait as long,
and at its own first step it has to be at rest, although convolution biases have driven it before.
"""

from collections.abc import Iterator, Mapping

import nir
import numpy as np

from statten_deploy.errors import UnsupportedError
from statten_deploy.ir.graph import Predecessors, predecessors, topological_order
from statten_deploy.ir.nodes import SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool
from statten_deploy.ir.verify import SPIKING
from statten_deploy.passes.circuit_parts import Parts

BINARY = (*SPIKING, SpikeMaxPool2d, SpikeAnd, TokenMaxPool)
"""Nodes whose output is 0/1."""

LINEAR = (nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.SumPool2d, nir.AvgPool2d, nir.Flatten, nir.Scale)
"""Nodes without memory: delaying what they read delays what they give."""

RESETTABLE = (nir.LIF, nir.IF)
"""Neurons that one strong pulse sends back to rest, if they rest where they reset to."""

MEMORY = (*RESETTABLE, nir.CubaLIF, nir.LI, nir.CubaLI, nir.I, nir.Delay)


def delay_of(node: nir.NIRNode) -> int:
    """Steps by which the circuit of a node answers late: window - 1 for a block window."""
    return node.window - 1 if isinstance(node, STAttenAttention) and node.mode == "block" else 0


def input_latencies(graph: nir.NIRGraph) -> dict[str, int]:
    """For every node the steps after which its inputs are there; add `delay_of` for its output."""
    into = predecessors(graph)
    found: dict[str, int] = {}
    for name in topological_order(graph):
        sources = [source for group in into[name].values() for source in group]
        found[name] = max((found[source] + delay_of(graph.nodes[source]) for source in sources), default=0)
    return found


class Aligner:
    """Gives the output of any node `m` steps later, and restarts neurons that have waited.

    core: one Delay per signal. portable: spikes pass through delay circuits; what is computed from spikes without
    memory (`LINEAR`) is computed a second time from the delayed ones, node ``x.late<m>``.
    """

    def __init__(self, parts: Parts, graph: nir.NIRGraph, stands_for: Mapping[str, list[str]]) -> None:
        self.parts, self.graph, self.stands_for = parts, graph, stands_for
        self.arrival = input_latencies(graph)
        self.into: Predecessors = predecessors(graph)

    def ready(self, name: str) -> int:
        """Steps by which the output of a node is late."""
        return self.arrival[name] + delay_of(self.graph.nodes[name])

    def fed(self, name: str, extra: int = 0) -> dict[str, list[str]]:
        """Per port the sources of a node, in edge order, all `extra` steps later than the latest of them."""
        time = self.arrival[name] + extra
        return {
            port: [part for source in sources for part in self.late(source, time - self.ready(source))]
            for port, sources in self.into[name].items()
        }

    def late(self, name: str, steps: int) -> list[str]:
        """Nodes that add up to the output of `name`, `steps` steps later."""
        if steps == 0:
            return self.stands_for[name]
        parts, node = self.parts, self.graph.nodes[name]
        late = f"{name}.late{steps}"
        if late in parts.nodes:
            return [late]
        shape = parts.shapes[name]
        if not parts.portable:
            wait = nir.Delay(np.full(shape, steps * parts.dt, dtype=np.float32))
            return [parts.add(late, wait, shape, *self.stands_for[name])]
        if isinstance(node, BINARY):
            was = f"{name}.was{steps}"
            return [was if was in parts.nodes else parts.delayed(name, name, steps)]
        if not isinstance(node, LINEAR):
            raise UnsupportedError(
                f"{name!r} ({type(node).__name__}) would have to wait {steps} steps for a block window, and the "
                "portable profile delays spikes only; use the core profile, a sliding window or the compact form"
            )
        return [parts.add(late, node, shape, *self.fed(name, steps)["input"])]

    def restart(self, name: str) -> list[tuple[str, str]]:
        """The edge that brings a neuron to rest at its first step, besides those from its sources.

        Behind a Flatten it leads to the Flatten: so signals lose their grid at one place only, and an order in which
        every node follows the last by an edge exists (`topological_chain`).
        """
        node = self.graph.nodes[name]
        if not self.arrival[name] or not isinstance(node, RESETTABLE) or is_memoryless(node, self.parts.dt):
            return []
        sources = self.into[name]["input"]
        flat = len(sources) == 1 and isinstance(self.graph.nodes[sources[0]], nir.Flatten)
        target = sources[0] if flat else name
        shape = self.parts.shapes[self.into[target]["input"][0]] if flat else self.parts.shapes[name]
        edge = (self.parts.restart(shape, self.arrival[name]), target)
        return [] if edge in self.parts.edges else [edge]

    def problems(self) -> Iterator[str]:
        """Nodes that cannot be brought to rest behind a block window."""
        for name, node in self.graph.nodes.items():
            if not self.arrival[name]:
                continue
            sliding = isinstance(node, STAttenAttention) and node.mode == "sliding" and node.window > 1
            rests = isinstance(node, RESETTABLE) and not np.any(node.v_reset) and not np.any(getattr(node, "v_leak", 0))
            rests = rests and bool(np.all(node.r > 0))
            if sliding or (isinstance(node, MEMORY) and not rests):
                yield f"{name!r} ({type(node).__name__})"


def is_memoryless(node: nir.NIRNode, dt: float) -> bool:
    """Whether a neuron is a gate: its time constant is one step."""
    return isinstance(node, nir.LIF) and bool(np.max(node.tau) <= dt * (1 + 1e-4))
