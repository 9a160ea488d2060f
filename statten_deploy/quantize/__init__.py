"""Float graph to integer graph: scales, exponents, thresholds; docs/fixed_point.md says how."""

from statten_deploy.quantize.options import Granularity, QuantizeOptions
from statten_deploy.quantize.quantisation import quantize
from statten_deploy.quantize.report import NeuronReport, QuantisationReport, WeightReport, quantisation_report

__all__ = [
    "Granularity",
    "NeuronReport",
    "QuantisationReport",
    "QuantizeOptions",
    "WeightReport",
    "quantisation_report",
    "quantize",
]
