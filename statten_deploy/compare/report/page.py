"""``report.html`` and the PNGs beside it. What is said stands in ``templates/``; this puts the parts together."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statten_deploy.compare.comparison import BackendResult, Comparison, ProfileInfo
from statten_deploy.compare.report import cells
from statten_deploy.compare.report import text as show
from statten_deploy.compare.report.class_plots import DRAWN_CLASSES, confusion_matrix, layer_differences
from statten_deploy.compare.report.drawing import Plot
from statten_deploy.compare.report.energy_plots import accuracy_energy, energy_layers
from statten_deploy.compare.report.groups import (
    FAMILIES,
    Family,
    across,
    file_stem,
    firing,
    grouped,
    held,
    leads,
    missing,
    profiles_of,
    ran,
    timing,
)
from statten_deploy.compare.report.spike_plots import largest_gap, rate_map, spike_raster
from statten_deploy.errors import InputError
from statten_deploy.export.artefact import staging

PAGE = "report.html"
OPEN_PLOTS = 4
"""Plots of a kind that are open at once; more are folded away."""
VISIBLE_GAP = 0.005
"""Firing rates that differ by more get a map of their own; less would look the same."""


def write_html(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``report.html`` and its plots as PNG into `folder`, all or nothing; earlier ones are replaced.

    Raises:
        InputError: the folder does not exist, or a file cannot be written.
    """
    page = Page(comparison)
    contents = {PAGE: page.html().encode()} | {f"{plot.name}.png": plot.png for plot in page.plots}
    try:
        with staging(folder / PAGE) as stage:
            for name, content in contents.items():
                stage.file(folder / name).write_bytes(content)
            return stage.commit()
    except OSError as error:
        raise InputError(f"{folder}: cannot write the report ({error.strerror or error})") from None


@dataclass
class Section:
    """One family of energy figures: its table, what its profiles are, its plots."""

    key: str
    title: str
    table: cells.HtmlTable
    profiles: list[ProfileInfo]
    plots: list[Plot] = field(default_factory=list)
    silent: bool = True
    """Whether no energy could be divided among layers."""


@dataclass
class Matrix:
    """A confusion matrix: drawn if it can be, its mistakes in words."""

    names: Sequence[str]
    plot: Plot | None
    mistakes: cells.HtmlTable | None


class Page:
    """All parts of the report of one comparison."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.rows = ran(comparison)
        self.plots: list[Plot] = []
        self.stems: dict[str, dict[str, str]] = {}
        self.families = [self._family(key, title) for key, title in FAMILIES.items() if profiles_of(comparison, key)]
        self.maps, self.gaps = self._maps()
        self.raster = self._kept(spike_raster(comparison.raster)) if comparison.raster is not None else None
        self.matrices = self._matrices()
        self.differences = self._kept(
            layer_differences(held(comparison), "layer-differences", "Difference to the reference by layer")
        )
        self.quantised = [
            self._kept(layer_differences([row], f"quantised-layers-{self._stem('apart', row.name)}", _beside(row)))
            for row in across(comparison)
        ]

    def html(self) -> str:
        """The page."""
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup

        environment = Environment(
            loader=PackageLoader(__package__ or ""),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_finalize,
        )
        environment.filters["svg"] = lambda plot: Markup(plot.svg)  # noqa: S704 - serialised by ElementTree, which escapes
        environment.filters["listed"] = lambda names: ", ".join(map(str, names))
        environment.filters["samples"] = show.samples
        template = environment.get_template("report.html")
        return template.render(self._context()) + "\n"

    def _context(self) -> dict[str, Any]:
        comparison = self.comparison
        return {
            "comparison": comparison,
            "facts": self._facts(),
            "ran": self.rows,
            "missing": missing(comparison),
            "results": cells.results(comparison),
            "timing": timing(comparison),
            "families": self.families,
            "maps": self.maps,
            "gaps": self.gaps,
            "raster": self.raster,
            "matrices": self.matrices,
            "drawn_classes": DRAWN_CLASSES,
            "differences": self.differences,
            "quantised": [plot for plot in self.quantised if plot is not None],
            "across": across(comparison),
            "held": [row for row in held(comparison) if row.layers],
            "layers": cells.layers(comparison),
            "noted": [row for row in comparison.backends if row.notes],
            "open_plots": OPEN_PLOTS,
            "labelled": any(row.accuracy is not None for row in self.rows),
            "files": [f"{plot.name}.png" for plot in self.plots],
        }

    def _facts(self) -> list[tuple[str, str]]:
        comparison = self.comparison
        facts = [
            ("Model", comparison.model),
            ("Data", comparison.dataset),
            ("Samples", show.count(comparison.samples)),
            ("Classes", "not known" if comparison.classes is None else show.count(comparison.classes)),
            ("Time steps", show.count(comparison.time_steps)),
            ("Weights of integer backends", f"{comparison.bits} bits" if comparison.bits else ""),
            ("Seed", str(comparison.seed)),
            *((f"Reference, {kind}", name) for kind, name in comparison.references.items()),
            ("Latency measured on", comparison.machine or "not stated"),
            ("statten-deploy", comparison.tool_version),
        ]
        return [(name, value) for name, value in facts if value]

    def _stem(self, kind: str, text: str) -> str:
        known = self.stems.setdefault(kind, {})
        if text not in known:
            known[text] = file_stem(text, list(known.values()))
        return known[text]

    def _kept(self, plot: Plot | None) -> Plot | None:
        if plot is not None:
            self.plots.append(plot)
        return plot

    def _family(self, key: Family, title: str) -> Section:
        table = cells.energies(self.comparison, key)
        if table is None:
            raise ValueError(f"no profile of family {key}")
        family = Section(key, title, table, profiles_of(self.comparison, key))
        for profile in family.profiles:
            stem = self._stem("energy", profile.name)
            accuracy = self._kept(accuracy_energy(self.rows, profile, stem))
            parts = self._kept(energy_layers(self.rows, profile, stem))
            family.plots += [plot for plot in (accuracy, parts) if plot is not None]
            family.silent = family.silent and parts is None
        return family

    def _maps(self) -> tuple[list[Plot], list[str]]:
        """A map per reference and per backend that visibly differs from it; the others in a sentence each."""
        plots, gaps = [], dict[str, list[str]]()
        shown: dict[str, BackendResult] = {}
        first = leads(self.comparison)
        for row in sorted(self.rows, key=lambda row: row.name not in first):
            if not firing(row):
                continue
            other = None if row.name in first else shown.get(row.reference)
            gap = None if other is None else largest_gap(row, other)
            if other is not None and gap is not None and gap[0] <= VISIBLE_GAP:
                gaps.setdefault(_gap(other, *gap), []).append(row.name)
                continue
            shown[row.name] = row
            shown.setdefault(row.reference, row)
            plot = self._kept(rate_map(row, self._stem("rates", row.name)))
            if plot is not None:
                plots.append(plot)
        return plots, [f"{', '.join(names)}: {sentence}" for sentence, names in gaps.items()]

    def _matrices(self) -> list[Matrix]:
        known = [row for row in self.rows if row.confusion and any(map(any, row.confusion))]

        def key(row: BackendResult) -> Hashable:
            return tuple(map(tuple, row.confusion or ()))

        found = []
        for group in grouped(known, key):
            matrix = group.first.confusion or []
            plot = self._kept(confusion_matrix(group.names, matrix, self._stem("confusion", group.names[0])))
            found.append(Matrix(group.names, plot, cells.mistakes(group.names, matrix)))
        return found


def _beside(row: BackendResult) -> str:
    return f"What integers change by layer: {row.name} beside {row.reference}"


def _gap(other: BackendResult, gap: float, layer: str, step: int) -> str:
    if gap == 0:
        return f"the same rates as {other.name} in every layer and step."
    return f"at most {show.percent(gap, 4)} of a layer's neurons away from {other.name} ({layer}, step {step})."


def _finalize(value: Any) -> Any:
    """Everything printed is one line of visible text; numbers and markup stay what they are."""
    return show.plain(value) if type(value) is str else value
