"""How long one call takes, taken in turns: whatever else slows the machine down slows all backends down alike."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from statten_deploy.compare.comparison import Latency

SECONDS = 2.0
"""Spent on every backend, unless told otherwise."""
MIN_RUNS = 3
MAX_RUNS = 100
PATIENCE = 10.0
"""A backend whose least runs would take more than this many times the seconds is not measured in full."""


def measure(
    calls: Mapping[str, Callable[[], object]],
    batch: int,
    seconds: float,
    failed: Callable[[str, Exception], None],
) -> dict[str, Latency]:
    """Median and 90th percentile of every call, after one call to warm up, round robin.

    Each gets `seconds`, at least `MIN_RUNS` runs and at most `MAX_RUNS`. Where not even the least runs fit into
    `PATIENCE` times the seconds, the first call is the measurement. A call that raises is out; `failed` hears of it.
    """
    times: dict[str, list[float]] = {}

    def take(name: str) -> float | None:
        start = perf_counter()
        try:
            calls[name]()
        except Exception as error:  # engines raise nearly anything
            times.pop(name, None)
            failed(name, error)
            return None
        return perf_counter() - start

    due = []
    for name in calls:
        first = take(name)
        if first is not None:
            slow = too_slow(first, seconds)
            times[name] = [first] if slow else []
            due += [] if slow else [name]
    while due:
        for name in due:
            taken = take(name)
            if taken is not None:
                times[name].append(taken)
        due = [name for name in due if name in times and _unfinished(times[name], seconds)]
    return {
        name: Latency(batch, float(np.median(found)) * 1e3, float(np.percentile(found, 90)) * 1e3, len(found))
        for name, found in times.items()
    }


def too_slow(call_seconds: float, seconds: float) -> bool:
    """Whether the least runs of a call take too long."""
    return MIN_RUNS * call_seconds > PATIENCE * seconds


def _unfinished(times: list[float], seconds: float) -> bool:
    return len(times) < MIN_RUNS or (sum(times) < seconds and len(times) < MAX_RUNS)


def machine(device: str) -> str:
    """Processor, cores and versions, in words."""
    where = f"{torch.cuda.get_device_name(device)} for torch; " if device.startswith("cuda") else ""
    threads = torch.get_num_threads()
    return (
        f"{where}{_processor()}, {os.cpu_count()} logical cores; torch {torch.__version__} on {threads} "
        f"thread{'' if threads == 1 else 's'}, Python {platform.python_version()}, {platform.system()}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
