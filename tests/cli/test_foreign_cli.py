"""A recurrent file of another tool, with integrators as its readout, through the commands."""

import json
from pathlib import Path

import nir
import numpy as np
import pytest

from statten_deploy.export.nir import read_nir
from tests.cli.commands import DIGITS, error_line, export, run

STEPS = 4


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As SpikingJelly writes neurons: IF with r = 1 / dt that fire at a threshold met exactly. Without any hints."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def affine(out: int, into: int) -> nir.Affine:
        return nir.Affine(rng.integers(-3, 5, (out, into)) / 4, rng.integers(-2, 3, out) / 4)

    ones = np.ones(5)
    nodes = {
        "input": nir.Input({"input": np.array([4])}),
        "in": affine(5, 4),
        "if": nir.IF(ones / 1e-4, ones, ones * 0),
        "back": affine(5, 5),
        "head": affine(3, 5),
        "li": nir.LI(np.full(3, 2e-4), np.ones(3), np.zeros(3)),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [("input", "in"), ("in", "if"), ("if", "back"), ("back", "if"), ("if", "head"), ("head", "li")]
    nir.write("net.nir", nir.NIRGraph(nodes, [*edges, ("li", "output")], type_check=False))
    x = rng.integers(0, 3, (6, STEPS, 4)).astype(np.float32)
    np.savez("x.npz", x=x, y=np.arange(6) % 3)
    return tmp_path / "net.nir"


TOLD = ("--time-steps", STEPS, "--written-by", "spikingjelly", "--calibration", "x.npz")


@pytest.mark.parametrize(
    ("target", "name", "said"),
    [
        ("onnx", "net.onnx", "0 of 120 spikes differ, largest output difference 0"),
        ("onnx-int8", "net.int8.onnx", "0 of 192 membranes, 0 integer outputs differ"),
        ("lava", "net.lava", "0 of 192 membranes, 0 integer outputs differ"),
        ("nir", "net.nir.out.nir", "0 of 120 spikes differ"),
    ],
)
def test_every_target(file: Path, target: str, name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", name) if target == "nir" else ()
    assert export(file, "--target", target, *TOLD, *out) == 0
    captured = capsys.readouterr()
    assert said in captured.out
    assert "assumed" not in captured.err  # the tool says how long a step is
    assert json.loads(Path(f"{name}.json").read_text())["source"]["written_by"] == "spikingjelly"
    if target == "onnx-int8":
        assert "ranges of 2 neuron layers: " in captured.out
    assert run(name, "--data", "x.npz") == 0


def test_the_tool_changes_the_spikes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spikes = []
    for told in ((), ("--written-by", "spikingjelly")):
        assert run(file, "--data", "x.npz", "--time-steps", STEPS, *told, "--json") == 0
        spikes.append(json.loads(capsys.readouterr().out)["layers"][0]["spikes"])
    assert 0 < spikes[0] < spikes[1] < 120


def test_quantised_and_read_back(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(file, "--target", "nir", "--bits", 8, *TOLD) == 0
    quantised = read_nir("net.8bit.nir")
    assert {name: type(node).__name__ for name, node in quantised.nodes.items()}["li"] == "IntegerLI"
    capsys.readouterr()
    assert export("net.8bit.nir", "--target", "netx") == 2
    assert "not loops (if, back); use --target lava" in error_line(capsys)


def test_what_is_for_files_of_other_tools_only(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(DIGITS, "--target", "onnx", "--written-by", "norse") == 2
    assert "--written-by is for NIR files of other tools" in error_line(capsys)
    assert export(file, "--target", "onnx", *TOLD) == 0
    capsys.readouterr()
    assert run("net.onnx", "--data", "x.npz", "--written-by", "norse") == 2
    assert "are not for exported artefacts, which are complete" in error_line(capsys)
