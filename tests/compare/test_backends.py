"""All backends for real on small networks: who must be equal is, who is not there says so, who is wrong is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statten_deploy import Comparison, compare_backends, comparing
from statten_deploy.backends import BACKENDS, _OneThread
from statten_deploy.compare.comparison import Latency
from statten_deploy.compare.executors import TorchExecutor
from statten_deploy.compare.integers import FixedExecutor
from statten_deploy.energy import EnergyCounter, energy, load_profile
from statten_deploy.errors import ConfigError, InputError, UnsupportedError
from statten_deploy.frontend import build_graph
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train.data.split import fixed_order
from tests.compare.few import FEW, SAMPLES, UNTIMED, row


@pytest.fixture(scope="module")
def found(network: STAtten, data: Path) -> Comparison:
    return compare_backends(network, data=data, calibration=data, batch=4, latency_seconds=1e-6)


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

    def measure(asked: dict[str, Any], batch: int, seconds: float, failed: object) -> dict[str, Latency]:
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
    few = compare_backends(network, ("onnx",), data=data, samples=2, seed=2, **UNTIMED)
    chosen = sorted(fixed_order(SAMPLES, 2)[:2])
    assert (few.raster.sample, few.raster.label) == (chosen[0], chosen[0]) != (0, 0)  # of the data set, not of the two
    assert found.raster.predicted == row(found, "torch").predictions[0]
    assert found.raster.layers.keys() == execution.spikes.keys()
    for name, spikes in found.raster.layers.items():
        np.testing.assert_array_equal(spikes, execution.spikes[name][:, 0].reshape(4, -1))


def test_what_the_writers_have_to_say_is_in_the_rows(found: Comparison) -> None:
    assert any(told.startswith("circuit block.0.attn.statten: ") for told in row(found, "nir").notes)
    assert any("beyond what Lava documents" in told for told in row(found, "lava").notes)


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


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"backends": ("torch", "loihi")}, InputError, "--backends loihi: unknown; expected some of torch, torch-int"),
        ({"backends": ()}, InputError, "--backends"),
        ({"samples": 0}, InputError, "--samples 0: expected at least 1"),
        ({"samples": 99}, InputError, "has 5 samples, --samples asks for 99"),
        ({"seed": -1}, InputError, "--seed -1"),
        ({"batch": 0}, InputError, "--batch 0: expected at least 1"),
        ({"latency_seconds": float("nan")}, InputError, "--latency-seconds nan: expected 0 or more"),
        ({"bits": 0}, InputError, "--bits 0: expected 2 to 8"),
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
    assert (found.profiles[-1].statuses, found.profiles[-1].sources) == (
        ("measured",),
        ("synop 2000 pJ (measured): our bench",),
    )
    other = tmp_path / "other.toml"
    other.write_text(own.read_text())
    with pytest.raises(ConfigError, match="a profile called 'own' is there already"):
        compare_backends(network, ("onnx",), data=data, profiles=(own, other), **UNTIMED)


def test_bits_are_told_where_there_are_integers(network: STAtten, data: Path) -> None:
    options = {"data": data, "samples": 1, **UNTIMED}
    assert compare_backends(network, ("onnx",), bits=4, **options).bits is None
    assert compare_backends(network, ("fixed",), bits=4, **options).bits == 4


def test_whose_numbers_are_not_included_is_said(found: Comparison, network: STAtten, data: Path) -> None:
    assert {profile.counted_on for profile in found.profiles} == {"torch"}
    few = compare_backends(quantize(build_graph(network)), ("fixed",), data=data, samples=1, **UNTIMED)
    assert {profile.counted_on for profile in few.profiles} == {"torch-int"}


def test_what_is_going_on_is_told(network: STAtten, data: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    compare_backends(network, ("onnx", "nir"), data=data, batch=2, progress=lambda *told: steps.append(told), **UNTIMED)
    assert [what for _, _, what in steps] == ["torch", "nir", "onnx"] * 3  # samples 0, 1 and 2, 3 and 4
    assert [done for done, _, _ in steps] == list(range(9))
    assert {total for _, total, _ in steps} == {9}


def test_norse_has_one_thread() -> None:
    class Seen:
        name = "norse"

        def run(self, x: np.ndarray) -> int:
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert _OneThread(Seen()).run(np.zeros(1)) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
