"""TokenMaxPool -> a convolution that counts the neighbours and a gate."""

import nir
import numpy as np

from statten_deploy.ir.nodes import TokenMaxPool
from statten_deploy.passes.circuit_parts import Parts, Profile, squared
from statten_deploy.passes.rewiring import replace_nodes


def token_maxpool_to_circuit(graph: nir.NIRGraph, profile: Profile = "core") -> tuple[nir.NIRGraph, bool]:
    """Replace every `TokenMaxPool` by ``p.count``, a convolution, and ``p.gate``, which fires on one or more.

    Tokens are numbered row by row, so the next token is one column to the right or, at the end of a row, at the start
    of the next row: W - 1 columns to the left, one row down. A kernel of 3 x (2W - 1) holds all of these, and at every
    position the wrong ones fall outside the grid. Channels differ by at most 1 inside a head.

    Requires: a valid, acyclic graph; dt from its hints, else 1e-4 s. Ensures: no `TokenMaxPool` is left; the same
    spikes at the same steps; other nodes are the same objects. Idempotent. Returns (graph, whether anything changed).

    Raises:
        GraphError: a cyclic graph, a node that has a name of the circuit already.
    """
    return replace_nodes(graph, (TokenMaxPool,), _build, profile)


def _build(parts: Parts, name: str, node: TokenMaxPool, fed: dict[str, list[str]]) -> list[str]:
    (source,) = fed["input"]
    channels, _, width = parts.shapes[source]
    index = np.arange(channels)
    head = index // (channels // node.num_heads)
    near = (np.abs(index[:, None] - index) <= 1) & (head[:, None] == head)
    kernel = np.zeros((3, 2 * width - 1), dtype=np.float32)
    centre = width - 1
    kernel[1, max(centre - 1, 0) : centre + 2] = 1
    kernel[0, -1] = kernel[2, 0] = 1
    weight, padding = squared(near[:, :, None, None] * kernel, (1, width - 1))
    return [parts.gate(f"{name}.gate", 0.5, parts.conv(f"{name}.count", weight, 0, source, padding=padding))]
