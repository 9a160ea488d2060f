"""Circuits run by Norse, SpikingJelly and snnTorch, through their own importers as they are published.

Files that `statten-export --nir-profile portable` writes of a trained network (digits-stream: sliding window), a
spike-driven transformer (SDT) and a block window, on 16 images each: every spike of every layer of the torch network,
the integer counts A[t] and the outputs are the same. Spikes are read off the modules that the importers made, by
forward hooks.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from statten_deploy.export.artefact import read_sidecar
from statten_deploy.export.nir import write_nir
from statten_deploy.frontend import build_graph
from statten_deploy.ir import STAttenAttention, topological_order
from statten_deploy.models.checkpoint import load_model
from statten_deploy.passes import lower_to_circuits, topological_chain
from statten_deploy.passes.latency import input_latencies
from statten_deploy.simulate import Simulator
from tests.cli.commands import export
from tests.conftest import lively_model, small_config
from tests.passes.circuits import attention_graph
from tests.passes.strangers import IMPORTERS, NETWORKS, compare, import_with, run_elsewhere
from tests.simulate.builders import frames, graph, inp, out

for package in ("spikingjelly", "norse", "snntorch"):
    pytest.importorskip(package)

tools = pytest.mark.parametrize("tool", IMPORTERS)


@pytest.fixture(scope="module", params=list(NETWORKS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The torch network, its input, the file of its circuits and by how much that is late."""
    folder = tmp_path_factory.mktemp("nir")
    checkpoint, x = NETWORKS[request.param](folder)
    path = folder / "n.nir"
    assert export(checkpoint, "--target", "nir", "--nir-profile", "portable", "--samples", 2, "--out", path) == 0
    sidecar = read_sidecar(path)
    assert sidecar is not None
    return load_model(checkpoint), x, path, sidecar["latency_steps"]


@tools
def test_strangers_run_the_exported_file(tool: str, exported: tuple[Any, ...]) -> None:
    network, x, path, late = exported
    assert max(input_latencies(build_graph(network)).values()) == late
    comparisons = list(compare(tool, path, network, x, late))
    kinds = {kind for kind, _, _, _ in comparisons}
    assert kinds == {"spikes", "logits"} | ({"counts"} if network.config.attention != "SDT" else set())
    for kind, name, found, expected in comparisons:
        np.testing.assert_array_equal(found, expected, err_msg=f"{kind} of {name}")
        assert kind != "spikes" or 0.005 < expected.mean() < 0.95, name
        assert kind != "counts" or len(np.unique(expected)) > 5, name


FAULTS: dict[str, Callable[[nir.NIRGraph, nir.NIRGraph], nir.NIRGraph]] = {
    "none": lambda network, lowered: lowered,
    "a window of one step": lambda network, lowered: with_window(network, 1),
    "a window of three steps": lambda network, lowered: with_window(network, 3),
    "a dropped head": lambda network, lowered: silenced(lowered, slice(2, 4)),
    "a dead attention": lambda network, lowered: silenced(lowered, slice(None)),
}


def with_window(network: nir.NIRGraph, window: int) -> nir.NIRGraph:
    nodes = {**network.nodes, "a": replace(network.nodes["a"], window=window)}
    return lower_to_circuits(graph(nodes, network.edges, time_steps=4), "portable")[0]


def silenced(lowered: nir.NIRGraph, channels: slice) -> nir.NIRGraph:
    nodes: dict[str, Any] = dict(lowered.nodes)
    for name in [name for name in nodes if name.startswith("a.out")]:
        weight = np.array(nodes[name].weight)
        weight[channels] = 0
        nodes[name] = replace(nodes[name], weight=weight)
    return nir.NIRGraph(nodes, lowered.edges, metadata=lowered.metadata, type_check=False)


@tools
@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_show_in_the_counts(tool: str, fault: str, tmp_path: Path) -> None:
    """What the comparison is worth: another window, a dropped head, a dead attention are seen, and in every tool."""
    network = counting(np.random.default_rng(0), STAttenAttention(2, 2, "sliding"), (4, 4, 4), 4)
    lowered, _ = lower_to_circuits(network, "portable")
    write_nir(FAULTS[fault](network, lowered), tmp_path / "n.nir")
    x = frames(np.random.default_rng(0), 2, 4, 4, 4, 4)
    expected = Simulator(network).run(x).outputs["counts"]
    found, _ = run_elsewhere(tool, tmp_path / "n.nir", x, 4, {})
    differing = np.mean(found.reshape(expected.shape) != expected)
    assert (expected != 0).mean() > 0.25
    assert differing == 0 if fault == "none" else differing > 0.2


def counting(rng: np.random.Generator, node: STAttenAttention, shape: tuple[int, int, int], steps: int) -> nir.NIRGraph:
    """Attention whose counts are the only output."""
    network = attention_graph(rng, node, shape, steps)
    nodes = {name: inner for name, inner in network.nodes.items() if name not in ("n", "spikes")}
    return graph(nodes, [edge for edge in network.edges if edge[1] not in ("n", "spikes")], time_steps=steps)


WINDOWS = [("sliding", 3, 1, (4, 4, 3)), ("block", 3, 1, (4, 3, 2)), ("block", 2, 2, (4, 4, 3))]


@tools
@pytest.mark.parametrize(("mode", "window", "groups", "shape"), WINDOWS)
def test_other_windows_grids_and_token_groups(
    tool: str, mode: Any, window: int, groups: int, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    """The portable circuits exist for every window; grids are neither square nor powers of two."""
    steps = 2 * window
    network = counting(np.random.default_rng(window), STAttenAttention(2, window, mode, groups), shape, steps)
    lowered, _ = lower_to_circuits(network, "portable")
    report = write_nir(lowered, tmp_path / "n.nir")
    assert report.type_checked
    late = lowered.metadata["statten"].get("latency_steps", 0)
    assert late == (window - 1 if mode == "block" else 0)
    x = frames(np.random.default_rng(1), 1, steps, *shape)
    found, _ = run_elsewhere(tool, tmp_path / "n.nir", x, steps + late, {})
    expected = Simulator(network, time_steps=steps).run(x).outputs["counts"]
    np.testing.assert_array_equal(found[:, late:].reshape(expected.shape), expected)
    assert len(np.unique(expected)) > 3


READ = """
import sys
sys.modules["statten_deploy"] = None
import nir
for path in sys.argv[1:]:
    graph = nir.read(path)
    assert all(type(node).__module__.startswith("nir.") for node in graph.nodes.values())
    assert len(graph.nodes) > 30, path
    print(path, len(graph.nodes))
assert not [name for name in sys.modules if name.startswith("statten_deploy.")]
"""


def test_plain_nir_opens_every_circuit_file(tmp_path: Path) -> None:
    """`nir.read` with its type check, in an interpreter that cannot import this package: every kind of network."""
    paths = []
    for profile in ("core", "portable"):
        for kind in ("static", "sliding", "token", "sdt", "dvs", "dvs-sdt", "oblong"):
            config = small_config(kind, pooling="strided", embed_dim=8, num_heads=2, depth=1)
            paths.append(tmp_path / f"{kind}-{profile}.nir")
            write_nir(lower_to_circuits(build_graph(lively_model(config)), profile)[0], paths[-1])
    done = subprocess.run(
        [sys.executable, "-I", "-c", READ, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(paths)


ADDENDS = {"a": 1, "b": 10, "c": 1}


@tools
def test_why_there_is_a_path_through_all_nodes(tool: str) -> None:
    """The smallest graph that Norse runs wrongly: it runs x, a, c, y, b, so c adds a of this step and b of the last
    (and what it returns is b, which ran last). With a link from a to b all is right."""
    zero, one = np.zeros(1, dtype=np.float32), np.ones((1, 1, 1, 1), dtype=np.float32)
    nodes: dict[str, nir.NIRNode] = {"x": inp(1, 2, 2), "y": out(1, 2, 2)}
    nodes |= {name: nir.Conv2d((2, 2), one * w, (1, 1), (0, 0), (1, 1), 1, zero) for name, w in ADDENDS.items()}
    network = graph(nodes, [("x", "a"), ("x", "b"), ("a", "c"), ("b", "c"), ("c", "y")])
    linked, modified = topological_chain(network)
    assert modified
    sums = {}
    for kind, candidate in (("plain", network), ("linked", linked)):
        order = topological_order(candidate) if kind == "linked" else list("xyabc")
        edges = [edge for name in order for edge in candidate.edges if edge[1] == name]  # as `write_nir` lists them
        module, state = import_with(tool, nir.NIRGraph(dict(candidate.nodes), edges)), None
        read: list[float] = []
        module.get_submodule("c").register_forward_hook(lambda _, __, y, read=read: read.append(float(y[0, 0, 0, 0])))
        with torch.no_grad():
            for value in (1.0, 2.0):
                result, state = module(torch.full((1, 1, 2, 2), value), state)
        sums[kind] = [*read, float(result[0, 0, 0, 0])]
    assert sums["linked"] == [11, 22, 22]
    assert sums["plain"] == ([1, 12, 20] if tool == "Norse" else [11, 22, 22])
