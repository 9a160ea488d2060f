"""Run a Lava bundle in a process of its own and read back what it recorded."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError, StattenError
from statten_deploy.export.lava.manifest import read_manifest
from statten_deploy.untrusted.arrays import Archive
from statten_deploy.untrusted.limits import MAX_JSON_BYTES, check_small

STOP_SECONDS = 15.0
"""What run.py may take to end everything it started."""
BAD_INPUT = 2


@dataclass
class LavaResult:
    """What a run recorded, named and shaped as in `IntegerResult`.

    `outputs`: the integers of the graph's output [N, classes], or [N, T, ...] without a sum over time; `real`: the
    same in real units. `spikes` and `membranes` (after reset) [T, N, ...] per neuron layer. `facts`:
    samples, batch, steps, processes, start_seconds, ms_per_step.
    """

    outputs: dict[str, NDArray[Any]]
    real: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    spikes: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    membranes: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class LavaRunner:
    """Runs the bundle in `folder` with `python`, for at most `limit_s` seconds per call; nothing outlives a call.

    Raises:
        InputError: not a bundle, or one that was changed after the export.
    """

    def __init__(self, folder: Path, *, limit_s: float = 600.0, python: str = sys.executable) -> None:
        self.folder = Path(folder)
        self.limit_s, self.python = limit_s, python
        self.manifest = read_manifest(self.folder)
        for name in ("network.json", "weights.npz"):
            if name not in self.manifest["files"]:
                raise InputError(f"{self.folder}: has no {name}; export again")
        check_small(self.folder / "network.json", MAX_JSON_BYTES, "the plan of a network")
        Archive(self.folder / "weights.npz").close()  # which measures what the simulation is about to load
        try:
            self.latency_steps = int(self.manifest["latency_steps"])
            self.input_shape = tuple(int(size) for size in self.manifest["input_shape"])
            """Of one sample: [C, H, W], or [T, C, H, W] for frames."""
            self.classes = None if self.manifest["classes"] is None else int(self.manifest["classes"])
            self.output = str(self.manifest["output"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{self.folder}: its manifest lacks what this version needs; export again") from None

    def run(
        self, x: NDArray[Any], *, spikes: bool = False, membranes: bool = False, batch: int | None = None
    ) -> LavaResult:
        """Run x [N, C, H, W] or [N, T, C, H, W], real values as `IntegerRunner` takes them.

        Raises:
            InputError: x does not fit, the bundle was changed, or Lava is not installed.
            StattenError: the simulation failed or took too long; the message has the last line of the traceback, the
                exception's notes have the rest.
        """
        read_manifest(self.folder)
        scratch = Path(tempfile.mkdtemp(prefix="statten-lava-"))
        try:
            np.savez(scratch / "frames.npz", x=np.asarray(x))
            command = [self.python, str(self.folder.absolute() / "run.py"), "--with-parent", str(scratch)]
            command += ["--input", str(scratch / "frames.npz"), "--output", str(scratch / "result.npz")]
            command += ["--limit", str(self.limit_s)]
            command += [] if spikes else ["--no-spikes"]
            command += ["--membranes"] if membranes else []
            command += [] if batch is None else ["--batch", str(batch)]
            facts = self._execute(command, scratch)
            with np.load(scratch / "result.npz", allow_pickle=False) as file:
                return self._sort({name: file[name] for name in file.files}, facts)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _execute(self, command: list[str], scratch: Path) -> dict[str, Any]:
        """Start run.py; its standard input stays open as long as this process lives, and it stops when that closes."""
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with (scratch / "errors").open("w+b") as errors:
            try:
                process = subprocess.Popen(  # noqa: S603 our own run.py, checked against its manifest
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                    cwd=scratch,
                    start_new_session=True,
                )
            except OSError as error:
                raise InputError(
                    f"{self.python}: cannot be started ({error.strerror}); name a Python with Lava"
                ) from None
            try:
                assert process.stdout is not None  # a pipe was asked for
                status = process.wait(self.limit_s + STOP_SECONDS)  # run.py ends at the limit, unless it hangs itself
                told = process.stdout.read()  # one line, which fits into a pipe
            except subprocess.TimeoutExpired:
                raise StattenError(f"{self.folder}: run.py hangs, {self.limit_s:g} s were its limit; stopped") from None
            finally:
                _stop(process)
            errors.seek(0)
            message = errors.read().decode("utf-8", errors="replace").strip()
        if status == 0:
            facts: dict[str, Any] = json.loads(told.splitlines()[-1])
            return facts
        reason = message.splitlines()[-1].removeprefix("run.py: error: ") if message else f"exit status {status}"
        if status == BAD_INPUT:
            raise InputError(f"{self.folder}: {reason}")
        failure = StattenError(f"{self.folder}: Lava simulation failed: {reason}")
        failure.add_note(message)
        raise failure

    def _sort(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> LavaResult:
        result = LavaResult({}, facts=facts)
        for name, array in arrays.items():
            kind, _, layer = name.partition("/")
            if kind == "spikes":
                result.spikes[layer] = array
            elif kind == "membranes":
                result.membranes[layer] = array
            elif name in ("logits", "output"):
                result.outputs[self.output] = array
        real = arrays.get("logits_scaled", arrays.get("output_scaled", result.outputs[self.output]))
        result.real[self.output] = real.astype(np.float32)
        return result


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Close the pipes, which makes run.py end everything, and wait for it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
