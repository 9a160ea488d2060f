"""ONNX in integers: a quantised graph with int8 weights, equal to the integer runner bit for bit; see docs/onnx.md."""

from statten_deploy.export.onnx.integer.build import EMITTERS, build_integer_onnx
from statten_deploy.export.onnx.integer.probes import Probes, integer_values, spike_values, with_probes

__all__ = ["EMITTERS", "Probes", "build_integer_onnx", "integer_values", "spike_values", "with_probes"]
