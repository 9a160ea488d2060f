"""What every command shares: exit statuses, one-line errors, JSON on stdout, logs on stderr."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from statten_deploy.errors import StattenError
from statten_deploy.untrusted.text import printable
from statten_deploy.version import __version__


class UsageError(StattenError):
    """The options contradict each other."""

    exit_status = 2


class GranularityChoice(StrEnum):
    """What shares one scale."""

    channel = "channel"
    tensor = "tensor"


# Older releases of typer raise click's exceptions, newer ones their own copy; both are bases of this public name.
_PARSER_ERROR: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"statten-deploy {__version__}")
        raise typer.Exit


ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="YAML configuration, for checkpoints that do not carry one.")
]
TimeStepsOption = Annotated[
    int | None, typer.Option("--time-steps", min=1, help="Steps per sample, for NIR files of other tools.")
]
DtOption = Annotated[
    float | None, typer.Option("--dt", help="Seconds per step, for NIR files of other tools. Default: 0.0001.")
]


class Tool(StrEnum):
    """Tools whose NIR files need telling how to read."""

    norse = "norse"
    sinabs = "sinabs"
    snntorch = "snntorch"
    spikingjelly = "spikingjelly"


WrittenByOption = Annotated[
    Tool | None, typer.Option("--written-by", help="The tool that wrote a NIR file: read its numbers as it does.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; logs go to stderr.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


def make_app(function: Callable[..., None]) -> typer.Typer:
    """A command line of one command, without shell-completion options."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(function)
    return app


def stem(model: Path) -> str:
    """``best.pth.tar`` -> ``best``."""
    return model.name.removesuffix(".tar").rsplit(".", 1)[0] or model.name


def emit_json(value: Any) -> None:
    """One JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=False, allow_nan=False))


def warn(message: str) -> None:
    """Print one warning, one line, on stderr."""
    typer.echo(f"warning: {printable(message)}", err=True)


def fail(name: str, message: str, status: int) -> int:
    """Print one line on stderr and return the exit status."""
    typer.echo(f"{name}: error: {printable(str(message))}", err=True)
    return status


INTERRUPTED = 130
STOPPED = "interrupted; files it writes are complete or as they were"
"""A commit that has begun is finished first, so that there may be a new artefact."""


def run(app: typer.Typer, name: str, arguments: list[str] | None = None, interrupted: str = STOPPED) -> int:
    """Run a command and turn every failure into one line and an exit status: 0 done, 1 check failed, 2 bad input.

    `interrupted` is said on Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except StattenError as error:
        if debug:
            traceback.print_exc()
        return fail(name, str(error), error.exit_status)
    except _PARSER_ERROR as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return fail(name, f"{message} (try {name} --help)", 2)
    except (typer.Abort, KeyboardInterrupt):
        return fail(name, interrupted, INTERRUPTED)
    except OSError as error:
        if debug:
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        return fail(name, f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if debug:
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        return fail(name, f"internal error, please report it with the output of --debug ({reason})", 1)
    if result == INTERRUPTED:  # some releases of typer make this of Ctrl-C, and say nothing
        return fail(name, interrupted, INTERRUPTED)
    return result if isinstance(result, int) else 0


def _terminate(name: str, *_: object) -> None:
    """Temporary files go at once: an exception raised here can get lost in a callback of some C library."""
    os.write(2, f"{name}: error: terminated\n".encode())  # whoever else writes to stderr may be in the middle of it
    rooms = sys.modules.get("statten_deploy.export.rooms")
    if rooms is not None and rooms.discard_all():
        os._exit(143)
    sys.exit(143)


def main_for(app: typer.Typer, name: str, interrupted: str = STOPPED) -> Callable[[], None]:
    """The console entry point of `app`. `interrupted`: as in `run`."""

    def main() -> None:
        signal.signal(signal.SIGTERM, partial(_terminate, name))
        status = run(app, name, interrupted=interrupted)
        sys.stdout.flush()
        sys.exit(status)

    return main


def on_terminal() -> bool:
    """Whether progress bars make sense: stderr is a terminal."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
