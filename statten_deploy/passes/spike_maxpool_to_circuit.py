"""SpikeMaxPool2d -> a convolution that counts and a neuron that fires on a count of one or more."""

import nir
import numpy as np

from statten_deploy.errors import GraphError
from statten_deploy.ir.graph import parse_endpoint
from statten_deploy.ir.nodes import SpikeMaxPool2d
from statten_deploy.ir.shapes import Shape, infer_shapes
from statten_deploy.ir.verify import time_step

OR, GATE = ".or", ".gate"
"""What the two nodes that replace a pool ``p`` are called: ``p.or`` and ``p.gate``."""

GATE_TAU_STEPS = 1 + 1e-5
"""Time constant of a gate in steps: as good as no memory; SpikingJelly refuses exactly 1."""


def spike_maxpool_to_circuit(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, bool]:
    """Replace every `SpikeMaxPool2d` by stock nodes that give the same spikes at the same step.

    ``p.or``    Conv2d with ones on the diagonal, same kernel, stride and padding: spikes in the window, per channel.
    ``p.gate``  LIF with tau = dt (1 + 1e-5), r = 1, threshold 0.5: after one step v is the count to within 1e-5, so it
                fires on a count of one or more and has forgotten it at the next step.

    Requires: a valid graph; dt from its hints, else 1e-4 s. Ensures: no `SpikeMaxPool2d` is left, the other nodes are
    the same objects, edges keep their order. Fires on every `SpikeMaxPool2d`; never on `MaxPool2d`, whose real
    currents no such circuit can compare. Idempotent. Returns (graph, whether anything changed).

    Raises:
        GraphError: shapes that do not meet, or a node that has a name of the circuit already.
    """
    if not any(isinstance(node, SpikeMaxPool2d) for node in graph.nodes.values()):
        return graph, False
    shapes = infer_shapes(graph)
    sources = {parse_endpoint(graph, target)[0]: source for source, target in graph.edges}
    dt = time_step(graph)
    nodes: dict[str, nir.NIRNode] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, SpikeMaxPool2d):
            nodes[name + OR] = _count(node, shapes[sources[name]])
            nodes[name + GATE] = gate(shapes[name], dt, threshold=0.5)
        else:
            nodes[name] = node
    pools = {name for name, node in graph.nodes.items() if isinstance(node, SpikeMaxPool2d)}
    taken = [name + suffix for name in pools for suffix in (OR, GATE) if name + suffix in graph.nodes]
    if taken:
        raise GraphError(f"node {taken[0]!r} is in the way of a pool's circuit; rename it")
    edges: list[tuple[str, str]] = []
    for source, target in graph.edges:
        owner = parse_endpoint(graph, target)[0]
        edges.append((source + GATE if source in pools else source, owner + OR if owner in pools else target))
        if owner in pools:
            edges.append((owner + OR, owner + GATE))
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False), True


def gate(shape: Shape, dt: float, threshold: float) -> nir.LIF:
    """A neuron without memory: ``s = x > threshold`` for integer x and a threshold between integers."""
    ones = np.ones(shape, dtype=np.float32)
    return nir.LIF(
        tau=ones * np.float32(dt * GATE_TAU_STEPS),
        r=ones,
        v_leak=np.zeros_like(ones),
        v_threshold=ones * np.float32(threshold),
        v_reset=np.zeros_like(ones),
    )


def _count(pool: SpikeMaxPool2d, shape: Shape) -> nir.Conv2d:
    channels = shape[0]
    weight = np.zeros((channels, channels, *pool.kernel_size), dtype=np.float32)
    weight[np.arange(channels), np.arange(channels)] = 1
    bias = np.zeros(channels, dtype=np.float32)
    return nir.Conv2d(shape[1:], weight, pool.stride, pool.padding, (1, 1), 1, bias)
