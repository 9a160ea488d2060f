"""Where the time of training goes: by phase over the whole run, by operation over a few steps."""

import os
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler

FILE = "profile.txt"
WAIT, WARMUP, ACTIVE = 2, 1, 5
"""Training steps: so many pass first, in so many the operation profiler settles, so many it records."""

PHASES: dict[str, str] = {
    "[[]_TrainingEpochLoop].train_dataloader_next": "data",
    "[[]Strategy]*.batch_to_device": "data",
    "[[]Strategy]*.training_step": "forward",
    "[[]Strategy]*.backward": "backward",
    "[[]LightningModule]*.optimizer_step": "optimizer",
    "moving average": "moving average",  # the network names it
    "[[]Strategy]*.validation_step": "validation",
    "[[]Callback]*Checkpoint*": "checkpoints",
}
"""Lightning's names of what it does, as patterns, and the phase that each belongs to. The first that fits counts."""
INSIDE_OPTIMIZER = ("forward", "backward", "moving average")
"""These run inside the optimizer's step, except for batches whose gradients are only added up."""
PROFILER, OTHER = "profiler", "other"
"""What profiling itself takes between steps, and everything that has no phase: logging, callbacks, Lightning."""


@dataclass(frozen=True)
class Phase:
    """Time spent in one phase of the whole run, and how often it was entered."""

    name: str
    seconds: float
    calls: int


@dataclass(frozen=True)
class Operation:
    """One operation of torch, without those that it calls: per training step, over the recorded ones."""

    name: str
    calls: float
    milliseconds: float
    share: float
    """Of all operations."""


@dataclass(frozen=True)
class TrainProfile:
    """Phases add up to `seconds`. `recorded_steps` of the `steps` were looked at operation by operation."""

    seconds: float
    steps: int
    phases: tuple[Phase, ...]
    recorded_steps: int
    operations: tuple[Operation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    def text(self, operations: int | None = None) -> str:
        """Two tables; of the operations the most expensive ones, or all."""
        lines = [f"{'phase':<16} {'seconds':>9} {'share':>7} {'ms/step':>9}"]
        for phase in self.phases:
            per_step = f"{phase.seconds / self.steps * 1e3:9.2f}" if self.steps else ""
            lines.append(f"{phase.name:<16} {phase.seconds:9.2f} {phase.seconds / self.seconds:7.1%} {per_step}")
        if not self.operations:
            return "\n".join([*lines, f"by operation: needs more than {WAIT + WARMUP} training steps"])
        shown = self.operations[:operations]
        width = max(len(each.name) for each in shown)
        lines += ["", f"{'operation':<{width}} {'calls/step':>10} {'ms/step':>9} {'share':>7}"]
        lines += [f"{o.name:<{width}} {o.calls:>10.1f} {o.milliseconds:>9.2f} {o.share:>7.1%}" for o in shown]
        if len(shown) < len(self.operations):
            lines.append(f"and {len(self.operations) - len(shown)} more")
        return "\n".join(lines)


class TrainProfiler(Profiler):
    """Lightning tells it when everything starts and stops. On a GPU it waits for the device at the ends of phases."""

    def __init__(self, accelerator: str) -> None:
        super().__init__()
        # Kineto writes notes of its own to stderr; it reads this when torch first profiles.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self._cuda = accelerator == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()
        self._open: dict[str, float] = {}
        self._inside = 0.0  # seconds of the optimizer's steps that belong to other phases
        self._steps = 0
        self._started = self._ended = 0.0
        self._operations: tuple[Operation, ...] = ()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._torch = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1),
            on_trace_ready=self._keep,
        )

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        self._torch.start()
        self._started = self._now()

    def teardown(self, stage: str | None) -> None:
        if self._started and not self._ended:
            self._ended = self._now()
            self._torch.stop()
        super().teardown(stage)

    def start(self, action_name: str) -> None:
        if _phase_of(action_name) is not None:
            self._open[action_name] = self._now()

    def stop(self, action_name: str) -> None:
        phase = _phase_of(action_name)
        if phase is not None and action_name in self._open:
            took = self._now() - self._open.pop(action_name)
            self._seconds[phase] += took
            self._calls[phase] += 1
            if phase in INSIDE_OPTIMIZER and any(_phase_of(name) == "optimizer" for name in self._open):
                self._inside += took
        if action_name == "run_training_batch":
            self._steps += 1
            before = self._now()
            self._torch.step()
            self._seconds[PROFILER] += self._now() - before

    def result(self) -> TrainProfile:
        """Of the run that has ended."""
        seconds = dict(self._seconds)
        if "optimizer" in seconds:
            seconds["optimizer"] -= self._inside
        total = self._ended - self._started
        names = [name for name in dict.fromkeys([*PHASES.values(), PROFILER]) if name in seconds]
        phases = [Phase(name, seconds[name], self._calls[name]) for name in names]
        phases.append(Phase(OTHER, total - sum(phase.seconds for phase in phases), 0))
        return TrainProfile(total, self._steps, tuple(phases), self._recorded(), self._operations)

    def _recorded(self) -> int:
        return max(0, min(self._steps - WAIT - WARMUP, ACTIVE))

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _keep(self, found: torch.profiler.profile) -> None:
        """Self times of the recorded steps, the most expensive first."""
        steps = self._recorded()
        if not steps:
            return
        microseconds = {
            event.key: (event.self_device_time_total if self._cuda else event.self_cpu_time_total, event.count)
            for event in found.key_averages()
            if not event.key.startswith("ProfilerStep")
        }
        total = sum(time for time, _ in microseconds.values()) or 1.0
        operations = (
            Operation(name, count / steps, time / steps / 1e3, time / total)
            for name, (time, count) in microseconds.items()
            if time > 0
        )
        self._operations = tuple(sorted(operations, key=lambda each: -each.milliseconds))


def _phase_of(action: str) -> str | None:
    return next((phase for pattern, phase in PHASES.items() if fnmatchcase(action, pattern)), None)
