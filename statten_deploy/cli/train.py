"""``statten-train --config YAML``: thin; parse, call, print."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statten_deploy.cli.common import (
    DebugOption,
    JsonOption,
    UsageError,
    VersionOption,
    emit_json,
    main_for,
    make_app,
    on_terminal,
)
from statten_deploy.cli.scores import accuracy_line, show_energy

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
        typer.Option(
            help="A data set's name (NAME or NAME:DIR, docs/training.md), a folder of images or events, or an .npz. "
            "Default: what the model names."
        ),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set first, if it is not there.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/<model name>.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value: train.lr=0.001, model.depth=1. Repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Train so many epochs.")] = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.auto,
    devices: Annotated[
        str | None, typer.Option(help="Processes per node, one per GPU: a number, or auto for all GPUs. Default: 1.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines, each started with torchrun or srun.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue a run from its last.ckpt.")] = None,
    init: Annotated[Path | None, typer.Option(help="Start from the weights of this checkpoint.")] = None,
    qat_bits: Annotated[
        int | None,
        typer.Option(min=2, max=8, help="Train the integer network with weights of so many bits. Needs --init."),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Show where the time goes, by phase and by operation; all of it in profile.txt."
        ),
    ] = False,
    json_: JsonOption = False,
    debug: DebugOption = False,
    version: VersionOption = False,
) -> None:
    """Train a spiking transformer; print where its checkpoint is, and its accuracy and energy on the test split.

    Writes best.ckpt (lowest validation loss; final.ckpt where nothing is held out), last.ckpt (to resume), recipe.yaml
    and TensorBoard and CSV logs.
    """
    from statten_deploy.train.config import read_recipe

    if devices is not None and devices != "auto" and not (devices.isdecimal() and int(devices)):
        raise UsageError(f"--devices {devices}: expected a number of processes, 1 or more, or auto")
    places = {"devices": devices, "nodes": nodes}
    told = [f"train.{option}={value}" for option, value in places.items() if value is not None]
    recipe = read_recipe(config, [*(set_ or ()), *told], epochs)
    for note in recipe.notes:
        typer.echo(f"warning: {config}: {note}", err=True)
    if download:
        from statten_deploy.train.data import download as fetch

        fetch(data or recipe.data or recipe.model.dataset)
    from statten_deploy.train.run import train as run

    result = run(
        recipe,
        data,
        out,
        device=device.value,
        resume=resume,
        init=init,
        qat_bits=qat_bits,
        progress=on_terminal(),
        profile=profile,
    )
    if result is None:  # one of several processes: the first one tells
        return
    if json_:
        emit_json(result.to_dict())
    else:
        _show(result)


def _show(result: "TrainResult") -> None:
    form = (
        "" if result.quantisation is None else f" of the integer network with {result.quantisation['bits']}-bit weights"
    )
    typer.echo(f"trained {result.epochs} epochs on {result.train_samples} samples of {result.data}")
    if result.seconds_compiling:
        typer.echo(f"{result.seconds_compiling:.0f} s of {result.seconds:.0f} s went into compiling")
    typer.echo(f"checkpoint {result.checkpoint} ({result.bytes:,} bytes, {result.selected_by})")
    score = accuracy_line(result.test_accuracy, result.test_top5_accuracy, result.test_correct, result.test_samples)
    typer.echo(f"test accuracy{form} {score}")
    width = max(map(len, result.firing_rates))
    for name, rate in result.firing_rates.items():
        typer.echo(f"  {name:<{width}}  firing rate {rate:.4f}")
    show_energy(result.energy_pj, result.energy_samples, result.energy_note)
    if result.profile is not None:
        typer.echo(f"\n{result.profile.text(operations=10)}")


app = make_app(train)
main = main_for(
    app, "statten-train", interrupted="interrupted; what is in its folder stays, --resume goes on from last.ckpt"
)
