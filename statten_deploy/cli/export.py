"""``statten-export MODEL --target nir|onnx``: thin; parse, call, print."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statten_deploy.cli.common import (
    ConfigOption,
    DebugOption,
    DtOption,
    JsonOption,
    TimeStepsOption,
    UsageError,
    VersionOption,
    emit_json,
    main_for,
    make_app,
)

if TYPE_CHECKING:
    from statten_deploy.api import ExportResult


class Target(StrEnum):
    """What can be written."""

    nir = "nir"
    onnx = "onnx"


def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.ckpt, .pth, .pth.tar, .pt, .safetensors) or .nir file.")],
    target: Annotated[Target, typer.Option(help="Artefact to write.")],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: <stem of MODEL>.<target> here.")] = None,
    config: ConfigOption = None,
    time_steps: TimeStepsOption = None,
    dt: DtOption = None,
    calibration: Annotated[
        str | None, typer.Option(help="Data to verify on: digits, an image folder, or an .npz with x.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many samples to verify on.")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not run the written file.")] = False,
    test_vectors: Annotated[
        int, typer.Option(min=0, help="Also write N inputs and reference outputs to <artefact>.vectors.npz.")
    ] = 0,
    spike_counts: Annotated[
        bool, typer.Option("--spike-counts", help="onnx: one more output per neuron layer, its spikes per sample.")
    ] = False,
    json_: JsonOption = False,
    debug: DebugOption = False,
    version: VersionOption = False,
) -> None:
    """Export a spiking transformer (or any NIR graph), run what was written, and compare it with the reference.

    Exit status: 0 written and verified; 1 it disagrees with the reference, nothing written; 2 bad input.
    """
    if spike_counts and target is not Target.onnx:
        raise UsageError("--spike-counts belongs to --target onnx")
    if no_verify and samples is not None:
        raise UsageError("--samples has no meaning with --no-verify")
    from statten_deploy.api import ExportOptions, export_nir, export_onnx
    from statten_deploy.models.config import read_config_values

    path = out or Path(f"{stem(model)}.{target.value}")
    common: dict[str, Any] = {
        "config": read_config_values(config) if config else None,
        "time_steps": time_steps,
        "dt": dt,
        "options": ExportOptions(calibration, samples, not no_verify, test_vectors),
    }
    if target is Target.nir:
        result = export_nir(model, path, **common)
    else:
        result = export_onnx(model, path, spike_counts=spike_counts, **common)
    if json_:
        emit_json(result.to_dict())
    else:
        _show(result)


def stem(model: Path) -> str:
    """``best.pth.tar`` -> ``best``."""
    return model.name.removesuffix(".tar").rsplit(".", 1)[0] or model.name


def _show(result: "ExportResult") -> None:
    for item in result.to_dict()["files"]:
        typer.echo(f"wrote {item['path']}  {item['bytes']:,} bytes  sha256 {item['sha256'][:16]}…")
    agreement = result.agreement
    if agreement is None:
        typer.echo("not verified (--no-verify)")
    else:
        same = agreement.samples - agreement.predictions_differ
        typer.echo(
            f"verified against {agreement.reference} on {agreement.samples} samples: "
            f"{same}/{agreement.samples} predictions agree, "
            f"{agreement.spike_mismatches:,} of {agreement.sites:,} spikes differ, "
            f"largest output difference {agreement.max_abs_diff:.3g}"
        )
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)


app = make_app(export)
main = main_for(app, "statten-export")
