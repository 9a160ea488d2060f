"""Float graph to integer graph: scales, exponents, thresholds; docs/fixed_point.md says how."""

from statten_deploy.quantize.post_training import QuantizeOptions, quantize

__all__ = ["QuantizeOptions", "quantize"]
