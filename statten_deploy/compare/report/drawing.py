"""One drawing, twice: a PNG for slides, and an SVG that takes its colours from the page it is in.

matplotlib draws with the colours of the light theme. In the SVG those of `THEMED` become CSS variables, so that text
and lines follow the page into the dark; texts stay texts, ids carry the plot's name, and nothing depends on the day,
the machine's fonts or the user's matplotlibrc.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from statten_deploy.compare.report.text import plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 72
WIDTH = 380
"""Units (points) that a plot is wide. It fits a phone at about full size and half a desktop page somewhat larger."""
PNG_DPI = 200
TITLE, TITLE_WIDTH = 20, 54
"""Points and characters of the title that a PNG has above the drawing."""

INK, QUIET, RULE, PAPER, HEAT = "#16181d", "#5d6470", "#d4d8df", "#fffffe", "#5aa9e6"
THEMED = {INK: "var(--ink)", QUIET: "var(--quiet)", RULE: "var(--rule)", PAPER: "var(--paper)", HEAT: "var(--heat)"}
SERIES = ("#e69f00", "#56b4e9", "#00a87a", "#d9a3c0", "#e8743b", "#4a90d9", "#f0e05a", "#a8a8a8")
"""After Okabe and Ito, for all kinds of colour vision; the same on light and dark pages, with `ON_SERIES` on them."""
ON_SERIES = "#000001"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
"""A colour never stands alone: markers differ in shape, segments carry numbers, cells of maps their values."""

LABEL_WIDTH = 25
"""Characters of a layer's name beside a map."""
FAINTEST = 0.08
"""Opacity of the smallest rate that is not zero; zero is left blank."""

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "path.simplify": False,
    "svg.fonttype": "none",
}
_FONT = re.compile(r"font-family: [^;]*;? ?")
"""Left to the page, whose face is no wider than the one that the layout was made with."""


@dataclass(frozen=True)
class Plot:
    """A drawing. name: file stem. alt: what it shows, for those who cannot see it. note: how to read it."""

    name: str
    title: str
    alt: str
    note: str
    svg: str
    png: bytes


def draw(name: str, title: str, alt: str, height: float, paint: Callable[["Figure"], None], *, note: str = "") -> Plot:
    """Paint once, write twice. `name` makes the ids of the SVG unique in the page; `height` in points."""
    from matplotlib.figure import Figure

    title, alt, note = plain(title), plain(alt), plain(note)
    with _styled(name):
        figure = Figure(figsize=(WIDTH / POINTS, height / POINTS), dpi=POINTS, layout="constrained")
        paint(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True)
        figure.set_size_inches(WIDTH / POINTS, (height + TITLE) / POINTS)  # in the page the title is text
        figure.suptitle(shortened(title, TITLE_WIDTH), x=0.015, ha="left", fontsize=10.5, fontweight="bold")
        figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return Plot(name, title, alt, note, _inline(svg.getvalue(), name, title, alt), png.getvalue())


def write_in(axes: "Axes", x: float, y: float, text: str, size: float, colour: str = INK) -> None:
    """A text inside a cell or bar. It takes no part in the layout, which would measure each of them."""
    place = {"ha": "center", "va": "center_baseline"}
    axes.text(x, y, text, fontsize=size, color=colour, in_layout=False, **place)  # type: ignore[arg-type]


def heat_cells(axes: "Axes", opacity: NDArray[np.float64]) -> None:
    """Cells [rows, columns] of one colour, more or less of it: this reads on light and dark pages."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    corners = [
        [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)] for y, x in np.ndindex(opacity.shape) if opacity[y, x] > 0
    ]
    colours = [to_rgba(HEAT, min(1.0, float(value))) for value in opacity.reshape(-1) if value > 0]
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors="none"), autolim=False)
    rows, columns = opacity.shape
    axes.hlines(np.arange(rows + 1), 0, columns, color=RULE, linewidth=0.5)
    axes.vlines(np.arange(columns + 1), 0, rows, color=RULE, linewidth=0.5)


@contextmanager
def _styled(name: str) -> Iterator[None]:
    """Our style on top of matplotlib's defaults, whatever the user's own is. Letters that a font lacks are no event."""
    from matplotlib import style

    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        yield


def _inline(document: bytes, name: str, title: str, alt: str) -> str:
    """matplotlib's file as an element of a page: no namespaces, own ids, a title and a description, theme colours.

    What says when and by what it was written (the metadata) is left out.
    """
    root = ET.fromstring(document)  # noqa: S314 - written by matplotlib a moment ago
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({key: _attribute(key, value, name) for key, value in attributes.items()})
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib = {  # type: ignore[assignment, unused-ignore]
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-alt",
        "class": "plot",
    }
    for position, (tag, text) in enumerate((("title", title), ("desc", alt))):
        element = ET.Element(tag, {"id": f"{name}-{'alt' if tag == 'desc' else tag}"})
        element.text = text
        element.tail = "\n"
        root.insert(position, element)
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    if key == "style":
        for colour, variable in THEMED.items():
            value = value.replace(colour, variable)
        value = _FONT.sub("", value)
    return value.replace("url(#", f"url(#{name}-")
