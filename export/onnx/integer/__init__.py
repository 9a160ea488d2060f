"""ONNX in integers: a quantised graph with int8 weights, equal to the integer runner bit for bit; see docs/onnx.md."""

from statten_deploy.export.onnx.integer.build import EMITTERS, FLAVOURS, build_integer_onnx
from statten_deploy.export.onnx.integer.probes import Probes, integer_values, spike_values, with_probes
from statten_deploy.export.onnx.integer.signals import Flavour

__all__ = [
    "EMITTERS",
    "FLAVOURS",
    "Flavour",
    "Probes",
    "build_integer_onnx",
    "integer_values",
    "spike_values",
    "with_probes",
]
