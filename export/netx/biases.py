"""Biases in the unit that netx knows."""

from dataclasses import replace

import nir
import numpy as np

from statten_deploy.export.netx.limits import CHIP_BIAS, membrane_bias
from statten_deploy.fixed_point.arithmetic import CURRENT_SHIFT
from statten_deploy.ir.integer import IntegerLIF


def round_biases(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The quantised graph with every bias rounded to a multiple of 64 membrane units, one unit of the input current.

    netx fixes the exponent of biases at 6. Rounds halves to even.
    """
    nodes = {name: _rounded(node) if isinstance(node, IntegerLIF) else node for name, node in graph.nodes.items()}
    return nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False)


def _rounded(neurons: IntegerLIF) -> IntegerLIF:
    bias = np.rint(membrane_bias(neurons) / (1 << CURRENT_SHIFT))
    extra = np.maximum(0, np.ceil(np.log2(np.maximum(np.abs(bias), 1) / CHIP_BIAS))).astype(np.int64)
    shape = neurons.bias_mantissa.shape
    mantissa = np.rint(np.ldexp(bias, -extra)).reshape(shape)
    return replace(neurons, bias_mantissa=mantissa, bias_exponent=(extra + CURRENT_SHIFT).reshape(shape))
