"""``--target nir`` with circuits: chosen, priced, run as they stand, read back as attention."""

import json
import subprocess
import sys
from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
import torch

from statten_deploy.models.checkpoint import CONFIG_KEY
from tests.cli.commands import DIGITS, ZOO, error_line, export, run
from tests.conftest import lively_model, small_config

STREAM = ZOO / "digits-stream.ckpt"


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """A network of one block with chunks of two steps and no maximum of currents."""
    model = lively_model(small_config("strided", depth=1, embed_dim=16, num_heads=2))
    path = tmp_path / "block.ckpt"
    torch.save({"state_dict": model.state_dict(), CONFIG_KEY: model.config.model_dump(mode="json")}, path)
    return path


@pytest.mark.parametrize("profile", ["core", "portable"])
def test_stock_nir_opens_it_and_onnx_gets_the_attention_back(here: Path, capsys, profile: str) -> None:
    assert export(STREAM, "--target", "nir", "--nir-profile", profile, "--samples", 2) == 0
    told = capsys.readouterr()
    assert "circuit block.0.attn.statten: " in told.out
    assert "0 of 156,160 spikes differ" in told.out
    assert told.err == ""
    code = "import nir, sys; print(len(nir.read(sys.argv[1]).nodes), 'statten_deploy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, here / "digits-stream.nir"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[1] == "False"
    for source, name in ((STREAM, "a.onnx"), ("digits-stream.nir", "b.onnx")):
        assert export(source, "--target", "onnx", "--out", name, "--no-verify") == 0
    a, b = (onnx.load(here / name) for name in ("a.onnx", "b.onnx"))
    assert a.graph == b.graph


def test_a_block_window_is_late_and_says_so(here: Path, block: Path, capsys) -> None:
    assert export(block, "--target", "nir", "--nir-profile", "portable", "--samples", 3) == 0
    told = capsys.readouterr()
    assert "latency_steps 1: results leave the network" in told.out
    assert "circuit block.0.attn.statten: " in told.out
    assert "circuit timing: " in told.out
    assert "circuits in all: " in told.out
    assert "0 of " in told.out.split("predictions agree, ")[1]
    assert json.loads((here / "block.nir.json").read_text())["latency_steps"] == 1
    np.savez(here / "x.npz", x=np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32))
    predictions = []
    for artefact in (block, "block.nir"):
        assert run(artefact, "--data", "x.npz", "--json") == 0
        predictions.append(json.loads(capsys.readouterr().out)["predictions"])
    assert predictions[0] == predictions[1]


def test_a_changed_late_circuit_is_refused(here: Path, block: Path, capsys) -> None:
    assert export(block, "--target", "nir", "--samples", 1) == 0
    graph = nir.read(here / "block.nir")
    gate = next(node for name, node in graph.nodes.items() if "digit" in name and isinstance(node, nir.LIF))
    gate.v_threshold += np.float32(0.25)
    nir.write(here / "changed.nir", graph)
    np.savez(here / "x.npz", x=np.zeros((1, 3, 16, 16), np.float32))
    capsys.readouterr()
    assert run("changed.nir", "--data", "x.npz") == 2
    assert "circuits were changed after the export" in error_line(capsys)


def test_a_wrong_circuit_is_not_written(here: Path, capsys, monkeypatch) -> None:
    """A digit gate is off by half a count."""
    from statten_deploy import targets

    def broken(graph, path):
        gates = [node for name, node in graph.nodes.items() if "digit0" in name and isinstance(node, nir.LIF)]
        gates[0].v_threshold += np.float32(1)
        return write(graph, path)

    write = targets.write_nir
    monkeypatch.setattr(targets, "write_nir", broken)
    assert export(STREAM, "--target", "nir", "--samples", 4) == 1
    assert "do not read back as the network" in error_line(capsys)
    assert list(here.iterdir()) == []


def test_the_budget_and_the_fallback(here: Path, capsys) -> None:
    assert export(STREAM, "--target", "nir", "--max-circuit-neurons", 1000, "--no-verify") == 0
    told = capsys.readouterr().err
    assert "compact form instead of circuits" in told
    assert "120,832" in told
    assert export(STREAM, "--target", "nir", "--max-circuit-neurons", 1000, "--attention", "circuit") == 2
    assert "120,832" in error_line(capsys)
    assert export(DIGITS, "--target", "nir", "--attention", "circuit") == 2
    assert "pooling: strided" in error_line(capsys)
    assert export(DIGITS, "--target", "nir", "--no-verify") == 0
    told = capsys.readouterr()
    assert "circuit patch_embed.maxpool2: 2,048 neurons, 16,928 synapses" in told.out
    assert "compact form instead of circuits: 'patch_embed.maxpool3' (MaxPool2d)" in told.err
    assert export(DIGITS, "--target", "onnx", "--attention", "circuit") == 2
    assert "belong to --target nir" in error_line(capsys)
    assert export(STREAM, "--target", "nir", "--attention", "compact", "--no-verify") == 0
    assert "compact form" in capsys.readouterr().err


def test_norse_as_a_backend(here: Path, capsys) -> None:
    """The shipped checkpoint's portable file in Norse: every prediction and every count of spikes is torch's."""
    assert export(STREAM, "--target", "nir", "--nir-profile", "portable", "--no-verify") == 0
    capsys.readouterr()
    told = []
    for arguments in ((STREAM,), ("digits-stream.nir", "--backend", "norse")):
        assert run(*arguments, "--data", "digits", "--samples", 20, "--json") == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        told.append(json.loads(captured.out))
    torch_, norse = told
    assert (torch_["backend"], norse["backend"]) == ("torch", "norse")
    assert norse["predictions"] == torch_["predictions"]
    assert norse["layers"] == torch_["layers"]
    assert len(norse["layers"]) == 12


def test_norse_takes_portable_files_only(here: Path, capsys) -> None:
    assert run(STREAM, "--data", "digits", "--backend", "norse") == 2
    assert "--backend norse runs .nir files" in error_line(capsys)
    assert export(STREAM, "--target", "nir", "--no-verify") == 0
    capsys.readouterr()
    assert run("digits-stream.nir", "--data", "digits", "--backend", "norse") == 2
    line = error_line(capsys)
    assert "'block.0.attn.statten.count.was1' (Delay)" in line
    assert "--nir-profile portable" in line
    assert run("digits-stream.nir", "--data", "digits", "--backend", "lava") == 2
    assert "own" in error_line(capsys)
