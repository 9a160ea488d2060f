"""Every backend that can be compared, and how it is made from a source.

Exported ones are written into a folder by the writers of ``statten-export`` and opened again from there, so what runs
is the artefact. What cannot run says why in an `UnsupportedError`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nir

from statten_deploy.compare.comparison import Arithmetic
from statten_deploy.compare.executors import (
    Array,
    Execution,
    Executor,
    GraphExecutor,
    OnnxExecutor,
    OnnxIntegerExecutor,
    TorchExecutor,
)
from statten_deploy.compare.integers import FixedExecutor, LavaExecutor, TorchIntExecutor
from statten_deploy.errors import UnsupportedError
from statten_deploy.simulate.device import one_thread
from statten_deploy.source import Source, load_source
from statten_deploy.targets import TARGETS, Subject, Target, Written, default_name

LAVA_INSTALL = "pip install --ignore-requires-python --no-deps lava-nc"


@dataclass(frozen=True)
class Material:
    """What backends are made from.

    integer: the quantised graph; None where there is none, and `refusal` says why. folder: where artefacts go.
    device: where torch computes.
    """

    source: Source
    integer: nir.NIRGraph | None
    refusal: str
    folder: Path
    device: str = "cpu"

    def float_subject(self) -> Subject:
        """The float network, as something to write. Raises UnsupportedError: the source is one of integers."""
        if self.source.quantised:
            raise UnsupportedError("the model is a graph of integers: there is no float network to run")
        return Subject(self.source, self.source.graph)

    def integer_subject(self) -> Subject:
        """The quantised network, as something to write. Raises UnsupportedError: there is none."""
        if self.integer is None:
            raise UnsupportedError(self.refusal)
        return Subject(self.source, self.integer, True)


@dataclass(frozen=True)
class Engine:
    """A backend that is ready to run. infer: the outputs of a batch, without spikes where the engine can leave them."""

    executor: Executor
    infer: Callable[[Array], object]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackendSpec:
    """One backend. follows: whether it takes integers from a source of integers, where others have no network."""

    arithmetic: Arithmetic
    title: str
    make: Callable[[Material], Engine]
    follows: bool = False

    def arithmetic_of(self, source: Source) -> Arithmetic:
        """What it computes in for this source."""
        return "integer" if self.follows and source.quantised else self.arithmetic


def float_reference(material: Material) -> TorchExecutor | GraphExecutor:
    """What float backends are held to: the torch network, or the float simulator where the source is a graph.

    Raises:
        UnsupportedError: the source is one of integers.
    """
    source = material.float_subject().source
    if source.network is not None:
        return TorchExecutor(source.network.to(material.device))
    return GraphExecutor(source.graph, source.time_steps, "torch", source.dt, device=material.device)


def _torch(material: Material) -> Engine:
    executor = float_reference(material)
    if isinstance(executor, TorchExecutor):
        return Engine(executor, executor.infer)
    note = "the model is a NIR file: there is no network in torch, its graph runs in the float simulator"
    return Engine(executor, executor.simulator.run, (note,))


def _torch_int(material: Material) -> Engine:
    executor = TorchIntExecutor(material.integer_subject().graph, device=material.device)
    return Engine(executor, executor.runner.run)


def _fixed(material: Material) -> Engine:
    executor = FixedExecutor(material.integer_subject().graph)
    return Engine(executor, executor.runner.run)


def _nir(material: Material) -> Engine:
    if material.source.quantised:
        path, written = _write("nir", material.integer_subject(), material.folder)
        integers = FixedExecutor(load_source(path).graph, name="nir")
        return Engine(integers, integers.runner.run, written.warnings)
    path, written = _write("nir", material.float_subject(), material.folder)
    source = load_source(path)
    executor = GraphExecutor(source.graph, source.time_steps, "nir", source.dt)
    circuits = ("circuits are read back as the attention that they stand for",) if written.notes else ()
    return Engine(executor, executor.simulator.run, (*written.notes, *circuits, *written.warnings))


def _onnx(material: Material) -> Engine:
    path, _ = _write("onnx", material.float_subject(), material.folder)
    return Engine(OnnxExecutor(path, spikes=True), OnnxExecutor(path).run)


def _onnx_int8(material: Material) -> Engine:
    path, _ = _write("onnx-int8", material.integer_subject(), material.folder)
    return Engine(OnnxIntegerExecutor(path), OnnxExecutor(path).run)


def _lava(material: Material) -> Engine:
    subject = material.integer_subject()
    if not _importable("lava.magma"):
        raise UnsupportedError(f"Lava is not installed; {LAVA_INSTALL}")
    path, written = _write("lava", subject, material.folder)
    executor = LavaExecutor(path)
    started = "latency includes starting Lava's processes, once per call"
    return Engine(executor, executor.runner.run, (started, *written.warnings))


def _norse(material: Material) -> Engine:
    from statten_deploy.compare.norse import norse_executor

    source = material.float_subject().source
    executor = _OneThread(norse_executor(source.graph, material.folder))
    return Engine(executor, executor.run, ("a portable NIR file, all circuits as they stand; latency with spikes",))


class _OneThread:
    """An executor on one thread of torch: Norse runs sample by sample, and hundreds of small nodes in each step."""

    def __init__(self, inner: Executor) -> None:
        self.name, self.inner = inner.name, inner

    def run(self, x: Array) -> Execution:
        with one_thread():
            return self.inner.run(x)


def _write(target: Target, subject: Subject, folder: Path) -> tuple[Path, Written]:
    """The artefact that ``statten-export --target`` writes with its default options."""
    path = folder / default_name(target, "model", None)
    return path, TARGETS[target].write(subject, path)


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


BACKENDS: dict[str, BackendSpec] = {
    "torch": BackendSpec("float32", "the torch network: the float reference", _torch),
    "torch-int": BackendSpec("integer", "the quantised network in torch: the integer reference", _torch_int),
    "nir": BackendSpec("float32", "the exported NIR file in the simulator of its graph", _nir, follows=True),
    "onnx": BackendSpec("float32", "the exported ONNX file in onnxruntime", _onnx),
    "fixed": BackendSpec("integer", "the quantised network in numpy", _fixed),
    "onnx-int8": BackendSpec("integer", "the exported integer ONNX file in onnxruntime", _onnx_int8),
    "lava": BackendSpec("integer", "the exported bundle in Lava's fixed-point simulator", _lava),
    "norse": BackendSpec("float32", "a portable NIR file in Norse", _norse),
}
"""All backends, in the order in which they are reported."""

REFERENCES: dict[Arithmetic, tuple[str, ...]] = {"float32": ("torch",), "integer": ("torch-int", "fixed")}
"""What the others of an arithmetic are held to: the first that can run."""

SHOW_MEMBRANES = (FixedExecutor, OnnxIntegerExecutor, LavaExecutor)
"""Executors whose `membranes` says whether they show them."""
