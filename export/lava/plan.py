"""A quantised graph as the plan of a Lava network: one entry per process, in order, with its step offset.

Stages send in the step in which they receive, so time passes only in attention over chunks: what it computes for a
step leaves `window` - 1 steps later. Every node has the step at which the first sample reaches it, and a branch that
is early at a meeting point gets a delay. What comes back in a loop goes through a `previous` process: it sends what it
received a step before, and silence at the first step of a sample.
"""

from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.lava.loops import LoopPlanner
from statten_deploy.export.lava.operations import OUTSIDE, PLANNERS, PORTS
from statten_deploy.fixed_point.arithmetic import (
    BIAS_EXPONENT_MAX,
    BIAS_MANTISSA_BITS,
    DECAY_BITS,
    STATE_BITS,
    STATE_MAX,
    THRESHOLD_BITS,
    shift,
)
from statten_deploy.fixed_point.ranges import Interval, integer_ranges
from statten_deploy.ir import (
    hints,
    infer_shapes,
    predecessors,
)
from statten_deploy.ir.integer import (
    INTEGER_NEURONS,
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    TemporalSum,
)
from statten_deploy.ir.schedule import Loop, Run, Sum, make_schedule, makes, windows_in_loops

Array = NDArray[Any]
Shape = tuple[int, ...]

SIGNAL_LIMIT = 1 << 31
"""Signals between Lava processes are int32."""
CURRENT_LIMIT = 1 << 24
"""A neuron's input gains six bits inside int32, beside a synaptic current of 24 bits."""


@dataclass
class Entry:
    """One process: `inputs` port -> sources; `start`: the step at which the first sample reaches its ports."""

    name: str
    op: str
    inputs: dict[str, list[str]]
    shape: Shape
    start: int
    latency: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


@dataclass
class Plan:
    """`document` is network.json, `arrays` are weights.npz, both complete."""

    document: dict[str, Any]
    arrays: dict[str, Array]
    latency_steps: int
    neuron_layers: int
    undocumented: tuple[str, ...]


def make_plan(graph: nir.NIRGraph) -> Plan:
    """Schedule a quantised graph.

    Raises:
        UnsupportedError: nodes that Lava cannot run or numbers that its registers do not hold; all are named.
    """
    return _Planner(graph).plan()


class _Planner:
    def __init__(self, graph: nir.NIRGraph) -> None:
        self.graph = graph
        self.tasks: list[Run | Loop] = [task for task in make_schedule(graph).tasks if not isinstance(task, Sum)]
        self.order = [name for task in self.tasks for (name,) in makes(task)]
        self.into = predecessors(graph)
        self.time_steps = int(hints(graph).get("time_steps", 0))
        self.entries: list[Entry] = []
        self.ready: dict[str, int] = {}
        """The step at which a node's result for the first sample leaves it."""
        self.delays: dict[tuple[str, int], str] = {}

    def plan(self) -> Plan:
        self._refuse_kinds()
        self.shapes = infer_shapes(self.graph)
        self.results, self.currents = integer_ranges(self.graph)
        self._refuse_numbers()
        (encoder,) = self._of(InputEncoder)
        self.ready[encoder] = 0
        for task in self.tasks:
            if isinstance(task, Loop):
                LoopPlanner(self, task).schedule()
            elif not isinstance(self.graph.nodes[task.name], nir.Input | InputEncoder | nir.Output):
                self._schedule(task.name)
        (output,) = self._of(nir.Output)
        (source,) = self.into[output]["input"]
        latency = self.ready[source]
        neurons = self._of(IntegerLIF)
        beyond = [what for name in neurons for what in undocumented(name, self.graph.nodes[name])]
        document = {
            "format": 1,
            "time_steps": self.time_steps,
            "latency_steps": latency,
            "input": {
                "encoder": encoder,
                "shape": list(self.shapes[encoder]),
                "scale": [float(value) for value in self.graph.nodes[encoder].scale],
            },
            "output": self._output(output, source),
            "channel_values": self._channel_values(encoder),
            "nodes": [self._document(entry) for entry in self.entries],
        }
        arrays = {f"{entry.name}/{key}": narrow(value) for entry in self.entries for key, value in entry.arrays.items()}
        arrays[f"{encoder}/zero_point"] = narrow(self.graph.nodes[encoder].zero_point)
        return Plan(document, arrays, latency, len(neurons), tuple(beyond))

    def _of(self, kind: type[nir.NIRNode]) -> list[str]:
        return [name for name in self.order if isinstance(self.graph.nodes[name], kind)]

    def _schedule(self, name: str) -> None:
        """One entry, behind the delays that its early inputs need."""
        start = max(self.ready[source] for sources in self.into[name].values() for source in sources)
        ports = self.into[name].items()
        self.add(
            name, name, {port: [self.delayed(source, start) for source in sources] for port, sources in ports}, start
        )

    def add(self, name: str, written: str, inputs: dict[str, list[str]], start: int) -> None:
        """The process of a node, called `written`."""
        node = self.graph.nodes[name]
        inputs = {PORTS.get(port, port): sources for port, sources in inputs.items()}
        if isinstance(node, INTEGER_NEURONS) and node.input_exponent:
            shifted = f"{written}/shift"
            exponent = {"exponent": node.input_exponent}
            self.entries.append(Entry(shifted, "shift", inputs, self.shapes[name], start, options=exponent))
            inputs = {"a_in": [shifted]}
            self.shapes[shifted] = self.shapes[name]
        planned = PLANNERS[type(node)](self, name, node)
        entry = Entry(written, planned.op, inputs, self.shapes[name], start, planned.latency)
        entry.options, entry.arrays = planned.options, planned.arrays
        self.entries.append(entry)
        self.shapes[written], self.ready[written] = self.shapes[name], start + planned.latency

    def keep(self, source: str, present: str, start: int) -> str:
        """A process that gives what `present` gave a step ago."""
        name = f"{source}/previous"
        self.entries.append(Entry(name, "previous", {"a_in": [present]}, self.shapes[source], start))
        self.shapes[name] = self.shapes[source]
        return name

    def delayed(self, source: str, start: int) -> str:
        """`source` as it arrives at step `start`; delays are shared between readers."""
        steps = start - self.ready[source]
        if not steps:
            return source
        if (source, steps) not in self.delays:
            name = f"{source}/delay{steps}"
            shape = self.shapes[source]
            self.entries.append(Entry(name, "delay", {"a_in": [source]}, shape, self.ready[source], steps))
            self.shapes[name] = shape
            self.delays[source, steps] = name
        return self.delays[source, steps]

    def _output(self, output: str, source: str) -> dict[str, Any]:
        node = self.graph.nodes[source]
        scale = node.scale if isinstance(node, TemporalSum) else None
        units = None
        if isinstance(node, IntegerConv2d | IntegerLinear | IntegerLI):
            units = [float(unit) for unit in 1 / node.scale]
        shape, start = list(self.shapes[source]), self.ready[source]
        return {"name": output, "source": source, "shape": shape, "start": start, "scale": scale, "units": units}

    def _document(self, entry: Entry) -> dict[str, Any]:
        return {
            "name": entry.name,
            "op": entry.op,
            "inputs": entry.inputs,
            "input_shapes": {port: list(self.shapes[sources[0]]) for port, sources in entry.inputs.items()},
            "shape": list(entry.shape),
            "start": entry.start,
            "latency": entry.latency,
            "options": entry.options,
            "arrays": sorted(entry.arrays),
        }

    def _channel_values(self, encoder: str) -> int:
        """Numbers per step and sample that all connections carry, probes of spikes and membranes included."""
        carried = [source for entry in self.entries for sources in entry.inputs.values() for source in sources]
        probed = [entry.name for entry in self.entries if entry.op in ("lif", "li")] * 3
        return sum(int(np.prod(self.shapes[name])) for name in [*carried, *probed])

    # refusals

    def _refuse_kinds(self) -> None:
        kinds = {name: type(self.graph.nodes[name]) for name in self.order}
        unknown = [
            f"{name} ({kind.__name__})" for name, kind in kinds.items() if kind not in PLANNERS and kind not in OUTSIDE
        ]
        if unknown:
            raise UnsupportedError(
                f"not a quantised graph, or not one for Lava: no process for {', '.join(unknown)}; quantise it (--bits)"
            )
        if self.time_steps < 1:
            raise UnsupportedError("the number of time steps is not known: the graph has no hint `time_steps`")
        for kind in (nir.Input, InputEncoder, nir.Output):
            found = self._of(kind)
            if len(found) != 1:
                raise UnsupportedError(f"{len(found)} nodes of kind {kind.__name__}, a Lava bundle has exactly one")
        problems = []
        for name in self.order:
            node = self.graph.nodes[name]
            for port, sources in self.into[name].items():
                if len(set(sources)) < len(sources):
                    problems.append(f"{name} ({port} reads the same node twice)")
                inner = [type(self.graph.nodes[source]) for source in sources]
                if nir.Input in inner and not isinstance(node, InputEncoder):
                    problems.append(f"{name} (reads frames that are not encoded)")
                if TemporalSum in inner and not isinstance(node, nir.Output):
                    problems.append(f"{name} (reads a sum over time)")
            if isinstance(node, nir.Output) and len(self.into[name]["input"]) != 1:
                problems.append(f"{name} (sums several nodes)")
        problems += windows_in_loops(self.graph)
        if problems:
            raise UnsupportedError(f"not possible in a Lava bundle: {'; '.join(problems)}")

    def _refuse_numbers(self) -> None:
        problems = [
            f"{name} (values up to {interval.magnitude}, a channel holds 32 bits)"
            for name, interval in self.results.items()
            if interval.magnitude >= SIGNAL_LIMIT
        ]
        for name, interval in self.currents.items():
            if interval.magnitude >= CURRENT_LIMIT:
                problems.append(f"{name} (currents up to {interval.magnitude}, Lava's neurons hold 24 bits)")
        for name in [*self._of(IntegerLIF), *self._of(IntegerLI)]:
            problems += [f"{name} ({what})" for what in _register_problems(self.graph.nodes[name])]
        if problems:
            raise UnsupportedError(f"numbers that Lava's registers do not hold: {'; '.join(problems)}")

    def input_magnitude(self, name: str) -> int:
        """Largest magnitude of what a node reads."""
        (sources,) = self.into[name].values()
        total: Interval = self.results[sources[0]]
        for source in sources[1:]:
            total = total + self.results[source]
        return total.magnitude


def _register_problems(node: IntegerLIF | IntegerLI) -> list[str]:
    """What Lava's simulated neurons cannot hold."""
    decay, threshold, mantissa = 1 << DECAY_BITS, 1 << THRESHOLD_BITS, 1 << (BIAS_MANTISSA_BITS - 1)
    bounds = (
        ("dv", node.dv, 0, decay),
        ("du", node.du, 0, decay - 1),
        ("threshold", getattr(node, "threshold", 0), 0, threshold - 1),
        ("bias mantissa", node.bias_mantissa, -mantissa, mantissa - 1),
        ("bias exponent", node.bias_exponent, 0, STATE_BITS),
        ("bias", shift(node.bias_mantissa, np.clip(node.bias_exponent, 0, STATE_BITS)), -STATE_MAX, STATE_MAX),
    )
    return [
        f"{what} {np.min(value)} .. {np.max(value)}, possible are {low} .. {high}"
        for what, value, low, high in bounds
        if np.min(value) < low or np.max(value) > high
    ]


def undocumented(name: str, node: IntegerLIF) -> list[str]:
    """What the simulator computes although Lava documents less: one threshold per layer, 3 and 12 bits."""
    found = []
    if np.ptp(node.threshold):
        found.append(f"{name}: one threshold per channel")
    if node.bias_exponent.max() > BIAS_EXPONENT_MAX:
        found.append(f"{name}: bias exponents up to {node.bias_exponent.max()}, documented are {BIAS_EXPONENT_MAX}")
    if node.dv == 1 << DECAY_BITS:
        found.append(f"{name}: dv {node.dv}, documented are {node.dv - 1}")
    return found


def narrow(value: Array) -> Array:
    """The smallest signed integer type that holds all of an array."""
    low, high = int(np.min(value, initial=0)), int(np.max(value, initial=0))
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.ascontiguousarray(value, dtype=kind)
    return np.ascontiguousarray(value, dtype=np.int64)
