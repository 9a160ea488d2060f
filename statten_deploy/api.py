"""The Python interface behind the commands: export a model, verify what was written, report how well it agrees."""

import ctypes
import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, cast

import nir
import numpy as np

from statten_deploy.compare.engines import verify_in_openvino
from statten_deploy.compare.exact import IntegerExecutor, verify_exact
from statten_deploy.compare.executors import Array
from statten_deploy.compare.integers import FixedExecutor
from statten_deploy.compare.verify import Agreement, batch_size, verify_against
from statten_deploy.errors import InputError, VerificationError
from statten_deploy.export.artefact import file_facts, sidecar_path, staging, vectors_path, write_sidecar
from statten_deploy.export.onnx.integer import Flavour
from statten_deploy.fixed_point import shift
from statten_deploy.ir import hints, input_names, output_names
from statten_deploy.ir.integer import IntegerLIF
from statten_deploy.models.statten import STAtten
from statten_deploy.passes import MAX_CIRCUIT_NEURONS, Profile
from statten_deploy.quantize import Granularity, QuantisationReport, QuantizeOptions, quantisation_report, quantize
from statten_deploy.source import Source, load_source
from statten_deploy.targets import TARGETS, Subject, Target, Written
from statten_deploy.train.data import DATASETS, InputSpec, Samples, open_source, select

Model: TypeAlias = str | Path | STAtten | nir.NIRGraph | Source
RANDOM_SAMPLES = 2
"""Seeded random inputs to verify on, where there is no data."""
CALIBRATION_SAMPLES = 128
"""Samples of real data that a quantisation is calibrated on."""


@dataclass
class ExportResult:
    """What an export wrote and how well it agrees with the reference; `agreement` is None when not verified."""

    target: Target
    files: list[Path]
    agreement: Agreement | None
    quantisation: QuantisationReport | None = None
    latency_steps: int = 0
    notes: list[str] = field(default_factory=list)
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
    """What every target takes: how to verify, whether to write test vectors, and for integer targets how to quantise.

    `bits` None: what the checkpoint was trained for, else 8 where the target needs integers, else float. `granularity`
    None: what it was trained for, else one scale per channel.
    """

    calibration: str | Path | None = None
    samples: int | None = None
    verify: bool = True
    test_vectors: int = 0
    bits: int | None = None
    granularity: Granularity | None = None


class Common(TypedDict, total=False):
    """What every export takes: see `load_source` for the first four."""

    config: Mapping[str, Any] | None
    time_steps: int | None
    dt: float | None
    written_by: str | None
    options: ExportOptions | None


def export_nir(
    model: Model,
    path: str | Path,
    *,
    attention: Literal["auto", "circuit", "compact"] = "auto",
    profile: Profile = "core",
    max_circuit_neurons: int = MAX_CIRCUIT_NEURONS,
    **common: Unpack[Common],
) -> ExportResult:
    """Write a NIR file with its sidecar (and test vectors), verified against the reference.

    With ``options.bits`` (or from a quantised NIR file) it holds integers, compared with the integer reference; else
    attention becomes circuits of stock nodes of `profile` (docs/circuits.md) or takes the compact form: ``auto`` takes
    circuits where they exist and have at most `max_circuit_neurons`.

    Raises:
        InputError: bad input; VerificationError: the file disagreed and was not kept.
    """
    flags = {"attention": attention, "nir_profile": profile, "max_circuit_neurons": max_circuit_neurons}
    return export(model, "nir", path, flags=flags, **common)


def export_onnx(
    model: Model,
    path: str | Path,
    *,
    spike_counts: bool = False,
    layout: Literal["sequence", "stream"] = "sequence",
    **common: Unpack[Common],
) -> ExportResult:
    """Write an ONNX file in float32 with its sidecar, verified in onnxruntime. Raises as `export_nir`.

    `spike_counts` adds one int64 output [batch] per neuron layer, ``spike_counts/<layer>``. `layout`: one call for all
    T steps, or one for each chunk of a stream, with states in and out (docs/onnx.md).
    """
    return export(model, "onnx", path, flags=_onnx_flags(spike_counts, layout), **common)


def export_onnx_int8(
    model: Model,
    path: str | Path,
    *,
    spike_counts: bool = False,
    layout: Literal["sequence", "stream"] = "sequence",
    flavour: Flavour = "integer",
    **common: Unpack[Common],
) -> ExportResult:
    """Write an ONNX file of integers, equal to the integer reference. Otherwise as `export_onnx`.

    `flavour`: products as onnxruntime (``integer``) or OpenVINO (``qdq``) is fast at, with the same results.
    """
    return export(model, "onnx-int8", path, flags=_onnx_flags(spike_counts, layout, flavour), **common)


def _onnx_flags(spike_counts: bool, layout: str, flavour: Flavour = "integer") -> dict[str, Any]:
    """Only what is not the default, for the sidecar."""
    usual = {"spike_counts": False, "layout": "sequence", "flavour": "integer"}
    given = {"spike_counts": spike_counts, "layout": layout, "flavour": flavour}
    return {key: value for key, value in given.items() if value != usual[key]}


def export_lava(model: Model, folder: str | Path, **common: Unpack[Common]) -> ExportResult:
    """Write a bundle for Lava's simulator, run there and equal to the integer reference. Raises as `export_nir`."""
    return export(model, "lava", folder, **common)


def export_netx(model: Model, path: str | Path, *, until: str | None = None, **common: Unpack[Common]) -> ExportResult:
    """Write lava-dl's ``.net`` for a chain of layers, or for the chain up to the neuron layer `until`.

    Equal to the integer reference in lava-dl and Lava's simulator. Raises as `export_nir`.
    """
    return export(model, "netx", path, flags={"until": until} if until else {}, **common)


def export(
    model: Model,
    target: Target,
    path: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    time_steps: int | None = None,
    dt: float | None = None,
    written_by: str | None = None,
    options: ExportOptions | None = None,
    flags: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Write any target; `flags` are the target's own options. Raises as `export_nir`."""
    source = model if isinstance(model, Source) else load_source(model, config, time_steps, dt, written_by)
    options, flags, path = options or ExportOptions(), flags or {}, Path(path)
    spec = TARGETS[target]
    _check_destination(source, target, path, options)
    samples, warnings = verification_samples(source, options, spec.samples)
    warnings = [*source.warnings, *warnings]
    with staging(path) as stage:
        temporary = stage.bundle(path) if spec.folder else stage.file(path)
        subject, report, more = subject_of(source, target, options, flags, samples)
        warnings += more
        if subject.integer:  # the float network has done its work
            subject = replace(subject, source=source.outline())
        del source
        written = spec.write(subject, temporary)
        if target == "onnx" and subject.source.network is not None:  # what is compared now is the network and the file
            outline = subject.source.outline()
            subject = replace(subject, source=replace(outline, network=subject.source.network), graph=outline.graph)
            del outline
        warnings += written.warnings
        agreement = None
        if options.verify:
            _give_back()  # the serialised model of a large network is not needed any more
            agreement = _verify(subject, target, temporary, samples)
            warnings += agreement.notes
            if not agreement.passed:
                raise VerificationError(_refusal(path, agreement))
        content = _sidecar(subject, target, written, agreement, report, warnings)
        if options.test_vectors:
            vectors = stage.file(vectors_path(path))
            _write_vectors(subject, vectors, samples[: options.test_vectors])
            content["test_vectors"] = {"file": vectors.name, **file_facts(vectors)}
        else:
            stage.remove(vectors_path(path))  # those of an earlier export belong to another model
        write_sidecar(stage.file(sidecar_path(path)), path.name, temporary, content)
        latency, notes = written.latency_steps, list(written.notes)
        return ExportResult(target, stage.commit(), agreement, report, latency, notes, warnings)


def _give_back() -> None:
    """Return what is not used any more to the system; the C library keeps it for itself unless it is asked (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _check_destination(source: Source, target: Target, path: Path, options: ExportOptions) -> None:
    """The name must be one our own reader opens, and nothing the export reads may be overwritten."""
    suffix = TARGETS[target].suffix
    if path.suffix != suffix:
        raise InputError(f"{path}: an artefact of --target {target} is called *{suffix}; change --out")
    inputs = [source.path, Path(options.calibration) if options.calibration else None]
    for given in inputs:
        for written in (path, sidecar_path(path), vectors_path(path)):
            if given is not None and given.exists() and written.exists() and given.samefile(written):
                raise InputError(f"{written}: would overwrite the input; choose another --out")


def subject_of(
    source: Source, target: Target, options: ExportOptions, flags: Mapping[str, Any], samples: Array
) -> tuple[Subject, QuantisationReport | None, list[str]]:
    """The graph to write, as it is or quantised, with what the quantisation did, and warnings."""
    spec = TARGETS[target]
    asked = options.bits is not None or options.granularity is not None
    if source.quantised:
        if asked:
            raise InputError(f"{source.name}: is quantised already; leave out --bits and --granularity")
        if spec.integer == "never":
            raise InputError(f"{source.name}: is a quantised graph and --target {target} is float; use {target}-int8")
        graph = spec.cut(source.graph, flags)
        rounded = spec.round(graph)
        changed = [name for name in rounded.nodes if _bias(rounded.nodes[name]) != _bias(graph.nodes[name])]
        warning = [f"--target {target} cannot hold the biases of {', '.join(changed)}: rounded"] if changed else []
        return Subject(source, rounded, True, flags), None, warning
    if spec.integer == "never" and asked:
        raise InputError(f"--bits and --granularity: --target {target} is float32; use --target {target}-int8")
    trained = source.trained if not flags.get("attention") else None  # circuits are of float networks
    if spec.integer == "never" or (spec.integer == "optional" and options.bits is None and trained is None):
        if options.granularity is not None:
            raise InputError(f"--granularity needs --bits: without them --target {target} is float32")
        warning = []
        if source.trained is not None:
            warning = [f"trained for weights of {source.trained.bits} bits, written as the float network behind them"]
        return Subject(source, source.graph, False, flags), None, warning
    graph = spec.cut(source.graph, flags)
    chosen = _quantize_options(source, target, options)
    calibration = None if chosen == source.trained else _calibration(source, options)  # trained weights fit as they are
    quantised = spec.round(quantize(graph, chosen, calibration))
    expected = source.reference.run(samples[:1])
    seen = samples[: batch_size(expected, 1)]
    if len(seen) > 1:
        expected = source.reference.run(seen)
    report = quantisation_report(graph, quantised, seen, expected.spikes)
    return Subject(source, quantised, True, flags), report, report.warnings()


def _bias(node: nir.NIRNode) -> list[int]:
    """In membrane units, of neurons; nothing of other nodes."""
    return shift(node.bias_mantissa, node.bias_exponent).ravel().tolist() if isinstance(node, IntegerLIF) else []


def _quantize_options(source: Source, target: Target, options: ExportOptions) -> QuantizeOptions:
    spec = TARGETS[target]
    trained = source.trained
    usual = trained.granularity if trained and trained.granularity in spec.granularities else spec.granularities[0]
    granularity = options.granularity or usual
    if granularity not in spec.granularities:
        raise InputError(
            f"--granularity {granularity}: --target {target} has one scale per {' or '.join(spec.granularities)}"
        )
    usual_bits = trained.bits if trained else QuantizeOptions().bits
    bits = usual_bits if options.bits is None else options.bits
    return QuantizeOptions(bits, granularity, spec.shifts)


def _verify(subject: Subject, target: Target, path: Path, samples: Array) -> Agreement:
    run = TARGETS[target].run
    if subject.integer:
        reference = FixedExecutor(subject.graph, membranes=True)
        agreement = verify_exact(reference, cast(IntegerExecutor, run(subject, path)), samples)
        if subject.flags.get("flavour") == "qdq" and agreement.passed:
            verify_in_openvino(agreement, path, samples)
        return agreement
    # No name for the candidate here: `verify_against` lets go of it before the yardstick runs.
    return verify_against(subject.source.reference, run(subject, path), samples, subject.source.yardstick)


def _refusal(path: Path, agreement: Agreement) -> str:
    shown = "; ".join(agreement.problems[:8])
    more = len(agreement.problems) - 8
    return f"{path}: not written, it disagrees with the reference on {agreement.samples} samples: {shown}" + (
        f"; and {more} more" if more > 0 else ""
    )


def verification_samples(source: Source, options: ExportOptions, usual: int) -> tuple[Array, list[str]]:
    """Samples for verification and test vectors, and warnings about where they come from.

    `--calibration`, else the training split of the data set the network names, else seeded random input. `usual` is how
    many of real data, unless told otherwise.

    Raises:
        InputError: the data cannot be read or does not fit, or fewer than asked for.
    """
    data = options.calibration or source.dataset
    wanted = max(options.samples or 0, options.test_vectors)
    if _has_data(source, options):
        part = calibration_part(source, data)
        if wanted > len(part):
            raise InputError(f"{data}: has {len(part)} samples, --samples and --test-vectors ask for {wanted}")
        return _take(part, wanted or usual), []
    count = wanted or RANDOM_SAMPLES
    where = f"data set {data!r} is not at hand" if data else "the model names no data set"
    warning = f"{where}: verified on {count} seeded random inputs; give real ones with --calibration"
    return random_samples(source, count), [warning] if options.verify else []


def _has_data(source: Source, options: ExportOptions) -> bool:
    return options.calibration is not None or source.dataset in DATASETS


def _take(part: Samples, count: int) -> Array:
    return np.stack([part.sample(i) for i in range(min(count, len(part)))])


def _calibration(source: Source, options: ExportOptions) -> Array | None:
    """What a quantisation is calibrated on: real data or nothing."""
    if not _has_data(source, options):
        return None
    return _take(calibration_part(source, options.calibration or source.dataset), CALIBRATION_SAMPLES)


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


def _write_vectors(subject: Subject, path: Path, samples: Array) -> None:
    """Inputs and outputs of the reference: the network, or for an integer artefact the quantised graph."""
    reference = FixedExecutor(subject.graph) if subject.integer else subject.source.reference
    outputs = [next(iter(reference.run(samples[i : i + 16]).outputs.values())) for i in range(0, len(samples), 16)]
    with path.open("wb") as stream:
        np.savez_compressed(stream, input=samples, output=np.concatenate(outputs))


def _sidecar(
    subject: Subject,
    target: Target,
    written: Written,
    agreement: Agreement | None,
    report: QuantisationReport | None,
    warnings: list[str],
) -> dict[str, Any]:
    source, told = subject.source, hints(subject.graph)
    config = source.config
    quantisation = {"bits": told["bits"], "granularity": told["granularity"]} if subject.integer else None
    return {
        "target": target,
        "options": dict(subject.flags),
        "source": {"name": source.name, "sha256": source.sha256, "written_by": told.get("written_by")},
        "config": config.model_dump(mode="json") if config else None,
        "T": source.time_steps,
        "S": config.attention_window if config else told.get("window_steps"),
        "dt": source.dt,
        "latency_steps": written.latency_steps,
        "notes": list(written.notes),
        "input": {"name": input_names(source.graph)[0], "shape": ["batch", *source.input_shape]},
        **written.sidecar,
        "outputs": output_names(subject.graph),
        "quantisation": report.to_dict() if report else quantisation,
        "verification": agreement.summary() if agreement else None,
        "warnings": warnings,
    }


__all__ = [
    "ExportOptions",
    "ExportResult",
    "export",
    "export_lava",
    "export_netx",
    "export_nir",
    "export_onnx",
    "export_onnx_int8",
    "random_samples",
    "verification_samples",
]
