"""Bundles run in Lava for real: every spike, membrane and logit equals the integer runner's."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nir
import numpy as np
import pytest

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.export.lava import LavaRunner, write_bundle
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import STAttenAttention
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLIF,
    IntegerLinear,
    TemporalSum,
)
from statten_deploy.models.checkpoint import load_model
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train.data import load_arrays
from tests.export.lava.conftest import ROOT, interpreters, site_packages


@pytest.mark.parametrize(("name", "granularity"), [("digits", "channel"), ("digits-stream", "tensor")])
def test_shipped_checkpoints_on_32_images(name: str, granularity: str, tmp_path: Path, assert_same) -> None:
    model = load_model(ROOT / f"models/zoo/{name}.ckpt")
    x, y = load_arrays("digits", "test", model.config)
    graph = quantize(build_graph(model), QuantizeOptions(8, granularity))
    report = write_bundle(graph, tmp_path / "bundle")
    result = LavaRunner(report.folder, limit_s=120).run(x[:32], spikes=True, membranes=True)
    assert_same(graph, x[:32], result)
    assert (result.outputs["logits"].argmax(1) == y[:32]).mean() > 0.9


def test_every_variant(variant: str, tmp_path: Path, integer_network, assert_same) -> None:
    """Two batches after each other: the second one's neurons start fresh, and the last place of it stays empty."""
    index = sum(map(ord, variant))
    bits, granularity = (2, 4, 8)[index % 3], ("channel", "tensor")[index % 2]
    graph, x = integer_network(variant, bits, granularity, depth=1)
    report = write_bundle(graph, tmp_path / "bundle")
    result = LavaRunner(report.folder, limit_s=120).run(x, spikes=True, membranes=True, batch=2)
    assert_same(graph, x, result)
    assert result.facts["steps"] == 2 * 4 + report.latency_steps


def test_chunks_of_different_latency_meet(tmp_path: Path, integer_network, assert_same) -> None:
    """Two blocks with chunks of four steps: shortcuts wait for attention twice."""
    graph, x = integer_network("static", depth=2, chunk_size=4)
    report = write_bundle(graph, tmp_path / "bundle")
    assert report.latency_steps == LavaRunner(report.folder).latency_steps == 6
    assert_same(graph, x, LavaRunner(report.folder, limit_s=120).run(x, spikes=True, membranes=True))


@pytest.mark.parametrize(
    ("mode", "window", "groups"), [("sliding", 3, 1), ("block", 3, 2), ("block", 6, 1)], ids=lambda value: str(value)
)
def test_attention_as_a_stream(mode: str, window: int, groups: int, tmp_path: Path) -> None:
    """Spikes at every step of every sample, two samples after each other; the result has a time axis."""
    attention = STAttenAttention(num_heads=3, window=window, mode=mode, token_groups=groups)
    nodes: dict[str, nir.NIRNode] = {
        "input": nir.Input(np.array([6, 4, 2])),
        "encoder": InputEncoder(np.ones(6), np.zeros(6)),
        "attention": attention,
        "output": nir.Output(np.array([6, 4, 2])),
    }
    edges = [("input", "encoder"), *[("encoder", f"attention.{port}") for port in "qkv"], ("attention", "output")]
    graph = nir.NIRGraph(nodes, edges, metadata={"statten": {"time_steps": 6}}, type_check=False)
    x = np.random.default_rng(2).integers(0, 2, (2, 6, 6, 4, 2))
    report = write_bundle(graph, tmp_path / "bundle")
    assert report.latency_steps == (window - 1 if mode == "block" else 0)
    found = LavaRunner(report.folder, limit_s=60).run(x, batch=1)
    np.testing.assert_array_equal(found.outputs["output"], IntegerRunner(graph).run(x).outputs["output"])


def extreme_graph() -> nir.NIRGraph:
    """Synapses with memory, currents beyond the wrap, biases near saturation, all signs of exponents."""
    rng = np.random.default_rng(0)
    channels, steps, shape = 12, 6, (12, 2, 3)
    first = rng.integers(-127, 128, (channels, 2, 3, 3))
    threshold = np.array([0, 1, 2, 100, 2**10, 2**14, 2**16, 2**17 - 1] + [2**12] * 4).reshape(-1, 1, 1)
    mantissa = np.array([4095, -4095, -1, 1, 0, 17, -300, 4000, 5, -5, 4095, -4095]).reshape(-1, 1, 1)
    exponents = np.array([7, 7, 0, 3, 0, 2, 5, 7, 11, 11, 1, 1]).reshape(-1, 1, 1)
    nodes: dict[str, nir.NIRNode] = {
        "input": nir.Input(np.array([2, 4, 6])),
        "encoder": InputEncoder(np.array([1 / 255, 0.01]), np.array([0, 100])),
        "conv": IntegerConv2d(first, np.arange(-5, 7) - 1, np.ones(channels), (2, 2), (1, 1)),
        "fast": IntegerLIF(threshold, 2048, mantissa, exponents, shape, input_exponent=-1),
        "slow": IntegerLIF(threshold[::-1], 100, mantissa[::-1], exponents[::-1], shape, du=700),
        "leaky": IntegerLIF(np.full((12, 1, 1), 40), 4095, mantissa, exponents, shape, input_exponent=3, du=3000),
        "deeper": IntegerConv2d(
            rng.integers(-127, 128, (12, 3, 1, 1)), np.full(12, 7), np.ones(12), (1, 1), (0, 0), (1, 1), 4
        ),
        "flatten": nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1),
        "head": IntegerLinear(
            rng.integers(-127, 128, (5, 72)), np.arange(-2, 3), rng.integers(-999, 999, 5), np.ones(5)
        ),
        "sum": TemporalSum(0.125),
        "output": nir.Output(np.array([5])),
    }
    edges = [("input", "encoder"), ("encoder", "conv"), ("conv", "fast"), ("fast", "deeper"), ("deeper", "slow")]
    edges += [("conv", "slow"), ("deeper", "leaky"), ("leaky", "flatten"), ("slow", "flatten"), ("flatten", "head")]
    edges += [("head", "sum"), ("sum", "output")]
    return nir.NIRGraph(nodes, edges, metadata={"statten": {"time_steps": steps}}, type_check=False)


def test_synaptic_memory_wraps_and_saturation(tmp_path: Path, assert_same) -> None:
    graph = extreme_graph()
    x = np.random.default_rng(1).uniform(-0.5, 2.5, (4, 6, 2, 4, 6))
    report = write_bundle(graph, tmp_path / "bundle")
    result = LavaRunner(report.folder, limit_s=120).run(x, spikes=True, membranes=True)
    assert_same(graph, x, result)
    assert max(np.abs(layer).max() for layer in result.membranes.values()) == 2**23 - 1
    assert report.undocumented[0] == "fast: one threshold per channel"


@pytest.mark.parametrize("interpreter", interpreters(), ids=lambda command: Path(command[0]).name)
def test_runs_by_itself(interpreter: tuple[str, ...], tmp_path: Path, integer_network) -> None:
    """As users do, from another folder, with numpy and Lava only."""
    graph, x = integer_network("sdt", depth=1)
    bundle = write_bundle(graph, tmp_path / "bundle").folder
    np.savez(tmp_path / "frames.npz", x=x)
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    if "-S" in interpreter:
        environment["PYTHONPATH"] = site_packages()
    ours = subprocess.run(
        [*interpreter, "-c", "import numpy, statten_deploy"], env=environment, cwd="/", capture_output=True, text=True
    )
    assert "No module named 'statten_deploy'" in ours.stderr
    command = [*interpreter, str(bundle / "run.py"), "--input", "frames.npz", "--output", "spikes.npz"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 3
    expected = IntegerRunner(graph).run(x, spikes=True)
    with np.load(tmp_path / "spikes.npz", allow_pickle=False) as found:
        names = {f"spikes/{name}" for name in expected.spikes}
        assert set(found.files) == {"logits", "logits_scaled", *names}
        np.testing.assert_array_equal(found["logits"], expected.outputs["logits"])
        (scale,) = (node.scale for node in graph.nodes.values() if isinstance(node, TemporalSum))
        np.testing.assert_array_equal(found["logits_scaled"], found["logits"] * scale)
        for name, spikes in expected.spikes.items():
            np.testing.assert_array_equal(found[f"spikes/{name}"], spikes, err_msg=name)


def test_code_imports_nothing_but_numpy_and_lava(tmp_path: Path, integer_network) -> None:
    bundle = write_bundle(integer_network("static")[0], tmp_path / "bundle").folder
    sources = sorted(bundle.rglob("*.py"))
    assert len(sources) == 8
    allowed = {*sys.stdlib_module_names, "numpy", "lava", "statten_lava"}
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 10))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).split(".")[0] in allowed, path


def test_same_graph_same_bytes_and_a_complete_manifest(tmp_path: Path, integer_network) -> None:
    graph, _ = integer_network("dvs")
    first, second = (write_bundle(graph, tmp_path / name).folder for name in ("first", "second"))
    contents = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (first, second)]
    assert contents[0] == contents[1]
    manifest = json.loads((first / "manifest.json").read_text())
    hashes = {str(name): hashlib.sha256(data).hexdigest() for name, data in contents[0].items()}
    del hashes["manifest.json"]
    assert {name: facts["sha256"] for name, facts in manifest["files"].items()} == hashes
    with np.load(first / "weights.npz", allow_pickle=False) as weights:
        assert {weights[name].dtype.kind for name in weights.files} == {"i"}


def test_tensor_granularity_stays_within_documented_thresholds(tmp_path: Path, integer_network) -> None:
    per_tensor = write_bundle(integer_network("static", granularity="tensor")[0], tmp_path / "tensor")
    per_channel = write_bundle(integer_network("static")[0], tmp_path / "channel")
    assert not any("threshold" in what for what in per_tensor.undocumented)
    assert sum("threshold" in what for what in per_channel.undocumented) > 5


def test_nothing_is_overwritten(tmp_path: Path, integer_network) -> None:
    graph, _ = integer_network("static", depth=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="written into an empty folder"):
        write_bundle(graph, tmp_path / "mine")
    with pytest.raises(InputError, match="no such folder"):
        write_bundle(graph, tmp_path / "nowhere" / "bundle")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_what_lava_cannot_run_is_named(tmp_path: Path, integer_network) -> None:
    graph, _ = integer_network("static", depth=1)
    nodes = {**graph.nodes, "extra": nir.Delay(np.ones(3)), "more": nir.IF(np.ones(3), np.ones(3))}
    with pytest.raises(UnsupportedError, match=r"no process for more \(IF\), extra \(Delay\)"):
        write_bundle(nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False), tmp_path / "bundle")
    neurons = [name for name, node in graph.nodes.items() if isinstance(node, IntegerLIF)]
    graph.nodes[neurons[0]].threshold = graph.nodes[neurons[0]].threshold - 2**17
    graph.nodes[neurons[1]].du = 4096
    with pytest.raises(UnsupportedError, match=rf"{neurons[0]} \(threshold -.*{neurons[1]} \(du 4096"):
        write_bundle(graph, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
