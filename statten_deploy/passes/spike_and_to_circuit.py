"""SpikeAnd -> a neuron that fires when both inputs do."""

import nir

from statten_deploy.ir.nodes import SpikeAnd
from statten_deploy.passes.circuit_parts import Parts, Profile
from statten_deploy.passes.rewiring import replace_nodes

AND = ".gate"
"""What the neuron of an AND ``p`` is called: ``p.gate``."""


def spike_and_to_circuit(graph: nir.NIRGraph, profile: Profile = "core") -> tuple[nir.NIRGraph, bool]:
    """Replace every `SpikeAnd` by a gate on a + b with the threshold 3/2.

    b of shape [C, 1, 1] is first spread over the token grid (``p.b``): by window sums with padding in core; in
    portable the padding is a convolution's. The attention of a spike-driven transformer (SDT) is k AND v, a sum over
    tokens, a neuron, and q AND its spike for all tokens, so this pass makes all of it stock nodes.

    Requires: a valid, acyclic graph; dt from its hints, else 1e-4 s. Ensures: no `SpikeAnd` is left; the same spikes at
    the same steps; other nodes are the same objects, edges into one port keep their order. Idempotent.
    Returns (graph, whether anything changed).

    Raises:
        GraphError: a cyclic graph, a node that has a name of the circuit already.
    """
    return replace_nodes(graph, (SpikeAnd,), _build, profile)


def _build(parts: Parts, name: str, node: SpikeAnd, fed: dict[str, list[str]]) -> list[str]:
    (a,), (b,) = fed["a"], fed["b"]
    if a == b:  # an edge cannot stand twice
        return [parts.gate(name + AND, 0.5, a)]
    terms = [b]
    if parts.shapes[a] != parts.shapes[b]:
        height, width = parts.shapes[a][1:]
        terms = parts.spread(f"{name}.b", (height, width), b)
    return [parts.gate(name + AND, 1.5, a, *terms)]
