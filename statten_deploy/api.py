"""The Python interface behind the commands: export a model, verify what was written, report how well it agrees."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import nir
import numpy as np

from statten_deploy.compare.executors import Array, Executor, GraphExecutor, OnnxExecutor
from statten_deploy.compare.verify import Agreement, verify_against
from statten_deploy.errors import InputError, VerificationError
from statten_deploy.export.artefact import file_facts, sidecar_path, staging, vectors_path, write_sidecar
from statten_deploy.export.nir import write_nir
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.ir import hints, input_names, output_names
from statten_deploy.models.statten import STAtten
from statten_deploy.source import Source, load_source
from statten_deploy.train.data import DATASETS, InputSpec, Samples, open_source, select

Model: TypeAlias = str | Path | STAtten | nir.NIRGraph | Source
Target = Literal["nir", "onnx"]
SUFFIXES: dict[Target, str] = {"nir": ".nir", "onnx": ".onnx"}
DATA_SAMPLES = 32
RANDOM_SAMPLES = 2


@dataclass
class ExportResult:
    """What an export wrote and how well it agrees with the reference; `agreement` is None when not verified."""

    target: Target
    files: list[Path]
    agreement: Agreement | None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The object ``statten-export --json`` prints."""
        agreement = self.agreement
        return {
            "target": self.target,
            "files": [{"path": str(path), **file_facts(path)} for path in self.files],
            "verified": None if agreement is None else agreement.passed,
            "samples": agreement.samples if agreement else 0,
            "max_abs_diff": agreement.max_abs_diff if agreement else None,
            "spike_mismatches": agreement.spike_mismatches if agreement else None,
            "prediction_agreement": agreement.prediction_agreement if agreement else None,
            "warnings": self.warnings,
        }


@dataclass(frozen=True)
class ExportOptions:
    """What every target takes: how to verify, and whether to write test vectors."""

    calibration: str | Path | None = None
    samples: int | None = None
    verify: bool = True
    test_vectors: int = 0


def export_nir(
    model: Model,
    path: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    time_steps: int | None = None,
    dt: float | None = None,
    options: ExportOptions | None = None,
) -> ExportResult:
    """Write a NIR file with its sidecar (and test vectors), verified against the reference.

    Raises:
        InputError: bad input; VerificationError: the file disagreed and was not kept.
    """
    source = _source(model, config, time_steps, dt)
    return _export(source, "nir", Path(path), options or ExportOptions(), {})


def export_onnx(
    model: Model,
    path: str | Path,
    *,
    spike_counts: bool = False,
    config: Mapping[str, Any] | None = None,
    time_steps: int | None = None,
    dt: float | None = None,
    options: ExportOptions | None = None,
) -> ExportResult:
    """Write an ONNX file (float32, sequence layout) with its sidecar, verified in onnxruntime. Raises as `export_nir`.

    `spike_counts` adds one int64 output [batch] per neuron layer, ``spike_counts/<layer>``.
    """
    source = _source(model, config, time_steps, dt)
    return _export(source, "onnx", Path(path), options or ExportOptions(), {"spike_counts": spike_counts})


def _source(model: Model, config: Mapping[str, Any] | None, time_steps: int | None, dt: float | None) -> Source:
    return model if isinstance(model, Source) else load_source(model, config, time_steps, dt)


def _check_destination(source: Source, target: Target, path: Path, options: ExportOptions) -> None:
    """The name must be one our own reader opens, and nothing the export reads may be overwritten."""
    if path.suffix != SUFFIXES[target]:
        raise InputError(f"{path}: a file of --target {target} is called *{SUFFIXES[target]}; change --out")
    inputs = [source.path, Path(options.calibration) if options.calibration else None]
    for given in inputs:
        for written in (path, sidecar_path(path), vectors_path(path)):
            if given is not None and given.exists() and written.exists() and given.samefile(written):
                raise InputError(f"{written}: would overwrite the input; choose another --out")


def _export(
    source: Source, target: Target, path: Path, options: ExportOptions, flags: Mapping[str, Any]
) -> ExportResult:
    _check_destination(source, target, path, options)
    samples, warnings = verification_samples(source, options)
    warnings = [*source.warnings, *warnings]
    with staging(path) as stage:
        temporary = stage.file(path)
        warnings += _write(source, target, temporary, flags)
        agreement = None
        if options.verify:
            gc.collect()  # the serialised model of a large network is not needed any more
            agreement = verify_against(
                source.reference, _executor(source, target, temporary), samples, source.yardstick
            )
            warnings += agreement.notes
            if not agreement.passed:
                raise VerificationError(_refusal(path, agreement))
        if options.test_vectors:
            _write_vectors(source, stage.file(vectors_path(path)), samples[: options.test_vectors])
        else:
            stage.remove(vectors_path(path))  # those of an earlier export belong to another model
        content = _sidecar(source, target, agreement, warnings, flags)
        write_sidecar(stage.file(sidecar_path(path)), path.name, temporary, content)
        return ExportResult(target, stage.commit(), agreement, warnings)


def _write(source: Source, target: Target, path: Path, flags: Mapping[str, Any]) -> list[str]:
    if target == "nir":
        return list(write_nir(source.graph, path).warnings)
    metadata = {
        "source_sha256": source.sha256 or "",
        "config": source.config.model_dump_json() if source.config else "",
    }
    model = build_onnx(source.graph, time_steps=source.time_steps, dt=source.dt, metadata=metadata, **flags)
    save_onnx(model, path)
    return []


def _executor(source: Source, target: Target, path: Path) -> Executor:
    if target == "nir":
        return GraphExecutor.from_file(path, source.time_steps, source.dt)
    return OnnxExecutor(path, spikes=True)


def _refusal(path: Path, agreement: Agreement) -> str:
    shown = "; ".join(agreement.problems[:8])
    more = len(agreement.problems) - 8
    return f"{path}: not written, it disagrees with the reference on {agreement.samples} samples: {shown}" + (
        f"; and {more} more" if more > 0 else ""
    )


def verification_samples(source: Source, options: ExportOptions) -> tuple[Array, list[str]]:
    """Samples for verification and test vectors, and warnings about where they come from.

    `--calibration`, else the training split of the data set the network names, else seeded random input.

    Raises:
        InputError: the data cannot be read or does not fit, or fewer than asked for.
    """
    data = options.calibration or source.dataset
    wanted = max(options.samples or 0, options.test_vectors)
    if options.calibration is not None or data in DATASETS:
        part = calibration_part(source, data)
        if wanted > len(part):
            raise InputError(f"{data}: has {len(part)} samples, --samples and --test-vectors ask for {wanted}")
        return np.stack([part.sample(i) for i in range(min(wanted or DATA_SAMPLES, len(part)))]), []
    count = wanted or RANDOM_SAMPLES
    where = f"data set {data!r} is not at hand" if data else "the model names no data set"
    warning = f"{where}: verified on {count} seeded random inputs; give real ones with --calibration"
    return random_samples(source, count), [warning] if options.verify else []


def calibration_part(source: Source, data: str | Path) -> Samples:
    """What verification may see: a data set's training split, or all of what the user gave undivided."""
    opened = open_source(data, InputSpec(source.input_shape, source.classes))
    return opened.whole if opened.whole is not None else select(opened, "calibration")


def random_samples(source: Source, count: int, seed: int = 0) -> Array:
    """Seeded random input: pixels in [0, 1) for images, Poisson event counts for frames."""
    generator = np.random.default_rng(seed)
    shape = (count, *source.input_shape)
    if len(source.input_shape) == len(source.frame_shape):
        return generator.random(shape, dtype=np.float32)
    return generator.poisson(0.5, shape).astype(np.float32)


def _write_vectors(source: Source, path: Path, samples: Array) -> None:
    reference = source.reference
    outputs = [next(iter(reference.run(samples[i : i + 16]).outputs.values())) for i in range(0, len(samples), 16)]
    with path.open("wb") as stream:
        np.savez_compressed(stream, input=samples, output=np.concatenate(outputs))


def _sidecar(
    source: Source, target: Target, agreement: Agreement | None, warnings: list[str], flags: Mapping[str, Any]
) -> dict[str, Any]:
    told = hints(source.graph)
    config = source.config
    return {
        "target": target,
        "options": dict(flags),
        "source": {"name": source.name, "sha256": source.sha256},
        "config": config.model_dump(mode="json") if config else None,
        "T": source.time_steps,
        "S": config.attention_window if config else told.get("window_steps"),
        "dt": source.dt,
        "latency_steps": 0,
        "input": {"name": input_names(source.graph)[0], "shape": ["batch", *source.input_shape]},
        "outputs": output_names(source.graph),
        "quantisation": None,
        "verification": agreement.summary() if agreement else None,
        "warnings": warnings,
    }


__all__ = ["ExportOptions", "ExportResult", "export_nir", "export_onnx", "random_samples", "verification_samples"]
