"""From totals to the rows of a comparison: shares, intervals, energies, and how far each is from its reference."""

from collections.abc import Mapping, Sequence

from statten_deploy.compare.comparison import BackendResult, EnergyResult, ProfileInfo
from statten_deploy.compare.lockstep import Runner
from statten_deploy.compare.tally import layer_results, relative, wilson_interval
from statten_deploy.energy import Counts, EnergyReport, Profile, energy


def backend_results(runners: Mapping[str, Runner], profiles: Sequence[Profile]) -> list[BackendResult]:
    """One row per backend that ran to the end; the others say why they did not."""
    counts = {name: runner.tally.counter.counts() for name, runner in runners.items() if not runner.failed}
    priced = {name: {profile.name: energy(found, profile) for profile in profiles} for name, found in counts.items()}
    return [_row(runner, counts, priced) for runner in runners.values()]


def _row(
    runner: Runner, counts: Mapping[str, Counts], priced: Mapping[str, Mapping[str, EnergyReport]]
) -> BackendResult:
    row = BackendResult(runner.name, runner.arithmetic, runner.reference)
    if runner.failed:
        row.unavailable = runner.failed
        return row
    own, tally = counts[runner.name], runner.tally
    other = counts.get(runner.reference) if runner.reference != runner.name else None
    row.samples, row.predictions = tally.samples, tally.predictions
    if tally.predictions and other is not None:
        row.agreement = tally.same / tally.samples
    if tally.labelled:
        row.correct, row.accuracy = tally.correct, tally.correct / tally.samples
        row.accuracy_interval = wilson_interval(tally.correct, tally.samples)
        row.confusion = None if tally.confusion is None else tally.confusion.tolist()
    row.spike_mismatches, row.spike_sites = tally.mismatches, tally.sites
    row.spikes, row.synops, row.macs, row.neuron_updates = own.spikes, own.synops, own.macs, own.updates
    row.layers = layer_results(own, other)
    if other is not None:
        row.relative_spikes = relative(own.spikes, other.spikes)
        row.relative_synops = relative(own.synops, other.synops)
    row.energy = {
        name: _energy(report, priced[runner.reference][name] if other is not None else None)
        for name, report in priced[runner.name].items()
    }
    row.notes = list(dict.fromkeys(runner.notes))
    return row


def _energy(report: EnergyReport, reference: EnergyReport | None) -> EnergyResult:
    return EnergyResult(
        total_pj=report.total_pj,
        layers_pj={layer.name: layer.total_pj for layer in report.layers},
        ann_pj=report.ann_pj,
        relative=None if reference is None else relative(report.total_pj, reference.total_pj),
    )


def profile_infos(counts: Counts, profiles: Sequence[Profile], counted_on: str) -> list[ProfileInfo]:
    """What the reports say about every profile; what is not included is of `counts`, those of `counted_on`."""
    reports = [energy(counts, profile) for profile in profiles]
    return [
        ProfileInfo(
            name=report.profile.name,
            title=report.profile.title,
            family=report.profile.family,
            statuses=report.statuses,
            not_included=report.not_included,
            sources=tuple(
                f"{name} {figure.pj:g} pJ ({figure.status}): {figure.source}"
                for name, figure in report.profile.figures.items()
            ),
            notes=report.profile.notes,
            counted_on=counted_on,
        )
        for report in reports
    ]


def activity(counts: Counts) -> dict[str, tuple[int, int]]:
    """Neuron layer -> (spikes, how many there would be if every neuron fired at every step)."""
    layers = [layer for layer in counts.layers if layer.role == "neurons" and layer.neurons]
    return {layer.name: (layer.spikes, layer.updates) for layer in layers}
