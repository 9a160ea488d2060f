"""Run a checkpoint or an artefact on data: accuracy and spikes per layer."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from statten_deploy.compare.executors import Executor, OnnxExecutor, OnnxIntegerExecutor
from statten_deploy.compare.integers import LavaExecutor, NetxExecutor
from statten_deploy.compare.norse import NorseExecutor
from statten_deploy.compare.tally import classes_of
from statten_deploy.compare.verify import activity_warnings
from statten_deploy.errors import InputError
from statten_deploy.export.artefact import read_sidecar
from statten_deploy.export.onnx.integer import FLAVOURS
from statten_deploy.source import load_source
from statten_deploy.train.data import InputSpec, open_source, select

Backend = Literal["own", "norse"]
BATCH = 32


@dataclass
class LayerActivity:
    """Spikes of one neuron layer over all samples; firing rate = spikes / (neurons · steps · samples)."""

    name: str
    spikes: int
    firing_rate: float


@dataclass
class Evaluation:
    """What a run gave. `accuracy` is None when the data has no labels, or the output is a feature map, not classes."""

    artefact: str
    backend: str
    data: str
    samples: int
    correct: int | None
    accuracy: float | None
    predictions: list[int]
    layers: list[LayerActivity] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The object ``statten-run --json`` prints."""
        return asdict(self)


def evaluate(
    artefact: str | Path,
    data: str | Path,
    *,
    samples: int | None = None,
    config: Mapping[str, Any] | None = None,
    time_steps: int | None = None,
    dt: float | None = None,
    written_by: str | None = None,
    backend: Backend = "own",
) -> Evaluation:
    """Run `artefact` (a checkpoint or anything ``statten-export`` writes) on the test split of `data`.

    `backend` ``norse`` runs a NIR file in Norse instead of the package's own engine.

    Raises:
        InputError: a file cannot be read, was changed since its export, does not fit the data or the backend.
    """
    path = Path(artefact)
    if backend == "norse":
        if written_by is not None:
            raise InputError("--written-by belongs to our own engine; Norse reads a file in its own way")
        executor, spec, warnings = _open_norse(path, config, time_steps, dt)
    else:
        executor, spec, warnings = _open(path, config, time_steps, dt, written_by)
    part = select(open_source(data, spec), "evaluation")
    if samples is not None and samples > len(part):
        raise InputError(f"{data}: has {len(part)} samples, --samples asks for {samples}")
    count = len(part) if samples is None else samples
    predictions: list[int] = []
    spikes: dict[str, int] = {}
    sites: dict[str, int] = {}
    for start in range(0, count, BATCH):
        execution = executor.run(part.batch(range(start, min(start + BATCH, count))))
        predicted = classes_of(execution)
        if predicted is not None:
            predictions += predicted.tolist()
        for name, layer in execution.spikes.items():
            spikes[name] = spikes.get(name, 0) + int(np.count_nonzero(layer))
            sites[name] = sites.get(name, 0) + layer.size
    correct = None
    if part.labels is not None and predictions:
        correct = int((np.asarray(predictions) == part.labels[:count]).sum())
    counts = {name: (fired, sites[name]) for name, fired in spikes.items()}
    return Evaluation(
        artefact=str(path),
        backend=executor.name,
        data=str(data),
        samples=count,
        correct=correct,
        accuracy=None if correct is None else correct / count,
        predictions=predictions,
        layers=[LayerActivity(name, count, count / sites[name]) for name, count in spikes.items()],
        warnings=[*warnings, *activity_warnings(counts, "told apart")],
    )


def _open(
    path: Path, config: Mapping[str, Any] | None, time_steps: int | None, dt: float | None, written_by: str | None
) -> tuple[Executor, InputSpec, list[str]]:
    opener = next((OPENERS[suffix] for suffix in OPENERS if path.name.endswith(suffix)), None)
    if opener is None:
        source = load_source(path, config, time_steps, dt, written_by)
        return source.executor, InputSpec(source.input_shape, source.classes), source.warnings
    if not path.exists():
        raise InputError(f"{path}: no such file; expected an artefact written by statten-export")
    if config or time_steps or dt or written_by:
        raise InputError(
            f"{path}: --config, --time-steps, --dt and --written-by are not for exported artefacts, which are complete"
        )
    read_sidecar(path)
    return (*opener(path), [])


def _open_norse(
    path: Path, config: Mapping[str, Any] | None, time_steps: int | None, dt: float | None
) -> tuple[Executor, InputSpec, list[str]]:
    if path.suffix != ".nir":
        raise InputError(
            f"{path}: --backend norse runs .nir files; statten-export MODEL --target nir --nir-profile portable "
            "writes one"
        )
    source = load_source(path, config, time_steps, dt)
    executor = NorseExecutor(path, source.graph, source.time_steps, source.dt)
    return executor, InputSpec(source.input_shape, source.classes), source.warnings


def _open_onnx(path: Path) -> tuple[Executor, InputSpec]:
    executor: OnnxExecutor | OnnxIntegerExecutor = OnnxExecutor(path, spikes=True)
    if executor.metadata.get("flavour") in FLAVOURS:
        executor = OnnxIntegerExecutor(path)
    shape = [size for size in executor.file.sample_shape if size is not None]
    if len(shape) < len(executor.file.sample_shape):
        name = executor.file.input.name
        raise InputError(f"{path}: input {name!r} has no fixed sample shape; export it with statten-export")
    classes = executor.metadata.get("classes", "")
    return executor, InputSpec(tuple(shape), int(classes) if classes.isdigit() else None)


def _open_lava(path: Path) -> tuple[Executor, InputSpec]:
    executor = LavaExecutor(path)
    return executor, InputSpec(executor.runner.input_shape, executor.runner.classes)


def _open_netx(path: Path) -> tuple[Executor, InputSpec]:
    executor = NetxExecutor(path)
    return executor, InputSpec(executor.runner.input_shape, None)


OPENERS: dict[str, Callable[[Path], tuple[Executor, InputSpec]]] = {
    ".onnx": _open_onnx,
    ".lava": _open_lava,
    ".net": _open_netx,
}
"""Artefacts that are complete in themselves, by the end of their name; everything else is a model to load."""
