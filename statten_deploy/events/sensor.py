"""An event camera: every pixel tells when its log intensity has changed by a threshold."""

import numpy as np
import numpy.typing as npt

from statten_deploy.events.events import Events

UNIT = 1 << 16
"""Levels per factor e of intensity: levels are `UNIT` · ln(intensity), rounded, so that all arithmetic is exact."""


def threshold_events(
    levels: npt.NDArray[np.int64], times_us: npt.NDArray[np.int64], thresholds: npt.NDArray[np.int64]
) -> Events:
    """Events of pixels whose levels run from sample to sample in straight lines.

    Pixel by pixel, with L the level, R a reference that starts at L[0], and th the pixel's threshold:

        while |L - R| >= th:   emit an event of polarity sign(L - R);   R <- R + sign(L - R) · th

    at the time when the straight line between two samples reaches R + th (or R - th), rounded down to a microsecond.
    There is no refractory period. levels [K, H, W] and thresholds [H, W] in 1 / `UNIT`, times_us [K], ascending; the
    events come sorted by time, at equal times row by row. Whole numbers throughout: the same events on every machine.

    Source of the model: Lichtsteiner et al., "A 128x128 120 dB 15 us latency asynchronous temporal contrast vision
    sensor", JSSC 2008; interpolation as in Rebecq et al., "ESIM: an open event camera simulator", CoRL 2018.
    """
    height, width = levels.shape[1:]
    flat, step = levels.reshape(len(levels), -1), thresholds.ravel()
    crossings, references = _crossings(flat, step)
    k, pixel = np.nonzero(crossings)  # each step's crossings of each pixel: `count` of them, in one direction
    count = np.abs(crossings[k, pixel]).astype(np.int64)
    k, pixel = np.repeat(k, count), np.repeat(pixel, count)
    nth = np.arange(len(k)) - np.repeat(np.cumsum(count) - count, count) + 1  # 1, 2, .. within each step and pixel
    on = crossings[k, pixel] > 0
    crossed = references[k, pixel].astype(np.int64) + np.where(on, nth, -nth) * step[pixel]
    start, end = flat[k, pixel], flat[k + 1, pixel]
    t = times_us[k] + (crossed - start) * (times_us[k + 1] - times_us[k]) // (end - start)
    order = np.argsort((t - times_us[0]) * len(step) + pixel, kind="stable")
    pixel = pixel[order]
    x, y = (pixel % width).astype(np.uint16), (pixel // width).astype(np.uint16)
    return Events(t[order], x, y, on[order], (height, width))


def _crossings(
    levels: npt.NDArray[np.int64], step: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How often each reference moves in each step, up (+) or down (-), and where it was. Both [K - 1, pixels]."""
    exact = levels.astype(np.float64)  # quotients of whole numbers below 2^26 do not round up to the next whole number
    width = step.astype(np.float64)
    crossings, references = np.empty((2, len(exact) - 1, len(width)))
    reference = exact[0].copy()
    for moved, before, level in zip(crossings, references, exact[1:], strict=True):
        before[:] = reference
        np.subtract(level, reference, out=moved)
        moved /= width
        np.trunc(moved, out=moved)
        reference += moved * width
    return crossings, references
