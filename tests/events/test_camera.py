"""A simulated camera plays every event once, in order, and does not wait for a slow consumer."""

from itertools import pairwise

import numpy as np
import pytest

from statten_deploy.errors import InputError
from statten_deploy.events import Chunk, Events, FrameBinner, SimulatedCamera, concatenate, empty
from tests.events.encoders import some_events

SIZE = (20, 34)


def recordings(count: int = 3) -> list[Events]:
    return [some_events(100 + 10 * i, seed=i) for i in range(count)]


def test_every_event_once_on_one_clock() -> None:
    told = recordings()
    chunks = list(SimulatedCamera(told, chunk_us=700, pause_us=2000))
    assert [chunk.recording for chunk in chunks if chunk.first] == [0, 1, 2]
    assert [chunk.recording for chunk in chunks if chunk.last] == [0, 1, 2]
    assert all(b.end_us - a.end_us == 700 for a, b in pairwise(chunks))
    for index, recording in enumerate(told):
        part = [chunk.events for chunk in chunks if chunk.recording == index]
        played = concatenate(part)
        assert np.array_equal(played.t - played.t[0], recording.t - recording.t[0])
        for name in "xyp":
            assert np.array_equal(getattr(played, name), getattr(recording, name))
        assert len(part[-1]) == 0  # the pause
    for chunk in chunks:
        assert ((chunk.events.t >= chunk.end_us - 700) & (chunk.events.t < chunk.end_us)).all()


def test_seed_gives_another_order_always_the_same() -> None:
    def order(seed: int | None) -> list[int]:
        return [chunk.recording for chunk in SimulatedCamera(recordings(8), seed=seed) if chunk.first]

    assert order(None) == list(range(8))
    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(8))


def test_a_wrong_time_stamp_fills_no_memory() -> None:
    """The chunks of 36,000 years come one by one."""
    events = Events.of([0, 5, 1 << 60], [0, 1, 2], [0, 1, 2], [1, 0, 1])
    chunks = iter(SimulatedCamera([events]))
    assert [len(next(chunks).events) for _ in range(3)] == [2, 0, 0]


class Clock:
    """Time that passes only while somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds


def play(speed: float, work_s: float) -> tuple[list[Chunk], Clock]:
    clock = Clock()
    camera = SimulatedCamera(recordings(), chunk_us=10_000, speed=speed, clock=lambda: clock.now, sleep=clock.sleep)
    chunks = []
    for chunk in camera:
        chunks.append(chunk)
        clock.now += work_s
    return chunks, clock


def test_real_time_and_faster() -> None:
    for speed in (1.0, 4.0):
        chunks, clock = play(speed, 0.0)
        assert clock.slept == pytest.approx(len(chunks) * 0.01 / speed)
        assert all(chunk.behind_s == pytest.approx(0, abs=1e-9) for chunk in chunks)


def test_slow_consumer_is_told_how_far_it_lags() -> None:
    chunks, clock = play(1.0, 0.013)
    assert clock.slept == pytest.approx(0.01)  # for the first chunk only
    assert [chunk.behind_s for chunk in chunks] == pytest.approx([0.003 * i for i in range(len(chunks))])


def test_camera_into_binner() -> None:
    events = some_events(1000)
    binner = FrameBinner(SIZE, events_per_frame=125)
    frames = [frame for chunk in SimulatedCamera([events], chunk_us=333) for frame in binner.push(chunk.events)]
    assert len(frames) == 8
    assert binner.dropped.late == 0


def test_what_a_camera_must_be_told() -> None:
    with pytest.raises(InputError, match="chunk_us 0"):
        SimulatedCamera([], chunk_us=0)
    with pytest.raises(InputError, match=r"recording 1: of a sensor of \(5, 5\), the first is of \(20, 34\)"):
        list(SimulatedCamera([some_events(), some_events(5, (5, 5))]))
    assert list(SimulatedCamera([])) == []
    (chunk,) = SimulatedCamera([empty(SIZE)])
    assert len(chunk.events) == 0
