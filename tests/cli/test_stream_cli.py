"""``--layout stream``: verified by chained calls, described in the sidecar, run like any artefact."""

import json
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest
import torch

from statten_deploy import export_onnx, export_onnx_int8, targets
from statten_deploy.errors import InputError, VerificationError
from statten_deploy.export.onnx import save_onnx
from statten_deploy.models.checkpoint import CONFIG_KEY
from statten_deploy.runtime import load
from tests.cli.commands import ZOO, error_line, export, run
from tests.conftest import Golden, lively_input, lively_model, small_config
from tests.export.onnx.onnx_harness import chain, lif
from tests.export.onnx.test_onnx_neurons import random_neuron

VARIANTS = {
    "static": 2,
    "sliding": 1,
    "token": 4,
    "sdt": 1,
    "plif": 2,
    "normalised": 2,
    "dvs": 2,
    "dvs-strided-sliding": 1,
    "dvs-sdt": 1,
}
"""Network -> steps of one call."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_chained_calls_are_the_network(here: Path, variant: str) -> None:
    """Against torch, spike by spike, as every export; and against the sequence file, bit for bit."""
    model = lively_model(small_config(variant, depth=1))
    result = export_onnx(model, here / "stream.onnx", layout="stream")
    assert result.agreement is not None
    assert result.agreement.spike_mismatches == 0
    assert result.agreement.max_abs_diff < 1e-5
    assert result.agreement.layers["head_lif"].spikes > 0
    export_onnx(model, here / "sequence.onnx", layout="sequence")
    x = lively_input(model.config, batch=5).numpy()
    stream, sequence = (load(here / f"{layout}.onnx", threads=1) for layout in ("stream", "sequence"))
    assert stream.steps_per_call == VARIANTS[variant]
    np.testing.assert_array_equal(stream.predict(x).logits, sequence.predict(x).logits)


def test_chained_calls_give_the_recorded_logits(here: Path, golden: Golden) -> None:
    """What the released implementation computed: of the event network one answer a step, so every call is compared."""
    export_onnx(golden.model(), here / "golden.onnx", layout="stream")
    session, x = load(here / "golden.onnx", threads=1), golden.x.numpy()
    if golden.logits.ndim == 2:
        np.testing.assert_allclose(session.predict(x).logits, golden.logits, atol=1e-5)
        return
    stream, compared = session.stream(batch=len(x)), 0
    for step in range(x.shape[1]):
        result = stream.push(x[:, step])
        if result is not None:
            np.testing.assert_allclose(result.logits, golden.logits[: step + 1].mean(0), atol=1e-5)
            compared += 1
    assert compared == x.shape[1] // session.steps_per_call > 1


@pytest.mark.parametrize("name", ["digits", "digits-stream"])
def test_a_stream_is_run_like_its_sequence(here: Path, capsys, name: str) -> None:
    told = []
    for layout, path in (("sequence", f"{name}.onnx"), ("stream", f"{name}.stream.onnx")):
        assert export(ZOO / f"{name}.ckpt", "--target", "onnx", "--layout", layout, "--samples", 4) == 0
        assert f"wrote {path}" in capsys.readouterr().out
        assert run(path, "--data", "digits", "--samples", 90, "--json") == 0
        told.append(json.loads(capsys.readouterr().out))
    sequence, stream = told
    assert stream["accuracy"] == sequence["accuracy"] >= 0.95
    assert stream["predictions"] == sequence["predictions"]
    assert stream["layers"] == sequence["layers"]


def test_the_sidecar_says_how_a_stream_is_called(here: Path, capsys) -> None:
    model = lively_model(small_config("dvs"))
    torch.save({"state_dict": model.state_dict(), CONFIG_KEY: model.config.model_dump(mode="json")}, here / "net.ckpt")
    assert export(here / "net.ckpt", "--target", "onnx", "--layout", "stream", "--test-vectors", 2) == 0
    assert "latency_steps 1:" in capsys.readouterr().out
    told = json.loads((here / "net.stream.onnx.json").read_text())
    assert (told["layout"], told["steps_per_call"], told["T"], told["latency_steps"]) == ("stream", 2, 4, 1)
    assert told["input"] == {"name": "frames", "shape": ["batch", 2, 2, 16, 16]}
    assert told["options"] == {"layout": "stream"}
    inputs = {i.name for i in onnx.load(here / "net.stream.onnx").graph.input}
    assert {state["input"] for state in told["states"]} == inputs - {"frames"}
    vectors = np.load(here / "net.stream.onnx.vectors.npz")
    assert vectors["input"].shape == (2, 4, 2, 16, 16)  # whole samples, to be pushed frame by frame
    stream = load(here / "net.stream.onnx").stream(batch=2)
    result = stream.push(vectors["input"])
    assert result is not None
    np.testing.assert_allclose(result.logits, vectors["output"], atol=1e-5)
    assert export(here / "net.ckpt", "--target", "onnx") == 0
    assert json.loads((here / "net.onnx.json").read_text())["layout"] == "sequence"


def test_the_range_of_the_built_in_data_is_in_the_file(here: Path) -> None:
    assert export(ZOO / "digits.ckpt", "--target", "onnx", "--no-verify") == 0
    session = load("digits.onnx")
    session.predict(np.ones((1, 1, 16, 16), np.float32))
    with pytest.raises(InputError, match="image: holds 16, the network takes values from 0 to 1"):
        session.predict(np.full((1, 1, 16, 16), 16, np.float32))


@pytest.mark.parametrize("what", ["block.0.attn.q_lif.v", "head_mean.sum", "block.0.attn.statten.kv"])
def test_a_state_that_is_lost_between_calls_is_found(here: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The file is written with one state that always comes out as zeros."""

    def forgetful(model: onnx.ModelProto, path: Path) -> None:
        for node in model.graph.node:
            node.output[:] = [f"{name}/lost" if name == f"next/{what}" else name for name in node.output]
            node.input[:] = [f"{name}/lost" if name == f"next/{what}" else name for name in node.input]
        lost = f"next/{what}/lost"
        model.graph.node.append(onnx.helper.make_node("Sub", [lost, lost], [f"next/{what}"]))
        save_onnx(model, path)

    monkeypatch.setattr(targets, "save_onnx", forgetful)
    model = lively_model(small_config("sliding", depth=1))
    with pytest.raises(VerificationError, match="not written, it disagrees with the reference"):
        export_onnx(model, here / "net.onnx", layout="stream")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("target", ["nir", "lava", "netx"])
def test_other_targets_have_no_layout(here: Path, capsys, target: str) -> None:
    assert export(ZOO / "digits.ckpt", "--target", target, "--layout", "stream") == 2
    assert "--layout belongs to --target onnx and onnx-int8" in error_line(capsys)


def test_streams_of_other_tools_graphs(here: Path) -> None:
    """A NIR file of stock nodes goes the same road: one step a call, and an output with a time axis."""
    rng = np.random.default_rng(3)
    nodes: list[Any] = [
        random_neuron(nir.CubaLIF, (6,), rng, False),
        nir.Affine(*(rng.normal(0.6, 1, shape).astype("f4") for shape in ((4, 6), (4,)))),
    ]
    graph = chain((6,), *nodes, lif((4,)), out=(4,))
    result = export_onnx(graph, here / "net.onnx", time_steps=6, layout="stream")
    assert result.agreement is not None
    assert result.agreement.spike_mismatches == 0
    session = load(here / "net.onnx", threads=1)
    x = rng.normal(0.8, 1, (1, 6, 6)).astype(np.float32)
    whole = session.predict(x).logits
    assert whole.shape == (1, 6, 4)
    assert 0 < whole.mean() < 1
    steps = [session.push(frame) for frame in x[0]]
    np.testing.assert_array_equal(np.concatenate([step.logits for step in steps if step is not None]), whole[0])


def test_integer_streams_and_flavours_equal_the_sequence_bit_for_bit(here: Path, capsys) -> None:
    """Each in the engine that its flavour is for, as a user gets it."""
    told, logits, name = [], [], "digits-stream"
    x = np.random.default_rng(0).random((6, 1, 16, 16), np.float32)
    for flavour, layout, path, engine in (
        ("integer", "sequence", f"{name}.int8.onnx", "onnxruntime"),
        ("integer", "stream", f"{name}.int8.stream.onnx", "onnxruntime"),
        ("qdq", "sequence", f"{name}.int8.qdq.onnx", "openvino"),
        ("qdq", "stream", f"{name}.int8.qdq.stream.onnx", "openvino"),
    ):
        options = ("--target", "onnx-int8", "--layout", layout, "--flavour", flavour, "--samples", 4)
        assert export(ZOO / f"{name}.ckpt", *options) == 0
        out = capsys.readouterr().out
        assert f"wrote {path}" in out
        assert "0 integer outputs differ" in out
        sidecar = json.loads(Path(f"{path}.json").read_text())
        assert (sidecar["layout"], sidecar["flavour"]) == (layout, flavour)
        assert sidecar["options"].get("flavour", "integer") == flavour
        assert run(path, "--data", "digits", "--samples", 60, "--json") == 0
        told.append(json.loads(capsys.readouterr().out))
        session = load(path, threads=1)
        assert session.engine == engine
        logits.append(session.predict(x).logits)
    for other, found in zip(told[1:], logits[1:], strict=True):
        assert other["layers"] == told[0]["layers"]
        assert other["predictions"] == told[0]["predictions"]
        np.testing.assert_array_equal(found, logits[0])


@pytest.mark.parametrize("target", ["onnx", "nir", "lava"])
def test_other_targets_have_no_flavour(here: Path, capsys, target: str) -> None:
    assert export(ZOO / "digits.ckpt", "--target", target, "--flavour", "integer") == 2
    assert "--flavour belongs to --target onnx-int8" in error_line(capsys)


def test_flavours_in_python(here: Path) -> None:
    model = lively_model(small_config("static", depth=1))
    for flavour in ("integer", "qdq"):
        result = export_onnx_int8(model, here / f"{flavour}.onnx", flavour=flavour)
        assert result.agreement is not None
        assert result.agreement.exact
        assert load(here / f"{flavour}.onnx").metadata["flavour"] == flavour
