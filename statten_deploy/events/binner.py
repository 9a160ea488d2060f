"""Frames of event counts from a live stream, as events arrive."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from statten_deploy.errors import InputError
from statten_deploy.events.events import Events
from statten_deploy.events.frames import Float32Array, check_grid, count_events

BLOCK = 1 << 14
"""Events looked at together: each frame that they finish looks at all that are left of them."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A finished frame: counts [2, H, W] (OFF, ON), its first and last microsecond, and how many events it holds."""

    counts: Float32Array
    start_us: int
    end_us: int
    events: int


@dataclass
class Dropped:
    """What a binner has not counted: events by reason, frames that it left out, and how often it began anew."""

    late: int = 0
    """Events that belong before the open frame."""
    outside: int = 0
    """Events outside the sensor."""
    silent_frames: int = 0
    """Empty frames beyond `max_silence`."""
    unfinished: int = 0
    """Events of frames that were open when the clock went back."""
    restarts: int = 0
    """How often the clock went back."""


class FrameBinner:
    """Gathers events into frames [2, H, W], of `events_per_frame` events or of `frame_us` microseconds each.

    One frame is open at a time. An event counts in it, or finishes it and opens a later one, or is dropped and counted:

    - late: by time, older than the open frame; by number, older than the newest event of the last finished frame.
      Inside the open frame the order of events does not matter.
    - outside: a coordinate that the sensor does not have.
    - After `restart_after` late events in a row the camera's clock has gone back: the open frame is dropped and the
      next event begins a new timeline.

    By time, frames follow each other without gaps: empty ones while nothing happens, at most `max_silence` between two
    events; a single wrong time stamp cannot fill memory. Memory is one frame, whatever arrives. What comes out does not
    depend on how the stream is cut into pushes.

    size: (H, W) of the frames; sensor: (height, width), if larger (see `to_grid`).
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        sensor: tuple[int, int] | None = None,
        events_per_frame: int | None = None,
        frame_us: int | None = None,
        max_silence: int = 64,
        restart_after: int = 1000,
    ) -> None:
        if (events_per_frame is None) is (frame_us is None):
            raise InputError("a FrameBinner needs events_per_frame or frame_us, not both")
        rule = (("events_per_frame", events_per_frame, 1), ("frame_us", frame_us, 1))
        for name, value, least in (*rule, ("max_silence", max_silence, 0), ("restart_after", restart_after, 1)):
            if value is not None and value < least:
                raise InputError(f"{name} {value}: expected at least {least}")
        self.size = size
        self.sensor = sensor or size
        check_grid(self.size, self.sensor)
        self.dropped = Dropped()
        self._number = events_per_frame
        self._duration = frame_us
        self._max_silence = max_silence
        self._restart_after = restart_after
        self._begin()

    def push(self, events: Events) -> list[Frame]:
        """The frames that `events` finish, oldest first."""
        inside = (events.y < self.sensor[0]) & (events.x < self.sensor[1])
        if events.x.dtype.kind == "i" or events.y.dtype.kind == "i":  # not as `Events.of` makes them
            inside &= (events.y >= 0) & (events.x >= 0)
        self.dropped.outside += len(events) - int(np.count_nonzero(inside))
        kept = events[inside]
        done: list[Frame] = []
        for start in range(0, len(kept), BLOCK):
            rest = kept[start : start + BLOCK]
            while len(rest):
                rest = rest[self._take(rest, done) :]
        return done

    def advance(self, now_us: int) -> list[Frame]:
        """By time: the frames that end at or before `now_us` on the camera's clock, for when no events arrive."""
        if self._duration is None or self._start is None:
            return []
        done: list[Frame] = []
        self._open_window((now_us - self._start) // self._duration, done)
        return done

    def flush(self) -> Frame | None:
        """The open frame as it is, at the end of a recording; what comes after begins a new timeline."""
        frame = self._finished() if self._held else None
        self._begin()
        return frame

    def reset(self) -> None:
        """Forget the open frame and the time, as for a new recording; the counts in `dropped` stay."""
        self._begin()

    def _begin(self) -> None:
        self._counts = np.zeros((2, *self.size), np.float32)
        self._held = 0
        self._oldest = self._newest = 0  # of the events held
        self._start: int | None = None  # of window 0, by time
        self._window = 0
        self._limit: int | None = None  # newest event of the last finished frame, by number
        self._late_run = 0

    def _take(self, events: Events, done: list[Frame]) -> int:
        """Use events from the front, up to the end of a frame of `events_per_frame` or to a restart; say how many."""
        late, windows = self._late(events.t)
        used = self._frame_end(late)
        restart = self._restart(late[:used])
        if restart is not None:
            used = restart + 1
        self._count(events[:used], windows[:used], ~late[:used], done)
        self.dropped.late += int(np.count_nonzero(late[:used]))
        if restart is not None:
            self.dropped.restarts += 1
            self.dropped.unfinished += self._held
            self._begin()
        return used

    def _late(self, t: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which events are late, and in which window each is."""
        if self._duration is None:
            return np.zeros(len(t), np.bool_) if self._limit is None else t < self._limit, np.zeros(len(t), np.int64)
        if self._start is None:
            self._start = int(t[0])
        windows = (t - self._start) // self._duration
        opened = np.maximum.accumulate(np.concatenate([[self._window], windows]))[:-1]  # before each event
        return windows < opened, windows

    def _frame_end(self, late: npt.NDArray[np.bool_]) -> int:
        """How many events it takes to finish the open frame by number; all, where they do not suffice."""
        if self._number is None:
            return len(late)
        timely = np.flatnonzero(~late)
        needed = self._number - self._held
        return int(timely[needed - 1]) + 1 if len(timely) >= needed else len(late)

    def _restart(self, late: npt.NDArray[np.bool_]) -> int | None:
        """Where the run of late events becomes too long."""
        position = np.arange(len(late))
        timely = np.maximum.accumulate(np.where(late, -1 - self._late_run, position))
        run = position - timely
        self._late_run = int(run[-1])
        long = np.flatnonzero(run >= self._restart_after)
        return int(long[0]) if len(long) else None

    def _count(
        self, events: Events, windows: npt.NDArray[np.int64], timely: npt.NDArray[np.bool_], done: list[Frame]
    ) -> None:
        events, windows = events[timely], windows[timely]
        for window in np.unique(windows).tolist():
            self._open_window(window, done)
            part = events[windows == window]
            self._oldest = min(self._oldest, int(part.t.min())) if self._held else int(part.t.min())
            self._newest = max(self._newest, int(part.t.max())) if self._held else int(part.t.max())
            self._held += len(part)
            placed = Events(part.t, part.x, part.y, part.p, self.sensor)
            self._counts += count_events(placed, np.zeros(len(part), np.int64), 1, self.size)[0]
        if self._held == self._number:
            self._limit = self._newest  # not less than before: what was older was late
            done.append(self._finished())

    def _open_window(self, window: int, done: list[Frame]) -> None:
        """Finish the open frame and the empty ones before `window`."""
        if window <= self._window:
            return
        done.append(self._finished())
        empty = window - self._window - 1
        for _ in range(min(empty, self._max_silence)):
            self._window += 1
            done.append(self._finished())
        self.dropped.silent_frames += max(0, empty - self._max_silence)
        self._window = window

    def _finished(self) -> Frame:
        """The open frame; an empty one takes its place."""
        start, end = self._oldest, self._newest
        if self._duration is not None and self._start is not None:
            start = self._start + self._window * self._duration
            end = start + self._duration - 1
        frame = Frame(self._counts, start, end, self._held)
        self._counts, self._held = np.zeros_like(self._counts), 0
        return frame
