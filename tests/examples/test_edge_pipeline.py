"""The event pipeline: answers, energy within its bounds, and what happens when the consumer is too slow."""

import importlib.util
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from statten_deploy.compare.executors import GraphExecutor
from statten_deploy.energy import EnergyCounter, energy, load_profile
from statten_deploy.events import Chunk, Events, SimulatedCamera, frames_by_number
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.quantize import quantize
from statten_deploy.source import load_source
from statten_deploy.train.data.digits_events import digit_recordings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/edge_pipeline.py"
CHECKPOINT = ROOT / "models/zoo/digits-events.ckpt"
SENSOR = (32, 32)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("edge_pipeline", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["edge_pipeline"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["edge_pipeline"]


@pytest.fixture(scope="module")
def model(example, tmp_path_factory):
    path = tmp_path_factory.mktemp("edge") / "digits-events.onnx"
    assert example.main(["--model", str(path), "--prepare", str(CHECKPOINT)]) == 0
    return path


@pytest.fixture(scope="module")
def recordings():
    found, labels = digit_recordings("test")
    return [found[i] for i in range(3)], labels[:3].tolist()


def test_a_patient_consumer_loses_nothing(example, model, recordings):
    pipeline = example.open_pipeline(model, SENSOR, 400)
    feed = example.Feed(SimulatedCamera(recordings[0], seed=0), 100_000)
    answers = list(pipeline.run(feed))
    assert {answer.recording: answer.label for answer in answers} == dict(enumerate(recordings[1]))
    assert all(answer.steps == len(answer.latencies) == 8 and answer.lost == 0 for answer in answers)
    assert feed.lost_events == feed.lost_chunks == 0
    energies = np.array([answer.energy_pj for answer in answers])
    assert (np.diff(energies, axis=0) > 0).all()
    assert (np.diff(energies, axis=1) > 0).all()  # lowest < expected < highest


def watched(pipeline, before=lambda: True):
    """The events of every frame that the network computes, as a list that grows."""
    push, found = pipeline.stream.push, []

    def pushed(frame):
        assert before()
        found.append(int(frame.sum()))
        return push(frame)

    pipeline.stream.push = pushed
    return found


def test_every_event_is_in_exactly_one_count(example, model, recordings):
    """Late ones, ones outside the sensor, a clock that goes back, and more than eight frames hold."""
    first = recordings[0][0]
    wide = np.where(np.arange(len(first)) % 50 == 0, 40, first.x).astype(np.uint16)
    late = first.t - np.where(np.arange(len(first)) % 7 == 0, 90_000, 0)
    back = np.concatenate([first.t[:1000], first.t[1000:] - 10**9])
    each = [Events(t, wide, first.y, first.p) for t in (first.t, late, back)]
    chunks = [
        Chunk(events[at : at + 500], number, at == 0, at + 500 >= len(events), 0)
        for number, events in enumerate(each)
        for at in range(0, len(events), 500)
    ]
    pipeline = example.open_pipeline(model, SENSOR, 300)
    computed = watched(pipeline)
    feed = example.Feed(chunks, 1000)
    assert [answer.recording for answer in pipeline.run(feed)] == [0, 1, 2]
    dropped = pipeline.binner.dropped
    assert min(dropped.late, dropped.outside, dropped.unfinished, dropped.restarts, pipeline.unused) > 0
    refused = dropped.late + dropped.outside + dropped.unfinished
    assert sum(computed) == pipeline.computed
    assert pipeline.computed + refused + pipeline.unused == 3 * len(first)


@pytest.mark.parametrize("size", [1, 3])
def test_a_slow_consumer_loses_what_it_does_not_take_and_knows_how_much(example, model, recordings, size):
    """The network's first frame takes until the camera has sent everything."""
    finished = threading.Event()

    def camera():
        yield from SimulatedCamera(recordings[0], chunk_us=60_000, speed=1e6)
        finished.set()

    pipeline = example.open_pipeline(model, SENSOR, 400)
    computed = watched(pipeline, lambda: finished.wait(60))
    feed = example.Feed(camera(), size)
    answers = list(pipeline.run(feed))
    assert feed.lost_events > 0
    assert 1 <= feed.deepest <= size
    assert sum(answer.lost for answer in answers) == feed.lost_events
    given = sum(len(events) for events in recordings[0])
    assert sum(computed) == pipeline.computed
    assert pipeline.computed + feed.lost_events + pipeline.unused == given
    assert 0 < sum(computed) <= 8 * 400 * len(answers)
    assert answers[0].recording == 0  # its last transfer was lost
    assert answers[0].steps < 8


def test_a_camera_that_fails_is_not_silence(example, model, recordings):
    def camera():
        yield next(iter(SimulatedCamera(recordings[0])))
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(example.open_pipeline(model, SENSOR, 400).run(example.Feed(camera(), 8)))


@pytest.mark.parametrize("data", ["recordings", "noise", "silence"])
def test_the_exact_energy_is_within_the_bounds_and_near_the_estimate(example, model, recordings, data):
    x = np.stack([frames_by_number(events, 8, (16, 16)) for events in recordings[0]]).astype(np.float32)
    if data != "recordings":
        rate = 3 if data == "noise" else 0
        x = np.random.default_rng(0).poisson(rate, x.shape).astype(np.float32)
    graph = load_source(CHECKPOINT).graph
    spikes = GraphExecutor(graph).run(x).spikes
    counter = EnergyCounter(graph, input="events")
    counter.update(spikes, x)
    exact = energy(counter.counts(), load_profile("loihi1")).total_pj * len(x)
    meter = example.Meter(json.loads(example.table_path(model).read_text()))
    totals = {name: int(value.sum()) for name, value in spikes.items()}
    meter.add(totals, x.shape[0] * x.shape[1], int(np.count_nonzero(x)))
    lowest, expected, highest = meter.total
    assert lowest < exact < highest
    if data == "recordings":
        assert expected == pytest.approx(exact, rel=0.03)


def profile_of(folder, **figures: float) -> str:
    """A profile in which only these figures cost something; those it must have cost nothing."""
    lines = ['name = "only"', 'title = "Only"', 'family = "events"']
    for name, value in {"synop": 0.0, "neuron_update": 0.0, "spike": 0.0, **figures}.items():
        lines += [f"[figures.{name}]", f"value = {value}", 'unit = "pJ"', 'status = "estimated"', 'source = "test"']
    path = folder / "only.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_an_integer_file_counts_the_layers_of_the_table(example, model):
    """The table of --int8 is that of the float network."""
    graph = quantize(load_source(CHECKPOINT).graph)
    outputs = build_integer_onnx(graph, layout="stream", spike_counts=True).graph.output
    prefix = "spike_counts/"
    counted = {output.name.removeprefix(prefix): 0 for output in outputs if output.name.startswith(prefix)}
    example.Meter(json.loads(example.table_path(model).read_text())).add(counted, 1, 0)  # or it would raise


def test_an_event_that_makes_no_neuron_fire_costs_its_synapses(example, tmp_path):
    """One event in the middle of one frame, and as many synapses as it reaches: both bounds hold."""
    table = example.energy_table(CHECKPOINT, profile_of(tmp_path, synop=1.0), recordings=2)
    graph = load_source(CHECKPOINT).graph
    x = np.zeros((1, 8, 2, 16, 16), np.float32)
    x[0, 0, 1, 8, 8] = 1
    silent = {name: np.zeros_like(value) for name, value in GraphExecutor(graph).run(x).spikes.items()}
    counter = EnergyCounter(graph, input="events")
    counter.update(silent, x)
    exact = energy(counter.counts(), load_profile(tmp_path / "only.toml")).total_pj
    assert exact > 0
    meter = example.Meter(table)
    meter.add(dict.fromkeys(silent, 0), 8, 1)
    lowest, expected, highest = meter.total
    assert 0 < lowest <= expected <= highest
    assert lowest <= exact <= highest == exact  # in the middle it reaches all that it can reach


def test_what_leaves_a_gate_is_a_spike_in_the_upper_bound(example, tmp_path):
    """Only spikes cost: behind q, k, v and the shortcut stand pools of 3 x 3, behind attention the gate itself."""
    table = example.energy_table(CHECKPOINT, profile_of(tmp_path, spike=1.0), recordings=2)
    dearer = {name: bounds[2] for name, bounds in table["pj_per_spike"].items() if bounds[2] != 1}
    pooled = {f"block.0.attn.{name}_lif": 1 + 9 for name in ("shortcut", "q", "k", "v")}
    assert dearer == {**pooled, "block.0.attn.attn_lif": 1 + 1}


def test_on_the_device_an_event_file_needs_no_torch(model, recordings, tmp_path):
    events = recordings[0][0]
    path = tmp_path / "recording.npz"
    np.savez(path, t=events.t, x=events.x, y=events.y, p=events.p, width=32, height=32)
    arguments = [str(EXAMPLE), "--model", str(model), "--events", str(path), "--queue", "1000"]
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print({'torch', 'sklearn', 'nir', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, *_, lost, frames, energies, left_out, heavy = done.stdout.splitlines()
    counts = re.findall(r"\d+", f"{lost.partition(' events in')[0]} {frames}")
    assert len(counts) == 1 + 5
    assert sum(map(int, counts)) == len(events)  # the summary's counts add up
    assert first.startswith(f"recording 0: label {recordings[1][0]}, 8 frames, latency ")
    assert first.endswith(" 0 events lost")
    assert "dynamic only: an estimate" in energies
    assert left_out.startswith("not included: static power; hops")
    assert heavy == "set()"


def test_what_is_missing_is_said_in_one_line(example, model, tmp_path, capsys):
    lonely = tmp_path / "lonely.onnx"
    lonely.write_bytes(model.read_bytes())
    assert example.main(["--model", str(lonely), "--camera", "--recordings", "1"]) == 2
    assert "lonely.energy.json: no readable energy table; write it with --prepare" in capsys.readouterr().err
    assert example.main(["--model", str(model), "--camera", "--recordings", "0"]) == 2
    assert "--recordings 0: expected 1 to 360" in capsys.readouterr().err
