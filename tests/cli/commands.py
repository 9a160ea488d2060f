"""The commands, called in this process."""

from pathlib import Path

import pytest

from statten_deploy.cli import compare as compare_cli
from statten_deploy.cli import export as export_cli
from statten_deploy.cli import run as run_cli
from statten_deploy.cli.common import run as run_command

ZOO = Path(__file__).resolve().parents[2] / "models/zoo"
DIGITS = ZOO / "digits.ckpt"


def export(*arguments: object) -> int:
    return run_command(export_cli.app, "statten-export", [str(a) for a in arguments])


def run(*arguments: object) -> int:
    return run_command(run_cli.app, "statten-run", [str(a) for a in arguments])


def compare(*arguments: object) -> int:
    return run_command(compare_cli.app, "statten-compare", [str(a) for a in arguments])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err
