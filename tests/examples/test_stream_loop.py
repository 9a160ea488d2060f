"""The push loop runs, and stops early where the network is sure."""

import re
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/stream_loop.py"


def test_the_push_loop(capsys) -> None:
    runpy.run_path(str(EXAMPLE))["main"]()
    lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r"digit (\d): (\d) after (\d) of 4 steps", line) for line in lines]
    assert len(found) == 8
    answers = [match.groups() for match in found if match]
    assert sum(digit == label for digit, label, _ in answers) >= 7
    assert min(int(steps) for _, _, steps in answers) < 4
