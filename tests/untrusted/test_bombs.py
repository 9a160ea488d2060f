"""Small files that unpack to much are refused before it is held: the limit is 64 MiB here, the bombs are gigabytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.untrusted.bombs import BOMBS

ROOT = Path(__file__).resolve().parents[2]
MOST_MIB = 400
"""What refusing one may add: libraries, the child that reads HDF5, and twice the limit."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STATTEN_MAX_BYTES": "64M", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.untrusted.bombs", str(tmp_path_factory.mktemp("bombs"))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment)
    return {line[0]: line[1:] for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb(reports: dict[str, list[object]], name: str) -> None:
    what, text, grown_mib, seconds, size = reports[name]
    sys.stdout.write(f"| {name} | {size:,} | {grown_mib} | {seconds} |\n")
    assert what == "refused", text
    assert isinstance(grown_mib, int)
    assert grown_mib < MOST_MIB
