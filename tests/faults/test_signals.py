"""Real commands, stopped in the middle of an export: as soon as its temporary folder is there."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from statten_deploy.export.rooms import sweep
from statten_deploy.sidecar import read_sidecar
from tests.cli.commands import DIGITS, export

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
SAID = {
    signal.SIGINT: r"statten-export: error: interrupted\b[^\n]*\n",
    signal.SIGTERM: r"statten-export: error: terminated\n",
    signal.SIGKILL: "",
}


@pytest.mark.parametrize("delay", [0.0, 0.2])
@pytest.mark.parametrize("number", STATUS)
def test_a_stopped_export_leaves_the_old_artefact(number: signal.Signals, delay: float, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    assert export(DIGITS, "--target", "onnx", "--out", out, "--no-verify") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    program = "from statten_deploy.cli.export import main; main()"
    command = [sys.executable, "-c", program, str(DIGITS), "--target", "onnx-int8", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    with process, process.stderr:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob(".m.onnx.*.partial")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(process.pid, number)
        said = process.stderr.read()
        assert process.wait(100) == STATUS[number]
        assert re.fullmatch(SAID[number], said)
    if number == signal.SIGKILL:
        assert len(list(tmp_path.iterdir())) == 3
        sweep(tmp_path, "m.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert read_sidecar(out) is not None
