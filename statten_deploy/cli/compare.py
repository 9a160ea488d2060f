"""``statten-compare MODEL --backends a,b,c``: thin; parse, call, print."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    on_terminal,
    stem,
)
from statten_deploy.errors import VerificationError

if TYPE_CHECKING:
    from statten_deploy.comparing import Comparison, Progress

NAMES = "torch,torch-int,nir,onnx,fixed,onnx-int8,lava,norse"
"""Spelled out, so that --help need not import them."""
MOST_LATENCY_SECONDS = 3600.0


class InputChoice(StrEnum):
    """What frames carry."""

    frames = "frames"
    events = "events"


def compare(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.ckpt, .pth, .pth.tar, .pt, .safetensors) or .nir file.")],
    backends: Annotated[str, typer.Option(metavar="NAME,NAME,...", help="What to run.")] = NAMES,
    data: Annotated[
        str | None,
        typer.Option(
            help="A data set's name (NAME, NAME:DIR: test split), a folder, an event file, an .npz. Default: MODEL's."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="So many samples, chosen by --seed. Default: all.")] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help="One more cost profile, by name or as a .toml file. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json, report.html and plots. Default: <stem>.compare."),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Bits of the integer network's weights, 2 to 8. Default: as trained, else 8.")
    ] = None,
    granularity: Annotated[
        GranularityChoice | None, typer.Option(help="One scale per output channel (default) or per tensor.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Data to calibrate on. Default: the training split of MODEL's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses samples, and makes random ones where there are none.")] = 0,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples at once. Default: what fits, at most 128.")] = None,
    latency_seconds: Annotated[
        float, typer.Option(min=0, max=MOST_LATENCY_SECONDS, help="Spent on timing each backend; 0: no latencies.")
    ] = 2.0,
    input_: Annotated[
        InputChoice | None,
        typer.Option("--input", help="Frames are counts of events, or real values. Default: as they look."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where torch computes the references: cpu, cuda, cuda:1, ...")] = "cpu",
    config: ConfigOption = None,
    time_steps: TimeStepsOption = None,
    dt: DtOption = None,
    written_by: WrittenByOption = None,
    json_: JsonOption = False,
    debug: DebugOption = False,
    version: VersionOption = False,
) -> None:
    """Run a model in several backends on the same samples; print and write accuracy, spikes, SynOps, energy, latency.

    Exit status: 0 integer backends are equal and float ones within the tolerances; 1 one is not, and the report says
    where; 2 bad input. A backend that is not installed is a row that says how to install it.
    """
    names = [name.strip() for name in backends.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--backends: names none; expected some of {NAMES}")
    folder = out or Path(f"{stem(model)}.compare")
    from statten_deploy.compare.files import check_destination
    from statten_deploy.comparing import compare_backends, write_report
    from statten_deploy.models.config import read_config_values

    check_destination(folder)
    with _progress() as progress:
        comparison = compare_backends(
            model,
            names,
            data=data,
            samples=samples,
            profiles=profile or (),
            seed=seed,
            bits=bits,
            granularity=granularity.value if granularity else None,
            calibration=calibration,
            batch=batch,
            latency_seconds=latency_seconds,
            input=input_.value if input_ else None,
            device=device,
            config=read_config_values(config) if config else None,
            time_steps=time_steps,
            dt=dt,
            written_by=written_by,
            progress=progress,
        )
    write_report(comparison, folder)
    if json_:
        emit_json(comparison.to_dict())
    else:
        _show(comparison, folder)
    if comparison.problems:
        more = len(comparison.problems) - 1
        told = comparison.problems[0] + (f"; and {more} more in {folder}/report.json" if more else "")
        failure = VerificationError(told)
        for trace in comparison.traces:  # shown by --debug
            failure.add_note(trace)
        raise failure


@contextmanager
def _progress() -> "Iterator[Progress | None]":
    """A bar on a terminal, nothing elsewhere."""
    if not on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def _show(comparison: "Comparison", folder: Path) -> None:
    from rich.console import Console

    from statten_deploy.compare.report import render_table

    Console().print(render_table(comparison))
    typer.echo(f"wrote {folder / 'report.html'} and report.json")


app = make_app(compare)
main = main_for(app, "statten-compare")
