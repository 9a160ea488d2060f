"""Thousands of damaged files of every format: each is read or refused in one line, in bounded time and memory.

What a worker reads in its own process, a command reads in a child (`Format.alone`): only there may a library end the
process or hang. More: ``make fuzz``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.untrusted.formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {
    "ckpt": 1000,
    "ckpt-resume": 400,
    "pth": 700,
    "nir": 1000,
    "nir-stranger": 1000,
    "onnx": 800,
    "onnx-spikes": 800,
    "onnx-int8": 800,
    "lava-plan": 900,
    "lava-weights": 800,
    "lava-manifest": 400,
    "toml-profile": 1000,
    "toml-chip": 1000,
}
"""Mutations of formats that come in several kinds; of every other one 2000."""
MOST_MIB = 400
"""Memory that any file may add: the limit is set to 256 MiB, the artefacts are small."""
LIBRARY_ENDS = ("signal", "hung", "raised PanicException", "raised MemoryError")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[subprocess.Popen[str]]]:
    """Two workers: they import torch and the rest once, and fork a child for each format."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STATTEN_MAX_BYTES": "256M", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.untrusted.server"]
    started = [
        subprocess.Popen(
            [*command, str(tmp_path_factory.mktemp("fuzz"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for _ in range(2)
    ]
    yield started
    for server in started:
        server.communicate()


@pytest.fixture(scope="session")
def results(servers: list[subprocess.Popen[str]]) -> dict[str, list[dict[str, Any]]]:
    """Both halves of every format, one by each worker, which run side by side."""
    factor = int(os.environ.get("STATTEN_FUZZ_FACTOR", "1"))
    first = int(os.environ.get("STATTEN_FUZZ_SEED", "0"))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMATS}
    for name in FORMATS:
        half = COUNTS.get(name, 2000) * factor // 2
        for number, server in enumerate(servers):
            assert server.stdin is not None
            server.stdin.write(json.dumps({"format": name, "first": first + number * half, "count": half}) + "\n")
    for server in servers:
        assert server.stdin is not None
        server.stdin.flush()
    for name in FORMATS:
        for server in servers:
            assert server.stdout is not None
            found[name].append(json.loads(server.stdout.readline()))
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_read_or_refused(results: dict[str, list[dict[str, Any]]], name: str) -> None:
    for result in results[name]:
        sys.stdout.write(f"{name}: {json.dumps({k: v for k, v in result.items() if k != 'examples'})}\n")
        allowed = LIBRARY_ENDS if FORMATS[name].alone else ()
        wrong = {
            what: result["examples"][what]
            for what in result["outcomes"]
            if what not in ("read", "refused") and not what.startswith(allowed or "\0")
        }
        assert not wrong, wrong
        assert result["outcomes"]["refused"] > sum(result["outcomes"].values()) // 10
        assert result["peak_mib"] < MOST_MIB
