"""Every kind of file gives the same where nothing of onnxruntime is: in OpenVINO and in onnx.reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest

from statten_deploy import export_onnx_int8
from statten_deploy.api import ExportOptions
from statten_deploy.compare.engines import verify_in_openvino
from statten_deploy.compare.verify import Agreement
from statten_deploy.errors import VerificationError
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import FLAVOURS, build_integer_onnx
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.ir.integer import IntegerLI
from statten_deploy.quantize import quantize
from statten_deploy.runtime import Interface, load
from statten_deploy.runtime.engines import OpenVinoEngine, Options
from tests.export.onnx.integer_harness import (
    INTEGER,
    agree,
    conv,
    counts,
    in_onnxruntime,
    in_openvino,
    in_reference,
    integer_graph,
    lif,
    linear,
    quantised,
    with_hints,
)
from tests.export.onnx.onnx_harness import network_input, small_network
from tests.quantize.recurrent_graphs import events, recurrent, rough

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
NETWORKS = {
    "image": {},
    "frames": {"dvs": True, "attention": {"window": 2, "mode": "sliding"}},
}
ZOO = Path(__file__).resolve().parents[3] / "models/zoo"
LAYOUTS = ["sequence", "stream"]


def whole_samples(model: onnx.ModelProto, run: Run, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the calls of a sample give together; one call in the sequence layout."""
    interface = Interface.of({entry.key: entry.value for entry in model.metadata_props}, "model")
    name, parts, states = model.graph.input[0].name, [], interface.zero_states(len(x))
    for part in interface.parts(x):
        values = run({name: np.ascontiguousarray(part), **states})
        states = interface.next_states(values)
        parts.append(values)
    return interface.outputs(parts)


def elsewhere(model: onnx.ModelProto, folder: Path) -> dict[str, Run]:
    """The other engines, each with the file as it is."""
    save_onnx(model, folder / "net.onnx")
    openvino = OpenVinoEngine(folder / "net.onnx", Options(threads=1))
    return {"openvino": openvino.run, "reference": lambda feeds: in_reference(model, feeds)}


def subject(network: str) -> tuple[nir.NIRGraph, np.ndarray]:
    """Weights are multiples of 1/8, so that float sums are exact in any order: a spike that differs is a mistake."""
    graph = small_network(1, depth=1, time_steps=4, **NETWORKS[network])
    return graph, next(iter(network_input(graph, 2, 1).values()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_float_files(network: str, layout: str, tmp_path: Path) -> None:
    graph, x = subject(network)
    model = build_onnx(graph, layout=layout, spike_counts=True)
    expected = whole_samples(model, lambda feeds: in_onnxruntime()(model, feeds), x)
    assert sum(count.sum() for name, count in expected.items() if name != "logits") > 500
    for engine, run in elsewhere(model, tmp_path).items():
        found = whole_samples(model, run, x)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_allclose(
                found[name], value, rtol=1e-6 if name == "logits" else 0, atol=0, err_msg=f"{engine}: {name}"
            )


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_integer_files(network: str, layout: str, flavour: str, tmp_path: Path) -> None:
    """Logits and spike counts of the integer runner, bit for bit."""
    float_graph, x = subject(network)
    graph = quantize(float_graph)
    expected = IntegerRunner(graph).run(x)
    logits = real_outputs(graph, expected.outputs)["logits"]
    assert len(np.unique(logits)) > 5
    model = build_integer_onnx(graph, layout=layout, flavour=flavour, spike_counts=True)
    engines = {"onnxruntime": lambda feeds: in_onnxruntime()(model, feeds), **elsewhere(model, tmp_path)}
    for engine, run in engines.items():
        found = whole_samples(model, run, x)
        np.testing.assert_array_equal(found["logits"], logits, err_msg=engine)
        assert found.keys() == {"logits", *(f"spike_counts/{name}" for name in expected.spike_counts)}
        for name, count in expected.spike_counts.items():
            np.testing.assert_array_equal(found[f"spike_counts/{name}"], count, err_msg=f"{engine}: {name}")


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("steps", [3, 6, 7])
def test_streams_whose_steps_are_no_power_of_two(steps: int, flavour: str, tmp_path: Path) -> None:
    """The mean over all steps is the sum times 1, which OpenVINO's quotient of T and T need not be."""
    graph, x = quantised("static", time_steps=steps, chunk_size=1)
    expected = real_outputs(graph, IntegerRunner(graph).run(x).outputs)["logits"]
    save_onnx(build_integer_onnx(graph, layout="stream", flavour=flavour), tmp_path / "net.onnx")
    for engine in ("onnxruntime", "openvino"):
        found = load(tmp_path / "net.onnx", engine=engine, threads=1).predict(x).logits
        np.testing.assert_array_equal(found, expected, err_msg=engine)


@pytest.mark.parametrize("neuron", ["lif", "if"])
def test_integer_loops_in_openvino(neuron: str) -> None:
    """It mistakes what the body of a loop reads from outside, and the graph computes, for states."""
    rng = np.random.default_rng(11)
    subject = rough(rng, recurrent(rng, neuron))
    found = agree(quantize(subject), events(rng, subject), in_openvino, flavours=INTEGER)
    assert found.spikes["a"].any()


@pytest.mark.parametrize("channels", [2, 3, 8, 10])
@pytest.mark.parametrize("network", NETWORKS)
def test_qdq_in_openvino_whether_it_knows_the_batch_or_not(network: str, channels: int, tmp_path: Path) -> None:
    """It compiles other kernels where it does not; and others for few channels."""
    graph = small_network(2, depth=1, time_steps=4, in_channels=channels, dim=2 * channels, **NETWORKS[network])
    feeds = network_input(graph, 3, 1)
    quantised = quantize(graph)
    expected = IntegerRunner(quantised).run(next(iter(feeds.values())))
    assert sum(count.sum() for count in expected.spike_counts.values()) > 1000
    save_onnx(build_integer_onnx(quantised, flavour="qdq", spike_counts=True), tmp_path / "net.onnx")
    for rows in (None, 3):
        found = OpenVinoEngine(tmp_path / "net.onnx", Options(threads=1), rows=rows).run(feeds)
        for name, count in expected.spike_counts.items():
            np.testing.assert_array_equal(found[f"spike_counts/{name}"], count, err_msg=f"{rows}: {name}")
        np.testing.assert_array_equal(found["logits"], real_outputs(quantised, expected.outputs)["logits"])


@pytest.mark.parametrize("reader", ["residual", "integrator"])
def test_a_convolution_without_bias_that_several_nodes_calculate_with(reader: str) -> None:
    """OpenVINO would multiply with its scale twice."""
    rng, shape = np.random.default_rng(5), (4, 5, 5)
    zero = {"dv": 2048, "bias_mantissa": np.zeros((4, 1, 1)), "bias_exponent": np.zeros((4, 1, 1))}
    nodes = {**integer_graph((3, 5, 5)).nodes, "current": conv(rng, 4, 3, largest=3, exponent=np.array([0, 1, 2, 1]))}
    edges = [("x", "encoder"), ("encoder", "current")]
    if reader == "residual":
        nodes |= {"first": lif(rng, shape, **zero), "product": conv(rng, 4, 4, largest=9), "last": lif(rng, shape)}
        edges += [("current", "first"), ("first", "product"), ("product", "last"), ("current", "last"), ("last", "y")]
    else:
        nodes["last"] = IntegerLI(scale=np.ones(4), shape=shape, **zero)
        edges += [("current", "last"), ("last", "y")]
    graph = with_hints(nodes, edges, held=True)
    agree(graph, counts(rng, graph, high=6), in_openvino, flavours=("qdq",))


@pytest.mark.parametrize("neurons", [lif, IntegerLI])
def test_a_convolution_without_bias_behind_whose_gain_several_nodes_calculate(neurons: Any) -> None:
    """OpenVINO moves the scale past the gain, and would multiply with it twice there."""
    rng, shape = np.random.default_rng(5), (4, 5, 5)
    options = {"dv": 2048, "input_exponent": 3, "bias_mantissa": np.zeros((4, 1, 1))}
    options["bias_exponent"] = np.zeros((4, 1, 1))
    last = lif(rng, shape, 300, **options) if neurons is lif else IntegerLI(scale=np.ones(4), shape=shape, **options)
    product = conv(rng, 4, 3, largest=3, exponent=np.array([0, 1, 2, 1]))
    for held in (False, True):
        graph = integer_graph((3, 5, 5), product, last, held=held)
        agree(graph, counts(rng, graph, high=6), in_openvino, flavours=("qdq",))


@pytest.mark.parametrize(("stride", "padding"), [((2, 2), (1, 1)), ((1, 2), (0, 2))])
def test_padded_pixels(stride: tuple[int, int], padding: tuple[int, int], tmp_path: Path) -> None:
    """OpenVINO takes 1x1 convolutions for products of what is there, without the padding."""
    rng, shape, nodes = np.random.default_rng(1), (2, 4, 4), []
    for channels, threshold in ((4, 900), (3, 100)):
        nodes.append(conv(rng, channels, shape[0], 1, stride=stride, padding=padding))
        shape = (channels, *((n + 2 * p - 1) // s + 1 for n, s, p in zip(shape[1:], stride, padding, strict=True)))
        nodes.append(lif(rng, shape, threshold))
    graph = integer_graph((2, 4, 4), *nodes)
    x = counts(rng, graph)
    expected = agree(graph, x, in_onnxruntime(), flavours=("qdq",))
    assert 0 < expected.spikes["n3"].mean() < 1
    save_onnx(build_integer_onnx(graph, flavour="qdq"), tmp_path / "net.onnx")
    for rows in (None, len(x)):
        found = OpenVinoEngine(tmp_path / "net.onnx", Options(threads=1), rows=rows).run({"x": x})["y"]
        np.testing.assert_array_equal(found, expected.outputs["y"])


@pytest.mark.parametrize("held", [False, True])
def test_bytes_into_weights_are_not_rounded(held: bool, tmp_path: Path) -> None:
    """Unless told otherwise OpenVINO quantises what is multiplied with int8 weights, in groups of 32 inputs."""
    rng = np.random.default_rng(3)
    graph = integer_graph((64,), linear(rng, 10, 64, scale=np.ones(10)), held=held)
    x = counts(rng, graph)
    expected = IntegerRunner(graph).run(x).outputs["y"]
    save_onnx(build_integer_onnx(graph, flavour="qdq"), tmp_path / "net.onnx")
    for rows in (None, 3):
        found = OpenVinoEngine(tmp_path / "net.onnx", Options(threads=1), rows=rows).run({"x": x})["y"]
        np.testing.assert_array_equal(found, expected)


def test_exports_for_openvino_are_held_against_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its defaults it rounds this network's bytes, which onnxruntime does not."""
    rng = np.random.default_rng(3)
    graph = integer_graph((64,), linear(rng, 10, 64, scale=np.ones(10)))
    save_onnx(build_integer_onnx(graph, flavour="qdq"), tmp_path / "net.onnx")
    x, good, bad, alone = counts(rng, graph), *(Agreement("a", "b") for _ in range(3))
    verify_in_openvino(good, tmp_path / "net.onnx", x)
    assert good.problems == good.notes == []
    monkeypatch.setattr("statten_deploy.runtime.engines.EXACT", {"INFERENCE_PRECISION_HINT": "f32"})
    verify_in_openvino(bad, tmp_path / "net.onnx", x)
    assert len(bad.problems) == 1
    assert "numbers differ in OpenVINO, first at sample 0, index (0, 0)" in bad.problems[0]
    monkeypatch.setattr("statten_deploy.compare.engines.find_spec", lambda _: None)
    verify_in_openvino(alone, tmp_path / "net.onnx", x)
    assert not alone.problems
    assert "verified in onnxruntime only; pip install openvino" in alone.notes[0]


def test_qdq_exports_ask_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(agreement: Agreement, path: Path, samples: np.ndarray) -> None:
        agreement.problems.append(f"{len(samples)} samples of {path.suffix} differ")

    monkeypatch.setattr("statten_deploy.api.verify_in_openvino", refuse)
    options = ExportOptions(samples=2)
    with pytest.raises(VerificationError, match=r"2 samples of \.onnx differ"):
        export_onnx_int8(ZOO / "digits.ckpt", tmp_path / "net.onnx", flavour="qdq", options=options)
    assert not list(tmp_path.iterdir())
    export_onnx_int8(ZOO / "digits.ckpt", tmp_path / "net.onnx", options=options)  # not of the other flavour


def test_the_shipped_network_s_logits_are_equal_bit_for_bit(tmp_path: Path) -> None:
    """Random weights do not have its numbers: a readout in float64 would be rounded elsewhere in OpenVINO."""
    path = tmp_path / "digits.onnx"
    export_onnx_int8(ZOO / "digits.ckpt", path, options=ExportOptions(verify=False, test_vectors=64))
    with np.load(tmp_path / "digits.onnx.vectors.npz") as vectors:
        x, expected = vectors["input"], vectors["output"]
    for engine in ("onnxruntime", "openvino"):
        np.testing.assert_array_equal(load(path, engine=engine, threads=1).predict(x).logits, expected, err_msg=engine)
