"""Accuracy against energy, and where the energy goes. One profile per plot: families and chips share no axis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from statten_deploy.compare.comparison import BackendResult, ProfileInfo
from statten_deploy.compare.report import text as show
from statten_deploy.compare.report.drawing import INK, MARKERS, ON_SERIES, SERIES, Plot, draw, write_in
from statten_deploy.compare.report.groups import Group, blocks, grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_LAYERS = len(SERIES) - 1
"""Layers that get a colour and a number of their own; the rest is one segment."""
ENOUGH = 2 / 3
"""Share of the energy that a plot of the largest layers must show, else it shows blocks."""
BLOCKS = 12
LEGEND_WIDTH = 54
"""Characters of a legend's line."""


def accuracy_energy(rows: Sequence[BackendResult], profile: ProfileInfo, name: str) -> Plot | None:
    """A point per backend with the 95 % interval of its accuracy; None where nobody has both.

    Backends whose accuracy, interval and energy read the same share a point.
    """
    known = [row for row in rows if row.accuracy is not None and profile.name in row.energy]
    if not known:
        return None
    unit = show.energy_unit(row.energy[profile.name].total_pj for row in known)

    def reading(row: BackendResult) -> tuple[str, str, str]:
        energy = unit.text(row.energy[profile.name].total_pj)
        return show.percent(row.accuracy), show.interval(row.accuracy_interval), energy

    groups = grouped(known, reading)
    energies = [group.first.energy[profile.name].total_pj / unit.pj for group in groups]
    left, right = _range(energies)
    places = _side_by_side(energies, right - left)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for number, (group, x) in enumerate(zip(groups, places, strict=True)):
            accuracy = group.first.accuracy or 0.0
            low, high = group.first.accuracy_interval or (accuracy, accuracy)
            colour = SERIES[number % len(SERIES)]
            for width, shade in ((3.6, INK), (2.0, colour)):  # edged, so that bars side by side stay apart
                axes.vlines(x, low * 100, high * 100, color=shade, linewidth=width)
            axes.plot([x, x], [low * 100, high * 100], "_", color=INK, markersize=8)
            axes.plot(
                x,
                accuracy * 100,
                MARKERS[number % len(MARKERS)],
                color=colour,
                markeredgecolor=INK,
                markeredgewidth=0.9,
                markersize=9,
                linestyle="none",
                zorder=3,
                label=_legend(group, reading(group.first)),
            )
        axes.set_xlim(left, right)
        axes.set_xlabel(f"energy per sample ({unit.symbol})")
        axes.set_ylabel("accuracy (%)")
        axes.grid(True)
        figure.legend(loc="outside lower left", handletextpad=0.4, labelspacing=0.55, borderaxespad=0.2)

    alt = "; ".join(
        f"{', '.join(group.names)}: accuracy {percent} (95 % interval {interval}), {energy}"
        for group in groups
        for percent, interval, energy in [reading(group.first)]
    )
    return draw(
        f"accuracy-energy-{name}",
        f"Accuracy against energy: {show.plain(profile.name)}",
        f"{alt}.",
        205 + 17 * len(groups),
        paint,
        note="Bars: 95 % interval of the accuracy. Up and to the left is better. Neither axis starts at zero."
        + (" Points of nearly the same energy are drawn side by side." if places != energies else ""),
    )


def _legend(group: Group, reading: tuple[str, str, str]) -> str:
    percent, _, energy = reading
    values = f" ({percent}, {energy})"
    return show.listed(group.names, LEGEND_WIDTH - len(values)) + values


def _range(values: Sequence[float]) -> tuple[float, float]:
    """At least a tenth of the value wide: differences in the fourth digit must not look like differences."""
    middle, span = (min(values) + max(values)) / 2, max(max(values) - min(values), 0.1 * max(values), 1e-12)
    return max(0.0, middle - 0.7 * span), middle + 0.7 * span


def _side_by_side(values: Sequence[float], width: float) -> list[float]:
    """The values; those closer than a marker's size pushed apart around their middle."""
    gap = 0.035 * width
    order = sorted(range(len(values)), key=lambda index: values[index])
    runs: list[list[int]] = []
    for index in order:
        if runs and values[index] - values[runs[-1][-1]] < gap:
            runs[-1].append(index)
        else:
            runs.append([index])
    places = list(values)
    for run in runs:
        if len(run) > 1:
            middle = (values[run[0]] + values[run[-1]]) / 2
            for position, index in enumerate(run):
                places[index] = middle + gap * (position - (len(run) - 1) / 2)
    return places


def energy_layers(rows: Sequence[BackendResult], profile: ProfileInfo, name: str) -> Plot | None:
    """A bar per backend, cut into layers; None where there is no energy at all."""
    known = [row for row in rows if profile.name in row.energy and row.energy[profile.name].total_pj > 0]
    if not known:
        return None
    unit = show.energy_unit(row.energy[profile.name].total_pj for row in known)
    segments, note = _segments(known, profile.name)
    parts = {row.name: _parts(row, profile.name, segments) for row in known}
    first = known[0]
    shares = [show.percent(part / first.energy[profile.name].total_pj, 1) for part in parts[first.name]]

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        left = [0.0] * len(known)
        largest = max(row.energy[profile.name].total_pj for row in known) / unit.pj
        for number, segment in enumerate(segments):
            widths = [parts[row.name][number] / unit.pj for row in known]
            bars = axes.barh(
                range(len(known)), widths, left=left, height=0.72, color=segment.colour, edgecolor=INK, linewidth=0.6
            )
            for bar, width in zip(bars, widths, strict=True):
                if width > 0.035 * largest:
                    x, y = bar.get_x() + width / 2, bar.get_y() + bar.get_height() / 2
                    write_in(axes, x, y, segment.mark, 9, ON_SERIES)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for position, row in enumerate(known):
            text = unit.number(row.energy[profile.name].total_pj)
            end = (left[position], position)
            axes.annotate(text, end, (4, 0), textcoords="offset points", va="center", fontsize=9.5)
        axes.set_yticks(range(len(known)), show.labels([row.name for row in known], 14))
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.set_xlim(0, largest * 1.2)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"energy per sample ({unit.symbol})")
        axes.grid(True, axis="x")
        _legend_of(figure, segments, shares)

    alt = "; ".join(
        f"{segment.label}: " + ", ".join(f"{row.name} {unit.text(parts[row.name][number])}" for row in known)
        for number, segment in enumerate(segments)
    )
    return draw(
        f"energy-layers-{name}",
        f"Energy by layer: {show.plain(profile.name)}",
        f"{alt}.",
        66 + 24 * len(known) + 17 * len(segments),
        paint,
        note=f"{note}Numbers in the bars are those of the legend; shares are those of {show.plain(first.name)}.",
    )


class Segment(NamedTuple):
    """A part of every bar: the energy of `layers` together."""

    label: str
    mark: str
    colour: str
    layers: frozenset[str]


def _segments(rows: Sequence[BackendResult], profile: str) -> tuple[list[Segment], str]:
    """The layers with the largest shares and the others in one; where that hides most of a deep network, its blocks."""
    weight: dict[str, float] = {}
    for row in rows:
        total = row.energy[profile].total_pj
        for layer, value in row.energy[profile].layers_pj.items():
            weight[layer] = weight.get(layer, 0.0) + value / total / len(rows)
    names = list(weight)
    if len(names) <= SHOWN_LAYERS:
        return [_segment(number, name, [name]) for number, name in enumerate(names)], ""
    largest = sorted(names, key=lambda layer: -weight[layer])[:SHOWN_LAYERS]
    if sum(weight[layer] for layer in largest) < ENOUGH:
        found = blocks(weight, BLOCKS)
        if len(found) > 2 and max(sum(weight[layer] for layer in members) for members in found.values()) < ENOUGH:
            segments = [_segment(number, name, members) for number, (name, members) in enumerate(found.items())]
            return segments, "Layers of one block are added up. "
    segments = [_segment(number, name, [name]) for number, name in enumerate(n for n in names if n in largest)]
    others = [name for name in names if name not in largest]
    label = f"{len(others)} other layer{'s' if len(others) > 1 else ''}"
    return [*segments, Segment(label, "+", SERIES[-1], frozenset(others))], ""


def _segment(number: int, label: str, layers: Sequence[str]) -> Segment:
    return Segment(label, str(number + 1), SERIES[number % SHOWN_LAYERS], frozenset(layers))


def _parts(row: BackendResult, profile: str, segments: Sequence[Segment]) -> list[float]:
    layers = row.energy[profile].layers_pj
    return [sum(value for name, value in layers.items() if name in segment.layers) for segment in segments]


def _legend_of(figure: "Figure", segments: Sequence[Segment], shares: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    entries: list[Any] = []
    for segment, share in zip(segments, shares, strict=True):
        text = f"{segment.mark}  {show.shortened(segment.label, LEGEND_WIDTH - 12)}  {share}"
        entries.append(Patch(facecolor=segment.colour, edgecolor=INK, linewidth=0.6, label=text))
    size = {"handlelength": 1.1, "handleheight": 1.0, "labelspacing": 0.45, "borderaxespad": 0.2}
    figure.legend(handles=entries, loc="outside lower left", **size)
