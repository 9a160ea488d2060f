"""Events in, a label out, with its latency and a running estimate of energy. The device needs numpy and onnxruntime.

    camera thread -> queue of N transfers -> frames of events -> stream of the network -> label

The camera never waits. A transfer that finds the queue full is lost, and its events are counted. Memory is bounded: the
queue, one open frame, the stream's state, and the last latencies (and what is played: event files are read beforehand).

On a workstation: the file for the device, and FILE.energy.json, what a spike costs in each layer.

    python examples/edge_pipeline.py --model digits-events.onnx --prepare models/zoo/digits-events.ckpt

On the device:

    python examples/edge_pipeline.py --model digits-events.onnx --events recording.aedat4

With the simulated camera, whose recordings scikit-learn's digits are made of:

    python examples/edge_pipeline.py --model digits-events.onnx --camera --recordings 20
"""

import argparse
import json
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from statten_deploy.errors import InputError, StattenError
from statten_deploy.events import Chunk, FrameBinner, SimulatedCamera, read_events
from statten_deploy.runtime import load

REMEMBERED = 4096
"""Latencies that medians are taken of: the last ones."""
OPEN = np.zeros(3)
"""Lowest, expected, highest."""
FIXED = ("neuron_update", "neuron_access", "mac")
"""Figures that are paid at every step, whatever fires."""


class Arrival(NamedTuple):
    """A transfer, when it came, and how many events had been lost by then."""

    chunk: Chunk
    at: float
    lost: int


class Feed:
    """The camera in a thread of its own, and what of it found room in a queue of `size` transfers."""

    def __init__(self, camera: Iterable[Chunk], size: int) -> None:
        if size < 1:
            raise InputError(f"--queue {size}: expected at least 1")
        self.lost_events = self.lost_chunks = self.deepest = 0
        self._camera = camera
        self._queue: queue.Queue[Arrival | None] = queue.Queue(size)
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[Arrival]:
        threading.Thread(target=self._listen, daemon=True).start()
        while (arrival := self._queue.get()) is not None:
            yield arrival
        if self._failure is not None:
            raise self._failure

    def _listen(self) -> None:
        try:
            for chunk in self._camera:
                try:
                    self._queue.put_nowait(Arrival(chunk, time.monotonic(), self.lost_events))
                    self.deepest = max(self.deepest, self._queue.qsize())
                except queue.Full:
                    self.lost_events += len(chunk.events)
                    self.lost_chunks += 1
        except Exception as error:  # belongs to the consumer
            self._failure = error
        self._queue.put(None)  # nothing follows that could be lost


class Meter:
    """Dynamic energy from spike counts, in pJ: lowest, expected and highest (see `energy_table`)."""

    def __init__(self, table: dict) -> None:
        try:
            self.profile, self.step = table["profile"], float(table["pj_per_step"])
            self.not_included = "; ".join(table["not_included"])
            self.per_input_event = np.array(table["pj_per_input_event"], float)
            self.per_spike = {name: np.array(cost, float) for name, cost in table["pj_per_spike"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("the energy table is damaged; write it again with --prepare CHECKPOINT") from None
        self.total = OPEN.copy()

    def add(self, counts: dict, steps: int, input_events: int) -> None:
        """One call: spikes by layer, its steps, and the entries of its frames that are not zero."""
        if counts.keys() != self.per_spike.keys():
            raise InputError("the file does not count the spikes of the table's layers; write both with --prepare")
        self.total += steps * self.step + input_events * self.per_input_event
        for name, cost in self.per_spike.items():
            self.total += int(counts[name]) * cost


@dataclass
class Answer:
    """One recording: what the network said of it, and what that cost."""

    recording: int
    label: int | None
    steps: int
    latencies: list[float]
    lost: int
    """Events in refused transfers since the answer before."""
    energy_pj: np.ndarray
    """Of this recording and all before."""


@dataclass
class Pipeline:
    """What listens to a `Feed`. A recording ends with its last transfer, or when one of another recording comes."""

    stream: object
    binner: FrameBinner
    meter: Meter
    latencies: deque = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    computed: int = 0
    """Events in the frames that the network got."""
    unused: int = 0
    """Events that came when the answer was there already."""

    def run(self, feed: Feed) -> Iterator[Answer]:
        """The answers, one by one."""
        current, lost = None, 0
        for arrival in feed:
            chunk = arrival.chunk
            if current is not None and chunk.recording != current:  # its last transfer was refused
                yield self._finish(current, arrival.lost - lost, arrival.at)
                lost, current = arrival.lost, None
            if current is None:
                self._start()
                current = chunk.recording
            if self._complete:
                self.unused += len(chunk.events)
            else:
                for frame in self.binner.push(chunk.events):
                    self._push(frame.counts, arrival.at)
            if chunk.last:
                yield self._finish(current, arrival.lost - lost, arrival.at)
                lost, current = arrival.lost, None
        if current is not None:
            yield self._finish(current, feed.lost_events - lost, time.monotonic())

    def _start(self) -> None:
        self.stream.reset()
        self.binner.reset()
        self._label, self._complete, self._steps, self._waiting = None, False, 0, 0
        self._now = deque(maxlen=REMEMBERED)

    def _push(self, frame: np.ndarray, since: float) -> None:
        if self._complete:
            self.unused += int(frame.sum())
            return
        self.computed += int(frame.sum())
        self._waiting += int(np.count_nonzero(frame))
        result = self.stream.push(frame)
        if result is None:  # a chunk that is not full yet
            return
        self.meter.add(result.spike_counts, result.steps - self._steps, self._waiting)
        self._label, self._complete, self._steps, self._waiting = result.label, result.complete, result.steps, 0
        self._now.append(time.monotonic() - since)

    def _finish(self, recording: int, lost: int, at: float) -> Answer:
        frame = self.binner.flush()
        if frame is not None:
            self._push(frame.counts, at)
        self.latencies.extend(self._now)
        return Answer(recording, self._label, self._steps, list(self._now), lost, self.meter.total.copy())


def energy_table(checkpoint: Path, profile_name: str, recordings: int = 16) -> dict:
    """What a spike of each layer costs in pJ, with everything that it sets off up to the next layer of neurons.

    Highest and lowest follow from the graph: a spike at a border reaches fewer synapses, one that arrives at a gate or
    at attention may find no partner. Expected is what training recordings cost on average.
    """
    from statten_deploy.api import calibration_part
    from statten_deploy.compare.executors import GraphExecutor
    from statten_deploy.energy import Counts, EnergyCounter, LayerCounts, energy, load_profile
    from statten_deploy.energy.fanout import WEIGHTED, WINDOWS, fan_out
    from statten_deploy.energy.signals import GATES, Kind
    from statten_deploy.ir import STAttenAttention, TokenMaxPool
    from statten_deploy.source import load_source

    source, profile = load_source(checkpoint), load_profile(profile_name)
    if profile.family != "events":
        raise InputError(f"--profile {profile_name}: it prices MACs; expected one that prices events, such as loihi1")
    part = calibration_part(source, source.dataset)
    x = np.stack([part.sample(index) for index in range(recordings)])
    spikes = GraphExecutor(source.graph).run(x).spikes
    counter = EnergyCounter(source.graph, input="events")
    counter.update(spikes, x)
    graph, shapes, into = counter.graph, counter.shapes, counter.into
    whole = energy(counter.counts(), profile)
    report = {layer.name: layer for layer in whole.layers}
    fired = {name: int(value.sum()) for name, value in spikes.items() if name in graph.nodes}
    entrance = next(name for name, node in graph.nodes.items() if type(node).__name__ == "Input")
    fired[entrance] = int(np.count_nonzero(x))
    spike_pj = sum(profile.figures[name].pj for name in ("spike", "spike_out", "axon_out") if name in profile.figures)

    def reach(name: str, sources: list[str]) -> np.ndarray:
        """How many synapses, windows or gates of a node one event may arrive at."""
        node, shape = graph.nodes[name], shapes[sources[0]]
        if isinstance(node, (*WEIGHTED, *WINDOWS)):
            return fan_out(node, shape, shapes[name])
        if isinstance(node, TokenMaxPool):
            return np.array([1, 9])  # 3 x 3
        return np.array([max(1, int(np.prod(shapes[name])) // int(np.prod(shape)))])

    def most(name: str) -> dict[str, float]:
        """Layers behind whose spikes a node's events are, and how many of them one spike can make at most."""
        if name in fired:
            return {name: 1}
        ports = into[name]
        sources = ports["a"] if "a" in ports else [source for port in ports.values() for source in port]
        return scaled(sources, int(reach(name, sources).max()))

    def scaled(sources: list[str], factor: float) -> dict[str, float]:
        found: dict[str, float] = {}
        for one in sources:
            for layer, events in most(one).items():
                found[layer] = found.get(layer, 0) + events * factor
        return found

    cost = {name: np.full(3, 0.0 if name == entrance else spike_pj) for name in fired}
    fixed = 0.0
    for name, node in graph.nodes.items():
        if name in report:
            fixed += sum(report[name].parts_pj.get(figure, 0.0) for figure in FIXED) / source.time_steps
        ports = {port: names for port, names in into.get(name, {}).items() if names}
        events = ports and all(counter.kinds[one] is Kind.EVENTS for names in ports.values() for one in names)
        if name in fired or not events or not isinstance(node, (*WEIGHTED, *WINDOWS, *GATES, STAttenAttention)):
            continue
        layer = LayerCounts(name, type(node).__name__, "synapses", synops=1)
        synop = energy(Counts((layer,), samples=1, steps=1), profile).total_pj
        lowest, highest = {}, {}
        for port, names in ports.items():
            if isinstance(node, STAttenAttention):
                width = shapes[name][0] // node.num_heads
                # every q reads a row; a k meets at most all v of its head, and leaves at most once
                least, top = (width, width) if port == "q" else (0, 2 * width if port == "k" else 0)
            else:
                reached = reach(name, names)
                least, top = int(reached.min()), int(reached.max())
            for one, amount in scaled(names, top * synop).items():
                highest[one] = highest.get(one, 0.0) + amount
            for one in names:
                if one in fired:
                    lowest[one] = lowest.get(one, 0.0) + least * synop
        if isinstance(node, GATES):
            for one, amount in most(name).items():
                highest[one] += amount * spike_pj
        parts = report[name].parts_pj if name in report else {}
        paid = sum(value for figure, value in parts.items() if figure not in FIXED) * recordings
        share = paid / max(1.0, sum(fired[one] * bound for one, bound in highest.items()))  # of the highest
        for one, bound in highest.items():
            low = lowest.get(one, 0.0)
            cost[one] += np.array([low, min(max(share * bound, low), bound), bound])
    return {
        "profile": profile.name,
        "title": profile.title,
        "recordings": recordings,
        "not_included": list(whole.not_included),
        "pj_per_step": fixed,
        "pj_per_input_event": cost.pop(entrance).tolist(),
        "pj_per_spike": {name: value.tolist() for name, value in cost.items()},
    }


def prepare(checkpoint: Path, model: Path, profile: str, *, int8: bool) -> None:
    """Write the stream file for the device and its energy table (for int8 too from the float network's weights)."""
    from statten_deploy import export_onnx, export_onnx_int8

    table = energy_table(checkpoint, profile)
    export = export_onnx_int8 if int8 else export_onnx
    export(checkpoint, model, layout="stream", spike_counts=True)
    table_path(model).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def table_path(model: Path) -> Path:
    """Where the energy table of a file lies."""
    return model.with_suffix(".energy.json")


def open_pipeline(model: Path, sensor: tuple[int, int] | None, events_per_frame: int) -> Pipeline:
    """The device's side, from the two files that `prepare` wrote."""
    session = load(model, threads=1)
    if len(session.frame_shape) != 3 or session.frame_shape[0] != 2:
        raise InputError(f"{model}: takes {list(session.frame_shape)}, expected frames of events [2, H, W]")
    try:
        table = json.loads(table_path(model).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{table_path(model)}: no readable energy table; write it with --prepare CHECKPOINT") from None
    size = (session.frame_shape[1], session.frame_shape[2])
    binner = FrameBinner(size, sensor=sensor or size, events_per_frame=events_per_frame)
    return Pipeline(session.stream(), binner, Meter(table))


def recordings_of(options: argparse.Namespace):
    """Recordings, their labels where known, and the sensor's size."""
    if options.events:
        size = tuple(options.sensor) if options.sensor else None
        found = [read_events(path, size=size) for path in options.events]
        return found, None, found[0].size
    # Workstation only: it needs scikit-learn.
    from statten_deploy.events.saccades import SIZE
    from statten_deploy.train.data.digits_events import digit_recordings

    found, labels = digit_recordings("test")
    if not 1 <= options.recordings <= len(found):
        raise InputError(f"--recordings {options.recordings}: expected 1 to {len(found)}")
    return found[: options.recordings], labels, SIZE


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Events in, labels out.")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="a stream file with --spike-counts")
    parser.add_argument("--prepare", type=Path, metavar="CHECKPOINT", help="write FILE and its energy table, and stop")
    parser.add_argument("--int8", action="store_true", help="with --prepare: an integer file")
    parser.add_argument("--profile", default="loihi1", help="with --prepare: what an operation costs (docs/energy.md)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--events", type=Path, nargs="+", metavar="FILE", help="event files, one recording each")
    source.add_argument("--camera", action="store_true", help="the simulated camera")
    parser.add_argument("--sensor", type=int, nargs=2, metavar=("H", "W"), help="where the files do not tell it")
    parser.add_argument("--recordings", type=int, default=20, metavar="N", help="of the simulated camera")
    parser.add_argument("--events-per-frame", type=int, default=400, metavar="N")
    parser.add_argument("--speed", type=float, default=1.0, help="1: as fast as it was recorded")
    parser.add_argument("--queue", type=int, default=256, metavar="N", help="transfers of 1 ms that may wait")
    options = parser.parse_args(arguments)
    if not (options.prepare or options.events or options.camera):
        parser.error("nothing to do: give --prepare CHECKPOINT, --events FILE or --camera")
    return options


def milliseconds(latencies: Iterable[float]) -> str:
    """Median and 90 % of them."""
    values = 1e3 * np.fromiter(latencies, float)
    if not len(values):
        return "no frame"
    return f"{np.median(values):.1f} ms (90 %: {np.quantile(values, 0.9):.1f})"


def microjoules(pj: np.ndarray) -> str:
    low, expected, high = pj / 1e6
    return f"{expected:.1f} uJ ({low:.1f} to {high:.1f})"


def play(options: argparse.Namespace) -> None:
    """Print a line per recording, and a summary."""
    recordings, labels, sensor = recordings_of(options)
    pipeline = open_pipeline(options.model, sensor, options.events_per_frame)
    feed = Feed(SimulatedCamera(recordings, pause_us=20_000, speed=options.speed), options.queue)
    right = heard = 0
    for answer in pipeline.run(feed):
        heard += 1
        truth = "" if labels is None else f" (truth {labels[answer.recording]})"
        right += labels is not None and answer.label == labels[answer.recording]
        print(
            f"recording {answer.recording}: label {answer.label}{truth}, {answer.steps} frames, "
            f"latency {milliseconds(answer.latencies)}, energy so far {microjoules(answer.energy_pj)}, "
            f"{answer.lost} events lost",
            flush=True,
        )
    correct = "" if labels is None else f", {right} right"
    print(f"{heard} of {len(recordings)} recordings{correct}; latency {milliseconds(pipeline.latencies)} a frame")
    print(f"queue: {feed.lost_events} events in {feed.lost_chunks} refused transfers; at most {feed.deepest} waited")
    dropped = pipeline.binner.dropped
    print(
        f"frames: {pipeline.computed} events computed, {pipeline.unused} after the answer, {dropped.late} late, "
        f"{dropped.outside} outside, {dropped.unfinished} of frames that a clock going back cut short"
    )
    meter = pipeline.meter
    print(
        f"energy: {microjoules(meter.total)} on {meter.profile}, dynamic only: an estimate from spike counts, in bounds"
    )
    print(f"not included: {meter.not_included}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.prepare:
            prepare(options.prepare, options.model, options.profile, int8=options.int8)
            print(f"{options.model}, {table_path(options.model)}")
        if options.events or options.camera:
            play(options)
    except StattenError as error:
        print(f"edge_pipeline: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
