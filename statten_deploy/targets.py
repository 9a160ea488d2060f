"""Every artefact that can be written: how, under which name, and how to run what was written."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nir

from statten_deploy.compare.circuits import CircuitExecutor
from statten_deploy.compare.executors import Executor, GraphExecutor, OnnxExecutor, OnnxIntegerExecutor, graph_input
from statten_deploy.compare.integers import FixedExecutor, LavaExecutor, NetxExecutor
from statten_deploy.errors import StattenError, UnsupportedError, VerificationError
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.netx import round_biases, sequential_part, write_netx
from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.ir import SpikeMaxPool2d, hints, input_names, is_cyclic, verify
from statten_deploy.passes import MARKER, MAX_CIRCUIT_NEURONS, Cost, circuit_cost, lower_to_circuits, raise_circuits
from statten_deploy.quantize import Granularity
from statten_deploy.runtime import Interface, read_facts
from statten_deploy.source import Source
from statten_deploy.train.data import DATASETS

Target = Literal["nir", "onnx", "onnx-int8", "lava", "netx"]


@dataclass(frozen=True)
class Subject:
    """What is written: a source's graph, or its quantised form (`integer`); `flags` are the target's own options."""

    source: Source
    graph: nir.NIRGraph
    integer: bool = False
    flags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, str]:
        """Where it comes from, for artefacts that can say so."""
        config = self.source.config.model_dump_json() if self.source.config else ""
        known = {"input_range": json.dumps(self.input_range)} if self.input_range else {}
        return {"source_sha256": self.source.sha256 or "", "config": config, **known}

    @property
    def input_range(self) -> list[float | None] | None:
        """The values of its inputs, [low, high], where a built-in data set says so; None in it: no limit."""
        if self.source.dataset not in DATASETS:
            return None
        return [0.0, 1.0] if graph_input(self.graph)[1] else [0.0, None]  # pixels, or events counted


@dataclass(frozen=True)
class Written:
    """What the writer has to say: warnings, by how many steps the artefact's results are late, and notes."""

    warnings: tuple[str, ...] = ()
    latency_steps: int = 0
    notes: tuple[str, ...] = ()
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    """What only this kind of artefact has to tell."""


@dataclass(frozen=True)
class TargetSpec:
    """One kind of artefact.

    integer: whether the graph is quantised first: always, never, or only when bits are asked for (`optional`).
    write: writes the artefact to a path (an empty folder where `folder` is true).
    run: an executor for the written file; an `IntegerExecutor` that shows membranes for integer artefacts.
    """

    suffix: str
    integer: Literal["always", "never", "optional"]
    write: Callable[[Subject, Path], Written]
    run: Callable[[Subject, Path], Executor]
    folder: bool = False
    mark: str = ""
    """Between stem and suffix of the default name; with ``{bits}`` only where bits are given."""
    shifts: bool = True
    """Whether quantised weights may have exponents."""
    granularities: tuple[Granularity, ...] = ("channel", "tensor")
    """What scales may be shared by; the first is the default."""
    samples: int = 32
    """Samples of real data to verify on, unless told otherwise."""
    cut: Callable[[nir.NIRGraph, Mapping[str, Any]], nir.NIRGraph] = lambda graph, flags: graph
    """The part of a graph that is written, before it is quantised."""
    round: Callable[[nir.NIRGraph], nir.NIRGraph] = lambda graph: graph
    """What the format cannot hold of a quantised graph's numbers is rounded."""


def default_name(target: Target, stem: str, bits: int | None, flags: Mapping[str, Any] | None = None) -> str:
    """``digits.nir``, ``digits.4bit.nir`` for a NIR file of integers, ``digits.int8.onnx``, ``digits.stream.onnx``.

    `flags`: the target's own options, of which a layout and a flavour that are not the default are named.
    """
    spec = TARGETS[target]
    mark = "" if bits is None and "{bits}" in spec.mark else spec.mark.format(bits=bits)
    named = [flag for flag in ("qdq", "stream") if flag in (flags or {}).values()]
    return "".join([f"{stem}{mark}", *(f".{flag}" for flag in named), spec.suffix])


def _write_nir(subject: Subject, path: Path) -> Written:
    if subject.integer:
        return Written(write_nir(subject.graph, path).warnings)
    graph, notes, warnings = _with_circuits(subject)
    warnings += write_nir(graph, path).warnings
    return Written(tuple(warnings), int(hints(graph).get("latency_steps", 0)), tuple(notes))


def _with_circuits(subject: Subject) -> tuple[nir.NIRGraph, list[str], list[str]]:
    """The graph with its attention as circuits where asked for or possible, what they cost, and why not."""
    flags = subject.flags
    attention, profile = flags.get("attention", "auto"), flags.get("nir_profile", "core")
    if attention == "compact":
        return subject.graph, _pools(subject.graph), []
    most = flags.get("max_circuit_neurons", MAX_CIRCUIT_NEURONS)
    try:
        lowered, _ = lower_to_circuits(subject.graph, profile, max_neurons=most)
        verify(lowered)
    except StattenError as error:
        if attention == "circuit" or not isinstance(error, UnsupportedError):
            raise
        return subject.graph, _pools(subject.graph), [f"compact form instead of circuits: {error}"]
    if MARKER not in hints(lowered):
        return lowered, [], []
    return lowered, _prices(circuit_cost(subject.graph, profile)), []


def _pools(graph: nir.NIRGraph) -> list[str]:
    """What the pools of spikes cost, which are circuits in any case."""
    pools = [name for name, node in graph.nodes.items() if isinstance(node, SpikeMaxPool2d)]
    if not pools or is_cyclic(graph):
        return []
    costs = circuit_cost(graph)
    return _prices({name: costs[name] for name in pools})


def _prices(costs: Mapping[str, Cost]) -> list[str]:
    """Neurons and synapses per layer, and in all."""
    lines = [f"circuit {name}: {cost.neurons:,} neurons, {cost.synapses:,} synapses" for name, cost in costs.items()]
    if len(costs) > 1:
        neurons, synapses = sum(c.neurons for c in costs.values()), sum(c.synapses for c in costs.values())
        lines.append(f"circuits in all: {neurons:,} neurons, {synapses:,} synapses")
    return lines


def _run_nir(subject: Subject, path: Path) -> Executor:
    if subject.integer:
        return FixedExecutor(read_nir(path), membranes=True, name="nir")
    source = subject.source
    circuits = read_nir(path, keep_circuits=True)
    raised, _ = raise_circuits(circuits)  # what reading the file the usual way gives
    if MARKER not in hints(circuits):
        return GraphExecutor(raised, source.time_steps, "nir", source.dt)
    if set(raised.nodes) != set(subject.graph.nodes) or set(raised.edges) != set(subject.graph.edges):
        raise VerificationError(f"{path}: not written, its circuits do not read back as the network they stand for")
    return CircuitExecutor(circuits, subject.graph, source.time_steps, source.dt)


def _write_onnx(subject: Subject, path: Path) -> Written:
    source = subject.source
    model = build_onnx(
        subject.graph, time_steps=source.time_steps, dt=source.dt, metadata=subject.metadata, **subject.flags
    )
    save_onnx(model, path)
    return _written_onnx(subject, path)


def _written_onnx(subject: Subject, path: Path) -> Written:
    """How the file is called, as it says itself. Frames of a stream wait until a call has all of its steps."""
    metadata = read_facts(path).metadata
    told = Interface.of(metadata, path)
    steps = () if told.held else (told.steps_per_call,)
    shape = ["batch", *steps, *subject.source.frame_shape]
    facts: dict[str, Any] = {"input": {"name": input_names(subject.graph)[0], "shape": shape}}
    facts |= {"layout": told.layout, "flavour": told.flavour}
    if told.layout == "sequence":
        return Written(sidecar=facts)
    facts |= {"steps_per_call": told.steps_per_call, "states": json.loads(metadata["states"])}
    return Written(latency_steps=0 if told.held else told.steps_per_call - 1, sidecar=facts)


def _run_onnx(subject: Subject, path: Path) -> Executor:
    return OnnxExecutor(path, spikes=True)


def _write_integer_onnx(subject: Subject, path: Path) -> Written:
    save_onnx(build_integer_onnx(subject.graph, metadata=subject.metadata, **subject.flags), path)
    return _written_onnx(subject, path)


def _run_integer_onnx(subject: Subject, path: Path) -> Executor:
    return OnnxIntegerExecutor(path, membranes=True)


def _write_lava(subject: Subject, path: Path) -> Written:
    report = write_bundle(subject.graph, path)
    kinds = Counter(item.partition(": ")[2] or item for item in report.undocumented)
    beyond = [f"beyond what Lava documents, in {count} layers (manifest.json): {what}" for what, count in kinds.items()]
    return Written(tuple(beyond), report.latency_steps)


def _run_lava(subject: Subject, path: Path) -> Executor:
    return LavaExecutor(path, membranes=True)


def _cut_netx(graph: nir.NIRGraph, flags: Mapping[str, Any]) -> nir.NIRGraph:
    return sequential_part(graph, flags.get("until"))


def _write_netx(subject: Subject, path: Path) -> Written:
    report = write_netx(subject.graph, path)
    return Written(report.warnings, report.latency_steps)


def _run_netx(subject: Subject, path: Path) -> Executor:
    return NetxExecutor(path, membranes=True)


TARGETS: dict[Target, TargetSpec] = {
    "nir": TargetSpec(".nir", "optional", _write_nir, _run_nir, mark=".{bits}bit"),
    "onnx": TargetSpec(".onnx", "never", _write_onnx, _run_onnx),
    "onnx-int8": TargetSpec(".onnx", "always", _write_integer_onnx, _run_integer_onnx, mark=".int8"),
    "lava": TargetSpec(".lava", "always", _write_lava, _run_lava, folder=True),
    "netx": TargetSpec(
        ".net",
        "always",
        _write_netx,
        _run_netx,
        shifts=False,
        granularities=("tensor",),
        samples=8,
        cut=_cut_netx,
        round=round_biases,
    ),
}
"""Every target of ``statten-export``."""
