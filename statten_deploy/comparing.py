"""The same network in several backends, on the same samples: accuracy, spikes, operations, energy, latency."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf, prod
from pathlib import Path
from traceback import format_exception
from typing import Any, Literal

import nir

from statten_deploy.api import ExportOptions, Model, subject_of
from statten_deploy.backends import BACKENDS, REFERENCES, SHOW_MEMBRANES, Engine, Material
from statten_deploy.compare.comparison import BackendResult, Comparison, Latency, Raster
from statten_deploy.compare.executors import Array
from statten_deploy.compare.files import write_report
from statten_deploy.compare.latency import SECONDS, machine, measure, too_slow
from statten_deploy.compare.lockstep import Runner, reason, run_batch
from statten_deploy.compare.results import activity, backend_results, profile_infos
from statten_deploy.compare.tally import Tally, classes_of, raster_of
from statten_deploy.compare.verify import BATCH_BYTES, activity_warnings
from statten_deploy.energy import DEFAULT_PROFILES, Profile, likely_input, load_profile
from statten_deploy.energy.counter import InputKind
from statten_deploy.energy.signals import FIRING
from statten_deploy.errors import ConfigError, GraphError, InputError, StattenError, UnsupportedError
from statten_deploy.export.rooms import scratch
from statten_deploy.ir import hints, infer_shapes, inline_subgraphs
from statten_deploy.quantize import Granularity, QuantizeOptions
from statten_deploy.samples import LOOKED, TOLD, Stream, check_events, open_stream
from statten_deploy.simulate.device import usable_device
from statten_deploy.source import Source, load_source
from statten_deploy.train.data import DATASETS
from statten_deploy.version import __version__

BATCH = 128
"""Most samples in a batch, unless told otherwise."""
WATCHED = 16
"""Samples that a quantisation is watched on, for its warnings."""

Progress = Callable[[int, int, str], None]
"""Called with (done, all, what comes next)."""


def compare_backends(
    model: Model,
    backends: Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    samples: int | None = None,
    profiles: Sequence[str | Path] = (),
    seed: int = 0,
    bits: int | None = None,
    granularity: Granularity | None = None,
    calibration: str | Path | None = None,
    batch: int | None = None,
    latency_seconds: float = SECONDS,
    input: Literal["frames", "events"] | None = None,
    device: str = "cpu",
    config: Mapping[str, Any] | None = None,
    time_steps: int | None = None,
    dt: float | None = None,
    written_by: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run a model in several backends on the same samples and compare them. Memory does not grow with the samples.

    Float backends are held to the torch network by the tolerances of `statten_deploy.compare.tolerances`, integer ones
    to the quantised network in torch without any; `Comparison.problems` says who does not pass. References run even
    if they are not asked for. A backend that cannot run is a row that says why.

    Args:
        model: as `load_source` takes it, with `config`, `time_steps`, `dt` and `written_by`.
        backends: names of `statten_deploy.backends.BACKENDS`; all by default.
        data: a data set, a folder or an ``.npz``; by default the one the model names, else seeded random inputs.
        samples: so many of the test split, chosen by `seed`; all by default.
        profiles: cost profiles beside `DEFAULT_PROFILES`, by name or as a ``.toml`` file.
        bits, granularity, calibration: of the integer network, as in `ExportOptions`.
        batch: samples at once; by default as many as keep the spikes of a batch below 64 MB, at most 128.
        latency_seconds: spent on timing every backend; 0 leaves latencies out.
        input: what frames carry, real values (``"frames"``) or counts (``"events"``); by default events where the first
            batch holds whole numbers.
        device: where torch computes the references.

    Raises:
        InputError: bad input, unknown names, or no backend that can run.
    """
    wanted = _known(backends)
    QuantizeOptions(QuantizeOptions.bits if bits is None else bits, granularity or "channel")  # refuses early
    if batch is not None and batch < 1:
        raise InputError(f"--batch {batch}: expected at least 1")
    if not 0 <= latency_seconds < inf:
        raise InputError(f"--latency-seconds {latency_seconds}: expected 0 or more")
    costs = _profiles(profiles)
    where = str(usable_device(device))
    source = model if isinstance(model, Source) else load_source(model, config, time_steps, dt, written_by)
    stream, warnings = open_stream(source, data, samples, seed)
    size = min(_batch_size(source) if batch is None else batch, len(stream.samples))
    first = stream.take(0, size)
    kind = _input_kind(source, first, input)
    options = ExportOptions(calibration, bits=bits, granularity=granularity)
    graph, refusal, more = _integer_graph(source, wanted, options, first[:WATCHED])
    with scratch("statten-compare") as folder:
        material = Material(source, graph, refusal, folder, where)
        engines, missing, broken = _engines(wanted, material)
        runners = _runners(engines, material, kind)
        work = _Work(progress, len(runners) * len(stream.spans(size)) + (2 if latency_seconds else 0))
        events = "" if kind != "events" else TOLD if input else LOOKED.format(count=len(first))
        raster = _run(runners, source, stream, size, events, work)
        ran = [runner for runner in runners.values() if not runner.failed]
        if not ran:
            raise _nothing(runners, broken)
        single, batched = _latencies(ran, first, latency_seconds, work)

    def plain(text: str) -> str:  # the artefacts are gone: where they were tells nobody anything
        return text.replace(f"{folder}/", "")

    for runner in runners.values():
        runner.finish(runners[runner.reference])
    rows = {row.name: row for row in backend_results(runners, costs)}
    for name, row in rows.items():
        row.latency, row.batch_latency = single.get(name), batched.get(name)
        row.unavailable, row.notes = plain(row.unavailable), list(map(plain, row.notes))
    rows |= {name: _missing(name, source, plain(reason)) for name, reason in missing.items()}
    lead = ran[0].tally.counter.counts()
    warnings += activity_warnings(activity(lead), "compared")
    problems = [f"{name}: {missing[name]}" for name in broken]
    problems += [f"{name}: {problem}" for name, runner in runners.items() for problem in runner.problems]
    return Comparison(
        model=source.name,
        dataset=stream.name,
        samples=len(stream.samples),
        classes=source.classes,
        time_steps=source.time_steps,
        seed=seed,
        bits=_bits(runners.values(), graph),
        references=_references(runners),
        tool_version=__version__,
        profiles=profile_infos(lead, costs, ran[0].name),
        backends=[rows[name] for name in BACKENDS if name in rows],
        raster=raster,
        machine=machine(where),
        problems=list(map(plain, problems)),
        traces=[*broken.values(), *(trace for runner in runners.values() for trace in runner.traces)],
        warnings=list(dict.fromkeys([*source.warnings, *warnings, *more])),
    )


class _Work:
    """Counts steps of work for `Progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def next(self, what: str) -> None:
        """One step begins: those before it are done."""
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total, what)
        self.done += 1


def _known(backends: Sequence[str] | None) -> list[str]:
    if backends is None:
        return list(BACKENDS)
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown or not backends:
        raise InputError(f"--backends {','.join(unknown)}: unknown; expected some of {', '.join(BACKENDS)}")
    return [name for name in BACKENDS if name in backends]


def _profiles(asked: Sequence[str | Path]) -> list[Profile]:
    """The default profiles and those asked for, each once."""
    found: dict[str, Profile] = {}
    for given in dict.fromkeys([*DEFAULT_PROFILES, *map(str, asked)]):
        profile = load_profile(given)
        if profile.name in found:
            raise ConfigError(f"--profile {given}: a profile called {profile.name!r} is there already; rename it")
        found[profile.name] = profile
    return list(found.values())


def _batch_size(source: Source) -> int:
    graph = inline_subgraphs(source.graph)
    shapes = infer_shapes(graph)
    sites = source.time_steps * sum(
        prod(shapes[name]) for name, node in graph.nodes.items() if isinstance(node, FIRING)
    )
    return max(1, min(BATCH, BATCH_BYTES // max(sites, 1)))


def _input_kind(source: Source, x: Array, told: Literal["frames", "events"] | None) -> InputKind:
    """Frames of whole numbers are events, unless told otherwise."""
    likely = likely_input(source.graph, x)
    if likely == "image" and told is not None:
        raise ConfigError(f"--input {told}: {source.name} takes images; leave the option out")
    return told or likely


def _integer_graph(
    source: Source, wanted: Sequence[str], options: ExportOptions, seen: Array
) -> tuple[nir.NIRGraph | None, str, list[str]]:
    """The network that all integer backends run, or None and why there is none; and warnings."""
    arithmetics = {BACKENDS[name].arithmetic_of(source) for name in wanted}
    if source.quantised and arithmetics == {"float32"}:
        able = [name for name, spec in BACKENDS.items() if spec.arithmetic_of(source) == "integer"]
        raise UnsupportedError(
            f"{source.name}: is a graph of integers, and --backends {','.join(wanted)} compute in floats; take some of "
            f"{', '.join(able)}"
        )
    if "integer" not in arithmetics:
        return None, "no integer backend was asked for", []
    try:
        subject, _, warnings = subject_of(source, "onnx-int8", options, {}, seen)
    except (UnsupportedError, GraphError) as error:
        return None, f"cannot be quantised: {error}", []
    if source.trained is not None:
        warnings.append(
            f"trained for weights of {source.trained.bits} bits; float backends run the float network behind them"
        )
    elif not source.quantised and options.calibration is None and source.dataset not in DATASETS:
        warnings.append("quantised without calibration data; give some with --calibration")
    return subject.graph, "", warnings


def _bits(runners: Iterable[Runner], graph: nir.NIRGraph | None) -> int | None:
    """Of the integer network, where one took part."""
    whole = any(runner.arithmetic == "integer" for runner in runners)
    return int(hints(graph)["bits"]) if whole and graph is not None else None


def _engines(wanted: Sequence[str], material: Material) -> tuple[dict[str, Engine], dict[str, str], dict[str, str]]:
    """Backends that can run, the reference of each arithmetic before those held to it; the others with the reason.

    Third, of those that failed although they should run: what they raised.
    """
    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    broken: dict[str, str] = {}

    def make(name: str) -> bool:
        try:
            engines[name] = BACKENDS[name].make(material)
        except (UnsupportedError, GraphError) as error:
            missing[name] = str(error)
        except Exception as error:  # engines raise nearly anything
            missing[name] = f"cannot be set up: {reason(error)}"
            broken[name] = "".join(format_exception(error))
        return name in engines

    for arithmetic, candidates in REFERENCES.items():
        members = [name for name in wanted if BACKENDS[name].arithmetic_of(material.source) == arithmetic]
        if members and any(make(name) for name in candidates):
            for name in members:
                if name not in engines and name not in missing:
                    make(name)
        else:
            missing |= {name: missing[candidates[0]] for name in members if name not in missing}
    if not engines:
        told = "no backend can run: " + "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise _with_traces(StattenError(told) if broken else UnsupportedError(told), broken.values())
    return engines, missing, broken


def _nothing(runners: Mapping[str, Runner], broken: Mapping[str, str]) -> StattenError:
    """All backends failed."""
    told = "; ".join(f"{name}: {runner.failed}" for name, runner in runners.items())
    traces = [*broken.values(), *(trace for runner in runners.values() for trace in runner.traces)]
    return _with_traces(StattenError(f"no backend ran to the end: {told}"), traces)


def _with_traces(error: StattenError, traces: Iterable[str]) -> StattenError:
    """Tracebacks as notes: ``--debug`` shows them."""
    for trace in traces:
        error.add_note(trace)
    return error


def _runners(engines: Mapping[str, Engine], material: Material, kind: InputKind) -> dict[str, Runner]:
    runners: dict[str, Runner] = {}
    first: dict[str, str] = {}
    for name, engine in engines.items():
        arithmetic = BACKENDS[name].arithmetic_of(material.source)
        held = arithmetic in first
        reference = first.setdefault(arithmetic, name)
        if not held and arithmetic == "integer":  # what quantisation did to the network
            reference = first.get("float32", name)
        graph = material.source.graph if arithmetic == "float32" else material.integer_subject().graph
        tally = Tally(graph, kind)
        notes = list(engine.notes)
        runners[name] = Runner(name, arithmetic, engine.executor, engine.infer, reference, held, tally, notes)
    return runners


def _references(runners: Mapping[str, Runner]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, runner in runners.items():
        found.setdefault(runner.arithmetic, name)
    return found


def _run(
    runners: Mapping[str, Runner], source: Source, stream: Stream, size: int, events: str, work: _Work
) -> Raster | None:
    """All batches through all backends. The first sample is compared in its membranes too; its spikes are kept.

    Raises:
        InputError: `events` says why there should be whole numbers, and there are not.
    """
    raster: Raster | None = None
    yardstick = source.yardstick
    for start, x, labels in stream.batches(size):
        for runner in runners.values():
            if isinstance(runner.executor, SHOW_MEMBRANES):
                runner.executor.membranes = start == 0
        numbers = stream.numbers[start : start + len(x)]
        if events:
            check_events(stream, numbers, x, events)
        kept = run_batch(runners, x, labels, numbers, yardstick, work.next)
        if raster is None and kept:
            lead = next(iter(kept.values()))
            classes = classes_of(lead)
            label, predicted = (None if found is None else int(found[0]) for found in (labels, classes))
            raster = Raster(int(numbers[0]), label, predicted, raster_of(lead, 0))
            del lead
        del kept
    return raster


def _latencies(
    running: Sequence[Runner], first: Array, seconds: float, work: _Work
) -> tuple[dict[str, Latency], dict[str, Latency]]:
    """Of one sample and of a batch, per backend that ran to the end. Failing here costs a backend its latency only."""
    if not seconds:
        return {}, {}
    by_name = {runner.name: runner for runner in running}

    def failed(name: str, error: Exception) -> None:
        by_name[name].complain(f"failed while it was timed: {reason(error)}", error)

    work.next("latency of one sample")
    single = measure({runner.name: partial(runner.infer, first[:1]) for runner in running}, 1, seconds, failed)
    work.next("latency of a batch")
    quick = {
        runner.name: partial(runner.infer, first)
        for runner in running
        if len(first) > 1 and runner.name in single and not too_slow(runner.seconds, seconds)
    }
    return single, measure(quick, len(first), seconds, failed)


def _missing(name: str, source: Source, reason: str) -> BackendResult:
    return BackendResult(name, BACKENDS[name].arithmetic_of(source), "", unavailable=reason)


__all__ = ["Comparison", "compare_backends", "write_report"]
