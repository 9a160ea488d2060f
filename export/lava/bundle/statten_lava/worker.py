"""Load, encode, run, save: the part of run.py that knows Lava. `supervise` starts it and can end it at any time."""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import unfinished
from .shim import prepare_lava

Array = np.ndarray[Any, np.dtype[Any]]
Plan = Mapping[str, Any]

SLOTS = 2
"""Messages that a channel between two processes can hold; everything runs in step, so few are needed."""
SHARED_MEMORY = 512 << 20
"""Bytes of channels that an automatic batch may take."""
LARGEST_BATCH = 32
LARGEST = 1 << 40
"""No count in a plan comes near."""


class BadInputError(Exception):
    """The caller's mistake; reported in one line, without a traceback."""


@dataclass(frozen=True)
class Job:
    """What to run: the options of run.py."""

    bundle: Path
    input: Path
    output: Path
    scratch: Path
    batch: int | None
    spikes: bool
    membranes: bool


def run(job: Job) -> dict[str, Any]:
    """Simulate all samples of the input file and write the output file; returns facts and times.

    Raises:
        BadInputError: the input does not fit the network, or the bundle is damaged.
    """
    plan, weights = read_bundle(job.bundle)
    x = read_frames(plan, job.input)
    with damaged():
        frames = encode(plan, weights, x)
        batch = job.batch or automatic_batch(plan, len(frames))
    rounds = -(-len(frames) // batch)
    started = time.perf_counter()
    prepare_lava()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from .network import build

    source = sequence(plan, frames, batch, rounds)
    with damaged():
        network = build(
            plan, weights, source, rounds=rounds, folder=job.scratch, spikes=job.spikes, membranes=job.membranes
        )
    steps = rounds * int(plan["time_steps"]) + int(plan["latency_steps"])
    first = network.processes[plan["input"]["encoder"]]
    first.create_runtime(run_cfg=Loihi2SimCfg(select_tag="fixed_pt"), compile_config={"pypy_channel_size": SLOTS})
    with Watch(first.runtime):
        ready = time.perf_counter()
        first.run(condition=RunSteps(num_steps=steps))
        ended = time.perf_counter()
    first.stop()  # only now: after a failure it would wait for ever
    save(plan, network, len(frames), rounds, job.output)
    return {
        "samples": len(frames),
        "batch": batch,
        "steps": steps,
        "processes": len(network.processes),
        "start_seconds": round(ready - started, 3),
        "ms_per_step": round((ended - ready) * 1e3 / steps, 3),
    }


@contextlib.contextmanager
def damaged() -> Iterator[None]:
    """Where only the bundle's content can be at fault: its exceptions become one line."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise BadInputError(f"damaged bundle: {reason}") from None


def read_bundle(bundle: Path) -> tuple[Plan, dict[str, Array]]:
    """network.json and weights.npz; what every run needs of the plan is there and of the right type.

    Raises:
        BadInputError: one of them is damaged.
    """
    try:
        with damaged():
            plan = json.loads((bundle / "network.json").read_text(encoding="utf-8"))
            check(plan)
        with np.load(bundle / "weights.npz", allow_pickle=False) as file:
            return plan, {name: file[name] for name in file.files}
    except BadInputError:
        raise
    except Exception as error:  # zip, zlib, numpy and json have one kind each
        raise BadInputError(f"damaged bundle: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from None


def check(plan: Any) -> None:
    """ValueError, KeyError or TypeError where a plan is not one."""
    for name, value, least in (
        ("time_steps", plan["time_steps"], 1),
        ("latency_steps", plan["latency_steps"], 0),
        ("channel_values", plan["channel_values"], 1),
        ("output start", plan["output"]["start"], 0),
    ):
        if type(value) is not int or not least <= value < LARGEST:
            raise ValueError(f"{name} is {value!r}, expected a whole number from {least}")
    for name in ("input", "output"):
        shape = plan[name]["shape"]
        if not shape or any(type(size) is not int or not 1 <= size < LARGEST for size in shape):
            raise ValueError(f"the {name}'s shape is {shape!r}, expected positive whole numbers")
    scales = plan["input"]["scale"]
    if len(scales) != plan["input"]["shape"][0]:
        raise ValueError(f"{len(scales)} scales of the input, expected one per channel")
    result, units = plan["output"]["scale"], plan["output"]["units"] or []
    numbers = [*scales, *units, *([] if result is None else [result])]
    if not all(type(scale) in (int, float) and scale > 0 for scale in numbers):
        raise ValueError("a scale is not a positive number")


def read_frames(plan: Plan, path: Path) -> Array:
    """Array ``x`` of the input file as [N, T or 1, C, H, W]; without a time axis the frame is held for all steps."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x = np.asarray(file["x"])
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"{path}: expected an .npz with an array x ({error})") from None
    frame, steps = tuple(plan["input"]["shape"]), int(plan["time_steps"])
    if x.dtype.kind not in "fiub" or not np.isfinite(x).all():
        raise BadInputError(f"{path}: x must hold finite numbers, it is {x.dtype}")
    if len(x) and x.shape[1:] == frame:
        return x[:, None]
    if len(x) and x.shape[1:] == (steps, *frame):
        return x
    expected = ", ".join(map(str, frame))
    raise BadInputError(f"{path}: x is {list(x.shape)}, expected [N, {expected}] or [N, {steps}, {expected}], N >= 1")


def encode(plan: Plan, weights: Mapping[str, Array], x: Array) -> Array:
    """Real frames to the network's integers: ``clip(rint(x / scale), 0, 255) - zero_point``."""
    spread = (-1, *(1,) * (x.ndim - 3))
    scale = np.array(plan["input"]["scale"], dtype=np.float64).reshape(spread)
    zero = weights[f"{plan['input']['encoder']}/zero_point"].astype(np.int64).reshape(spread)
    stored = np.clip(np.rint(x.astype(np.float64) / scale), 0, 255)
    return np.asarray(stored.astype(np.int64) - zero)


def automatic_batch(plan: Plan, samples: int) -> int:
    """As many samples side by side as fit into some shared memory: half of what is free, at most 512 MiB."""
    each = 4 * SLOTS * int(plan["channel_values"])
    try:
        state = os.statvfs("/dev/shm")  # noqa: S108 where multiprocessing keeps its shared memory
        room = min(SHARED_MEMORY, state.f_bavail * state.f_frsize // 2)
    except OSError:
        room = SHARED_MEMORY
    return max(1, min(samples, LARGEST_BATCH, room // each))


def sequence(plan: Plan, frames: Array, batch: int, rounds: int) -> Array:
    """[B, C, H, W, rounds · T] int32: batch after batch, T steps each; the last one filled up with zeros."""
    steps = int(plan["time_steps"])
    full = np.zeros((rounds * batch, *frames.shape[1:]), dtype=np.int32)
    full[: len(frames)] = frames
    full = np.broadcast_to(full, (len(full), steps, *full.shape[2:]))
    split = full.reshape(rounds, batch, *full.shape[1:])  # [rounds, B, T, C, H, W]
    moved = np.moveaxis(split, (0, 2), (-2, -1))  # [B, C, H, W, rounds, T]
    return moved.reshape(*moved.shape[:-2], rounds * steps)


def save(plan: Plan, network: Any, samples: int, rounds: int, path: Path) -> None:
    """The recordings, aligned: [T, N, ...] per layer; logits [N, classes], or output [N, T, ...]."""
    steps = int(plan["time_steps"])
    arrays: dict[str, Array] = {}
    for (kind, name), recording in network.recordings.items():
        rows = np.memmap(recording.path, dtype=recording.dtype, mode="r", shape=recording.shape)
        split = rows.reshape(rounds, steps, *rows.shape[1:])  # [rounds, T, B, ...]
        aligned = split.swapaxes(0, 1).reshape(steps, -1, *rows.shape[2:])[:, :samples]
        if kind != "output":
            arrays[f"{kind}/{name}"] = aligned
        elif plan["output"]["scale"] is None:
            arrays["output"] = aligned.swapaxes(0, 1)
            units = plan["output"]["units"]  # of one integer per channel, or None: spikes
            if units is not None:
                column = np.array(units, dtype=np.float64).reshape(-1, *(1,) * (aligned.ndim - 3))
                arrays["output_scaled"] = arrays["output"] * column
        else:  # a sum over time is complete at the last step
            arrays["logits"] = aligned[-1].astype(np.int64)
            arrays["logits_scaled"] = aligned[-1] * float(plan["output"]["scale"])
    temporary = unfinished(path, os.getpid())
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


class Watch:
    """Ends the run as soon as one of Lava's processes fails, with that process's traceback.

    Lava keeps the traceback of a child to itself and waits for the others, who wait for the one that failed.
    """

    def __init__(self, runtime: Any) -> None:
        self.actors = list(runtime._messaging_infrastructure.actors)
        names = [process.name for process in runtime._executable.proc_builders]
        self.names = [*names, *["Lava's runtime service"] * (len(self.actors) - len(names))]
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:  # Lava noticed first; the thread knows why
            self.thread.join(timeout=5)
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.1):
            for name, actor in zip(self.names, self.actors, strict=True):
                failure = actor.exception
                if failure is not None:
                    fail(f"process {name!r} failed", failure[1])
                with contextlib.suppress(ValueError):  # Lava has closed it
                    if actor.exitcode:
                        fail(f"process {name!r} died with exit status {actor.exitcode}", "")


def fail(reason: str, trace: str) -> None:
    """Report on stderr and leave at once, whatever Lava waits for; the supervisor ends the rest."""
    sys.stderr.write(f"{trace}\n{reason}\n")
    sys.stderr.flush()
    os._exit(1)


def main(job: Job) -> int:
    """Run a job; the facts as one line of JSON on stdout, the reason of a failure last on stderr."""
    try:
        facts = run(job)
    except BadInputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except ImportError as error:
        sys.stderr.write(f"{error}; see README.md for how to install Lava\n")
        return 2
    except Exception as error:
        trace = getattr(error, "trace", None) or traceback.format_exc()  # Lava hands on that of a child
        sys.stderr.write(f"{trace}\n{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0
