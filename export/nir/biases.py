"""Where the biases of quantised neurons go in a NIR file.

NIR's neurons have no bias. Their ``v_leak`` would do, but membranes start there and most importers want it to be 0,
while quantised neurons start at 0. A bias that a convolution in front carries is exact, so it goes there: neurons are
visited in the order of execution and each gives what is not yet accounted for to the first branch that reaches it. Only
what is left (neurons behind no branch of their own, or with a synaptic memory) goes to ``v_leak``.
"""

from dataclasses import dataclass

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.ir.graph import Predecessors, order_from, predecessors, successors
from statten_deploy.ir.integer import INTEGER_NEURONS, IntegerConv2d, IntegerLIF, IntegerLinear, IntegerSumPool2d
from statten_deploy.ir.nodes import MaxPool2d

Real = NDArray[np.float64]

WEIGHTED = (IntegerConv2d, IntegerLinear)
CARRIERS = (MaxPool2d, IntegerSumPool2d, nir.Flatten)
"""Nodes that pass a constant current on."""

NO_MEMORY = 4095


@dataclass(frozen=True)
class Biases:
    """currents: per weighted node [out], in units of its output; membranes: per neuron layer [C], what is left."""

    currents: dict[str, Real]
    membranes: dict[str, Real]


def written_biases(graph: nir.NIRGraph) -> Biases:
    """Share out the biases of all neurons."""
    currents = {name: np.zeros(len(n.weight)) for name, n in graph.nodes.items() if isinstance(n, WEIGHTED)}
    into, after = predecessors(graph), successors(graph)
    free = {name for name in currents if _feeds_plain_neurons(graph, name, after)}
    membranes: dict[str, Real] = {}
    fires = {name for name, node in graph.nodes.items() if isinstance(node, IntegerLIF)}
    for name in order_from(graph, fires):
        node = graph.nodes[name]
        if not isinstance(node, INTEGER_NEURONS):
            continue
        left = np.ldexp(node.bias_mantissa.reshape(-1).astype(np.float64), node.bias_exponent.reshape(-1))
        if node.du == NO_MEMORY:
            gain = 64 * 2.0**node.input_exponent
            branches = _branches(graph, name, into)
            for branch, factor in branches.items():
                left = left - _spread(currents[branch], len(left)) * factor * gain
            branch = next((b for b in branches if b in free), "")
            if branch:
                size = len(currents[branch])
                given = left.reshape(size, -1)[:, 0] / (branches[branch] * gain)
                currents[branch] = given
                left = left - _spread(given, len(left)) * branches[branch] * gain
            free -= set(branches)
        membranes[name] = np.where(np.abs(left) < 1e-6, 0.0, left)  # biases are integers: the rest is float noise
    return Biases(currents, membranes)


def _spread(values: Real, size: int) -> Real:
    """Per channel -> per element of a flattened signal."""
    return np.repeat(values, size // len(values))


def _feeds_plain_neurons(graph: nir.NIRGraph, name: str, after: dict[str, list[str]]) -> bool:
    """Whether the node's current reaches nothing but neurons without synaptic memory."""
    for target in after[name]:
        node = graph.nodes[target]
        if isinstance(node, CARRIERS):
            if not _feeds_plain_neurons(graph, target, after):
                return False
        elif not (isinstance(node, INTEGER_NEURONS) and node.du == NO_MEMORY):
            return False
    return True


def _branches(graph: nir.NIRGraph, name: str, into: Predecessors) -> dict[str, float]:
    """The weighted nodes whose current reaches `name`, and by what factor, in edge order."""
    found: dict[str, float] = {}
    for sources in into[name].values():
        for source in sources:
            node = graph.nodes[source]
            if isinstance(node, WEIGHTED):
                found[source] = found.get(source, 0.0) + 1.0
            elif isinstance(node, CARRIERS):
                factor = 1.0
                if isinstance(node, IntegerSumPool2d):
                    factor = float(np.prod(node.kernel_size)) * 2.0**node.exponent
                for branch, inner in _branches(graph, source, into).items():
                    found[branch] = found.get(branch, 0.0) + factor * inner
    return found
