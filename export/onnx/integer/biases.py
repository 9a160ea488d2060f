"""Where the biases of neurons are added: as early as possible, by the product in front, where one costs nothing.

In a residual stream every product adds what the bias of the neurons behind it has more than those before it, so that
the running sum carries every layer's bias when that layer reads it. All of them are whole numbers, so this is exact.
"""

from collections.abc import Iterable, Mapping

import nir
import numpy as np

from statten_deploy.export.onnx.integer.bounds import NeuronPlan, neuron_bias, significant
from statten_deploy.export.onnx.integer.signals import GAIN
from statten_deploy.fixed_point.arithmetic import NO_SYNAPTIC_MEMORY, Int
from statten_deploy.fixed_point.ranges import Interval
from statten_deploy.ir.graph import predecessors
from statten_deploy.ir.integer import IntegerConv2d, IntegerLI, IntegerLIF, IntegerLinear
from statten_deploy.ir.nodes import MaxPool2d


def place_biases(
    graph: nir.NIRGraph,
    order: Iterable[str],
    plans: Mapping[str, NeuronPlan],
    ranges: Mapping[str, Interval],
    currents: Iterable[str],
) -> dict[str, Int]:
    """Weighted node -> what it adds, [C], in membrane units.

    `order` are the nodes outside of loops; `currents` the weighted nodes whose results travel as ``a << 6``.
    """
    into, free = predecessors(graph), set(currents)
    fixed: dict[str, Int] = {}

    def root(name: str) -> str:
        """The weighted node behind max-pools: ``max(x) + b = max(x + b)``."""
        while isinstance(graph.nodes[name], MaxPool2d):
            (name,) = into[name]["input"] if len(into[name]["input"]) == 1 else ("",)
            if not name:
                return ""
        return name if isinstance(graph.nodes[name], IntegerConv2d | IntegerLinear) else ""

    ordered = list(order)
    for name in ordered:
        node = graph.nodes[name]
        if isinstance(node, MaxPool2d) and len(into[name]["input"]) == 1:
            continue  # its readers decide
        for sources in into[name].values():
            roots = [root(source) for source in sources]
            open_roots = [r for r in dict.fromkeys(roots) if r in free and r not in fixed and roots.count(r) == 1]
            for r in set(roots) & free - set(open_roots):
                fixed.setdefault(r, np.zeros(len(graph.nodes[r].weight), dtype=np.int64))
            if not open_roots:
                continue
            *others, last = open_roots
            size = len(graph.nodes[last].weight)
            for r in others:
                fixed[r] = np.zeros(size, dtype=np.int64)
            wanted = _wanted(node, plans.get(name), size)
            rest = [fixed[r] for r in roots if r in fixed]
            addend = np.asarray(wanted - np.sum(rest, axis=0, initial=0) if rest else wanted)
            largest = significant(GAIN * sum(ranges[source].magnitude for source in sources), GAIN, *rest, addend)
            fixed[last] = addend if largest < 1 << 24 else np.zeros(size, dtype=np.int64)
    inside = set(ordered)
    return {name: values for name, values in fixed.items() if values.any() and name in inside}


def _wanted(node: nir.NIRNode, plan: NeuronPlan | None, size: int) -> Int:
    """The bias of neurons that can be added before them; 0 for everybody else."""
    nothing = np.zeros(size, dtype=np.int64)
    if plan is None or not isinstance(node, IntegerLIF | IntegerLI):
        return nothing
    if plan.wraps or plan.du != NO_SYNAPTIC_MEMORY or node.input_exponent or node.shape[0] != size:
        return nothing
    return neuron_bias(node).reshape(-1)
