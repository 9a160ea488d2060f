"""Float graph in, integer graph out."""

from typing import Any

import nir
from numpy.typing import NDArray

from statten_deploy.fixed_point.observe import observe
from statten_deploy.quantize.limits import calibrate_currents, prove_inputs
from statten_deploy.quantize.options import QuantizeOptions
from statten_deploy.quantize.post_training import Quantizer


def quantize(
    graph: nir.NIRGraph, options: QuantizeOptions | None = None, calibration: NDArray[Any] | None = None
) -> nir.NIRGraph:
    """The integer graph of a float graph.

    Without `calibration` it depends on the weights alone. With it (inputs as the graph takes them, [N, ...] or
    [N, T, ...]) rounding errors are weighed by how often each input fires, biases are corrected by the mean error, and
    currents without a proof that they fit 24 bits are bounded by twice what they reach.

    Raises:
        InputError: options out of range; UnsupportedError: nodes without an integer form (all are named).
    """
    options = options or QuantizeOptions()
    if calibration is None:
        return prove_inputs(Quantizer(graph, options))
    activity = observe(prove_inputs(Quantizer(graph, QuantizeOptions())), calibration).inputs
    return calibrate_currents(Quantizer(graph, options, activity), calibration)
