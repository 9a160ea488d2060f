"""Frames of event counts, compared with those of SpikingJelly, from which the released networks learnt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import InputError
from statten_deploy.events import Events, concatenate, empty, frames_by_number, frames_by_time
from tests.events.encoders import rows, some_events


def spikingjelly(events: Events, split_by: str, count: int, height: int, width: int) -> np.ndarray:
    from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number

    columns = {"t": events.t, "x": events.x.astype(int), "y": events.y.astype(int), "p": events.p.astype(int)}
    frames: np.ndarray = integrate_events_by_fixed_frames_number(columns, split_by, count, height, width)
    return frames


@pytest.mark.parametrize("count", [1, 3, 8, 10, 16])
@pytest.mark.parametrize("number", [16, 17, 500, 999])
def test_by_number_as_spikingjelly(number: int, count: int) -> None:
    events = some_events(number)
    ours = frames_by_number(events, count, (20, 34))
    assert (ours.shape, ours.dtype) == ((count, 2, 20, 34), np.float32)
    assert np.array_equal(ours, spikingjelly(events, "number", count, 20, 34))
    assert ours.sum((1, 2, 3)).tolist() == [number // count] * (count - 1) + [number - (count - 1) * (number // count)]


@pytest.mark.parametrize("count", [1, 3, 8, 10, 16])
def test_by_time_as_spikingjelly(count: int) -> None:
    events = some_events(900)
    assert np.array_equal(frames_by_time(events, count, (20, 34)), spikingjelly(events, "time", count, 20, 34))


def test_off_is_channel_0() -> None:
    events = Events.of([0, 1, 2], [1, 1, 2], [3, 3, 4], [0, 1, 1], (5, 6))
    frame = frames_by_number(events, 1, (5, 6))[0]
    assert (frame[0, 3, 1], frame[1, 3, 1], frame[1, 4, 2], frame.sum()) == (1, 1, 1, 3)


def test_by_time_leaves_silent_frames_zero() -> None:
    events = Events.of([100, 101, 900, 1000], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], (1, 1))
    assert frames_by_time(events, 3, (1, 1))[:, 1, 0, 0].tolist() == [2, 0, 2]


def test_too_few_events_are_in_the_last_frame() -> None:
    events = some_events(3)
    for frames in (frames_by_number(events, 4, (20, 34)), frames_by_time(empty((20, 34)), 4, (20, 34))):
        assert frames[:3].sum() == 0
    assert frames_by_number(events, 4, (20, 34))[3].sum() == 3
    moment = Events.of([7, 7], [0, 1], [0, 0], [1, 1], (20, 34))
    assert frames_by_time(moment, 4, (20, 34))[3].sum() == 2


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1000), count=st.integers(1, 9))
def test_the_order_of_recording_does_not_matter(seed: int, count: int) -> None:
    drawn = some_events(40, seed=seed)
    events = Events(drawn.t + np.arange(40), drawn.x, drawn.y, drawn.p, drawn.size)  # no two at one time
    mixed = events[np.random.default_rng(seed).permutation(40)]
    for split in (frames_by_number, frames_by_time):
        assert np.array_equal(split(mixed, count, (20, 34)), split(events, count, (20, 34)))


def test_events_of_one_time_stay_in_the_order_of_recording() -> None:
    places = np.arange(40)
    t = [9] * 39 + [3]  # the last one comes first
    frames = frames_by_number(Events.of(t, places, np.zeros(40), np.ones(40), (1, 40)), 4, (1, 40))
    assert [np.flatnonzero(frame[1, 0]).tolist() for frame in frames[:2]] == [[*range(9), 39], list(range(9, 19))]


def test_smaller_frames_add_up_neighbours() -> None:
    events = some_events(500, (32, 48))
    full = frames_by_number(events, 4, (32, 48))
    half = frames_by_number(events, 4, (16, 24))
    assert np.array_equal(half, full.reshape(4, 2, 16, 2, 24, 2).sum((3, 5)))
    wide = frames_by_number(events, 4, (8, 48))  # rows and columns each by their own factor
    assert np.array_equal(wide, full.reshape(4, 2, 8, 4, 48).sum(3))
    odd = frames_by_number(some_events(500, (34, 34)), 2, (16, 16))  # no whole factor: nothing is lost
    assert odd.sum() == 500
    assert (odd.sum((0, 1)).sum(0) > 0).all()


@pytest.mark.parametrize("count", [0, -1])
def test_no_frames_are_refused(count: int) -> None:
    for binned in (frames_by_number, frames_by_time):
        with pytest.raises(InputError, match=f"{count} frames: expected at least 1"):
            binned(some_events(9), count, (20, 34))


def test_larger_frames_are_refused() -> None:
    with pytest.raises(InputError, match="have 40 rows and the sensor 20: events cannot be enlarged"):
        frames_by_number(some_events(), 4, (40, 34))
    with pytest.raises(InputError, match="have 35 columns and the sensor 34"):
        frames_by_number(some_events(), 4, (20, 35))


def test_unknown_sensor_is_taken_to_be_the_frame() -> None:
    events = some_events()
    unknown = Events(events.t, events.x, events.y, events.p)
    assert np.array_equal(frames_by_number(unknown, 4, (20, 34)), frames_by_number(events, 4, (20, 34)))
    with pytest.raises(InputError, match=r"outside a sensor of 34x19 \(assumed"):
        frames_by_number(unknown, 4, (19, 34))


def test_events_are_checked_where_they_enter() -> None:
    with pytest.raises(InputError, match=r"columns have shapes t \[2\], x \[1\]"):
        Events.of([0, 1], [0], [0, 0], [0, 1])
    with pytest.raises(InputError, match="y of event 1 is 5, outside a sensor of height 5"):
        Events.of([0, 1], [0, 0], [0, 5], [0, 1], (5, 5))


def test_parts_and_sums() -> None:
    events = some_events(100)
    assert rows(concatenate([events[:30], events[30:]])) == rows(events)
    assert rows(events[events.p]) == [row for row in rows(events) if row[3]]
    assert concatenate([]).size is None
    assert repr(events).startswith("Events(100 events, t ")
