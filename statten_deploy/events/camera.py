"""A camera that is not there: recordings played as a live sensor would send them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.events.events import Events
from statten_deploy.events.frames import in_order
from statten_deploy.events.saccades import uniform


@dataclass(frozen=True, eq=False)
class Chunk:
    """What a camera sends at once: the events of one transfer, maybe none.

    recording: index into the camera's recordings. first, last: of that recording. end_us: all events up to then, on the
    camera's clock, have been sent. behind_s: how much later than `end_us` it was taken, at the camera's speed.
    """

    events: Events
    recording: int
    first: bool
    last: bool
    end_us: int
    behind_s: float = 0.0


class SimulatedCamera:
    """Plays `recordings` one after the other, in chunks of `chunk_us`, on one clock that starts at 0.

    speed: 1 plays in real time, 10 ten times as fast; None does not wait at all. A consumer that is slower than the
    camera is not waited for: chunks come at once until it has caught up, and `Chunk.behind_s` tells by how much it
    lags. pause_us: silence after each recording. seed: None plays in the order given, a number in another, always the
    same for it. `clock` and `sleep` count seconds.
    """

    def __init__(
        self,
        recordings: Sequence[Events],
        *,
        chunk_us: int = 1000,
        pause_us: int = 0,
        speed: float | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if chunk_us < 1 or pause_us < 0 or (speed is not None and speed <= 0):
            raise InputError(
                f"SimulatedCamera: chunk_us {chunk_us}, pause_us {pause_us}, speed {speed}; expected at least 1, at "
                "least 0, and more than 0"
            )
        self.recordings = recordings
        self.chunk_us = chunk_us
        self.pause_us = pause_us
        self.speed = speed
        self.order = list(range(len(recordings)))
        if seed is not None:
            self.order = np.argsort(uniform(seed, len(recordings)), kind="stable").tolist()
        self._clock = clock
        self._sleep = sleep

    def __iter__(self) -> Iterator[Chunk]:
        """One pass over all recordings."""
        began = self._clock()
        for chunk in self._chunks():
            yield chunk if self.speed is None else replace(chunk, behind_s=self._wait(began, chunk.end_us))

    def _wait(self, began: float, end_us: int) -> float:
        """Until the chunk is due; by how many seconds that is past already."""
        due = began + end_us / 1e6 / (self.speed or 1)
        early = due - self._clock()
        if early > 0:
            self._sleep(early)
        return max(0.0, -early)

    def _chunks(self) -> Iterator[Chunk]:
        now, size = 0, None
        for index in self.order:
            events = in_order(self.recordings[index])
            size = size or events.size
            if events.size != size:
                raise InputError(f"recording {index}: of a sensor of {events.size}, the first is of {size}; play one")
            begin = int(events.t[0]) if len(events) else 0
            moved = Events(events.t - begin + now, events.x, events.y, events.p, events.size)
            length = (int(events.t[-1]) - begin + 1 if len(events) else 0) + self.pause_us
            count = max(1, -(-length // self.chunk_us))
            start = 0
            for i in range(count):  # which may be many, after a wrong time stamp: no table of them
                end = now + (i + 1) * self.chunk_us
                stop = int(np.searchsorted(moved.t, end))
                yield Chunk(moved[start:stop], index, i == 0, i == count - 1, end)
                start = stop
            now += count * self.chunk_us
