"""Event cameras: how the shipped network fares on frames made in other ways, and how fast events become frames.

`python benchmarks/events.py`; two minutes.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from statten_deploy.events import Events, FrameBinner, frames_by_number, frames_by_time
from statten_deploy.events.saccades import SIZE
from statten_deploy.models.checkpoint import load_model
from statten_deploy.train.data.digits_events import digit_recordings

ROOT = Path(__file__).resolve().parents[1]
CHUNK_US = 1000


def streamed(events: Events, steps: int, size: tuple[int, int], **rule: int) -> np.ndarray:
    """The first `steps` frames of a live stream; zeros where the recording ends before."""
    binner = FrameBinner(size, sensor=SIZE, **rule)
    frames = [frame.counts for frame in [*binner.push(events), binner.flush()] if frame is not None][:steps]
    return np.stack(frames + [np.zeros((2, *size), np.float32)] * (steps - len(frames)))


def accuracy() -> None:
    model = load_model(ROOT / "models/zoo/digits-events.ckpt")
    steps, size = model.config.time_steps, model.config.image_size
    started = time.perf_counter()
    recordings, labels = digit_recordings("test")
    told = list(recordings)
    each = (time.perf_counter() - started) / len(told)
    counts = [len(events) for events in told]
    spread = f"{min(counts)} to {max(counts)} events, mean {np.mean(counts):.0f}"
    print(f"{len(told)} recordings, {1e3 * each:.1f} ms each, {spread}")
    ways: dict[str, Callable[[Events], np.ndarray]] = {
        f"by number, {steps} frames": lambda events: frames_by_number(events, steps, size),
        "stream, 400 events a frame": lambda events: streamed(events, steps, size, events_per_frame=400),
        "stream, 300 events a frame": lambda events: streamed(events, steps, size, events_per_frame=300),
        f"by time, {steps} frames": lambda events: frames_by_time(events, steps, size),
    }
    for name, frames_of in ways.items():
        x = torch.from_numpy(np.stack([frames_of(events) for events in told]))
        with torch.inference_mode():
            logits = torch.cat([model.forward_steps(part) for part in x.split(60)], 1).numpy()
        after = [int((logits[: t + 1].mean(0).argmax(1) == labels).sum()) for t in range(steps)]
        print(f"{name}: {after[-1]} of {len(told)} right; after 1, 2, .. frames {after}")


def speed() -> None:
    rng = np.random.default_rng(0)
    count, size = 1_000_000, (720, 1280)
    t = np.sort(rng.integers(0, 1_000_000, count))
    events = Events.of(
        t, rng.integers(0, size[1], count), rng.integers(0, size[0], count), rng.integers(0, 2, count), size
    )
    cuts = np.searchsorted(events.t, np.arange(0, 1_000_001, CHUNK_US))
    for rule in ({"frame_us": 10_000}, {"events_per_frame": 10_000}):
        binner = FrameBinner((16, 16), sensor=size, **rule)
        times = []
        for start, end in pairwise(cuts):
            before = time.perf_counter()
            binner.push(events[start:end])
            times.append(time.perf_counter() - before)
        rate = count / sum(times) / 1e6
        print(
            f"FrameBinner {rule}: {1e3 * statistics.median(times):.3f} ms a push of 1000 events, {rate:.1f} M events/s"
        )


if __name__ == "__main__":
    accuracy()
    speed()
