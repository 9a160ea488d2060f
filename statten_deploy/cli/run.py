"""``statten-run ARTEFACT --data DATA``: thin; parse, call, print."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statten_deploy.cli.common import (
    ConfigOption,
    DebugOption,
    DtOption,
    JsonOption,
    TimeStepsOption,
    VersionOption,
    WrittenByOption,
    emit_json,
    main_for,
    make_app,
    warn,
)
from statten_deploy.cli.scores import accuracy_line, show_energy

if TYPE_CHECKING:
    from statten_deploy.evaluate import Evaluation


class Backend(StrEnum):
    """What runs a NIR file."""

    own = "own"
    norse = "norse"


def run(
    artefact: Annotated[Path, typer.Argument(help="Anything statten-export writes, or a checkpoint.")],
    data: Annotated[
        str,
        typer.Option(
            help="A data set's name (NAME, NAME:DIR: test split), a folder of images or events, an event file, an .npz."
        ),
    ],
    samples: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    config: ConfigOption = None,
    time_steps: TimeStepsOption = None,
    dt: DtOption = None,
    written_by: WrittenByOption = None,
    backend: Annotated[
        Backend, typer.Option(help="norse: run a .nir file of the portable profile in Norse instead of our own engine.")
    ] = Backend.own,
    json_: JsonOption = False,
    debug: DebugOption = False,
    version: VersionOption = False,
) -> None:
    """Run an artefact or a checkpoint on data; print its accuracy, how often its neurons fire, and its energy."""
    from statten_deploy.evaluate import evaluate
    from statten_deploy.models.config import read_config_values

    values = read_config_values(config) if config else None
    result = evaluate(
        artefact,
        data,
        samples=samples,
        config=values,
        time_steps=time_steps,
        dt=dt,
        written_by=written_by,
        backend=backend.value,
    )
    if json_:
        emit_json(result.to_dict())
    else:
        _show(result)
    for warning in result.warnings:
        warn(warning)


def _show(result: "Evaluation") -> None:
    typer.echo(f"{result.artefact} ({result.backend}) on {result.samples} samples of {result.data}")
    if result.accuracy is not None and result.correct is not None:
        score = accuracy_line(result.accuracy, result.top5_accuracy, result.correct, result.samples)
        typer.echo(f"accuracy {score}")
    elif not result.predictions:
        typer.echo("the output is a feature map: no classes to predict")
    else:
        typer.echo(f"no labels; predicted classes: {' '.join(map(str, result.predictions[:32]))}")
    width = max((len(layer.name) for layer in result.layers), default=0)
    for layer in result.layers:
        typer.echo(f"  {layer.name:<{width}}  {layer.spikes:>12,} spikes  firing rate {layer.firing_rate:.4f}")
    show_energy(result.energy_pj, result.energy_samples, result.energy_note)


app = make_app(run)
main = main_for(app, "statten-run")
