"""What runs a file: onnxruntime, or OpenVINO where it is installed. Both are imported when first used.

An engine is made once from a file and its options and may be called from several threads at a time.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.runtime.batches import Batches, cores
from statten_deploy.runtime.metadata import read_facts

Array = NDArray[Any]

OPENVINO_FLAVOURS = frozenset({"qdq"})
"""Flavours that are written for OpenVINO and run there first."""


@dataclass(frozen=True)
class Options:
    """How to run; None leaves it to the engine. `provider`: an execution provider, or a device of OpenVINO."""

    threads: int | None = None
    provider: str | None = None
    arena: bool | None = None


@dataclass(frozen=True)
class Port:
    """An input or output: name, type, and sizes, None where any goes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class Engine(Protocol):
    """Runs one file."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for one batch of inputs, as new arrays."""


def choose_engine(flavour: str, wanted: str | None) -> str:
    """The engine asked for, else the one the flavour is made for where that is installed, else onnxruntime.

    Raises:
        InputError: no such engine, or not installed.
    """
    if wanted is None:
        return "openvino" if flavour in OPENVINO_FLAVOURS and find_spec("openvino") else "onnxruntime"
    if wanted not in ENGINES:
        raise InputError(f"engine {wanted!r}: expected {' or '.join(ENGINES)}")
    if find_spec(wanted) is None:
        raise InputError(f"engine {wanted!r} is not installed; pip install {wanted}")
    return wanted


def _brief(error: Exception) -> str:
    """The last words of an engine's message, on one line."""
    return " ".join(str(error).split())[-200:]


# onnxruntime

_ONNX_TYPES = {"float": "float32", "double": "float64", "float16": "float16"}


def import_onnxruntime() -> Any:
    """Imported so that it does not report its use over the network, which newer releases do; a user's own setting wins.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


class OnnxRuntimeEngine:
    """onnxruntime. Runs from several threads share the session's thread pool."""

    def __init__(self, model: Path | bytes, options: Options = Options(), where: object = None) -> None:
        """Load a file, or a model in memory that `where` names in messages.

        Raises:
            InputError: the provider is not available, or onnxruntime cannot load the model.
            UnsupportedError: onnxruntime is not installed.
        """
        try:
            ort = import_onnxruntime()
        except ImportError:
            raise UnsupportedError("onnxruntime is not installed; pip install onnxruntime") from None

        provider = options.provider or "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise InputError(
                f"provider {provider!r} is not in this onnxruntime; it has {', '.join(ort.get_available_providers())}"
            )
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        if options.arena is not None:
            settings.enable_cpu_mem_arena = settings.enable_mem_pattern = options.arena
        source = model if isinstance(model, bytes) else str(model)
        try:
            # without the fallback, which would try again on the CPU and print that on stdout
            self.session = ort.InferenceSession(source, settings, providers=[provider], enable_fallback=0)
        except Exception as error:  # onnxruntime has no common exception type
            name = where if where is not None else source
            raise InputError(f"{name}: not an ONNX file that onnxruntime can load ({_brief(error)})") from None
        try:
            self.inputs = tuple(map(_port, self.session.get_inputs()))
            self.outputs = tuple(map(_port, self.session.get_outputs()))
        except TypeError:
            raise InputError(
                f"{source if where is None else where}: an input or output is no tensor of numbers; export it again"
            ) from None
        self._names = [port.name for port in self.outputs]

    def run(self, feeds: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """All outputs, or those in `names`."""
        wanted = self._names if names is None else list(names)
        try:
            return dict(zip(wanted, self.session.run(wanted, feeds), strict=True))
        except Exception as error:  # as above
            raise InputError(f"onnxruntime cannot run the model: {_brief(error)}") from None


def _port(argument: Any) -> Port:
    kind = argument.type.removeprefix("tensor(").removesuffix(")")
    sizes = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return Port(argument.name, np.dtype(_ONNX_TYPES.get(kind, kind)), sizes)


# OpenVINO


EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""OpenVINO would compute in bfloat16 where it can, and round what is multiplied with int8 weights to 8 bits."""


class OpenVinoEngine:
    """OpenVINO, in float32: a lower precision would move membranes across thresholds. One request per running call."""

    def __init__(self, model: Path, options: Options = Options(), rows: int | None = None, streams: int = 1) -> None:
        """Load a file for batches of `rows` samples (None: of any size, which is slower), `streams` of them at a time.

        Raises:
            InputError: no such device, an option of onnxruntime, or OpenVINO cannot load the file.
        """
        import openvino

        if options.arena is not None:
            raise InputError("arena belongs to engine 'onnxruntime'; leave it out")
        device = str(options.provider or "CPU")
        core = openvino.Core()
        if device.split(":")[0].split(".")[0] not in {"AUTO", *core.available_devices}:
            raise InputError(
                f"provider {device!r} is not a device of this OpenVINO; it has {', '.join(core.available_devices)}"
            )
        settings: dict[str, Any] = {**EXACT, "PERFORMANCE_HINT": "LATENCY"}
        if streams > 1:
            settings |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        try:
            network = read_for_openvino(core, model)
            if rows is not None:
                network.reshape({port: [rows, *list(port.get_partial_shape())[1:]] for port in network.inputs})
            self._compiled = core.compile_model(network, device, settings)
        except InputError:
            raise
        except Exception as error:  # RuntimeError and others, by plugin
            raise InputError(f"{model}: not an ONNX file that OpenVINO can load ({_brief(error)})") from None
        self.inputs = tuple(map(_openvino_port, self._compiled.inputs))
        self.outputs = tuple(map(_openvino_port, self._compiled.outputs))
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            values = request.infer(dict(feeds))
            return {port.name: values[index] for index, port in enumerate(self.outputs)}
        except Exception as error:  # as above
            raise InputError(f"OpenVINO cannot run the model: {_brief(error)}") from None
        finally:
            self._idle.put(request)


def read_for_openvino(core: Any, path: Path) -> Any:
    """OpenVINO knows no model-local functions; onnxruntime writes them out when it loads a file, and can save that."""
    if not read_facts(path).functions:
        return core.read_model(path)
    ort = import_onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # standard operators only
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "model.onnx"
        settings.optimized_model_filepath = str(plain)
        ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"], enable_fallback=0)
        return core.read_model(plain)


def _openvino_port(port: Any) -> Port:
    sizes = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    own = port.node.friendly_name.removesuffix("/sink_port_0")  # a value can have further names inside the model
    return Port(own if own in port.get_names() else port.any_name, np.dtype(port.get_element_type().to_dtype()), sizes)


def _onnxruntime(path: Path, options: Options) -> Engine:
    """Single samples on all threads; of batches a few samples on each, in a second session that has one."""
    whole = OnnxRuntimeEngine(path, options)
    workers = options.threads or cores()
    if options.provider not in (None, "CPUExecutionProvider"):
        return whole
    return Batches(
        whole, workers, lambda _: whole if workers == 1 else OnnxRuntimeEngine(path, replace(options, threads=1))
    )


def _openvino(path: Path, options: Options) -> Engine:
    """Likewise, for batches of fixed sizes: OpenVINO is slow where it does not know them."""
    single = OpenVinoEngine(path, options, rows=1)
    workers = options.threads or cores()
    if (options.provider or "CPU") != "CPU":
        workers = 1
    return Batches(single, workers, partial(OpenVinoEngine, path, options, streams=workers), fixed=True)


ENGINES: dict[str, Callable[[Path, Options], Engine]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
"""Every engine, by the name of the package it needs."""
