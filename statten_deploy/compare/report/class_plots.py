"""What was taken for what, and where layers differ from the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from statten_deploy.compare.comparison import BackendResult
from statten_deploy.compare.report import text as show
from statten_deploy.compare.report.drawing import (
    FAINTEST,
    HEAT,
    INK,
    LABEL_WIDTH,
    MARKERS,
    QUIET,
    RULE,
    SERIES,
    Plot,
    draw,
    heat_cells,
    write_in,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERED_CLASSES = 20
"""Up to here every cell of a confusion matrix shows its count."""
DRAWN_CLASSES = 100
"""Beyond this a cell would be smaller than a dot; the most frequent confusions are listed instead."""
LISTED = 10
DRAWN_LAYERS = 40


@dataclass(frozen=True)
class Confused:
    """Samples of class `true` that were taken for `predicted`."""

    true: int
    predicted: int
    samples: int
    share: float
    """Of the samples of class `true`."""


def confusions(matrix: Sequence[Sequence[int]]) -> list[Confused]:
    """The most frequent mistakes, most frequent first."""
    counts = np.asarray(matrix, dtype=np.int64)
    wrong = counts * (1 - np.eye(*counts.shape, dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    found = []
    for place in order:
        true, predicted = (int(index) for index in np.unravel_index(place, counts.shape))
        if wrong[true, predicted]:
            samples = int(wrong[true, predicted])
            found.append(Confused(true, predicted, samples, samples / int(counts[true].sum())))
    return found


def confusion_matrix(names: Sequence[str], matrix: Sequence[Sequence[int]], name: str) -> Plot | None:
    """Rows true, columns predicted; colour by share of the row. None for more classes than can be drawn."""
    counts = np.asarray(matrix, dtype=np.int64)
    classes = len(counts)
    if counts.ndim != 2 or not 0 < classes <= DRAWN_CLASSES or not counts.sum():
        return None
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    opacity = np.where(counts > 0, FAINTEST + (1 - FAINTEST) * shares, 0.0)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        if classes <= NUMBERED_CLASSES:
            heat_cells(axes, opacity)
            _counts(axes, counts)
        else:
            from matplotlib.colors import to_rgb

            image = np.concatenate([np.broadcast_to(to_rgb(HEAT), (*counts.shape, 3)), opacity[..., None]], axis=2)
            axes.imshow(image, extent=(0, classes, classes, 0), interpolation="none", aspect="auto")
            axes.plot([0, 0, classes, classes, 0], [0, classes, classes, 0, 0], color=RULE, linewidth=0.8)
        every = max(1, -(-classes // 20))
        ticks = np.arange(0, classes, every)
        axes.set_xticks(ticks + 0.5, [str(tick) for tick in ticks])
        axes.set_yticks(ticks + 0.5, [str(tick) for tick in ticks])
        axes.set_xlim(0, classes)
        axes.set_ylim(classes, 0)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")

    right = int(np.trace(counts))
    worst = "; ".join(f"{c.samples} of class {c.true} taken for {c.predicted}" for c in confusions(matrix)[:5])
    return draw(
        f"confusion-{name}",
        f"Confusion matrix: {show.listed(names, 60)}",
        f"{right:,} of {int(counts.sum()):,} on the diagonal. {'Most frequent: ' + worst if worst else 'No mistakes'}.",
        380,
        paint,
        note="Colour: share of the true class." + (" Numbers: samples." if classes <= NUMBERED_CLASSES else ""),
    )


def _counts(axes: "Axes", counts: NDArray[np.int64]) -> None:
    digits = len(str(int(counts.max())))
    size = min(10.0, 320 / len(counts) / (0.68 * max(digits, 2)))
    for y, x in np.ndindex(counts.shape):
        if counts[y, x]:
            write_in(axes, x + 0.5, y + 0.5, str(counts[y, x]), size)


def layer_differences(held: Sequence[BackendResult], name: str, title: str) -> Plot | None:
    """Per layer and backend the difference to the reference in percent; None where every layer is equal."""
    found = {row.name: {layer: value for layer, value in differences(row).items() if value} for row in held}
    found = {backend: values for backend, values in found.items() if values}
    names = list(dict.fromkeys(layer.name for row in held for layer in row.layers))
    differing = [layer for layer in names if any(layer in values for values in found.values())]
    if not differing:
        return None
    kept = sorted(differing, key=lambda layer: -max(abs(values.get(layer, 0.0)) for values in found.values()))
    shown = [layer for layer in differing if layer in kept[:DRAWN_LAYERS]]
    place = {layer: position for position, layer in enumerate(shown)}

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axvline(0, color=QUIET, linewidth=1)
        for number, (backend, values) in enumerate(found.items()):
            shift = 0.6 * ((number + 0.5) / len(found) - 0.5)
            points = [(value * 100, place[layer] + shift) for layer, value in values.items() if layer in place]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                MARKERS[number % len(MARKERS)],
                color=SERIES[number % len(SERIES)],
                markeredgecolor=INK,
                markeredgewidth=0.8,
                markersize=6.5,
                label=show.shortened(backend, 60),
            )
        widest = max(abs(value) for values in found.values() for value in values.values()) * 115
        axes.set_xlim(-widest, widest)
        axes.set_yticks(range(len(shown)), show.labels(shown, LABEL_WIDTH), fontsize=9)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(True)
        axes.set_xlabel("difference to the reference (%)")
        figure.legend(loc="outside lower left", handletextpad=0.3, labelspacing=0.45, borderaxespad=0.2)

    alt = "; ".join(
        f"{backend}: {len(values)} layers differ, most {layer} by {show.relative(values[layer])}"
        for backend, values in found.items()
        for layer in [max(values, key=lambda key: abs(values[key]))]
    )
    equal = len(names) - len(differing)
    return draw(
        name,
        title,
        f"{alt}.",
        62 + 16 * len(shown) + 17 * len(found),
        paint,
        note="SynOps of what has synapses, spikes of what fires. "
        + (f"The {DRAWN_LAYERS} largest of {len(differing)}. " if len(differing) > DRAWN_LAYERS else "")
        + (f"{equal} further layers are equal in every backend." if equal else ""),
    )


def differences(row: BackendResult) -> dict[str, float]:
    """Per layer: of its SynOps where it has any, else of its spikes."""
    found = {}
    for layer in row.layers:
        value = layer.relative_synops if layer.relative_synops is not None else layer.relative_spikes
        if value is not None:
            found[layer.name] = value
    return found
