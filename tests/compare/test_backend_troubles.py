"""Backends that are wrong, missing or cannot express a network, and models that are not checkpoints."""

import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from statten_deploy import compare_backends, targets
from statten_deploy.compare.executors import OnnxExecutor, TorchExecutor
from statten_deploy.compare.integers import FixedExecutor, TorchIntExecutor
from statten_deploy.energy import EnergyCounter
from statten_deploy.errors import InputError, StattenError, UnsupportedError
from statten_deploy.export.nir import write_nir
from statten_deploy.frontend import build_graph
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train.data.split import fixed_order
from tests.compare.few import FEW, UNTIMED, row
from tests.conftest import lively_model, small_config
from tests.simulate.builders import affine, conv, graph, inp, lif, out


def by_one(weight: np.ndarray) -> None:
    weight[3, 5] += 1


def by_sign(weight: np.ndarray) -> None:
    weight[3] *= -1


@pytest.mark.parametrize(
    ("backend", "writer", "change"),
    [
        ("onnx-int8", "build_integer_onnx", by_one),
        ("onnx-int8", "build_integer_onnx", by_sign),
        ("nir", "write_nir", by_one),
        ("lava", "write_bundle", by_sign),
    ],
)
def test_wrong_integers_are_named(
    network: STAtten,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    writer: str,
    change: Callable[[np.ndarray], None],
) -> None:
    """The writer of an artefact gets one weight, or a row of them, wrong. Off by one changes no spike here."""
    model = network if backend != "nir" else quantise_all(network, data)
    break_writer(monkeypatch, writer, change)
    options = {
        "samples": 1 if backend == "lava" else None,
        "calibration": None if backend == "nir" else data,
        **UNTIMED,
    }
    found = compare_backends(model, (backend, "fixed"), data=data, **options)
    assert {one.name for one in found.backends} == {"torch-int", "fixed", backend}
    first, *others = found.problems
    what = "2 membranes" if change is by_one else r"\d+ spikes"
    where = r"first at step \d, sample \d, neuron \(3, \d, \d\)"
    assert re.fullmatch(rf"{backend}: layer 'block\.0\.mlp\.fc2_lif': {what} differ, {where}", first)
    assert all(problem.startswith(f"{backend}: ") for problem in others)
    wrong, right = row(found, backend), row(found, "fixed")
    assert (wrong.spike_mismatches > 0) == (change is by_sign)
    assert (right.spike_mismatches, right.relative_synops) == (0, 0.0)


def break_writer(monkeypatch: pytest.MonkeyPatch, writer: str, change: Callable[[np.ndarray], None]) -> None:
    def broken(written: nir.NIRGraph, *rest: Any, **options: Any) -> Any:
        node = written.nodes["block.0.mlp.fc1_conv"]
        right = node.weight.copy()
        change(node.weight)
        result = write(written, *rest, **options)
        node.weight[:] = right
        return result

    write = getattr(targets, writer)
    monkeypatch.setattr(targets, writer, broken)


def quantise_all(network: STAtten, data: Path) -> nir.NIRGraph:
    with np.load(data) as file:
        return quantize(build_graph(network), QuantizeOptions(), file["x"])


def by_half(weight: np.ndarray) -> None:
    weight[3] *= 1.5


@pytest.mark.parametrize(("backend", "writer"), [("onnx", "build_onnx"), ("nir", "write_nir")])
def test_wrong_floats_are_named(
    network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch, backend: str, writer: str
) -> None:
    break_writer(monkeypatch, writer, by_half)
    found = compare_backends(network, (backend,), data=data, **UNTIMED)
    assert re.match(rf"{backend}: layer 'block.0.mlp.fc2_lif', step \d, neuron \(3, ", found.problems[0])
    assert "thresholds away from its threshold (allowed 1e-04)" in found.problems[0]


def falls(kind: type[Exception]) -> Callable[..., Any]:
    def fall(*_: Any, **__: Any) -> Any:
        raise kind("fell over")

    return fall


def test_an_engine_that_cannot_be_set_up_is_a_row_and_a_problem(
    network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "build_onnx", falls(RuntimeError))
    found = compare_backends(network, ("nir", "onnx", "fixed"), data=data, samples=2, **UNTIMED)
    assert found.problems == ["onnx: cannot be set up: RuntimeError: fell over"]
    assert row(found, "onnx").unavailable == "cannot be set up: RuntimeError: fell over"
    assert row(found, "nir").agreement == row(found, "fixed").agreement == 1.0
    assert "RuntimeError: fell over" in found.traces[0]
    assert "traces" not in found.to_dict()


def test_an_engine_that_falls_over_is_a_row_and_a_problem(
    network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxExecutor, "run", falls(MemoryError))
    monkeypatch.setattr(TorchIntExecutor, "run", falls(RuntimeError))
    found = compare_backends(network, ("nir", "onnx", "fixed"), data=data, samples=2, **UNTIMED)
    assert [problem.split(": ")[0] for problem in found.problems] == ["onnx", "torch-int"]
    assert row(found, "fixed").unavailable == "torch-int, which it is held to, failed"
    assert "failed on samples" in row(found, "onnx").unavailable
    assert (row(found, "nir").agreement, row(found, "nir").spike_mismatches) == (1.0, 0)
    assert found.raster is not None
    monkeypatch.setattr(TorchExecutor, "run", falls(RuntimeError))
    with pytest.raises(
        StattenError, match=r"no backend ran to the end: torch: failed on samples .* fell over"
    ) as caught:
        compare_backends(network, ("onnx",), data=data, samples=2, **UNTIMED)
    assert any("Traceback" in note for note in caught.value.__notes__)


def test_the_float_reference_may_fail_and_the_integers_go_on(
    network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = TorchExecutor.run, []

    def fall_later(self: TorchExecutor, x: np.ndarray) -> Any:
        calls.append(1)
        if len(calls) > 4:  # quantisation looks at it, too
            raise RuntimeError("fell over")
        return run(self, x)

    monkeypatch.setattr(TorchExecutor, "run", fall_later)
    found = compare_backends(network, ("nir", "fixed"), data=data, batch=1, **UNTIMED)
    assert found.problems == [f"torch: {row(found, 'torch').unavailable}"]
    assert row(found, "nir").unavailable == "torch, which it is held to, failed"
    assert (row(found, "torch-int").unavailable, row(found, "torch-int").relative_synops) == ("", None)
    assert row(found, "fixed").relative_synops == 0.0


def test_an_engine_that_fails_while_it_is_timed_keeps_its_counts(
    network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchExecutor, "infer", falls(RuntimeError))
    found = compare_backends(network, ("nir",), data=data, samples=3, latency_seconds=1e-6)
    assert found.problems == ["torch: failed while it was timed: RuntimeError: fell over"]
    assert row(found, "torch").latency is None
    assert row(found, "torch").synops == row(found, "nir").synops > 0
    assert row(found, "nir").latency is not None


HIDDEN = {
    "lava": ("lava", "Lava is not installed; pip install --ignore-requires-python --no-deps lava-nc"),
    "norse": ("norse", "pip install norse==1.1.0"),
    "onnx": ("onnxruntime", "onnxruntime is not installed; pip install onnxruntime"),
}


def test_what_is_not_installed_is_a_row(network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, _ in HIDDEN.values():
        for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
    found = compare_backends(network, (*HIDDEN, "fixed", "nir"), data=data, samples=1, **UNTIMED)
    for name, (_, said) in HIDDEN.items():
        assert said in row(found, name).unavailable
        assert row(found, name).layers == []
    assert found.problems == []
    assert row(found, "nir").agreement == row(found, "fixed").agreement == 1.0


def test_a_float_network_without_circuits_has_no_row_in_norse(data: Path) -> None:
    config = small_config("static", depth=1, embed_dim=16, num_heads=2)
    found = compare_backends(lively_model(config), ("norse",), data=data, samples=1, **UNTIMED)
    assert [one.name for one in found.backends] == ["torch", "norse"]
    assert "'patch_embed.maxpool3' (MaxPool2d): no circuit" in row(found, "norse").unavailable


def stranger(*, loop: bool = False) -> nir.NIRGraph:
    """A graph as another tool writes it: it says neither what its input is nor how many classes there are."""
    rng = np.random.default_rng(0)
    first = conv(rng, 2, 4)
    first.input_shape = (6, 6)
    nodes: dict[str, nir.NIRNode] = {
        "input": inp(2, 6, 6),
        "conv": first,
        "first": lif(4, 6, 6),
        "flatten": nir.Flatten({"input": np.array([4, 6, 6])}, 0, -1),
        "readout": affine(rng, 144, 3),
        "last": lif(3),
        "output": out(3),
    }
    names = list(nodes)
    edges = list(pairwise(names))
    if loop:
        nodes["back"] = affine(rng, 3, 3)
        edges += [("last", "back"), ("back", "last")]
    return graph(nodes, edges)


def test_a_graph_of_another_tool(tmp_path: Path) -> None:
    path = tmp_path / "stranger.nir"
    nir.write(path, stranger())
    found = compare_backends(path, [*FEW, "lava"], time_steps=6, samples=4, **UNTIMED)
    assert found.problems == []
    assert {one.name: one.unavailable for one in found.backends} == dict.fromkeys((*FEW, "lava"), "") | {
        one.name: "" for one in found.backends
    }
    assert found.dataset == "seeded random inputs"
    assert any("the model names no data set: compared on 4 seeded random inputs" in told for told in found.warnings)
    torch = row(found, "torch")
    assert "the model is a NIR file" in torch.notes[0]
    assert torch.macs == 0  # counts of events: the first convolution is fed by events
    assert (torch.accuracy, torch.confusion, len(torch.predictions)) == (None, None, 4)
    assert row(found, "lava").synops == row(found, "torch-int").synops > 0


def test_a_graph_is_read_as_its_tool_means_it() -> None:
    """At a threshold that inputs meet exactly, SpikingJelly fires and NIR does not."""
    met = stranger()
    met.nodes["first"].v_threshold[:] = 0.5
    met.nodes["conv"].weight[:] = 0
    met.nodes["conv"].bias[:] = 1  # half of it arrives in a step
    for tool, fires in ((None, False), ("spikingjelly", True)):
        found = compare_backends(met, ("onnx",), time_steps=1, samples=1, written_by=tool, **UNTIMED)
        assert found.problems == []
        first = next(layer for layer in row(found, "onnx").layers if layer.name == "first")
        assert (first.spikes == first.neurons) is fires


def test_frames_of_real_values(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.random.default_rng(0).random((3, 6, 2, 6, 6), np.float32))
    options = {"data": path, "time_steps": 6, **UNTIMED}
    real = row(compare_backends(stranger(), ("onnx",), **options), "onnx")
    assert real.macs > 0
    with pytest.raises(InputError, match=r"x.npz: sample 0 holds fractions, but --input events says whole numbers"):
        compare_backends(stranger(), ("onnx",), input="events", **options)
    np.savez(path, x=np.ones((3, 6, 2, 6, 6), np.float32))
    assert row(compare_backends(stranger(), ("onnx",), **options), "onnx").macs == 0
    assert row(compare_backends(stranger(), ("onnx",), input="frames", **options), "onnx").macs == real.macs


def test_frames_that_turn_out_to_be_real_values(tmp_path: Path) -> None:
    """The first batch looks like counts of events, a later sample does not: its number in the data is named."""
    path = tmp_path / "x.npz"
    x = np.random.default_rng(0).integers(0, 3, (40, 6, 2, 6, 6)).astype(np.float32)
    x[sorted(fixed_order(40, 0)[:8])[6], 3, 1] = 0.5
    np.savez(path, x=x)
    number = int(np.flatnonzero((x % 1).any((1, 2, 3, 4)))[0])
    options = {"data": path, "time_steps": 6, "samples": 8, "batch": 3, **UNTIMED}
    said = (
        f"x.npz: sample {number} holds fractions, but the first 3 hold whole numbers and were taken for counts of "
        "events; give --input frames"
    )
    with pytest.raises(InputError, match=said):
        compare_backends(stranger(), ("onnx",), **options)
    assert row(compare_backends(stranger(), ("onnx",), input="frames", **options), "onnx").macs > 0


def test_a_recurrent_graph_runs_where_it_can() -> None:
    found = compare_backends(stranger(loop=True), time_steps=6, samples=2, **UNTIMED)
    ran = [one.name for one in found.backends if not one.unavailable]
    assert ran == ["torch", "torch-int", "nir", "onnx", "fixed", "onnx-int8", "lava"]
    assert not found.problems
    assert "recurrent" in row(found, "norse").unavailable


def test_delays_run_where_they_can() -> None:
    waiting = stranger()
    waiting.nodes["wait"] = nir.Delay(np.full((4, 6, 6), 2e-4, np.float32))
    edges = [edge for edge in waiting.edges if edge != ("first", "flatten")] + [("first", "wait"), ("wait", "flatten")]
    found = compare_backends(graph(waiting.nodes, edges), FEW, time_steps=6, samples=3, **UNTIMED)
    assert found.problems == []
    assert [one.name for one in found.backends if not one.unavailable] == ["torch", "nir", "onnx"]
    assert "wait (Delay: " in row(found, "fixed").unavailable
    first, readout = (layer for layer in row(found, "onnx").layers if layer.name in ("first", "readout"))
    by_step = first.spikes_by_step
    assert readout.paper_acs == 3 * sum(by_step[:-2]) < 3 * sum(by_step)  # two steps late


def test_a_graph_of_integers(network: STAtten, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "integers.nir"
    integers = quantize(build_graph(network), QuantizeOptions(4))
    write_nir(integers, path)
    found = compare_backends(path, FEW, data=data, **UNTIMED)
    assert (found.bits, found.problems, found.references) == (4, [], {"integer": "torch-int"})
    for name in ("torch", "onnx"):
        assert row(found, name).unavailable == "the model is a graph of integers: there is no float network to run"
    assert (row(found, "nir").arithmetic, row(found, "nir").reference) == ("integer", "torch-int")
    assert row(found, "torch-int").reference == "torch-int"
    with np.load(data) as file:
        counter = EnergyCounter(integers)
        counter.update(FixedExecutor(integers).run(file["x"]).spikes)
    assert row(found, "nir").synops == row(found, "onnx-int8").synops == counter.counts().synops
    with pytest.raises(InputError, match="is quantised already"):
        compare_backends(path, FEW, data=data, bits=8, **UNTIMED)
    said = (
        "is a graph of integers, and --backends torch,onnx compute in floats; take some of torch-int, nir, fixed, onnx"
    )
    with pytest.raises(UnsupportedError, match=said):
        compare_backends(path, ("onnx", "torch"), data=data, **UNTIMED)


def test_layers_that_never_fire_are_named(tmp_path: Path) -> None:
    quiet = stranger()
    quiet.nodes["first"].v_threshold[:] = 1e6
    quiet.nodes["readout"].bias[:] = 0
    found = compare_backends(quiet, ("onnx",), time_steps=6, samples=2, **UNTIMED)
    assert "no neuron of first, last fired on these samples: nothing behind them is compared" in found.warnings
