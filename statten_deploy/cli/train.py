"""``statten-train --config YAML``: thin; parse, call, print."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statten_deploy.cli.common import (
    DebugOption,
    JsonOption,
    VersionOption,
    emit_json,
    main_for,
    make_app,
    on_terminal,
)

if TYPE_CHECKING:
    from statten_deploy.train.run import TrainResult


class Device(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def train(
    config: Annotated[Path, typer.Option(help="Recipe: YAML with the sections model: and train:.")],
    data: Annotated[
        str | None,
        typer.Option(help="digits (built in), an image folder, or an .npz. Default: the data set the model names."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/<model name>.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value: train.lr=0.001, model.depth=1. Repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Train so many epochs.")] = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.auto,
    resume: Annotated[Path | None, typer.Option(help="Continue a run from its last.ckpt.")] = None,
    json_: JsonOption = False,
    debug: DebugOption = False,
    version: VersionOption = False,
) -> None:
    """Train a spiking transformer; print where its checkpoint is and its accuracy on the test split.

    Writes best.ckpt (lowest validation loss; final.ckpt where nothing is held out), last.ckpt (to resume), recipe.yaml
    and TensorBoard and CSV logs.
    """
    from statten_deploy.train.config import read_recipe

    recipe = read_recipe(config, set_ or (), epochs)
    from statten_deploy.train.run import train as run

    result = run(recipe, data, out, device=device.value, resume=resume, progress=on_terminal())
    if json_:
        emit_json(result.to_dict())
    else:
        _show(result)


def _show(result: "TrainResult") -> None:
    typer.echo(f"trained {result.epochs} epochs on {result.train_samples} samples of {result.data}")
    typer.echo(f"checkpoint {result.checkpoint} ({result.bytes:,} bytes, {result.selected_by})")
    typer.echo(f"test accuracy {result.test_accuracy:.2%} ({result.test_correct}/{result.test_samples})")


app = make_app(train)
main = main_for(app, "statten-train")
