"""Simulates a `.net` file with lava-dl under Lava, in a process of its own with a time limit."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError, StattenError
from statten_deploy.export.netx.writer import FORMAT, MESSAGE_BITS
from statten_deploy.fixed_point.runner import OPERATIONS, IntegerResult
from statten_deploy.ir.integer import InputEncoder

CHILD = Path(__file__).with_name("child.py")


class NetxRunner:
    """Runs a `.net` file that `write_netx` wrote, bit for bit as lava-dl's `Network` computes it.

    `limit_s` is the most seconds that one call of `run` may take; nothing outlives it. `python` needs lava-nc and
    lava-dl. `input_shape` is that of a sample: [C, H, W] of an image, else [T, ...].

    Raises:
        InputError: not such a file.
    """

    def __init__(self, path: str | Path, *, limit_s: float = 600.0, python: str = sys.executable) -> None:
        self.path, self.limit_s, self.python = Path(path), limit_s, python
        told = _read_told(self.path)
        self.layers = [name.decode() for name in told["layers"]]
        self.output = told["output"][0].decode()
        self.time_steps = int(told["time_steps"])
        self.shape = tuple(int(size) for size in told["shape"])
        self.input_shape = self.shape if told["image"] else (self.time_steps, *self.shape)
        self.encoder = InputEncoder(told["scale"], told["zero_point"])
        self.flat = bool(told["flat"])
        self.latency_steps = len(self.layers)

    def run(self, x: NDArray[Any], *, spikes: bool = False, membranes: bool = False) -> IntegerResult:
        """Run x [B, ...] (held for all steps) or [B, T, ...], real values, as `IntegerRunner.run` does.

        Layer k of the simulation is k + 1 steps late; the result is aligned.

        Raises:
            InputError: x has another shape, or lava-dl is not installed.
            StattenError: the simulation failed or took too long.
        """
        frames = self._encode(np.asarray(x))
        batch = len(frames)
        with tempfile.TemporaryDirectory(prefix="statten-netx-") as folder:
            np.save(Path(folder) / "frames.npy", frames.reshape(-1, *frames.shape[2:]))
            task = {
                "network": str(self.path.absolute()),
                "folder": folder,
                "options": {"input_message_bits": MESSAGE_BITS, "reset_interval": self.time_steps, "reset_offset": 1},
                "membranes": membranes,
            }
            _call([self.python, str(CHILD), json.dumps(task)], self.limit_s, str(self.path), Path(folder))
            with np.load(Path(folder) / "result.npz", allow_pickle=False) as file:
                recorded = {name: file[name] for name in file.files}
        fired = {name: self._aligned(recorded[f"s{k}"], k, batch) != 0 for k, name in enumerate(self.layers)}
        result = IntegerResult({self.output: fired[self.layers[-1]].swapaxes(0, 1).astype(np.int64)})
        result.spike_counts = {name: s.sum((0, *range(2, s.ndim)), dtype=np.int64) for name, s in fired.items()}
        if spikes:
            result.spikes = fired
        if membranes:
            result.membranes = {
                name: self._aligned(recorded[f"v{k}"], k, batch).astype(np.int32) for k, name in enumerate(self.layers)
            }
        return result

    def _encode(self, x: NDArray[Any]) -> NDArray[np.int32]:
        """[B, T, ...] integers as the first layer takes them."""
        held = x.ndim == len(self.shape) + 1
        expected = self.shape if held else (self.time_steps, *self.shape)
        if x.shape[1:] != expected:
            sizes = ", ".join(map(str, self.shape))
            raise InputError(
                f"input of shape {list(x.shape)}: expected [batch, {sizes}] or [batch, {self.time_steps}, {sizes}]"
            )
        frames = x[:, None] if held else x
        values = OPERATIONS[InputEncoder](self.encoder, None, frames).astype(np.int32)
        steps = np.broadcast_to(values, (len(x), self.time_steps, *self.shape))
        return steps.reshape(*steps.shape[:2], -1) if self.flat else steps

    def _aligned(self, recorded: NDArray[Any], layer: int, batch: int) -> NDArray[Any]:
        """[steps, W, H, C] as recorded -> [T, B, C, H, W] without the steps that the layer was late."""
        late = layer + 1
        kept = recorded[late : late + batch * self.time_steps]
        kept = kept.transpose(0, *range(kept.ndim - 1, 0, -1))
        return kept.reshape(batch, self.time_steps, *kept.shape[1:]).swapaxes(0, 1)


_TOLD = ("format", "scale", "zero_point", "shape", "image", "time_steps", "layers", "output")


def _read_told(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a .net file")
    try:
        with h5py.File(path, "r") as file:
            told = {name: file["statten"][name][()] for name in _TOLD}
            told["flat"] = len(file["layer/0/shape"]) < len(told["shape"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not a .net file of this tool ({reason})") from None
    if int(told["format"]) > FORMAT:
        raise InputError(f"{path}: written in format {told['format']}; this version reads up to {FORMAT}")
    return told


# the process


MISSING = 3
"""Exit status of the child where Lava cannot be imported."""


def _call(command: list[str], limit_s: float, where: str, folder: Path) -> None:
    """Run the child to its end or to the limit; whatever it started ends with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "log").open("w+b") as log:
        try:
            process = subprocess.Popen(  # noqa: S603 - the caller's Python and our own script
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        except OSError as error:
            raise InputError(
                f"{command[0]}: cannot be started ({error.strerror}); name a Python with lava-dl"
            ) from None
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise StattenError(f"{where}: the simulation took longer than {limit_s:g} s and was stopped") from None
        finally:
            _end_session(process)
        log.seek(0)
        text = log.read().decode("utf8", errors="replace").strip()
    if status == MISSING:
        raise InputError(
            f"{command[0]}: cannot import lava-dl ({text.splitlines()[-1]}); see docs/netx.md to install it"
        )
    if status != 0:
        failure = StattenError(f"{where}: the simulation failed: {_reason(text, status)}")
        failure.add_note(text)
        raise failure


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    """Lava's own processes are in the session of the child."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(text: str, status: int) -> str:
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or [f"exit status {status}"])[-1]
