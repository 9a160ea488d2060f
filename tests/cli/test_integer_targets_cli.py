"""The integer targets as users type them: written, verified without tolerance, run again from the file."""

import json
from pathlib import Path

import nir
import numpy as np
import onnx
import pytest

from statten_deploy.export.nir import read_nir
from tests.cli.commands import DIGITS, ZOO, error_line, export, run

FEW = ("--samples", 3)


def test_every_target_is_written_verified_and_gives_the_same_spikes(here: Path, capsys) -> None:
    arguments = {
        "digits.4bit.nir": ("--target", "nir", "--bits", 4),
        "digits.int8.onnx": ("--target", "onnx-int8", "--bits", 4),
        "digits.lava": ("--target", "lava", "--bits", 4),
    }
    activity = {}
    for name, options in arguments.items():
        assert export(DIGITS, *options, *FEW, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert [Path(item["path"]).name for item in told["files"]] == [name, f"{name}.json"]
        assert (told["verified"], told["samples"], told["spike_mismatches"]) == (True, 3, 0)
        sidecar = json.loads((here / f"{name}.json").read_text())
        verification, quantisation = sidecar["verification"], sidecar["quantisation"]
        assert verification["exact"] is True
        assert verification["membrane_sites"] == verification["spike_sites"] > 300_000
        assert verification["membrane_mismatches"] == verification["output_mismatches"] == 0
        assert (quantisation["bits"], quantisation["granularity"]) == (4, "channel")
        assert sidecar["latency_steps"] == (1 if name.endswith(".lava") else 0)  # chunks of S = 2 wait one step
        assert run(name, "--data", "digits", "--samples", 24, "--json") == 0
        result = json.loads(capsys.readouterr().out)
        activity[name] = result["layers"], result["predictions"], result["correct"]
    first = activity["digits.4bit.nir"]
    assert first[2] >= 22
    assert first[0][0]["name"] == "patch_embed.proj_lif"
    for found in activity.values():
        assert sorted(found[0], key=lambda layer: layer["name"]) == sorted(first[0], key=lambda layer: layer["name"])
        assert found[1] == first[1]


def test_what_is_printed(here: Path, capsys) -> None:
    assert export(DIGITS, "--target", "onnx-int8", "--granularity", "tensor", *FEW) == 0
    told = capsys.readouterr().out
    assert "8-bit weights per tensor" in told
    assert "without tolerance: 0 of" in told
    assert "0 integer outputs differ" in told


def test_a_quantised_nir_file_is_a_model(here: Path, capsys) -> None:
    assert export(DIGITS, "--target", "nir", "--bits", 6, *FEW) == 0
    assert export("digits.6bit.nir", "--target", "onnx-int8", "--out", "again.onnx", *FEW) == 0
    assert export(DIGITS, "--target", "onnx-int8", "--bits", 6, "--out", "direct.onnx", *FEW) == 0
    again, direct = (onnx.load(here / name) for name in ("again.onnx", "direct.onnx"))
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in direct.graph.node]
    for a, b in zip(again.graph.initializer, direct.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))
    capsys.readouterr()
    assert export("digits.6bit.nir", "--target", "onnx") == 2
    assert "is a quantised graph and --target onnx is float; use onnx-int8" in error_line(capsys)
    assert export("digits.6bit.nir", "--target", "onnx-int8", "--bits", 4) == 2
    assert "is quantised already" in error_line(capsys)


def test_test_vectors_are_of_the_integer_network(here: Path) -> None:
    import onnxruntime

    assert export(DIGITS, "--target", "onnx-int8", "--bits", 2, "--test-vectors", 5, *FEW) == 0
    with np.load(here / "digits.int8.onnx.vectors.npz") as file:
        session = onnxruntime.InferenceSession(here / "digits.int8.onnx")
        found = session.run(["logits"], {"image": file["input"]})[0]
        np.testing.assert_array_equal(found, file["output"])


def test_a_wrong_artefact_is_status_1_and_no_file(here: Path, capsys, monkeypatch) -> None:
    """The weights of one channel are off by one."""
    from statten_deploy import targets

    def broken(graph, **options):
        graph.nodes["block.0.mlp.fc2_conv"].weight[3] += 1
        model = build(graph, **options)
        graph.nodes["block.0.mlp.fc2_conv"].weight[3] -= 1
        return model

    build = targets.build_integer_onnx
    monkeypatch.setattr(targets, "build_integer_onnx", broken)
    assert export(DIGITS, "--target", "onnx-int8", *FEW) == 1
    assert "not written, it disagrees with the reference on 3 samples: layer 'head_lif'" in error_line(capsys)
    assert list(here.iterdir()) == []


def test_a_changed_bundle_is_refused(here: Path, capsys) -> None:
    assert export(DIGITS, "--target", "lava", "--no-verify") == 0
    path = here / "digits.lava" / "weights.npz"
    path.write_bytes(path.read_bytes() + b"x")
    capsys.readouterr()
    assert run("digits.lava", "--data", "digits", "--samples", 1) == 2
    assert "changed or damaged since it was exported: weights.npz" in error_line(capsys)
    (here / "mine.lava").mkdir()
    (here / "mine.lava" / "precious").write_text("")
    assert export(DIGITS, "--target", "lava", "--out", "mine.lava", "--no-verify") == 2
    assert "holds what no export wrote: precious" in error_line(capsys)
    assert [p.name for p in (here / "mine.lava").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "onnx-int8", "--bits", 9], "--bits 9: expected 2 to 8"),
        (["--target", "onnx-int8", "--bits", 0], "--bits 0: expected 2 to 8"),
        (["--target", "nir", "--bits", 0], "--bits 0: expected 2 to 8"),
        (["--target", "onnx", "--bits", 4], "--target onnx is float32; use --target onnx-int8"),
        (["--target", "nir", "--granularity", "tensor"], "--granularity needs --bits"),
        (["--target", "lava", "--granularity", "row"], "'row'"),
        (["--target", "lava", "--out", "digits"], "called *.lava"),
        (["--target", "lava", "--spike-counts"], "--spike-counts belongs to"),
        (["--target", "lava", "--out", "no/such/x.lava"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(here: Path, capsys, arguments, said) -> None:
    assert export(DIGITS, *arguments) == 2
    assert said in error_line(capsys)
    assert list(here.iterdir()) == []


def test_netx_takes_the_chain_it_can_hold(here: Path, capsys) -> None:
    stream = ZOO / "digits-stream.ckpt"
    assert export(stream, "--target", "netx") == 2
    assert "use --target lava, or --until patch_embed.proj_lif3" in error_line(capsys)
    assert export(stream, "--target", "netx", "--until", "patch_embed.proj_lif1", "--samples", 2) == 0
    assert "0 of 49,152 membranes" in capsys.readouterr().out
    assert run("digits-stream.net", "--data", "digits", "--samples", 1) == 0
    told = capsys.readouterr().out
    assert "the output is a feature map" in told
    assert "patch_embed.proj_lif1" in told
    assert export(stream, "--target", "netx", "--granularity", "channel", "--until", "patch_embed.proj_lif1") == 2
    assert "has one scale per tensor" in error_line(capsys)
    assert export(stream, "--target", "lava", "--until", "patch_embed.proj_lif1") == 2
    assert "--until belongs to --target netx" in error_line(capsys)


def test_from_python(here: Path) -> None:
    from statten_deploy import ExportOptions, export_lava, export_netx, export_onnx_int8

    few = ExportOptions(samples=1, bits=5, granularity="tensor")
    results = [
        export_onnx_int8(DIGITS, "a.onnx", spike_counts=True, options=few),
        export_lava(DIGITS, "a.lava", options=few),
        export_netx(DIGITS, "a.net", until="patch_embed.proj_lif", options=few),
    ]
    for result in results:
        assert result.agreement is not None
        assert result.agreement.exact
        assert result.quantisation is not None
        assert (result.quantisation.bits, result.quantisation.granularity) == (5, "tensor")
    assert "spike_counts/head_lif" in [output.name for output in onnx.load(here / "a.onnx").graph.output]


def test_a_checkpoint_trained_for_four_bits(here: Path, capsys) -> None:
    trained = ZOO / "digits-4bit.ckpt"
    assert export(trained, "--target", "onnx-int8", *FEW, "--json") == 0
    capsys.readouterr()
    assert json.loads((here / "digits-4bit.int8.onnx.json").read_text())["quantisation"]["bits"] == 4
    assert export(trained, "--target", "nir", *FEW) == 0
    assert json.loads((here / "digits-4bit.nir.json").read_text())["quantisation"]["bits"] == 4
    assert export(trained, "--target", "onnx", *FEW) == 0
    assert "trained for weights of 4 bits, written as the float network" in capsys.readouterr().err
    results = []
    for artefact in (trained, "digits-4bit.int8.onnx"):
        assert run(artefact, "--data", "digits", "--samples", 64, "--json") == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [result["backend"] for result in results] == ["torch-int", "onnx-int8"]
    assert results[0]["layers"] == results[1]["layers"]
    assert results[0]["predictions"] == results[1]["predictions"]
    assert results[0]["correct"] >= 60


def plain_file(path: Path, tau: float) -> Path:
    """A file as another tool writes it: no hints, one convolution and one layer of neurons."""
    rng = np.random.default_rng(0)
    ones = np.ones((3, 6, 6), np.float32)
    nodes = {
        "input": nir.Input({"input": np.array([2, 6, 6])}),
        "c": nir.Conv2d(
            (6, 6), rng.normal(0.2, 0.3, (3, 2, 3, 3)).astype(np.float32), 1, 1, 1, 1, np.zeros(3, np.float32)
        ),
        "n3": nir.LIF(ones * np.float32(tau), ones, ones * 0, ones, ones * 0),
        "output": nir.Output({"output": np.array([3, 6, 6])}),
    }
    nir.write(path, nir.NIRGraph(nodes, [("input", "c"), ("c", "n3"), ("n3", "output")]))
    np.savez(path.with_suffix(".npz"), x=rng.poisson(0.6, (4, 4, 2, 6, 6)).astype(np.float32))
    return path


@pytest.mark.parametrize("target", ["nir", "onnx-int8", "lava", "netx"])
def test_files_of_other_tools(here: Path, capsys, target: str) -> None:
    """Steps and their length come from the command, and change the integers."""
    path = plain_file(here / "s.nir", tau=4e-4)
    told = ("--time-steps", 4, "--dt", "2e-4", "--calibration", "s.npz", "--out", f"q{SUFFIX[target]}")
    assert export(path, "--target", target, "--bits", 8, *told) == 0
    assert "0 of 1,728 membranes" in capsys.readouterr().out
    if target == "nir":
        assert read_nir(here / "q.nir").nodes["n3"].dv == 2048


SUFFIX = {"nir": ".nir", "onnx-int8": ".onnx", "lava": ".lava", "netx": ".net"}


def test_what_the_data_do_not_fit_is_said(here: Path, capsys) -> None:
    path = plain_file(here / "s.nir", tau=4e-4)
    np.savez(here / "analog.npz", x=np.random.default_rng(0).random((4, 4, 2, 6, 6), np.float32) * 0.49)
    options = ("--target", "onnx-int8", "--time-steps", 4, "--dt", "2e-4", "--calibration", "analog.npz")
    assert export(path, *options) == 0
    said = capsys.readouterr().err
    assert "% of the input values are lost" in said
    assert "no neuron of n3 fired on these samples" in said
