"""The edge: run an exported ONNX file with numpy and onnxruntime, nothing else; see docs/runtime.md."""

from statten_deploy.runtime.engines import ENGINES, Engine, OnnxRuntimeEngine, Port
from statten_deploy.runtime.interface import Interface, State
from statten_deploy.runtime.metadata import FileFacts, read_facts
from statten_deploy.runtime.session import Session, load
from statten_deploy.runtime.stream import Result, Stream
from statten_deploy.runtime.structure import check_structure

__all__ = [
    "ENGINES",
    "Engine",
    "FileFacts",
    "Interface",
    "OnnxRuntimeEngine",
    "Port",
    "Result",
    "Session",
    "State",
    "Stream",
    "check_structure",
    "load",
    "read_facts",
]
