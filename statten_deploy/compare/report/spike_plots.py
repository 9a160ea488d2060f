"""When and where neurons fire: rates by layer and step, and the spikes of one sample."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.compare.comparison import BackendResult, LayerResult, Raster
from statten_deploy.compare.report import text as show
from statten_deploy.compare.report.drawing import FAINTEST, INK, LABEL_WIDTH, RULE, Plot, draw, heat_cells, write_in
from statten_deploy.compare.report.groups import firing, rates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 32
"""Steps that a map shows one by one; more are averaged."""
ACROSS = 110
"""Neurons of a layer that a raster has room for."""
SITES = 100_000
"""Neurons times steps that a raster shows at most; networks of many steps and layers show fewer neurons of each."""


def rate_map(row: BackendResult, name: str) -> Plot | None:
    """A cell per layer and step, its share of firing neurons in percent; None where nothing can fire."""
    layers = firing(row)
    if not layers:
        return None
    values, per_column = _by_column([rates(row, layer) for layer in layers])
    largest = float(values.max())
    rows, columns = values.shape

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        heat_cells(axes, _opacity(values, largest))
        size = 8.5 if columns <= 8 else 6.5
        if columns <= 16:
            for y, x in np.ndindex(values.shape):
                text = _rate(float(values[y, x]), columns)
                write_in(axes, x + 0.5, y + 0.5, text, size)
        axes.set_yticks(np.arange(rows) + 0.5, show.labels([layer.name for layer in layers], LABEL_WIDTH), fontsize=9)
        every = max(1, columns // 8)
        ticks = np.arange(0, columns, every)
        axes.set_xticks(ticks + 0.5, [str(int(tick) * per_column + 1) for tick in ticks])
        axes.set_ylim(rows, 0)
        axes.set_xlim(0, columns)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("time step" if per_column == 1 else f"time step (averages of {per_column})")

    least, most = _extremes(layers)
    return draw(
        f"firing-rates-{name}",
        f"Firing rate by layer and step: {show.plain(row.name)}",
        f"Percent of neurons that fire, {len(layers)} layers by {len(layers[0].spikes_by_step)} steps. "
        f"On average most in {most.name}, {show.percent(most.firing_rate)}; "
        f"least in {least.name}, {show.percent(least.firing_rate)}.",
        46 + 15.5 * rows,
        paint,
        note=f"Percent of a layer's neurons that fire in a step; full colour is {show.percent(largest, 1)}.",
    )


def largest_gap(row: BackendResult, reference: BackendResult) -> tuple[float, str, int] | None:
    """The largest difference of a firing rate: how much, in which layer, at which step (from 1)."""
    theirs = {layer.name: rates(reference, layer) for layer in firing(reference)}
    gaps = [
        (abs(mine - other), layer.name, step)
        for layer in firing(row)
        if len(theirs.get(layer.name, ())) == len(layer.spikes_by_step)
        for step, (mine, other) in enumerate(zip(rates(row, layer), theirs[layer.name], strict=True), 1)
    ]
    return max(gaps, key=lambda gap: gap[0], default=None)


def _opacity(values: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    if largest <= 0:
        return np.zeros_like(values)
    return np.where(values > 0, FAINTEST + (1 - FAINTEST) * values / largest, 0.0)


def _by_column(values: Sequence[Sequence[float]]) -> tuple[NDArray[np.float64], int]:
    """[layers, columns] and the steps that a column stands for; layers of fewer steps are filled up with zeros."""
    steps = max(len(row) for row in values)
    full = np.array([[*row, *[0.0] * (steps - len(row))] for row in values])
    per_column = -(-steps // COLUMNS)
    starts = np.arange(0, steps, per_column)
    widths = np.diff(np.append(starts, steps))
    return np.add.reduceat(full, starts, axis=1) / widths, per_column


def _rate(share: float, columns: int) -> str:
    if share == 0:
        return "0"
    text = f"{share * 100:.{1 if columns <= 8 else 0}f}"
    return text if float(text) else ("<0.1" if columns <= 8 else "<1")


def _extremes(layers: Sequence[LayerResult]) -> tuple[LayerResult, LayerResult]:
    ordered = sorted(layers, key=lambda layer: layer.firing_rate)
    return ordered[0], ordered[-1]


def spike_raster(raster: Raster) -> Plot | None:
    """A strip per layer, a row per step, a mark per spike; of large layers evenly spaced neurons."""
    layers = {layer: spikes.reshape(len(spikes), -1) for layer, spikes in raster.layers.items() if spikes.size}
    if not layers:
        return None
    steps = max(len(spikes) for spikes in layers.values())
    strip = max(15.0, min(4.5 * steps, 1800 / len(layers)))
    across = int(np.clip(SITES // (steps * len(layers)), 20, ACROSS))
    drawn = {layer: _sampled(spikes, across) for layer, spikes in layers.items()}

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for position, spikes in enumerate(drawn.values()):
            axes.plot(*_marks(spikes, position), color=INK, linewidth=1.1, solid_capstyle="butt")
        axes.hlines(np.arange(len(drawn) + 1), 0, 1, color=RULE, linewidth=0.6)
        axes.set_yticks(np.arange(len(drawn)) + 0.5, show.labels(list(drawn), LABEL_WIDTH), fontsize=9)
        axes.set_ylim(len(drawn), 0)
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("neurons of the layer, first to last")
        right = axes.secondary_yaxis("right")
        right.set_yticks(np.arange(len(drawn)) + 0.5, [show.percent(s.mean(), 1) for s in layers.values()], fontsize=9)
        right.tick_params(length=0, pad=6)
        right.spines[:].set_visible(False)

    told = f"sample {raster.sample}"
    if raster.label is not None:
        told += f", class {raster.label}"
    if raster.predicted is not None:
        told += f", predicted {raster.predicted}"
    alt = "; ".join(f"{layer}: {int(spikes.sum()):,} of {spikes.size:,}" for layer, spikes in layers.items())
    sampled = any(spikes.shape[1] > across for spikes in layers.values())
    return draw(
        "spike-raster",
        f"Spikes of one sample ({told})",
        f"Spikes of all neurons and steps. {alt}.",
        36 + (strip + 1.5) * len(layers),
        paint,
        note="A strip per layer, in it a row per time step, the first on top; a mark is a spike. "
        + (f"Of layers with more than {across} neurons every n-th is drawn. " if sampled else "")
        + "Right: spikes per neuron and step, all neurons counted.",
    )


def _sampled(spikes: NDArray[np.bool_], across: int) -> NDArray[np.bool_]:
    """[T, at most `across`] neurons, evenly spaced."""
    neurons = spikes.shape[1]
    if neurons <= across:
        return spikes
    return np.asarray(spikes[:, np.linspace(0, neurons - 1, across).round().astype(np.int64)])


def _marks(spikes: NDArray[np.bool_], position: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """One line with gaps: from the top to the bottom of its row for every spike. Coordinates: strip `position`."""
    step, neuron = np.nonzero(spikes)
    steps, neurons = spikes.shape
    gap = np.full(len(step), np.nan)
    x = (neuron + 0.5) / neurons
    top = position + 0.06 + 0.88 * step / steps
    bottom = top + 0.88 / steps * 0.86
    return np.stack([x, x, gap], axis=1).reshape(-1), np.stack([top, bottom, gap], axis=1).reshape(-1)
