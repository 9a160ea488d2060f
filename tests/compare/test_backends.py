"""All backends for real on small networks: who must be equal is, who is not there says so, who is wrong is named."""

import json
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from statten_deploy import Comparison, compare_backends, comparing, targets
from statten_deploy.backends import BACKENDS
from statten_deploy.compare.comparison import Latency
from statten_deploy.compare.executors import TorchExecutor
from statten_deploy.compare.integers import FixedExecutor
from statten_deploy.energy import EnergyCounter, energy, load_profile
from statten_deploy.errors import ConfigError, InputError, UnsupportedError
from statten_deploy.export.nir import write_nir
from statten_deploy.frontend import build_graph
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions, quantize
from tests.conftest import lively_input, lively_model, small_config
from tests.simulate.builders import affine, conv, graph, inp, lif, out

SAMPLES = 5
UNTIMED: dict[str, Any] = {"latency_seconds": 0}


@pytest.fixture(scope="module")
def network() -> STAtten:
    """Every backend runs it: its pools are strided, and with one block its circuits are small. All its layers fire."""
    model = lively_model(small_config("strided", depth=1, embed_dim=16, num_heads=2, window="sliding"), seed=2)
    with torch.no_grad():  # a head without a favourite class
        model.head.bias -= model(torch.from_numpy(images(model))).mean(0)
    return model


def images(model: STAtten) -> np.ndarray:
    return lively_input(model.config, SAMPLES).numpy() / 2


@pytest.fixture(scope="module")
def data(network: STAtten, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, x=images(network), y=np.arange(SAMPLES) % network.config.num_classes)
    return path


@pytest.fixture(scope="module")
def found(network: STAtten, data: Path) -> Comparison:
    return compare_backends(network, data=data, calibration=data, batch=2, latency_seconds=1e-6)


def row(comparison: Comparison, name: str) -> Any:
    (one,) = (row for row in comparison.backends if row.name == name)
    return one


def test_every_backend_ran_and_nobody_is_wrong(found: Comparison) -> None:
    assert [one.name for one in found.backends] == list(BACKENDS)
    assert {one.name: one.unavailable for one in found.backends} == dict.fromkeys(BACKENDS, "")
    assert found.problems == []
    assert not any("fired" in told for told in found.warnings)
    assert len(set(row(found, "torch").predictions)) > 1
    assert found.references == {"float32": "torch", "integer": "torch-int"}
    assert (found.samples, found.time_steps, found.bits, found.classes) == (SAMPLES, 4, 8, 5)


@pytest.mark.parametrize("arithmetic", ["float32", "integer"])
def test_the_rows_of_one_arithmetic_are_equal_in_every_count(found: Comparison, arithmetic: str) -> None:
    """Integers always; floats because no neuron of this network is at its threshold."""
    first, *others = (one for one in found.backends if one.arithmetic == arithmetic)
    assert first.name == found.references[arithmetic]
    assert len(others) == 3
    for other in others:
        assert other.reference == first.name
        assert (other.spike_mismatches, other.agreement) == (0, 1.0)
        assert other.spike_sites == sum(SAMPLES * 4 * x.neurons for x in other.layers if x.role == "neurons")
        assert (other.relative_spikes, other.relative_synops) == (0.0, 0.0)
        assert other.predictions == first.predictions
        counts = [
            (x.name, x.spikes, x.spikes_by_step, x.synops, x.macs, x.paper_acs) for x in (*first.layers, *other.layers)
        ]
        assert counts[: len(first.layers)] == counts[len(first.layers) :]
        for name, cost in other.energy.items():
            assert cost.relative == 0.0
            assert cost.layers_pj == first.energy[name].layers_pj


def test_the_counts_are_those_of_all_samples_at_once(found: Comparison, network: STAtten, data: Path) -> None:
    """Not of the last batch, and not of a batch too many: counted apart from the comparison."""
    with np.load(data) as file:
        x, y = file["x"], file["y"]
    source = build_graph(network)
    integers = quantize(source, QuantizeOptions(), x)
    cases = {"torch": (source, TorchExecutor(network)), "lava": (integers, FixedExecutor(integers))}
    for name, (counted, executor) in cases.items():
        execution = executor.run(x)
        counter = EnergyCounter(counted)
        counter.update(execution.spikes)
        counts, one = counter.counts(), row(found, name)
        assert one.spikes == counts.spikes > 0
        assert (one.synops, one.macs, one.neuron_updates) == (counts.synops, counts.macs, counts.updates)
        for layer in one.layers:
            assert layer.synops == counts[layer.name].event_ops
            assert layer.spikes_by_step == counts[layer.name].spikes_by_step
        predicted = execution.outputs["logits"].argmax(1)
        assert one.predictions == predicted.tolist()
        assert one.correct == (predicted == y).sum()
        assert np.array(one.confusion).sum() == SAMPLES
        for profile in ("45nm-fp32", "45nm-int8", "loihi1"):
            report = energy(counts, load_profile(profile))
            assert one.energy[profile].total_pj == pytest.approx(report.total_pj, rel=1e-12)
            assert one.energy[profile].ann_pj == report.ann_pj
            assert sum(one.energy[profile].layers_pj.values()) == pytest.approx(one.energy[profile].total_pj)


def test_the_integer_reference_is_compared_with_the_float_one(found: Comparison) -> None:
    one = row(found, "torch-int")
    assert one.reference == "torch"
    assert 0 < one.spike_mismatches < one.spike_sites / 2
    assert one.relative_synops == pytest.approx((one.synops - row(found, "torch").synops) / row(found, "torch").synops)
    assert row(found, "torch").relative_synops is None


def test_latencies_of_one_sample_and_of_a_batch(found: Comparison) -> None:
    for one in found.backends:
        assert one.latency.batch == 1
        assert 0 < one.latency.median_ms <= one.latency.p90_ms
        assert one.latency.runs in (1, 3)  # hardly any time was given
    assert row(found, "onnx").batch_latency is None


def test_what_is_timed(network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines without their spikes, on one sample and on a batch, unless a batch took very long."""
    calls = []

    def measure(asked: dict[str, Any], batch: int, seconds: float) -> dict[str, Latency]:
        calls.append((list(asked), batch, seconds))
        outputs = [call() for call in asked.values()]
        assert all(np.ndim(logits_of(output)) == 2 and len(logits_of(output)) == batch for output in outputs)
        return {name: Latency(batch, 1.0, 2.0, 3) for name in asked}

    monkeypatch.setattr(comparing, "measure", measure)
    monkeypatch.setattr(comparing, "too_slow", lambda taken, seconds: False)
    found = compare_backends(network, FEW, data=data, batch=3, latency_seconds=0.5)
    assert [(sorted(names), *rest) for names, *rest in calls] == [(sorted(FEW), 1, 0.5), (sorted(FEW), 3, 0.5)]
    told = found.to_dict()["backends"][0]
    assert told["latency_ms"] == {"median": 1.0, "p90": 2.0, "batch": 1, "runs": 3}
    assert told["batch_latency_ms"] == {"median": 1.0, "p90": 2.0, "batch": 3, "runs": 3}


def logits_of(output: Any) -> np.ndarray:
    """Of whatever an engine gives."""
    found = getattr(output, "outputs", {"logits": output})["logits"]
    assert getattr(output, "spikes", {}) == {}
    return np.asarray(found)


def test_what_is_drawn(found: Comparison, network: STAtten, data: Path) -> None:
    """The spikes of the first sample in the float reference."""
    with np.load(data) as file:
        execution = TorchExecutor(network).run(file["x"][:2])
    assert found.raster is not None
    assert (found.raster.sample, found.raster.label) == (0, 0)
    assert found.raster.predicted == row(found, "torch").predictions[0]
    assert found.raster.layers.keys() == execution.spikes.keys()
    for name, spikes in found.raster.layers.items():
        np.testing.assert_array_equal(spikes, execution.spikes[name][:, 0].reshape(4, -1))


FEW = ("torch", "nir", "onnx", "torch-int", "fixed", "onnx-int8")
"""Those that take no time to start."""


def test_the_same_seed_gives_the_same_report(network: STAtten, data: Path) -> None:
    def run(seed: int, batch: int | None = None) -> str:
        found = compare_backends(
            network, ("onnx", "fixed", "onnx-int8"), data=data, samples=3, seed=seed, batch=batch, **UNTIMED
        )
        return json.dumps(found.to_dict(), allow_nan=False)

    first = run(0)
    assert run(0) == first
    assert run(0, batch=1) == first  # how samples are grouped changes nothing
    assert run(2) != first.replace('"seed": 0', '"seed": 2')  # other samples


def by_one(weight: np.ndarray) -> None:
    weight[3, 5] += 1


def by_sign(weight: np.ndarray) -> None:
    weight[3] *= -1


@pytest.mark.parametrize(("change", "what"), [(by_one, "2 membranes"), (by_sign, r"\d+ spikes")])
def test_wrong_weights_are_named(
    network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], None], what: str
) -> None:
    """The writer of the integer ONNX file gets them wrong. One that is off by one changes no spike here."""

    def broken(written: nir.NIRGraph, **options: Any) -> Any:
        node = written.nodes["block.0.mlp.fc1_conv"]
        right = node.weight.copy()
        change(node.weight)
        model = build(written, **options)
        node.weight[:] = right
        return model

    build = targets.build_integer_onnx
    monkeypatch.setattr(targets, "build_integer_onnx", broken)
    found = compare_backends(network, ("onnx-int8", "fixed"), data=data, calibration=data, **UNTIMED)
    assert [one.name for one in found.backends] == ["torch-int", "fixed", "onnx-int8"]
    first, *others = found.problems
    where = r"first at step \d, sample \d, neuron \(3, \d, \d\)"
    assert re.fullmatch(rf"onnx-int8: layer 'block\.0\.mlp\.fc2_lif': {what} differ, {where}", first)
    assert all(problem.startswith("onnx-int8: ") for problem in others)
    wrong, right = row(found, "onnx-int8"), row(found, "fixed")
    assert (wrong.spike_mismatches > 0) == (wrong.relative_synops != 0) == (change is by_sign)
    assert (right.spike_mismatches, right.relative_synops) == (0, 0.0)


def test_a_wrong_float_artefact_is_named(network: STAtten, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(written: nir.NIRGraph, **options: Any) -> Any:
        node = written.nodes["block.0.mlp.fc1_conv"]
        node.weight[3] *= 1.5
        model = build(written, **options)
        node.weight[3] /= 1.5
        return model

    build = targets.build_onnx
    monkeypatch.setattr(targets, "build_onnx", broken)
    found = compare_backends(network, ("nir", "onnx"), data=data, **UNTIMED)
    assert re.match(r"onnx: layer 'block.0.mlp.fc2_lif', step \d, neuron \(3, ", found.problems[0])
    assert "thresholds away from its threshold (allowed 1e-04)" in found.problems[0]


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


def test_frames_of_real_values(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.random.default_rng(0).random((3, 6, 2, 6, 6), np.float32))
    options = {"data": path, "time_steps": 6, **UNTIMED}
    real = row(compare_backends(stranger(), ("onnx",), **options), "onnx")
    assert real.macs > 0
    with pytest.raises(InputError, match="event inputs hold fractions"):
        compare_backends(stranger(), ("onnx",), input="events", **options)
    np.savez(path, x=np.ones((3, 6, 2, 6, 6), np.float32))
    assert row(compare_backends(stranger(), ("onnx",), **options), "onnx").macs == 0
    assert row(compare_backends(stranger(), ("onnx",), input="frames", **options), "onnx").macs == real.macs


def test_a_recurrent_graph_runs_where_it_can() -> None:
    found = compare_backends(stranger(loop=True), time_steps=6, samples=2, **UNTIMED)
    ran = [one.name for one in found.backends if not one.unavailable]
    assert ran == ["torch", "torch-int", "nir", "onnx", "fixed", "onnx-int8", "lava"]
    assert not found.problems
    assert "recurrent" in row(found, "norse").unavailable


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
    with pytest.raises(UnsupportedError, match="no backend can run: torch: the model is a graph of integers"):
        compare_backends(path, ("torch",), data=data, **UNTIMED)


def test_layers_that_never_fire_are_named(tmp_path: Path) -> None:
    quiet = stranger()
    quiet.nodes["first"].v_threshold[:] = 1e6
    quiet.nodes["readout"].bias[:] = 0
    found = compare_backends(quiet, ("onnx",), time_steps=6, samples=2, **UNTIMED)
    assert "no neuron of first, last fired on these samples: nothing behind them is compared" in found.warnings


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"backends": ("torch", "loihi")}, InputError, "--backends loihi: unknown; expected some of torch, torch-int"),
        ({"backends": ()}, InputError, "--backends"),
        ({"samples": 0}, InputError, "--samples 0: expected at least 1"),
        ({"samples": 99}, InputError, "has 5 samples, --samples asks for 99"),
        ({"seed": -1}, InputError, "--seed -1"),
        ({"bits": 9}, InputError, "--bits 9: expected 2 to 8"),
        ({"profiles": ("loihi2",)}, UnsupportedError, "no energy per operation has been published for Loihi 2"),
        ({"profiles": ("nothing",)}, ConfigError, "profile 'nothing': unknown"),
        ({"input": "events"}, ConfigError, "--input events: strided takes images"),
        ({"device": "tpu"}, InputError, "device 'tpu' cannot be used here"),
    ],
)
def test_bad_input(network: STAtten, data: Path, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("(", "\\(")):
        compare_backends(network, **{"backends": ("onnx",), "data": data, **UNTIMED, **options})


def test_a_profile_of_ones_own(network: STAtten, data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    figure = '[figures.synop]\nvalue = 2.0\nunit = "nJ"\nstatus = "measured"\nsource = "our bench"\n'
    own.write_text(f'name = "own"\ntitle = "Ours"\nfamily = "events"\n{figure}')
    found = compare_backends(network, ("onnx",), data=data, profiles=("truenorth", own, "loihi1"), **UNTIMED)
    assert [profile.name for profile in found.profiles] == ["45nm-fp32", "45nm-int8", "loihi1", "truenorth", "own"]
    one = row(found, "onnx")
    assert one.energy["own"].total_pj == pytest.approx(2000 * one.synops / SAMPLES)
    assert (found.profiles[-1].statuses, found.profiles[-1].sources) == (("measured",), ("synop 2000 pJ (measured): our bench",))
    other = tmp_path / "other.toml"
    other.write_text(own.read_text())
    with pytest.raises(ConfigError, match="a profile called 'own' is there already"):
        compare_backends(network, ("onnx",), data=data, profiles=(own, other), **UNTIMED)


def test_what_is_going_on_is_told(network: STAtten, data: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    compare_backends(network, ("onnx", "nir"), data=data, batch=2, progress=lambda *told: steps.append(told), **UNTIMED)
    assert [what for _, _, what in steps] == ["torch", "nir", "onnx"] * 3  # samples 0, 1 and 2, 3 and 4
    assert [done for done, _, _ in steps] == list(range(9))
    assert {total for _, total, _ in steps} == {9}
