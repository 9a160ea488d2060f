"""Run a checkpoint or an artefact on data: accuracy, spikes per layer, energy."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nir
import numpy as np

from statten_deploy.compare.executors import Execution, Executor, OnnxExecutor, OnnxIntegerExecutor
from statten_deploy.compare.integers import LavaExecutor, NetxExecutor
from statten_deploy.compare.norse import NorseExecutor
from statten_deploy.compare.tally import CLASSES_RANK, classes_of
from statten_deploy.compare.verify import activity_warnings
from statten_deploy.energy import EnergyEstimate, EnergyEstimator
from statten_deploy.errors import InputError
from statten_deploy.export.artefact import read_sidecar
from statten_deploy.export.onnx.integer import FLAVOURS
from statten_deploy.source import load_source
from statten_deploy.train.data import InputSpec, open_source, select
from statten_deploy.train.data.spec import Int64Array
from statten_deploy.train.scoring import in_top

Backend = Literal["own", "norse"]
BATCH = 32
NO_GRAPH = "an exported file does not hold the graph that operations are counted on; statten-compare MODEL counts them"


@dataclass
class LayerActivity:
    """Spikes of one neuron layer over all samples; firing rate = spikes / (neurons · steps · samples)."""

    name: str
    spikes: int
    firing_rate: float


@dataclass
class Evaluation:
    """What a run gave. `accuracy` is None when the data has no labels, or the output is a feature map, not classes.

    `top5_accuracy`: also None where there are no more than five classes. `energy_pj`: dynamic energy per sample by cost
    profile, counted on `energy_samples` of the samples; where it cannot be, `energy_note` says why.
    """

    artefact: str
    backend: str
    data: str
    samples: int
    correct: int | None
    accuracy: float | None
    top5_accuracy: float | None
    predictions: list[int]
    layers: list[LayerActivity] = field(default_factory=list)
    energy_pj: dict[str, float] = field(default_factory=dict)
    energy_samples: int = 0
    energy_note: str = ""
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
        opened = _open_norse(path, config, time_steps, dt)
    else:
        opened = _open(path, config, time_steps, dt, written_by)
    part = select(open_source(data, opened.spec), "evaluation")
    if samples is not None and samples > len(part):
        raise InputError(f"{data}: has {len(part)} samples, --samples asks for {samples}")
    count = len(part) if samples is None else samples
    estimator = None if opened.graph is None else EnergyEstimator(opened.graph, count)
    predictions: list[int] = []
    top5: int | None = None
    spikes: dict[str, int] = {}
    sites: dict[str, int] = {}
    for index, start in enumerate(range(0, count, BATCH)):
        stop = min(start + BATCH, count)
        x = part.batch(range(start, stop))
        execution = opened.executor.run(x)
        if estimator is not None and estimator.wants(index):
            estimator.add(execution.spikes, x)
        predicted = classes_of(execution)
        if predicted is not None:
            predictions += predicted.tolist()
            found = None if part.labels is None else _in_top5(execution, part.labels[start:stop])
            top5 = top5 if found is None else (top5 or 0) + found
        for name, layer in execution.spikes.items():
            spikes[name] = spikes.get(name, 0) + int(np.count_nonzero(layer))
            sites[name] = sites.get(name, 0) + layer.size
    correct = None
    if part.labels is not None and predictions:
        correct = int((np.asarray(predictions) == part.labels[:count]).sum())
    counts = {name: (fired, sites[name]) for name, fired in spikes.items()}
    energy = EnergyEstimate(note=NO_GRAPH) if estimator is None else estimator.estimate()
    return Evaluation(
        artefact=str(path),
        backend=opened.executor.name,
        data=str(data),
        samples=count,
        correct=correct,
        accuracy=None if correct is None else correct / count,
        top5_accuracy=None if top5 is None else top5 / count,
        predictions=predictions,
        layers=[LayerActivity(name, fired, fired / sites[name]) for name, fired in spikes.items()],
        energy_pj=energy.energy_pj,
        energy_samples=energy.samples,
        energy_note=energy.note,
        warnings=[*opened.warnings, *activity_warnings(counts, "told apart")],
    )


class _Opened(NamedTuple):
    executor: Executor
    spec: InputSpec
    graph: nir.NIRGraph | None
    """What its spikes are counted on."""
    warnings: list[str]


def _in_top5(execution: Execution, labels: Int64Array) -> int | None:
    """How many classes [B] are among the five likeliest; None where there are no more."""
    output = next(iter(execution.outputs.values()))
    logits = output.mean(1) if output.ndim == CLASSES_RANK else output
    return in_top(logits, labels)


def _open(
    path: Path, config: Mapping[str, Any] | None, time_steps: int | None, dt: float | None, written_by: str | None
) -> _Opened:
    opener = next((OPENERS[suffix] for suffix in OPENERS if path.name.endswith(suffix)), None)
    if opener is None:
        source = load_source(path, config, time_steps, dt, written_by)
        executor, graph = source.runnable()
        return _Opened(executor, InputSpec(source.input_shape, source.classes), graph, source.warnings)
    if not path.exists():
        raise InputError(f"{path}: no such file; expected an artefact written by statten-export")
    if config or time_steps or dt or written_by:
        raise InputError(
            f"{path}: --config, --time-steps, --dt and --written-by are not for exported artefacts, which are complete"
        )
    read_sidecar(path)
    return _Opened(*opener(path), None, [])


def _open_norse(path: Path, config: Mapping[str, Any] | None, time_steps: int | None, dt: float | None) -> _Opened:
    if path.suffix != ".nir":
        raise InputError(
            f"{path}: --backend norse runs .nir files; statten-export MODEL --target nir --nir-profile portable "
            "writes one"
        )
    source = load_source(path, config, time_steps, dt)
    executor = NorseExecutor(path, source.graph, source.time_steps, source.dt)
    return _Opened(executor, InputSpec(source.input_shape, source.classes), source.graph, source.warnings)


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
