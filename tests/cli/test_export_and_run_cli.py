"""The commands as users type them: files, sidecars, JSON, exit statuses, one-line errors."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import nir
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from statten_deploy import export_nir
from statten_deploy.models.checkpoint import CONFIG_KEY, load_model
from tests.cli.commands import DIGITS, ZOO, compare, error_line, export, run
from tests.conftest import lively_input, lively_model, small_config


@pytest.fixture
def random_checkpoint(tmp_path: Path) -> Path:
    model = lively_model(small_config("dvs"))
    path = tmp_path / "random.ckpt"
    torch.save({"state_dict": model.state_dict(), CONFIG_KEY: model.config.model_dump(mode="json")}, path)
    return path


@pytest.mark.parametrize("target", ["nir", "onnx"])
def test_export_alone_works(here: Path, capsys, target: str) -> None:
    """`statten-export model.ckpt --target nir` writes, reads back, verifies, says how well it agrees."""
    assert export(DIGITS, "--target", target) == 0
    out = capsys.readouterr().out
    assert f"wrote digits.{target}" in out
    assert "32/32 predictions agree" in out
    assert sorted(p.name for p in here.iterdir()) == [f"digits.{target}", f"digits.{target}.json"]
    sidecar = json.loads((here / f"digits.{target}.json").read_text())
    assert (sidecar["T"], sidecar["S"], sidecar["dt"], sidecar["latency_steps"]) == (4, 2, 1e-4, 0)
    assert sidecar["verification"]["prediction_agreement"] == 1.0
    assert sidecar["verification"]["spike_sites"] > 1_000_000
    assert sidecar["config"]["embed_dim"] > 0
    assert "test_vectors" not in sidecar


@pytest.mark.parametrize("target", ["nir", "onnx"])
@pytest.mark.parametrize("name", ["digits", "digits-stream"])
def test_every_artefact_has_the_accuracy_of_its_checkpoint(here: Path, capsys, target: str, name: str) -> None:
    checkpoint = ZOO / f"{name}.ckpt"
    assert export(checkpoint, "--target", target, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] is True
    results = []
    for path in (checkpoint, here / f"{name}.{target}"):
        assert run(path, "--data", "digits", "--json") == 0
        results.append(json.loads(capsys.readouterr().out))
    reference, artefact = results
    assert reference["samples"] == 360
    assert reference["accuracy"] >= 0.985
    assert sum(a != b for a, b in zip(reference["predictions"], artefact["predictions"], strict=True)) <= 1
    assert artefact["accuracy"] == pytest.approx(reference["accuracy"], abs=1 / 360 + 1e-9)
    spikes = [{layer["name"]: layer["spikes"] for layer in result["layers"]} for result in results]
    assert spikes[0].keys() == spikes[1].keys()
    for layer, count in spikes[0].items():
        assert spikes[1][layer] == pytest.approx(count, rel=1e-3), layer


def test_json_of_export(here: Path, capsys) -> None:
    assert export(DIGITS, "--target", "onnx", "--spike-counts", "--samples", 5, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    keys = "target files verified samples max_abs_diff spike_mismatches prediction_agreement warnings"
    assert list(told) == keys.split()
    assert told["samples"] == 5
    assert [file["path"] for file in told["files"]] == ["digits.onnx", "digits.onnx.json"]
    assert all(len(file["sha256"]) == 64 and file["bytes"] > 0 for file in told["files"])


def test_test_vectors_come_from_the_torch_reference(here: Path, capsys) -> None:
    assert export(DIGITS, "--target", "onnx", "--test-vectors", 6) == 0
    with np.load(here / "digits.onnx.vectors.npz") as vectors:
        assert vectors["input"].shape == (6, 1, 16, 16)
        with torch.no_grad():
            expected = load_model(DIGITS)(torch.from_numpy(vectors["input"])).numpy()
        np.testing.assert_allclose(vectors["output"], expected, atol=1e-6)
        (logits,) = onnxruntime.InferenceSession(str(here / "digits.onnx")).run(["logits"], {"image": vectors["input"]})
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_spike_counts_are_the_networks(here: Path) -> None:
    assert export(DIGITS, "--target", "onnx", "--spike-counts", "--test-vectors", 3) == 0
    x = np.load(here / "digits.onnx.vectors.npz")["input"]
    session = onnxruntime.InferenceSession(str(here / "digits.onnx"))
    names = [output.name for output in session.get_outputs() if output.name.startswith("spike_counts/")]
    counts = dict(zip(names, session.run(names, {"image": x}), strict=True))
    model = load_model(DIGITS)
    for name, module in model.named_modules():
        if f"spike_counts/{name}" in counts:
            module.register_forward_hook(
                lambda _m, _i, out, name=name: np.testing.assert_array_equal(
                    counts.pop(f"spike_counts/{name}"), out.sum((0, *range(2, out.dim()))).numpy()
                )
            )
    with torch.no_grad():
        model(torch.from_numpy(x))
    assert len(names) > 10
    assert counts == {}


def test_two_exports_are_byte_identical(here: Path, capsys) -> None:
    for target in ("nir", "onnx"):
        for name in ("a", "b"):
            assert export(DIGITS, "--target", target, "--out", here / f"{name}.{target}") == 0
        assert (here / f"a.{target}").read_bytes() == (here / f"b.{target}").read_bytes()


def test_a_model_without_data_is_verified_on_random_input_and_says_so(here, random_checkpoint, capsys) -> None:
    assert export(random_checkpoint, "--target", "nir") == 0
    assert "seeded random inputs; give real ones with --calibration" in capsys.readouterr().err


def test_exported_nir_is_itself_a_model(here: Path, capsys) -> None:
    """checkpoint -> nir -> onnx gives the same answers as checkpoint -> onnx."""
    assert export(DIGITS, "--target", "nir") == 0
    assert export("digits.nir", "--target", "onnx", "--out", "via.onnx", "--calibration", "digits") == 0
    assert export(DIGITS, "--target", "onnx") == 0
    capsys.readouterr()
    predictions = []
    for name in ("via.onnx", "digits.onnx"):
        assert run(name, "--data", "digits", "--json") == 0
        predictions.append(json.loads(capsys.readouterr().out)["predictions"])
    assert predictions[0] == predictions[1]


def test_user_data_as_npz(here, random_checkpoint, capsys) -> None:
    x = lively_input(small_config("dvs"), batch=4).numpy()
    np.savez(here / "mine.npz", x=x)
    assert export(random_checkpoint, "--target", "onnx", "--calibration", "mine.npz", "--samples", 4) == 0
    assert run("random.onnx", "--data", "mine.npz") == 0
    assert "no labels" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".onnx", ".nir"])
def test_the_input_is_never_overwritten(here: Path, capsys, suffix: str) -> None:
    assert export(DIGITS, "--target", suffix[1:], "--no-verify") == 0
    source = here / f"digits{suffix}"
    if suffix == ".onnx":
        source = source.with_name("vectors.npz")
        np.savez(source, x=np.zeros((2, 1, 16, 16), np.float32))
        source = source.rename(here / "digits.onnx.vectors.npz")
        arguments = [DIGITS, "--target", "onnx", "--calibration", source]
    else:
        arguments = [source, "--target", "nir"]
    before = source.read_bytes()
    capsys.readouterr()
    assert export(*arguments) == 2
    assert "would overwrite the input" in error_line(capsys)
    assert source.read_bytes() == before


def test_a_new_export_removes_the_vectors_of_the_old_one(here: Path) -> None:
    assert export(DIGITS, "--target", "onnx", "--test-vectors", 1, "--no-verify") == 0
    assert export(DIGITS, "--target", "onnx", "--no-verify") == 0
    assert sorted(p.name for p in here.iterdir()) == ["digits.onnx", "digits.onnx.json"]


def test_a_folder_in_the_way_is_noticed_before_anything_is_written(here: Path, capsys) -> None:
    (here / "digits.nir.json").mkdir()
    assert export(DIGITS, "--target", "nir", "--no-verify") == 2
    assert "digits.nir.json: is a folder" in error_line(capsys)
    assert [p.name for p in here.iterdir()] == ["digits.nir.json"]


def stranger(path: Path, **changes: object) -> Path:
    """A file of another tool: Affine, LIF with tau in the unit of a millisecond, Affine."""
    rng = np.random.default_rng(0)
    one = np.ones(6, np.float32)
    nodes = {
        "input": nir.Input({"input": np.array([4])}),
        "a": nir.Affine(rng.normal(0.3, 1, (6, 4)).astype(np.float32), rng.normal(0.3, 0.2, 6).astype(np.float32)),
        "n": nir.LIF(tau=2e-3 * one, r=one, v_leak=0 * one, v_threshold=one, v_reset=0 * one),
        "b": nir.Affine(rng.normal(0, 1, (3, 6)).astype(np.float32), np.array([0.1, 0.2, 0.3], np.float32)),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [("input", "a"), ("a", "n"), ("n", "b"), ("b", "output")]
    nir.write(path, nir.NIRGraph(nodes, edges, metadata={"statten": changes} if changes else {}))
    np.savez(path.with_suffix(".npz"), x=rng.random((8, 6, 4)).astype(np.float32) * 3, y=np.zeros(8, np.int64))
    return path


def test_files_of_other_tools_take_steps_and_their_length(here: Path, capsys) -> None:
    path = stranger(here / "s.nir")
    common = (path, "--target", "onnx", "--time-steps", 6, "--calibration", "s.npz")
    assert export(*common, "--dt", "1e-3") == 0
    captured = capsys.readouterr()
    assert "8/8 predictions agree" in captured.out
    assert captured.err == ""
    assert json.loads((here / "s.onnx.json").read_text())["dt"] == 1e-3
    assert export(*common) == 0
    assert "does not say how long a step is: 0.0001 s assumed (--dt)" in capsys.readouterr().err
    rates = []
    for arguments in (("s.nir", "--time-steps", 6, "--dt", "1e-3"), ("s.nir", "--time-steps", 6)):
        assert run(*arguments, "--data", "s.npz", "--json") == 0
        rates.append(json.loads(capsys.readouterr().out)["layers"][0]["firing_rate"])
    assert rates[0] > 2 * rates[1]


def test_silence_is_not_agreement(here: Path, capsys) -> None:
    path = stranger(here / "s.nir")
    assert export(path, "--target", "onnx", "--time-steps", 6, "--calibration", "s.npz", "--dt", "1e-6") == 0
    assert "no neuron of n fired on these samples" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1.01, 1.05])
def test_a_wrong_onnx_of_a_strangers_graph_is_caught(here: Path, capsys, monkeypatch, factor: float) -> None:
    from statten_deploy import targets

    def broken(graph, **options):
        nodes = dict(graph.nodes)
        old = nodes["n"]
        nodes["n"] = nir.LIF(old.tau, old.r, old.v_leak, old.v_threshold * np.float32(factor), old.v_reset)
        return build(nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False), **options)

    build = targets.build_onnx
    monkeypatch.setattr(targets, "build_onnx", broken)
    path = stranger(here / "s.nir")
    x = np.random.default_rng(1).random((64, 6, 4)).astype(np.float32) * 3
    np.savez(here / "s.npz", x=x)
    arguments = (path, "--target", "onnx", "--time-steps", 6, "--calibration", "s.npz", "--dt", "1e-3", "--samples", 64)
    assert export(*arguments) == 1
    assert "layer 'n', step" in error_line(capsys)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time_steps": "abc"}, "'time_steps' is"),
        ({"time_steps": -3}, "'time_steps' is"),
        ({"time_steps": 2.7}, "'time_steps' is"),
        ({"time_steps": 1e12}, "'time_steps' is"),
        ({"time_steps": 4, "dt": "x"}, "'dt' is"),
        ({"time_steps": 4, "dt": float("nan")}, "'dt' is"),
        ({"time_steps": 4, "window_steps": float("nan")}, "'window_steps' is"),
    ],
)
def test_nonsense_in_metadata_is_bad_input(here: Path, capsys, changes, said) -> None:
    path = stranger(here / "s.nir", **changes)
    assert export(path, "--target", "onnx") == 2
    assert said in error_line(capsys)
    assert run(path, "--data", "s.npz") == 2
    assert said in error_line(capsys)


def test_labels_beyond_the_classes_are_bad_input(here: Path, capsys) -> None:
    np.savez(here / "y.npz", x=np.zeros((3, 1, 16, 16), np.float32), y=np.array([0, 1, 99]))
    assert run(DIGITS, "--data", "y.npz") == 2
    assert "99" in error_line(capsys)


def test_foreign_onnx_files_are_bad_input(here: Path, capsys) -> None:
    helper = onnx.helper
    for name, kind, batch in (("double", onnx.TensorProto.DOUBLE, "n"), ("fixed", onnx.TensorProto.FLOAT, 1)):
        x = helper.make_tensor_value_info("x", kind, [batch, 1, 16, 16])
        y = helper.make_tensor_value_info("y", kind, [batch, 1, 16, 16])
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
        opset = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), here / f"{name}.onnx")
        assert run(f"{name}.onnx", "--data", "digits", "--samples", 2) == 2
        assert "expected one float32 input with a free batch axis" in error_line(capsys)


def test_exporting_leaves_the_callers_network_alone(here: Path) -> None:
    model = lively_model(small_config("static")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_nir(model, here / "m.nir")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sigterm_removes_temporary_files(here: Path) -> None:
    script = Path(sys.executable).parent / "statten-export"
    child = subprocess.Popen(
        [script, DIGITS, "--target", "nir", "--out", here / "k.nir", "--samples", "1437"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while child.poll() is None and not list(here.glob(".k.*")):
        time.sleep(0.02)
    child.terminate()
    assert child.wait(60) == 143
    assert list(here.iterdir()) == []


def test_disagreement_is_status_1_and_no_file(here: Path, capsys, monkeypatch) -> None:
    """The emitter is broken on purpose: the written graph fires at other thresholds."""
    from statten_deploy import targets

    def broken(graph, path):
        graph.nodes["block.0.mlp.fc1_lif"].v_threshold *= np.float32(1.1)
        return write(graph, path)

    write = targets.write_nir
    monkeypatch.setattr(targets, "write_nir", broken)
    (here / "digits.nir").write_bytes(b"old")
    assert export(DIGITS, "--target", "nir") == 1
    assert "'block.0.mlp.fc1_lif'" in error_line(capsys)
    assert (here / "digits.nir").read_bytes() == b"old"
    assert [p.name for p in here.iterdir()] == ["digits.nir"]


def test_no_verify_says_so(here: Path, capsys) -> None:
    assert export(DIGITS, "--target", "nir", "--no-verify", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verified"], told["samples"], told["max_abs_diff"]) == (None, 0, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.ckpt", "--target", "nir"], "none.ckpt: no such file"),
        (["none.nir", "--target", "onnx"], "none.nir: no such file"),
        ([DIGITS], "--target"),
        ([DIGITS, "--target", "pdf"], "pdf"),
        ([DIGITS, "--target", "nir", "--spike-counts"], "--spike-counts belongs to --target onnx"),
        ([DIGITS, "--target", "nir", "--samples", "0"], "--samples"),
        ([DIGITS, "--target", "nir", "--samples", "2", "--no-verify"], "--no-verify"),
        ([DIGITS, "--target", "nir", "--samples", "99999"], "has 1437 samples"),
        ([DIGITS, "--target", "nir", "--out", "no/such/folder/x.nir"], "no such folder"),
        ([DIGITS, "--target", "onnx", "--out", "x.nir"], "called *.onnx"),
        ([DIGITS, "--target", "nir", "--dt", "1"], "--dt is for NIR files"),
        (["/", "--target", "nir"], "/: is a folder"),
        ([DIGITS, "--target", "nir", "--calibration", "nowhere"], "nowhere: no such data"),
        ([DIGITS, "--target", "nir", "--config", "none.yaml"], "none.yaml: cannot be read"),
        ([DIGITS, "--target", "nir", "--time-steps", "8"], "--time-steps 8: the checkpoint says 4"),
    ],
)
def test_bad_input_is_one_line_and_status_2(here: Path, capsys, arguments, said) -> None:
    assert export(*arguments) == 2
    assert said in error_line(capsys)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.onnx", "--data", "digits"], "none.onnx: no such file"),
        ([DIGITS, "--data", "none.npz"], "none.npz: no such data"),
        ([DIGITS], "--data"),
        ([DIGITS, "--data", "digits", "--samples", "361"], "has 360 samples"),
    ],
)
def test_bad_input_of_run(here: Path, capsys, arguments, said) -> None:
    assert run(*arguments) == 2
    assert said in error_line(capsys)


def test_changed_artefact_is_refused(here: Path, capsys) -> None:
    for target in ("nir", "onnx"):
        assert export(DIGITS, "--target", target) == 0
        path = here / f"digits.{target}"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        capsys.readouterr()
        assert run(path, "--data", "digits") == 2
        assert "SHA-256 differs" in error_line(capsys)


def test_not_an_onnx_file(here: Path, capsys) -> None:
    (here / "x.onnx").write_bytes(b"nonsense")
    assert run("x.onnx", "--data", "digits") == 2
    assert "x.onnx" in error_line(capsys)


@pytest.mark.parametrize("command", ["statten-export", "statten-run", "statten-train"])
def test_help_and_version(command: str) -> None:
    script = Path(sys.executable).parent / command
    told = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--json" in told
    assert "--debug" in told
    told = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert told.startswith("statten-deploy ")


def test_examples_run() -> None:
    root = Path(__file__).resolve().parents[2]
    for name in ("export_and_run.py", "third_party_nir.py"):
        done = subprocess.run([sys.executable, root / "examples" / name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_run_prints_what_compare_counts(here: Path, capsys) -> None:
    """Top-5, firing rates and energy of a checkpoint and of its NIR file; an ONNX file says why it has no energy."""
    assert export(DIGITS, "--target", "nir", "--no-verify") == export(DIGITS, "--target", "onnx", "--no-verify") == 0
    assert compare(DIGITS, "--backends", "torch", "--latency-seconds", 0, "--samples", 360, "--out", here / "c") == 0
    (row,) = json.loads((here / "c/report.json").read_text())["backends"]
    capsys.readouterr()
    for path in (DIGITS, "digits.nir", "digits.onnx"):
        assert run(path, "--data", "digits", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["accuracy"], told["top5_accuracy"]) == (355 / 360, 1.0)
        rates = {layer["name"]: layer["firing_rate"] for layer in told["layers"]}
        assert rates == pytest.approx(
            {each["name"]: each["firing_rate"] for each in row["layers"] if each["name"] in rates}
        )
        if path == "digits.onnx":
            assert (told["energy_pj"], told["energy_samples"]) == ({}, 0)
            assert "statten-compare MODEL" in told["energy_note"]
        else:
            assert told["energy_pj"] == pytest.approx(row["energy_pj"], rel=1e-12)
            assert (told["energy_samples"], told["energy_note"]) == (360, "")
    assert run(DIGITS, "--data", "digits", "--samples", 40) == 0
    text = capsys.readouterr().out
    assert ", top-5 100.00%" in text
    assert "energy per sample, dynamic only, from the spikes of 40 samples" in text
    for name in ("45nm-fp32", "45nm-int8", "loihi1"):
        assert re.search(rf"^  {name} +[\d.]+ [µn]J", text, re.MULTILINE)
