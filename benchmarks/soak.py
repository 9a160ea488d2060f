"""A day of frames through the runtime: memory, and what streams give against whole samples.

``python benchmarks/soak.py [FILE.onnx] [--frames N | --hours H --rate FPS] [--streams N] [--limit SECONDS]``

Frames come as fast as they can be taken: H hours of a camera at FPS frames a second are H * 3600 * FPS frames, in all
streams together. Prints one JSON object and leaves with exit status 1 if memory grows or results drift.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from statten_deploy.runtime import Session, load

SAMPLES = 32
"""Different samples, over and over."""
MARKS = 40
"""Times at which memory is looked at."""
ROUNDING = 1e-5
"""Of logits: engines order the sums of a batch in another way than those of one sample."""
FLAT_BYTES_PER_FRAME = 8.0
"""A single float that every frame leaves behind would show."""
FLAT_BYTES = 4 << 20
"""What an allocator may still take after the first half."""


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(session: Session, frames: int, streams: int, limit: float = float("inf")) -> dict[str, Any]:
    """Push `frames` frames through `streams` streams, one thread each; every sample is compared with `predict`."""
    generator = np.random.default_rng(0)
    x = generator.random((SAMPLES, *session.sample_shape), dtype=np.float32)
    expected = session.predict(x).logits
    pushes = session.time_steps // session.steps_per_call if session.interface.held else session.time_steps
    per_push = session.steps_per_call if session.interface.held else 1
    rounds = max(1, frames // (streams * pushes * per_push))
    largest = np.zeros(streams)
    done = np.zeros(streams, dtype=np.int64)
    memory: list[tuple[int, int]] = []
    deadline = time.monotonic() + limit

    def camera(number: int) -> None:
        stream = session.stream()
        for turn in range(rounds):
            sample = (turn + number) % SAMPLES
            stream.reset()
            for step in range(pushes):
                result = stream.push(x[sample] if session.interface.held else x[sample, step])
            assert result is not None
            assert result.complete
            largest[number] = max(largest[number], float(np.abs(result.logits - expected[sample]).max()))
            done[number] += pushes * per_push
            if number == 0 and turn % max(1, rounds // MARKS) == 0:
                memory.append((int(done.sum()), resident()))
            if time.monotonic() > deadline:
                return

    started = time.monotonic()
    cameras = [threading.Thread(target=camera, args=(number,)) for number in range(streams)]
    for thread in cameras:
        thread.start()
    for thread in cameras:
        thread.join()
    seconds = time.monotonic() - started
    late = np.array(memory[len(memory) // 2 :], dtype=float)
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 2 else 0.0
    growth = int(late[-1, 1] - late[0, 1])
    return {
        "frames": int(done.sum()),
        "streams": streams,
        "seconds": round(seconds, 1),
        "frames_per_second": round(int(done.sum()) / seconds),
        "largest_difference": float(largest.max()),
        "resident_mb": round(memory[-1][1] / 2**20, 1),
        "growth_bytes": growth,
        "bytes_per_frame": round(slope, 4),
        "flat": growth <= FLAT_BYTES or slope <= FLAT_BYTES_PER_FRAME,
    }


def long_stream(session: Session, frames: int) -> dict[str, Any]:
    """One stream that is never reset: its state stays finite and of one size, and another goes on from half way."""
    generator = np.random.default_rng(1)
    first, second = session.stream(), session.stream()
    size = sum(value.nbytes for value in first.state().values())
    different = 0
    for index in range(frames):
        frame = generator.random(session.frame_shape, dtype=np.float32)
        found = first.push(frame)
        if index == frames // 2:
            second.restore(first.state())
        elif index > frames // 2:
            again = second.push(frame)
            if found is not None and again is not None:
                different += int(not np.array_equal(found.logits, again.logits))
    state = first.state()
    finite = all(np.isfinite(value).all() for value in state.values() if value.dtype.kind == "f")
    return {
        "frames": frames,
        "state_bytes": [size, sum(value.nbytes for value in state.values())],
        "finite": bool(finite),
        "different": different,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", help="default: the shipped digits-stream, exported here")
    parser.add_argument("--frames", type=int, help="instead of --hours and --rate")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second of the camera")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for the streams; what was done counts")
    options = parser.parse_args()
    frames = options.frames or round(options.hours * 3600 * options.rate)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or _export(Path(folder) / "digits-stream.onnx")
        session = load(path, threads=1)
        report = {
            "wanted": frames,
            "single": soak(session, min(frames, 20_000), 1, options.limit / 4),
            "concurrent": soak(session, frames, options.streams, options.limit),
            "unbroken": long_stream(session, min(frames, 20_000)),
        }
    print(json.dumps(report, indent=2))
    parts = report["single"], report["concurrent"]
    good = all(part["flat"] and part["largest_difference"] <= ROUNDING for part in parts)
    good &= report["unbroken"]["finite"] and report["unbroken"]["different"] == 0
    good &= len(set(report["unbroken"]["state_bytes"])) == 1
    return 0 if good else 1


def _export(path: Path) -> Path:
    """In a process of its own, whose memory is not looked at."""
    import subprocess

    model = Path(__file__).parents[1] / "models/zoo/digits-stream.ckpt"
    program = (
        "import sys; from statten_deploy.api import ExportOptions, export_onnx; "
        "export_onnx(sys.argv[1], sys.argv[2], layout='stream', options=ExportOptions(verify=False))"
    )
    subprocess.run([sys.executable, "-c", program, str(model), str(path)], check=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
