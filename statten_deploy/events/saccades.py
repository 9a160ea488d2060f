"""Small images moved in front of an event camera along three saccades, as N-MNIST was recorded."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from statten_deploy.events.events import Events, concatenate
from statten_deploy.events.sensor import UNIT, threshold_events

SIZE = (32, 32)
"""Height and width of the sensor."""
PIXELS_PER_CELL = 3
"""Every pixel of the image is so many sensor pixels wide."""
SUBPIXELS = 32
"""Positions are in 1/32 of a sensor pixel."""
SACCADE_US = 100_000
SAMPLE_US = 4_000
VERTICES = ((-2.0, -2.0), (0.0, 2.0), (2.0, -2.0), (-2.0, -2.0))
"""Where the saccades start and end, (right, down) of the middle, in pixels."""
JITTER = 0.5
"""Each vertex of a recording is up to so many pixels off, either way."""
OFF_CENTRE = 1.0
"""And the whole image."""
BRIGHTEST = 16
DARK = 0.1
"""Intensity of black, as a share of that of white: log(0) is no level."""
THRESHOLD = 0.35
"""Change of ln(intensity) that makes an event, on average over the pixels."""
MISMATCH = 0.1
"""A pixel's own threshold is up to this share higher or lower."""
NOISE_EVENTS = 64
"""Per recording, anywhere, at any time, of either polarity: 0.2 a second and pixel."""
CAMERA_SEED = 0


def saccade_events(image: npt.NDArray[np.integer], seed: int) -> Events:
    """The recording of a square `image` [n, n] of whole numbers 0 .. 16 on a black background: 300 ms, 32x32 pixels.

    The image, enlarged (bilinear), moves at constant speed along a triangle and back to where it started. Position,
    form of the triangle and noise follow from `seed`; the pixels' thresholds are those of one camera, always the same.
    """
    draw = uniform(seed, 10 + 3 * NOISE_EVENTS)
    times, path = _path(draw[:10])
    weights = _weights(path, len(image))  # [K, 2, pixels, n]
    light = weights[:, 1] @ image.astype(np.float32) @ weights[:, 0].swapaxes(1, 2)  # whole numbers below 2^24: exact
    signal = threshold_events(_levels()[light.astype(np.int64)], times, _thresholds())
    events = concatenate([signal, _noise(draw[10:], int(times[-1]))])
    place = events.t * (SIZE[0] * SIZE[1]) + events.y.astype(np.int64) * SIZE[1] + events.x
    return events[np.argsort(place, kind="stable")]


def uniform(seed: int, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1) from `seed`: raw bits of Philox, which numpy promises never to change."""
    bits = np.random.Philox(key=seed).random_raw(count) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _path(draw: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Times [K] in microseconds and positions [K, 2] (right, down) in 1/32 pixel."""
    centre = (2 * draw[:2] - 1) * OFF_CENTRE
    corners = np.array(VERTICES) + (2 * draw[2:].reshape(4, 2) - 1) * JITTER + centre
    corners = np.floor(corners * SUBPIXELS + 0.5).astype(np.int64)
    steps = SACCADE_US // SAMPLE_US
    share = np.arange(steps)[:, None]
    sides = [(a * (steps - share) + b * share + steps // 2) // steps for a, b in pairwise(corners)]
    path = np.concatenate([*sides, corners[-1:]])
    return np.arange(len(path), dtype=np.int64) * SAMPLE_US, path


def _weights(path: npt.NDArray[np.int64], cells: int) -> npt.NDArray[np.float32]:
    """Bilinear weights in 1/96 of the image's columns and rows in those of the sensor: [K, 2, pixels, cells]."""
    cell = PIXELS_PER_CELL * SUBPIXELS
    centres = SUBPIXELS * np.arange(SIZE[0]) + SUBPIXELS // 2  # of the pixels
    first = SUBPIXELS * SIZE[0] // 2 - (cells - 1) * cell // 2  # where the first cell's centre is
    distance = centres[:, None] - first - cell * np.arange(cells) - path[:, :, None, None]
    weights: npt.NDArray[np.float32] = np.maximum(cell - np.abs(distance), 0).astype(np.float32)
    return weights


@cache
def _levels() -> npt.NDArray[np.int64]:
    """Level of every amount of light: UNIT · ln(1 + light / (DARK · most))."""
    most = BRIGHTEST * (PIXELS_PER_CELL * SUBPIXELS) ** 2
    return np.array([round(UNIT * math.log1p(light / (DARK * most))) for light in range(most + 1)], dtype=np.int64)


@cache
def _thresholds() -> npt.NDArray[np.int64]:
    spread = (2 * uniform(CAMERA_SEED, SIZE[0] * SIZE[1]) - 1) * MISMATCH
    return np.floor((1 + spread) * THRESHOLD * UNIT).astype(np.int64).reshape(SIZE)


def _noise(draw: npt.NDArray[np.float64], duration_us: int) -> Events:
    when, where, sign = draw.reshape(3, -1)
    pixel = (where * SIZE[0] * SIZE[1]).astype(np.int64)
    x, y = (pixel % SIZE[1]).astype(np.uint16), (pixel // SIZE[1]).astype(np.uint16)
    return Events((when * duration_us).astype(np.int64), x, y, sign < 0.5, SIZE)
