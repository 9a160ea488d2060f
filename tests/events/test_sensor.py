"""The model of the sensor against its equation, said as a loop over one pixel, and what moving digits give."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.events import Events
from statten_deploy.events.saccades import NOISE_EVENTS, SIZE, saccade_events, uniform
from statten_deploy.events.sensor import threshold_events
from tests.events.encoders import rows

LEVEL = st.integers(-200_000, 200_000)


def one_pixel(levels: list[int], times: list[int], threshold: int) -> list[tuple[int, bool]]:
    """Every crossing of the straight lines between samples, one by one, in exact fractions."""
    reference, found = levels[0], []
    for k in range(1, len(levels)):
        while abs(levels[k] - reference) >= threshold:
            up = levels[k] > reference
            reference += threshold if up else -threshold
            share = Fraction(reference - levels[k - 1], levels[k] - levels[k - 1])
            found.append((int(times[k - 1] + share * (times[k] - times[k - 1]) // 1), up))
    return found


@settings(deadline=None, max_examples=60)
@given(
    levels=st.lists(st.tuples(LEVEL, LEVEL), min_size=2, max_size=8),
    steps=st.lists(st.integers(1, 5000), min_size=7, max_size=7),
    thresholds=st.tuples(st.integers(500, 90_000), st.integers(500, 90_000)),
)
def test_every_crossing_is_an_event(
    levels: list[tuple[int, int]], steps: list[int], thresholds: tuple[int, int]
) -> None:
    times = np.cumsum([0, *steps])[: len(levels)]
    events = threshold_events(np.array(levels)[:, None], times, np.array(thresholds)[None])
    assert events.size == (1, 2)
    assert (np.diff(events.t) >= 0).all()
    for column in (0, 1):
        of_pixel = events[events.x == column]
        expected = one_pixel([pair[column] for pair in levels], times.tolist(), thresholds[column])
        assert sorted(zip(of_pixel.t.tolist(), of_pixel.p.tolist(), strict=True)) == sorted(expected)


def test_still_scene_is_silent() -> None:
    assert len(threshold_events(np.full((5, 2, 3), 7), np.arange(5), np.full((2, 3), 10))) == 0


def digit(number: int) -> np.ndarray:
    from sklearn.datasets import load_digits

    image: np.ndarray = load_digits().images[number].astype(np.int64)
    return image


def test_recording_of_a_digit() -> None:
    events = saccade_events(digit(0), 0)
    assert events.size == SIZE
    assert (np.diff(events.t) >= 0).all()
    assert events.t[0] >= 0
    assert 290_000 < events.t[-1] <= 300_000
    assert 2000 < len(events) < 5000
    assert 0.4 < events.p.mean() < 0.6
    rate = np.histogram(events.t, 10, (0, 300_000))[0]
    assert rate.min() > 0.4 * rate.max()  # the image never rests


def test_recording_follows_from_its_seed_and_nothing_else() -> None:
    assert rows(saccade_events(digit(3), 3)) == rows(saccade_events(digit(3), 3))
    assert rows(saccade_events(digit(3), 3)) != rows(saccade_events(digit(3), 4))


def test_recordings_never_change() -> None:
    """They are part of what the shipped checkpoint's accuracy means: whole numbers, the same on every machine."""
    digest = hashlib.sha256()
    for number in (0, 700, 1796):
        events = saccade_events(digit(number), number)
        for column in (events.t, events.x, events.y, events.p):
            digest.update(column.tobytes())
    assert digest.hexdigest() == RECORDINGS


RECORDINGS = "4babede57e4be24f07e10b15eb3998e4f2dedafa880dc5d48105a18aa7dda1dc"


def test_dark_scene_shows_the_noise_only() -> None:
    events = saccade_events(np.zeros((8, 8), np.int64), 5)
    assert len(events) == NOISE_EVENTS
    assert len({row[1:3] for row in rows(events)}) > 50


def test_path_moves_the_image_and_not_the_background() -> None:
    """A dot in the middle gives events around the triangle only, and ON where it goes, OFF where it was."""
    image = np.zeros((8, 8), np.int64)
    image[3:5, 3:5] = 16
    events = saccade_events(image, 1)
    near = (np.abs(events.x.astype(int) - 16) < 10) & (np.abs(events.y.astype(int) - 16) < 10)
    assert len(events) - near.sum() < NOISE_EVENTS
    early = events[near & (events.t < 50_000)]  # down and to the right
    on, off = early[early.p], early[~early.p]
    assert on.y.mean() > off.y.mean() + 1
    assert on.x.mean() > off.x.mean()


def test_uniform_numbers() -> None:
    numbers = uniform(7, 10_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.histogram(numbers, 10, (0, 1))[0] == pytest.approx(np.full(10, 1000), rel=0.12)
    assert uniform(0, 2).tolist() == FIRST
    assert not np.array_equal(uniform(7, 10), uniform(8, 10))


FIRST = [0.011546754286331562, 0.24154919656271812]


def test_mirrored_time_is_no_recording() -> None:
    """Guards the order of columns: t is microseconds, x a column, y a row."""
    image = np.zeros((8, 8), np.int64)
    image[:, :2] = 16  # a bar at the left
    events: Events = saccade_events(image, 2)
    signal = events[(events.y > 6) & (events.y < 26)]
    assert np.median(signal.x) < 14
    assert 10 < np.median(signal.y) < 22
