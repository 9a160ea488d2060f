"""Frames from a stream: the same however it is cut, and nothing lost without being counted."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import InputError
from statten_deploy.events import Dropped, Events, Frame, FrameBinner, concatenate, frames_by_number, frames_by_time
from statten_deploy.events.binner import BLOCK
from tests.events.encoders import some_events

SIZE = (20, 34)


def stack(frames: list[Frame]) -> np.ndarray:
    return np.stack([frame.counts for frame in frames]) if frames else np.zeros((0, 2, *SIZE), np.float32)


def moments(*t: int) -> Events:
    """One ON event in the corner at every time."""
    return Events(np.array(t, np.int64), *(np.zeros(len(t), np.uint16) for _ in range(2)), np.ones(len(t), np.bool_))


def totals(frames: list[Frame]) -> list[int]:
    assert all(frame.counts.sum() == frame.events for frame in frames)
    return [frame.events for frame in frames]


def test_by_number_is_what_the_whole_recording_gives() -> None:
    events = some_events(800)
    frames = FrameBinner(SIZE, events_per_frame=100).push(events)
    assert np.array_equal(stack(frames), frames_by_number(events, 8, SIZE))
    assert [(frame.start_us, frame.end_us) for frame in frames] == [
        (int(events.t[i]), int(events.t[i + 99])) for i in range(0, 800, 100)
    ]


def test_by_time_is_what_the_whole_recording_gives() -> None:
    events = some_events(800)
    duration = int(events.t[-1] - events.t[0]) // 8
    binner = FrameBinner(SIZE, frame_us=duration)
    frames = binner.push(events)
    last = binner.flush()
    assert last is not None
    whole = frames_by_time(events, 8, SIZE)
    assert np.array_equal(stack(frames)[:7], whole[:7])
    assert np.array_equal(stack([*frames[7:], last]).sum(0), whole[7])  # the rest of the division is a frame more here
    assert [frame.end_us - frame.start_us + 1 for frame in frames] == [duration] * len(frames)
    assert frames[0].start_us == events.t[0]


@st.composite
def streams(draw: st.DrawFn) -> Events:
    """Events with jumps of the clock both ways, and some outside the sensor."""
    steps = draw(st.lists(st.integers(-300, 400) | st.sampled_from([-5000, 5000, 0]), min_size=1, max_size=60))
    t = np.cumsum(np.array(steps, np.int64)) + 1000
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    y, x = (rng.integers(0, side + 2, len(t)).astype(np.uint16) for side in SIZE)
    return Events(t, x, y, rng.random(len(t)) < 0.5)


@settings(deadline=None, max_examples=60)
@given(
    events=streams(),
    cuts=st.lists(st.integers(0, 60), max_size=12),
    rule=st.sampled_from([{"events_per_frame": 1}, {"events_per_frame": 7}, {"frame_us": 1}, {"frame_us": 500}]),
    restart=st.sampled_from([1, 3, 1000]),
)
def test_cuts_change_nothing(events: Events, cuts: list[int], rule: dict[str, int], restart: int) -> None:
    whole, parts = (FrameBinner(SIZE, **rule, max_silence=3, restart_after=restart) for _ in range(2))  # type: ignore[arg-type]
    expected = whole.push(events)
    found: list[Frame] = []
    edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    for start, end in pairwise(edges):
        found += parts.push(events[start:end])
    assert np.array_equal(stack(found), stack(expected))
    assert [(f.start_us, f.end_us, f.events) for f in found] == [(f.start_us, f.end_us, f.events) for f in expected]
    assert parts.dropped == whole.dropped
    last = whole.flush()
    counted = sum(totals(expected)) + (last.events if last else 0)
    lost = whole.dropped
    assert counted + lost.late + lost.outside + lost.unfinished == len(events)


@settings(deadline=None, max_examples=60)
@given(events=streams(), number=st.integers(1, 9))
def test_by_number_one_by_one(events: Events, number: int) -> None:
    """The rule, said as a loop over single events."""
    held: list[int] = []
    limit, frames = None, []
    for t, x, y in zip(events.t.tolist(), events.x, events.y, strict=True):
        if x >= SIZE[1] or y >= SIZE[0] or (limit is not None and t < limit):
            continue
        held.append(t)
        if len(held) == number:
            limit = max(held)
            frames.append((min(held), limit))
            held = []
    found = FrameBinner(SIZE, events_per_frame=number).push(events)
    assert [(frame.start_us, frame.end_us) for frame in found] == frames


@settings(deadline=None, max_examples=60)
@given(events=streams(), duration=st.sampled_from([70, 500]))
def test_by_time_one_by_one(events: Events, duration: int) -> None:
    inside = events[(events.x < SIZE[1]) & (events.y < SIZE[0])]
    window, frames, late = 0, [0], 0
    for t in inside.t.tolist():
        at = (t - int(inside.t[0])) // duration
        if at < window:
            late += 1
            continue
        frames += [0] * (at - window)
        window = at
        frames[-1] += 1
    binner = FrameBinner(SIZE, frame_us=duration, max_silence=1 << 20)
    found = totals(binner.push(events))
    assert found == frames[:-1]
    assert binner.dropped == Dropped(late=late, outside=len(events) - len(inside))


def test_late_events_are_counted_and_left_out() -> None:
    binner = FrameBinner(SIZE, frame_us=100)
    assert totals(binner.push(moments(1000, 1050, 1010, 1120, 1099, 1100))) == [3]  # 1010 is in the open frame
    assert totals(binner.push(moments(1020, 1150, 1200))) == [3]
    assert binner.dropped == Dropped(late=2)
    binner = FrameBinner(SIZE, events_per_frame=2)
    assert totals(binner.push(moments(1050, 1000, 1049, 1050, 900, 1051))) == [2, 2]
    assert binner.dropped == Dropped(late=2)


def test_events_outside_are_counted_and_left_out() -> None:
    events = Events.of([0, 1, 2, 3], [0, 34, 0, 33], [0, 0, 20, 19], [1, 1, 1, 1])
    binner = FrameBinner(SIZE, events_per_frame=2)
    assert totals(binner.push(events)) == [2]
    assert binner.dropped == Dropped(outside=2)


def test_signed_coordinates_below_zero_are_outside() -> None:
    """As a driver gives them, without `Events.of`."""
    x, y = np.array([0, -1, 5, 33], np.int16), np.array([0, 3, -20, 19], np.int16)
    events = Events(np.arange(4), x, y, np.ones(4, np.bool_))  # type: ignore[arg-type]
    binner = FrameBinner(SIZE, events_per_frame=2)
    (frame,) = binner.push(events)
    assert frame.counts[1, 0, 0] == frame.counts[1, 19, 33] == 1
    assert binner.dropped == Dropped(outside=2)


def test_sensor_larger_than_the_frames() -> None:
    events = some_events(400, (40, 68))
    frames = FrameBinner(SIZE, sensor=(40, 68), events_per_frame=100).push(events)
    assert np.array_equal(stack(frames), frames_by_number(events, 4, SIZE))
    with pytest.raises(InputError, match="events cannot be enlarged"):
        FrameBinner(SIZE, sensor=(10, 34), events_per_frame=1)


def test_silence_gives_empty_frames_up_to_a_limit() -> None:
    binner = FrameBinner(SIZE, frame_us=100, max_silence=5)
    assert totals(binner.push(moments(0, 450))) == [1, 0, 0, 0]
    assert totals(binner.push(moments(1250))) == [1, 0, 0, 0, 0, 0]
    assert binner.dropped.silent_frames == 2
    frames = binner.push(moments(1 << 50, (1 << 50) + 100))  # one wrong time stamp cannot fill memory
    assert totals(frames) == [1, 0, 0, 0, 0, 0, 1]
    assert frames[-1].start_us == (1 << 50) // 100 * 100
    assert binner.dropped.silent_frames == 2 + (1 << 50) // 100 - 12 - 1 - 5


def test_a_clock_that_goes_back_begins_a_new_timeline() -> None:
    for rule in ({"frame_us": 100}, {"events_per_frame": 4}):
        binner = FrameBinner(SIZE, restart_after=3, **rule)  # type: ignore[arg-type]
        binner.push(moments(9000, 9010, 9020, 9030, 9100, 9110))
        assert binner.push(moments(10, 20)) == []
        assert binner.push(moments(9120)) == []  # the run of late events has ended
        assert binner.push(moments(30)) == []
        assert binner.push(moments(40, 50)) == []
        assert binner.dropped == Dropped(late=5, unfinished=3, restarts=1)
        assert totals(binner.push(moments(60, 70, 80, 90, 160))) == [4]


def test_advance_finishes_frames_without_events() -> None:
    binner = FrameBinner(SIZE, frame_us=100)
    assert binner.advance(10_000) == []  # no clock yet
    assert binner.push(moments(1000)) == []
    assert binner.advance(1099) == []
    assert totals(binner.advance(1100)) == [1]
    assert totals(binner.advance(1350)) == [0, 0]
    assert totals(binner.push(moments(1300, 1299, 1400))) == [1]
    assert binner.dropped == Dropped(late=1)
    assert FrameBinner(SIZE, events_per_frame=1).advance(10**9) == []


def test_flush_and_reset() -> None:
    binner = FrameBinner(SIZE, events_per_frame=10)
    assert binner.flush() is None
    binner.push(moments(5, 6))
    frame = binner.flush()
    assert frame is not None
    assert (frame.events, frame.start_us, frame.end_us) == (2, 5, 6)
    binner.push(moments(*range(100, 110)))
    binner.reset()
    assert totals(binner.push(moments(*range(10)))) == [10]  # not late: a new recording
    assert binner.dropped == Dropped()


def test_a_whole_recording_at_once_costs_no_more_than_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are looked at a few times each, not once for every frame of the recording."""
    looked, late = 0, FrameBinner._late

    def counting(self: FrameBinner, t: np.ndarray) -> object:
        nonlocal looked
        looked += len(t)
        return late(self, t)

    monkeypatch.setattr(FrameBinner, "_late", counting)
    events = some_events(8 * BLOCK)
    for rule in ({"events_per_frame": BLOCK // 4}, {"frame_us": int(events.t[-1] - events.t[0]) // 32}):
        looked = 0
        frames = FrameBinner(SIZE, **rule).push(events)  # type: ignore[arg-type]
        assert len(events) <= looked < 4 * len(events)
        parts = FrameBinner(SIZE, **rule)  # type: ignore[arg-type]
        pushed = [frame for start in range(0, len(events), 1000) for frame in parts.push(events[start : start + 1000])]
        assert np.array_equal(stack(frames), stack(pushed))
        assert len(frames) >= 31


def test_frames_are_the_callers_own() -> None:
    binner = FrameBinner(SIZE, events_per_frame=1)
    first, second = binner.push(moments(1, 2))
    first.counts[:] = 9
    assert second.counts.sum() == 1
    assert totals(binner.push(concatenate([moments(3)]))) == [1]


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"frame_us": 1, "events_per_frame": 1},
        {"frame_us": 0},
        {"events_per_frame": -1},
        {"frame_us": 1, "max_silence": -1},
        {"frame_us": 1, "restart_after": 0},
    ],
)
def test_what_a_binner_must_be_told(rule: dict[str, int]) -> None:
    with pytest.raises(InputError):
        FrameBinner(SIZE, **rule)  # type: ignore[arg-type]
