"""Simulates a `.net` file with lava-dl under Lava, in a process of its own with a time limit."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError, StattenError
from statten_deploy.export.netx.writer import FORMAT, MESSAGE_BITS
from statten_deploy.fixed_point.runner import OPERATIONS, IntegerResult
from statten_deploy.ir.integer import InputEncoder
from statten_deploy.untrusted.hdf5 import examine

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
        self.layers: list[str] = told["layers"]
        self.output: str = told["output"]
        self.time_steps: int = told["time_steps"]
        self.shape: tuple[int, ...] = told["shape"]
        self.input_shape = self.shape if told["image"] else (self.time_steps, *self.shape)
        self.encoder = InputEncoder(told["scale"], told["zero_point"])
        self.flat: bool = told["flat"]
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
        with tempfile.TemporaryDirectory(prefix="statten-netx-", dir=_short_folder()) as folder:
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


LARGEST = 1 << 16
"""Most of anything that is counted: steps, layers, the size of an axis."""
MOST_VALUES = 1 << 26
"""Most values of one frame."""
MOST_BYTES = 1 << 20
"""Most that is read of one entry."""


def _read_told(path: Path) -> dict[str, Any]:
    """The group `statten` of a file, every value checked."""
    examine(path, ".net")
    try:
        with h5py.File(path, "r") as file:
            version = _integer(file, "statten/format", 1, np.iinfo(np.int64).max)
            if version > FORMAT:
                raise InputError(f"{path}: written in format {version}; this version reads up to {FORMAT}")
            return _checked(file)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())[:160]
        raise InputError(f"{path}: not a .net file of this tool ({reason}); export again") from None


def _checked(file: h5py.File) -> dict[str, Any]:
    """As `_told` of the writer gives them; a ValueError says what is wrong."""
    shape = _integers(file, "statten/shape", 1, LARGEST)
    if not 1 <= len(shape) <= 4 or prod(shape) > MOST_VALUES:
        raise ValueError(f"statten/shape is {shape[:5]}, expected 1 to 4 sizes, at most {MOST_VALUES} values")
    scale = _values(file, "statten/scale", "f", "real numbers")
    if scale.shape != shape[:1] or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"statten/scale: expected {shape[0]} positive numbers, one per channel")
    zero_point = _integers(file, "statten/zero_point", 0, 255)
    if len(zero_point) != shape[0]:
        raise ValueError(f"statten/zero_point: expected {shape[0]} bytes, one per channel")
    image = _values(file, "statten/image", "b", "a truth value")
    layers, output = _names(file, "statten/layers"), _names(file, "statten/output")
    if image.ndim or len(output) != 1:
        raise ValueError(f"statten/{'image' if image.ndim else 'output'}: expected one value")
    first = _integers(file, "layer/0/shape", 1, MOST_VALUES)
    if first not in (shape, (prod(shape),)):
        raise ValueError(f"layer/0/shape is {first[:5]}, statten/shape is {shape}")
    count = len(file["layer"])
    if not count <= LARGEST:
        raise ValueError(f"{count} layers, expected at most {LARGEST}")
    kinds = [_names(file, f"layer/{index}/type")[0] for index in range(count)]
    if len(layers) != sum(kind not in ("input", "flatten") for kind in kinds):
        raise ValueError(f"statten/layers names {len(layers)} layers, the file has {count} with the input")
    return {
        "scale": scale,
        "zero_point": np.array(zero_point),
        "shape": shape,
        "image": bool(image),
        "time_steps": _integer(file, "statten/time_steps", 1, LARGEST),
        "layers": layers,
        "output": output[0],
        "flat": len(first) < len(shape),
    }


def _values(file: h5py.File, name: str, kinds: str, expected: str) -> NDArray[Any]:
    """An entry of the wanted kinds of numbers; its type and size are known before it is read."""
    entry = file[name]
    if not isinstance(entry, h5py.Dataset) or entry.shape is None or entry.dtype.kind not in kinds:
        raise ValueError(f"{name}: expected {expected}")
    if entry.ndim > 1 or entry.size * entry.dtype.itemsize > MOST_BYTES:
        raise ValueError(f"{name} has shape {entry.shape}, expected at most one axis and {MOST_BYTES} bytes")
    return np.asarray(entry[()])


def _integers(file: h5py.File, name: str, least: int, most: int) -> tuple[int, ...]:
    values = _values(file, name, "iu", "whole numbers")
    if values.ndim != 1 or not ((values >= least) & (values <= most)).all():
        raise ValueError(f"{name}: expected a list of whole numbers from {least} to {most}")
    return tuple(values.tolist())


def _integer(file: h5py.File, name: str, least: int, most: int) -> int:
    value = _values(file, name, "iu", "a whole number")
    if value.ndim or not least <= int(value) <= most:
        raise ValueError(f"{name}: expected one whole number from {least} to {most}")
    return int(value)


def _names(file: h5py.File, name: str) -> list[str]:
    values = _values(file, name, "S", "text")
    try:
        names = [value.decode() for value in values.reshape(-1).tolist()]
    except UnicodeDecodeError:
        raise ValueError(f"{name}: is not UTF-8") from None
    if not values.ndim or not 1 <= len(names) <= LARGEST or "" in names or len(set(names)) < len(names):
        raise ValueError(f"{name}: expected a list of different names")
    return names


# the process


MISSING = 3
"""Exit status of the child where Lava cannot be imported."""
STOP_SECONDS = 5.0
"""What the child may take to end everything it started."""
SOCKET_ROOM = 45


def _call(command: list[str], limit_s: float, where: str, folder: Path) -> None:
    """Run the child to its end or to the limit; whatever it started ends with it, or with this process.

    Its standard input stays open as long as this process lives; it ends everything when that closes.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder)}
    with (folder / "log").open("w+b") as log:
        try:
            process = subprocess.Popen(  # noqa: S603 - the caller's Python and our own script
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
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
    assert process.stdin is not None  # a pipe was asked for
    if process.poll() != 0:  # the child's watcher ends the group, gently, so that shared memory is released
        process.stdin.close()
        deadline = time.monotonic() + STOP_SECONDS
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stdin.close()
    process.wait()


def _alive(process: "subprocess.Popen[bytes]") -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _short_folder() -> str | None:
    """Where the scratch folder goes: Python puts sockets into it, whose whole path may have about 100 characters."""
    return None if len(tempfile.gettempdir()) < SOCKET_ROOM else "/tmp"  # noqa: S108 mkdtemp is safe


def _reason(text: str, status: int) -> str:
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or [f"exit status {status}"])[-1]
