"""ONNX: one file, standard operators only, time unrolled; see docs/onnx.md."""

from statten_deploy.export.onnx.build import EMITTERS, build_onnx
from statten_deploy.export.onnx.builder import FUNCTION_DOMAIN
from statten_deploy.export.onnx.files import save_onnx
from statten_deploy.export.onnx.neurons import SPIKING_FUNCTIONS, spike_values

__all__ = ["EMITTERS", "FUNCTION_DOMAIN", "SPIKING_FUNCTIONS", "build_onnx", "save_onnx", "spike_values"]
