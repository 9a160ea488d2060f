"""The comparison on a terminal: one table of results, one of energy per family, and what went wrong below.

Fits 80 columns; a pipe gets the same text without colours. Values stand in the first line of a row; how sure they are
and how they differ from the reference stands in the second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import ASCII2, SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from statten_deploy.compare.comparison import BackendResult, Comparison, ProfileInfo
from statten_deploy.compare.report import text as show
from statten_deploy.compare.report.groups import (
    FAMILIES,
    across,
    difference,
    leads,
    missing,
    profiles_of,
    ran,
    stands_alone,
    timing,
    units_of,
)

NAME_WIDTH = 14
ENERGY_WIDTH = 13
_ASCII = str.maketrans({"–": "-", "µ": "u", "…": "~", "\ufffd": "?"})


def render_table(comparison: Comparison) -> "ComparisonTable":
    """What `Console.print` shows of a comparison, laid out for the width that the console has."""
    return ComparisonTable(comparison)


@dataclass(frozen=True)
class ComparisonTable:
    """A rich renderable."""

    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _Layout(self.comparison, options.max_width, options.encoding).parts()


class _Layout:
    """One rendering: `width` in columns, `encoding` of the terminal."""

    def __init__(self, comparison: Comparison, width: int, encoding: str) -> None:
        self.comparison = comparison
        self.width = width
        self.encoding = encoding
        self.rows = ran(comparison)
        names = [row.name for row in comparison.backends]
        self.names = dict(zip(names, show.labels(names, NAME_WIDTH), strict=True))

    def parts(self) -> Iterator[RenderableType]:
        yield self.text(_headline(self.comparison), "bold")
        yield Text()
        yield self.results()
        if missing(self.comparison):
            yield self.unavailable()
        for family, title in FAMILIES.items():
            profiles = profiles_of(self.comparison, family)
            each = 2 if family == "paper" else 1
            at_once = max(1, (self.width - NAME_WIDTH - 2) // ((ENERGY_WIDTH + 2) * each))
            for start in range(0, len(profiles), at_once):
                yield Text()
                yield self.text(f"Energy per sample: {title.lower()}", "bold")
                yield self.energy(profiles[start : start + at_once])
        yield Text()
        yield from self.below()

    def text(self, line: object, style: str = "") -> Text:
        """Never markup: names come from outside. What the terminal cannot encode becomes a question mark."""
        shown = show.plain(line)
        try:
            shown.encode(self.encoding)
        except UnicodeEncodeError:
            shown = shown.translate(_ASCII).encode(self.encoding, "replace").decode(self.encoding)
        return Text(shown, style=style)

    def cell(self, lines: Sequence[str]) -> Text:
        found = self.text(lines[0])
        for line in lines[1:]:
            found.append("\n").append_text(self.text(line, "dim"))
        return found

    def table(self, columns: Sequence[Sequence[str]]) -> Table:
        found = Table(box=SIMPLE_HEAD if self.encoding.startswith("utf") else ASCII2, padding=(0, 1), pad_edge=False)
        found.show_edge = False
        found.add_column(self.text("backend"), width=NAME_WIDTH, overflow="fold")
        for lines in columns:
            found.add_column(self.cell(lines), justify="right", overflow="fold")
        return found

    def results(self) -> Table:
        batches = ["of a batch"] if any(row.batch_latency for row in self.rows) else []
        found = self.table(
            [
                ("accuracy", "95 % int."),
                ("agreement",),
                ("spikes",),
                ("SynOps",),
                ("latency", "p90", *batches),
            ]
        )
        apart = {row.name for row in across(self.comparison)}
        for before, row in zip([None, *self.rows], self.rows, strict=False):
            if before is not None and before.arithmetic != row.arithmetic:
                found.add_section()
            name = self.cell((self.names[row.name], row.arithmetic))
            found.add_row(name, *(self.cell(lines) for lines in _results(row, row.name in apart)))
        return found

    def unavailable(self) -> Table:
        """Rows of two columns: there is nothing to show but the reason."""
        found = Table.grid(padding=(0, 1, 0, 0))
        found.add_column(width=NAME_WIDTH, overflow="fold")
        found.add_column(overflow="fold")
        for row in missing(self.comparison):
            found.add_row(self.text(self.names[row.name]), self.text(row.unavailable, "yellow"))
        return found

    def energy(self, profiles: Sequence[ProfileInfo]) -> Table:
        """A column per profile, and for the paper convention a network without spikes beside it."""
        units = {profile.name: units_of(self.rows, profile) for profile in profiles}
        columns: list[tuple[str, ...]] = []
        short = show.labels([profile.name for profile in profiles], ENERGY_WIDTH)
        for profile, name in zip(profiles, short, strict=True):
            unit, ann_unit = units[profile.name]
            columns += [(name, unit.symbol), *([("ANN", ann_unit.symbol)] if profile.family == "paper" else [])]
        found = self.table(columns)
        for row in self.rows:
            cells: list[tuple[str, ...]] = []
            for profile in profiles:
                unit, ann_unit = units[profile.name]
                energy = row.energy.get(profile.name)
                ann = None if energy is None else energy.ann_pj
                if energy is None:
                    cells.append((show.NONE,))
                else:
                    cells.append((unit.number(energy.total_pj), difference(row, energy.relative)))
                if profile.family == "paper":
                    cells.append((show.NONE if ann is None else ann_unit.number(ann),))
            head = [self.names[row.name], *(["reference"] if row.name in leads(self.comparison) else [])]
            found.add_row(self.cell(head), *(self.cell(lines) for lines in cells))
        return found

    def below(self) -> Iterator[Text]:
        comparison = self.comparison
        held = [f"{kind}: {name}" for kind, name in comparison.references.items()]
        held += [f"{row.name} itself: {row.reference}" for row in across(comparison)]
        yield self.text(
            f"Totals over all samples; second lines: the difference to the reference ({', '.join(held)}). "
            + "".join(f"{sentence} " for sentence in timing(comparison))
            + "Energy is dynamic only: static power is in no profile.",
            "dim",
        )
        for row in comparison.backends:
            for note in row.notes:
                yield self.text(f"{row.name}: {note}", "dim")
        for warning in comparison.warnings:
            yield self.text(f"warning: {warning}", "yellow")
        for problem in comparison.problems:
            yield self.text(f"problem: {problem}", "bold red")


def _headline(comparison: Comparison) -> str:
    bits = f"{comparison.bits} bits, " if comparison.bits else ""
    return (
        f"{comparison.model} on {comparison.dataset}: {show.samples(comparison.samples)}, "
        f"T = {comparison.time_steps}, {bits}seed {comparison.seed}"
    )


def _results(row: BackendResult, apart: bool) -> Iterator[tuple[str, ...]]:
    if row.accuracy is None:
        yield (show.NONE,)
    else:
        yield show.percent(row.accuracy), show.interval(row.accuracy_interval)
    if stands_alone(row):
        yield ("reference",)
    else:
        differ = row.spike_mismatches and not apart  # another arithmetic is another network
        yield show.percent(row.agreement), (f"{show.brief(row.spike_mismatches, 7)} differ" if differ else "")
    if row.layers:
        yield show.brief(row.spikes), difference(row, row.relative_spikes)
        yield show.brief(row.synops), difference(row, row.relative_synops)
    else:
        yield (show.NONE,)
        yield (show.NONE,)
    one, batch = row.latency, row.batch_latency
    times = [show.NONE] if one is None else [show.milliseconds(one.median_ms), show.milliseconds(one.p90_ms)]
    yield (*times, *([] if batch is None else [show.milliseconds(batch.median_ms)]))
