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
    reference = flat[0].copy()
    found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.intp], npt.NDArray[np.bool_]]] = []
    for k in range(1, len(flat)):
        behind = flat[k] - reference
        pixels = np.flatnonzero(np.abs(behind) >= step)
        if not len(pixels):
            continue
        behind = behind[pixels]
        signs, counts = np.sign(behind), np.abs(behind) // step[pixels]
        which = np.repeat(np.arange(len(pixels)), counts)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + 1  # 1, 2, .. within each pixel
        where = pixels[which]
        start, rise = flat[k - 1][where], (flat[k] - flat[k - 1])[where]
        crossed = reference[where] + nth * signs[which] * step[where]
        elapsed = times_us[k] - times_us[k - 1]
        found.append((times_us[k - 1] + (crossed - start) * elapsed // rise, where, signs[which] > 0))
        reference[pixels] += counts * signs * step[pixels]
    t, where, on = (
        np.concatenate(column) if column else np.empty(0, np.int64)
        for column in (list(zip(*found, strict=True)) or ((), (), ()))
    )
    order = np.lexsort((where, t))
    where = where[order]
    x, y = (where % width).astype(np.uint16), (where // width).astype(np.uint16)
    return Events(t[order].astype(np.int64), x, y, on[order].astype(np.bool_), (height, width))
