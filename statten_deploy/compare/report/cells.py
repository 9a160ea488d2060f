"""Tables of the page as plain data: what the template prints, already in words. `value` is the number behind a text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from statten_deploy.compare.comparison import BackendResult, Comparison, Latency, LayerResult
from statten_deploy.compare.report import text as show
from statten_deploy.compare.report.class_plots import Confused, confusions
from statten_deploy.compare.report.groups import (
    FAMILIES,
    Family,
    Group,
    difference,
    grouped,
    layer_key,
    leads,
    ordered,
    profiles_of,
    ran,
    stands_alone,
    units_of,
)


@dataclass(frozen=True)
class Cell:
    """`text`, exactly `value`; `below` in a second line. `key` names the number for programs."""

    text: str
    value: float | int | None = None
    below: str = ""
    key: str = ""


@dataclass(frozen=True)
class Row:
    """`head` is the row's header; `message` replaces the cells."""

    head: str
    below: str = ""
    cells: Sequence[Cell] = ()
    message: str = ""


@dataclass(frozen=True)
class HtmlTable:
    """A table with one row of headers, or two where `groups` (title, columns) stand above."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()
    corner: str = "backend"


@dataclass(frozen=True)
class Details:
    """A table that is folded away under its title."""

    title: str
    table: HtmlTable
    notes: Sequence[str] = field(default_factory=tuple)


EMPTY = Cell(show.NONE)


def results(comparison: Comparison) -> HtmlTable:
    """Every backend, the missing ones with the reason."""
    columns = (
        "accuracy",
        "agreement",
        "spikes that differ",
        "spikes",
        "SynOps",
        "latency",
        "latency of a batch",
        "MACs",
        "neuron updates",
    )
    rows = [
        Row(row.name, row.arithmetic, message=row.unavailable)
        if row.unavailable
        else Row(row.name, row.arithmetic, _results(row))
        for row in ordered(comparison)
    ]
    return HtmlTable(f"Results on {show.samples(comparison.samples)}, totals over all of them", columns, rows)


def _results(row: BackendResult) -> list[Cell]:
    counted = bool(row.layers)
    accuracy = EMPTY
    if row.accuracy is not None:
        details = [] if row.accuracy_interval is None else [show.interval(row.accuracy_interval)]
        if row.correct is not None:
            details.append(f"{show.count(row.correct)} of {show.count(row.samples)}")
        accuracy = Cell(show.percent(row.accuracy), row.accuracy, " · ".join(details), "accuracy")
    if stands_alone(row):
        agreement, differ = Cell("reference"), EMPTY
    else:
        agreement = Cell(show.percent(row.agreement), row.agreement, f"with {row.reference}", "agreement")
        differ = EMPTY
        if row.spike_sites:
            sites = f"of {show.count(row.spike_sites)}"
            differ = Cell(show.count(row.spike_mismatches), row.spike_mismatches, sites, "spike_mismatches")
    return [
        accuracy,
        agreement,
        differ,
        Cell(show.count(row.spikes), row.spikes, difference(row, row.relative_spikes), "spikes") if counted else EMPTY,
        Cell(show.count(row.synops), row.synops, difference(row, row.relative_synops), "synops") if counted else EMPTY,
        _latency(row.latency, "latency_ms"),
        _latency(row.batch_latency, "batch_latency_ms"),
        Cell(show.count(row.macs), row.macs, key="macs") if counted else EMPTY,
        Cell(show.count(row.neuron_updates), row.neuron_updates, key="neuron_updates") if counted else EMPTY,
    ]


def _latency(found: Latency | None, key: str) -> Cell:
    if found is None:
        return EMPTY
    return Cell(show.milliseconds(found.median_ms), found.median_ms, f"p90 {show.milliseconds(found.p90_ms)}", key)


def energies(comparison: Comparison, family: Family) -> HtmlTable | None:
    """Energy per sample by the profiles of one family; beside the paper convention a network without spikes."""
    profiles = profiles_of(comparison, family)
    if not profiles:
        return None
    columns: list[str] = []
    cells: dict[str, list[Cell]] = {row.name: [] for row in ran(comparison)}
    for profile in profiles:
        unit, ann_unit = units_of(ran(comparison), profile)
        columns += [profile.name, *([f"ANN of the same shape, {profile.name}"] if family == "paper" else [])]
        for row in ran(comparison):
            found = row.energy.get(profile.name)
            energy = ann = EMPTY
            if found is not None:
                below = difference(row, found.relative)
                energy = Cell(unit.text(found.total_pj), found.total_pj, below, f"energy_pj {profile.name}")
            if found is not None and found.ann_pj is not None:
                ann = Cell(ann_unit.text(found.ann_pj), found.ann_pj, key=f"ann_pj {profile.name}")
            cells[row.name] += [energy, ann] if family == "paper" else [energy]
    first = leads(comparison)
    rows = [Row(row.name, "reference" if row.name in first else "", cells[row.name]) for row in ran(comparison)]
    return HtmlTable(f"Energy per sample: {FAMILIES[family].lower()}", columns, rows)


def layers(comparison: Comparison) -> list[Details]:
    """A table of layers per backend; backends that are equal in all of it share one."""
    counted = [row for row in ran(comparison) if row.layers]
    return [_layers(comparison, group) for group in grouped(counted, layer_key)]


def _layers(comparison: Comparison, group: Group) -> Details:
    row = group.first
    profiles = [
        profile for family in FAMILIES for profile in profiles_of(comparison, family) if profile.name in row.energy
    ]
    units = {profile.name: show.energy_unit(row.energy[profile.name].layers_pj.values()) for profile in profiles}
    compared = not stands_alone(row)
    columns = ["role", "neurons", "firing rate", "spikes", "spikes by step", "SynOps", "MACs", "ACs", "MACs"]
    columns += [f"{profile.name} ({units[profile.name].symbol})" for profile in profiles]
    groups = [("", 2), ("event counts, all samples", 5), ("paper convention, all samples", 2)]
    for family, title in FAMILIES.items():
        priced = sum(profile.family == family for profile in profiles)
        if priced:
            groups.append((f"energy per sample: {title.lower()}", priced))
    rows = []
    for layer in row.layers:
        cells = _counts(layer, compared)
        for profile in profiles:
            value = row.energy[profile.name].layers_pj.get(layer.name)
            key = f"layer_pj {profile.name}"
            cells.append(EMPTY if value is None else Cell(units[profile.name].number(value), value, key=key))
        rows.append(Row(layer.name, cells=cells))
    title = ", ".join(group.names)
    notes = []
    if len(group.rows) > 1:
        notes.append("Equal in every number.")
    if compared:
        notes.append(f"Second lines: the difference to {row.reference}.")
    return Details(title, HtmlTable(f"Layers of {title}", columns, rows, groups, "layer"), notes)


def _counts(layer: LayerResult, compared: bool) -> list[Cell]:
    fires = bool(layer.spikes_by_step)
    spikes = show.relative(layer.relative_spikes) if compared else ""
    synops = show.relative(layer.relative_synops) if compared else ""
    operates = layer.synops or layer.relative_synops is not None
    return [
        Cell(layer.role),
        Cell(show.count(layer.neurons), layer.neurons, key="neurons") if layer.neurons else EMPTY,
        Cell(show.percent(layer.firing_rate), layer.firing_rate, key="firing_rate") if fires else EMPTY,
        Cell(show.count(layer.spikes), layer.spikes, spikes, "spikes") if fires else EMPTY,
        Cell(" · ".join(map(show.count, layer.spikes_by_step)), key="spikes_by_step") if fires else EMPTY,
        Cell(show.count(layer.synops), layer.synops, synops, "synops") if operates else EMPTY,
        Cell(show.count(layer.macs), layer.macs, key="macs") if layer.macs else EMPTY,
        Cell(show.count(round(layer.paper_acs)), layer.paper_acs, key="paper_acs") if layer.paper_acs else EMPTY,
        Cell(show.count(layer.paper_macs), layer.paper_macs, key="paper_macs") if layer.paper_macs else EMPTY,
    ]


def mistakes(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> HtmlTable | None:
    """The most frequent confusions in words; None where there are none."""
    found: list[Confused] = confusions(matrix)
    if not found:
        return None
    rows = [
        Row(
            str(one.true),
            cells=(
                Cell(str(one.predicted)),
                Cell(show.count(one.samples), one.samples),
                Cell(show.percent(one.share, 1), one.share),
            ),
        )
        for one in found
    ]
    columns = ("taken for", "samples", "of its class")
    return HtmlTable(f"Most frequent confusions: {', '.join(names)}", columns, rows, corner="true class")
