"""``statten-export MODEL --target nir|onnx|…``: thin; parse, call, print."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statten_deploy.cli.common import (
    ConfigOption,
    DebugOption,
    DtOption,
    GranularityChoice,
    JsonOption,
    TimeStepsOption,
    UsageError,
    VersionOption,
    WrittenByOption,
    emit_json,
    main_for,
    make_app,
    stem,
    warn,
)

if TYPE_CHECKING:
    from statten_deploy.api import ExportResult


class Target(StrEnum):
    """What can be written."""

    nir = "nir"
    onnx = "onnx"
    onnx_int8 = "onnx-int8"
    lava = "lava"
    netx = "netx"


class Attention(StrEnum):
    """How NIR says attention."""

    auto = "auto"
    circuit = "circuit"
    compact = "compact"


class NirProfile(StrEnum):
    """The nodes that circuits may use."""

    core = "core"
    portable = "portable"


class Layout(StrEnum):
    """What one call of an ONNX file takes."""

    sequence = "sequence"
    stream = "stream"


class Flavour(StrEnum):
    """How an integer ONNX file is written."""

    integer = "integer"
    qdq = "qdq"


def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.ckpt, .pth, .pth.tar, .pt, .safetensors) or .nir file.")],
    target: Annotated[Target, typer.Option(help="Artefact to write.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File (lava: folder) to write. Default: <stem of MODEL> with the target's ending."),
    ] = None,
    config: ConfigOption = None,
    time_steps: TimeStepsOption = None,
    dt: DtOption = None,
    written_by: WrittenByOption = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="To calibrate and verify on: a data set's name (NAME, NAME:DIR), a folder, an event file, an .npz."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many samples to verify on.")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not run the written file.")] = False,
    test_vectors: Annotated[
        int, typer.Option(min=0, help="Also write N inputs and reference outputs to <artefact>.vectors.npz.")
    ] = 0,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the weights, 2 to 8, for onnx-int8, lava, netx (default 8) and nir (default: float)."
        ),
    ] = None,
    granularity: Annotated[
        GranularityChoice | None, typer.Option(help="One scale per output channel (default) or per tensor.")
    ] = None,
    spike_counts: Annotated[
        bool, typer.Option("--spike-counts", help="onnx, onnx-int8: one more output per neuron layer, its spikes.")
    ] = False,
    layout: Annotated[
        Layout,
        typer.Option(help="onnx, onnx-int8: one call for all steps, or one for each chunk of a stream, with states."),
    ] = Layout.sequence,
    flavour: Annotated[
        Flavour | None,
        typer.Option(
            help="onnx-int8: integer products for onnxruntime (default integer), or QuantizeLinear and "
            "DequantizeLinear for OpenVINO. Equal results."
        ),
    ] = None,
    attention: Annotated[
        Attention | None,
        typer.Option(help="nir: circuits of stock nodes, the compact form, or what fits (default auto)."),
    ] = None,
    nir_profile: Annotated[
        NirProfile | None,
        typer.Option(
            help="nir: circuits of any NIR node (default core), or of what Norse, SpikingJelly and snnTorch run."
        ),
    ] = None,
    max_circuit_neurons: Annotated[
        int | None,
        typer.Option(
            min=1, help="nir: neurons that circuits may have. Default: 16,777,216 (core: 0.7 GB, portable: 2.9 GB)."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="LAYER", help="netx: only the layers up to this neuron layer.")
    ] = None,
    json_: JsonOption = False,
    debug: DebugOption = False,
    version: VersionOption = False,
) -> None:
    """Export a spiking transformer (or any NIR graph), run what was written, and compare it with the reference.

    Exit status: 0 written and verified; 1 it disagrees with the reference, nothing written; 2 bad input.
    """
    if spike_counts and target not in (Target.onnx, Target.onnx_int8):
        raise UsageError("--spike-counts belongs to --target onnx and onnx-int8")
    if layout is not Layout.sequence and target not in (Target.onnx, Target.onnx_int8):
        raise UsageError("--layout belongs to --target onnx and onnx-int8")
    if flavour is not None and target is not Target.onnx_int8:
        raise UsageError("--flavour belongs to --target onnx-int8")
    if until is not None and target is not Target.netx:
        raise UsageError("--until belongs to --target netx")
    circuit_options = {
        "attention": attention and attention.value,
        "nir_profile": nir_profile and nir_profile.value,
        "max_circuit_neurons": max_circuit_neurons,
    }
    flags: dict[str, Any] = {key: value for key, value in circuit_options.items() if value is not None}
    if flags and (target is not Target.nir or bits is not None):
        raise UsageError("--attention, --nir-profile and --max-circuit-neurons belong to --target nir without --bits")
    if spike_counts:
        flags["spike_counts"] = True
    if layout is not Layout.sequence:
        flags["layout"] = layout.value
    if flavour is Flavour.qdq:
        flags["flavour"] = flavour.value
    if until:
        flags["until"] = until
    if no_verify and samples is not None:
        raise UsageError("--samples has no meaning with --no-verify")
    from statten_deploy.api import ExportOptions
    from statten_deploy.api import export as write
    from statten_deploy.models.config import read_config_values
    from statten_deploy.targets import default_name

    result = write(
        model,
        target.value,
        out or Path(default_name(target.value, stem(model), bits, flags)),
        config=read_config_values(config) if config else None,
        time_steps=time_steps,
        dt=dt,
        written_by=written_by,
        options=ExportOptions(
            calibration,
            samples,
            not no_verify,
            test_vectors,
            bits=bits,
            granularity=granularity.value if granularity else None,
        ),
        flags=flags,
    )
    if json_:
        emit_json(result.to_dict())
    else:
        _show(result)


def _show(result: "ExportResult") -> None:
    for item in result.to_dict()["files"]:
        typer.echo(f"wrote {item['path']}  {item['bytes']:,} bytes  sha256 {item['sha256'][:16]}…")
    agreement = result.agreement
    for note in result.notes:
        typer.echo(note)
    if result.latency_steps:
        typer.echo(f"latency_steps {result.latency_steps}: results leave the network so many steps after their input")
    if result.quantisation is not None:
        typer.echo(result.quantisation.summary())
    if agreement is None:
        typer.echo("not verified (--no-verify)")
    elif agreement.exact:
        typer.echo(
            f"verified against the integer reference on {agreement.samples} samples, without tolerance: "
            f"{agreement.spike_mismatches:,} of {agreement.sites:,} spikes, {agreement.membrane_mismatches:,} of "
            f"{agreement.membrane_sites:,} membranes, {agreement.output_mismatches:,} integer outputs differ"
        )
    else:
        same = agreement.samples - agreement.predictions_differ
        typer.echo(
            f"verified against {agreement.reference} on {agreement.samples} samples: "
            f"{same}/{agreement.samples} predictions agree, "
            f"{agreement.spike_mismatches:,} of {agreement.sites:,} spikes differ, "
            f"largest output difference {agreement.max_abs_diff:.3g}"
        )
    for warning in result.warnings:
        warn(warning)


app = make_app(export)
main = main_for(app, "statten-export")
