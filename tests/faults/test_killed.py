"""A kill at any moment leaves the old artefact or the new one, and what stands beside it belongs to it."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.faults.killed import SUFFIX


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of every target, in one process: Python's audit hooks cannot be taken away again."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.faults.killed", str(folder), *SUFFIX]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", SUFFIX)
def test_every_step_leaves_the_old_artefact_or_the_new_one(target: str, outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes[target]
    assert found["problems"] == []
    assert found["seen"] == ["new", "old"]
    assert min(found["points"]) > 15  # from nothing, over an older artefact with vectors, over one without
