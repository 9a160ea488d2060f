"""Run a checkpoint or an artefact on data: accuracy and spikes per layer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from statten_deploy.compare.executors import Executor, OnnxExecutor
from statten_deploy.compare.verify import predicted_classes
from statten_deploy.errors import InputError
from statten_deploy.export.artefact import read_sidecar
from statten_deploy.source import load_source
from statten_deploy.train.data import InputSpec, load_arrays

BATCH = 32


@dataclass
class LayerActivity:
    """Spikes of one neuron layer over all samples; firing rate = spikes / (neurons · steps · samples)."""

    name: str
    spikes: int
    firing_rate: float


@dataclass
class Evaluation:
    """What a run gave. `accuracy` is None when the data has no labels."""

    artefact: str
    backend: str
    data: str
    samples: int
    correct: int | None
    accuracy: float | None
    predictions: list[int]
    layers: list[LayerActivity] = field(default_factory=list)

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
) -> Evaluation:
    """Run `artefact` (a checkpoint, a ``.nir`` or an ``.onnx`` file) on the test split of `data`.

    Raises:
        InputError: a file cannot be read, was changed since its export, or does not fit the data.
    """
    path = Path(artefact)
    executor, spec = _open(path, config, time_steps, dt)
    x, labels = load_arrays(data, "evaluation", spec)
    if samples is not None and samples > len(x):
        raise InputError(f"{data}: has {len(x)} samples, --samples asks for {samples}")
    x = x[:samples]
    predictions: list[int] = []
    spikes: dict[str, int] = {}
    sites: dict[str, int] = {}
    for start in range(0, len(x), BATCH):
        execution = executor.run(x[start : start + BATCH])
        predictions += predicted_classes(next(iter(execution.outputs.values()))).tolist()
        for name, layer in execution.spikes.items():
            spikes[name] = spikes.get(name, 0) + int(np.count_nonzero(layer))
            sites[name] = sites.get(name, 0) + layer.size
    correct = None if labels is None else int((np.asarray(predictions) == labels[: len(x)]).sum())
    return Evaluation(
        artefact=str(path),
        backend=executor.name,
        data=str(data),
        samples=len(x),
        correct=correct,
        accuracy=None if correct is None else correct / len(x),
        predictions=predictions,
        layers=[LayerActivity(name, count, count / sites[name]) for name, count in spikes.items()],
    )


def _open(
    path: Path, config: Mapping[str, Any] | None, time_steps: int | None, dt: float | None
) -> tuple[Executor, InputSpec]:
    if path.suffix != ".onnx":
        source = load_source(path, config, time_steps, dt)
        return source.reference, InputSpec(source.input_shape, source.classes)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected an ONNX file written by statten-export")
    if config or time_steps or dt:
        raise InputError(f"{path}: --config, --time-steps and --dt are not for ONNX files, which are complete")
    read_sidecar(path)
    executor = OnnxExecutor(path, spikes=True)
    shape = executor.input.shape[1:]
    if not all(isinstance(size, int) for size in shape):
        raise InputError(
            f"{path}: input {executor.input.name!r} has no fixed sample shape; export it with statten-export"
        )
    classes = executor.metadata.get("classes", "")
    return executor, InputSpec(tuple(shape), int(classes) if classes.isdigit() else None)
