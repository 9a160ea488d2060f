"""Circuits run by Norse, SpikingJelly and snnTorch, through their own importers as they are published.

Portable files of a trained network (digits-stream: sliding window), a spike-driven transformer (SDT) and a block
window, on 16 images each: every spike of every layer of the network, the integer counts A[t] and the outputs are the
reference's. Spikes are read off the modules that the importers made, by forward hooks.
"""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from statten_deploy.export.nir import WriteReport, write_nir
from statten_deploy.frontend import build_graph
from statten_deploy.ir import STAttenAttention, topological_order
from statten_deploy.models.checkpoint import load_model
from statten_deploy.passes import lower_to_circuits, topological_chain
from statten_deploy.passes.latency import input_latencies
from statten_deploy.simulate import Simulator
from tests.conftest import lively_input, lively_model, small_config
from tests.passes.circuits import attention_graph, per_step
from tests.simulate.builders import frames, graph, inp, out

spikingjelly_nir = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
norse = pytest.importorskip("norse.torch")
pytest.importorskip("snntorch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:nirtorch.* is being deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]

IMAGES = 16
ZOO = Path(__file__).parents[2] / "models" / "zoo"


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """snnTorch prints whole parameter arrays while importing."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def import_snntorch(network: nir.NIRGraph) -> nn.Module:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(network)


IMPORTERS: dict[str, Callable[[nir.NIRGraph], nn.Module]] = {
    "SpikingJelly": lambda network: spikingjelly_nir.import_from_nir(network, dt=1e-4),
    "Norse": lambda network: norse.from_nir(network, dt=1e-4),
    "snnTorch": import_snntorch,
}
tools = pytest.mark.parametrize("tool", list(IMPORTERS))


def run_elsewhere(
    tool: str, path: Path, x: np.ndarray, steps: int, watch: dict[str, str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Outputs [B, T, n] and signals [T, B, n] of watched modules for x [B, ...] or [B, T, ...], sample by sample."""
    module = IMPORTERS[tool](nir.read(path))
    seen: dict[str, list[np.ndarray]] = {name: [] for name in watch.values()}

    def reader(name: str) -> Callable[..., None]:
        def read(_: Any, __: Any, result: Any) -> None:
            seen[name].append((result[0] if isinstance(result, tuple) else result).numpy())

        return read

    for written, name in watch.items():
        module.get_submodule(written).register_forward_hook(reader(name))
    outputs = []
    with torch.no_grad():
        for sample in x:
            state = None
            for part in module.modules():
                if hasattr(part, "reset_mem"):
                    part.reset_mem()
            for t in range(steps):
                frame = sample[min(t, len(sample) - 1)] if x.ndim == 5 else sample
                y, state = module(torch.from_numpy(frame[None]), state)
                outputs.append(y.reshape(-1).numpy())
    signals = {name: np.stack(values).reshape(len(x), steps, -1) for name, values in seen.items()}
    flat = np.stack(outputs).reshape(len(x), steps, -1)
    return flat, {name: value.swapaxes(0, 1) for name, value in signals.items()}


def trained_stream() -> tuple[nir.NIRGraph, np.ndarray, int]:
    network = load_model(ZOO / "digits-stream.ckpt")
    images = load_digits().images[:: 1797 // IMAGES][:IMAGES] / 16
    x = np.kron(images, np.ones((2, 2)))[:, None].astype(np.float32)
    return build_graph(network), x, network.config.time_steps


def lively(kind: str, **changes: Any) -> tuple[nir.NIRGraph, np.ndarray, int]:
    config = small_config(kind, pooling="strided", num_heads=2, **changes)
    return build_graph(lively_model(config)), lively_input(config, IMAGES).numpy(), config.time_steps


NETWORKS: dict[str, Callable[[], tuple[nir.NIRGraph, np.ndarray, int]]] = {
    "trained, sliding window": trained_stream,
    "SDT": lambda: lively("sdt"),
    "block window": lambda: lively("static", embed_dim=24, depth=1),
}


def watched(network: nir.NIRGraph, report: WriteReport) -> dict[str, str]:
    """Name in the file -> name in the graph, of the network's neurons and of what adds up to its counts."""
    lif = {name for name, node in network.nodes.items() if isinstance(node, nir.LIF)}
    return {file: name for file, name in report.names.items() if name in lif or ".statten.out" in name}


@pytest.fixture(scope="module", params=list(NETWORKS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A network, its input and steps, its circuits and their file, for all tools."""
    network, x, steps = NETWORKS[request.param]()
    lowered, _ = lower_to_circuits(network, "portable")
    report = write_nir(lowered, tmp_path_factory.mktemp("nir") / "n.nir")
    return network, x, steps, lowered, report


@tools
def test_strangers_run_the_circuits(tool: str, written: tuple[Any, ...]) -> None:
    network, x, steps, lowered, report = written
    assert report.type_checked
    assert not report.warnings
    late = lowered.metadata["statten"].get("latency_steps", 0)
    found, signals = run_elsewhere(tool, report.path, x, steps + late, watched(network, report))
    attention = [name for name, node in network.nodes.items() if isinstance(node, STAttenAttention)]
    spiking = [name for name, node in network.nodes.items() if isinstance(node, nir.LIF)]
    ours = Simulator(per_step(network)).run(x, record=[*spiking, *attention])
    arrival = input_latencies(network)
    for name in spiking:
        spikes = ours.recorded[name]
        assert 0.005 < spikes.mean() < 0.95, name
        there = signals[name][arrival[name] : arrival[name] + steps]
        np.testing.assert_array_equal(there.reshape(spikes.shape), spikes, err_msg=name)
    for name in attention:
        counts = sum(value for key, value in signals.items() if key.startswith(f"{name}.out"))
        start = arrival[f"{name.removesuffix('.statten')}.attn_lif"]
        expected = ours.recorded[name]
        np.testing.assert_array_equal(counts[start : start + steps].reshape(expected.shape), expected, err_msg=name)
        assert len(np.unique(expected)) > 5
    # The head is the last sum of floats, and its last bit depends on how many rows a library multiplies at a time.
    head: Any = network.nodes["head"]
    rows = torch.from_numpy(ours.recorded["head_lif"].swapaxes(0, 1).reshape(-1, 1, head.weight.shape[1]))
    weight, bias = torch.from_numpy(head.weight), torch.from_numpy(head.bias)
    expected = np.stack([nn.functional.linear(row, weight, bias)[0].numpy() for row in rows])
    np.testing.assert_array_equal(found[:, late:].reshape(expected.shape), expected)
    np.testing.assert_allclose(found[:, late:], ours.outputs["logits"], rtol=0, atol=2e-6)


WINDOWS = [("sliding", 3, 1, (4, 4, 3)), ("block", 3, 1, (4, 3, 2)), ("block", 2, 2, (4, 4, 3))]


@tools
@pytest.mark.parametrize(("mode", "window", "groups", "shape"), WINDOWS)
def test_other_windows_grids_and_token_groups(
    tool: str, mode: Any, window: int, groups: int, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    """The portable circuits exist for every window; grids are neither square nor powers of two."""
    steps = 2 * window
    network = attention_graph(np.random.default_rng(window), STAttenAttention(2, window, mode, groups), shape, steps)
    nodes = {name: node for name, node in network.nodes.items() if name != "spikes"}
    network = nir.NIRGraph(nodes, [e for e in network.edges if e[1] not in ("n", "spikes")], type_check=False)
    del network.nodes["n"]
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
    assert len(graph.nodes) > 40, path
    print(path, len(graph.nodes))
assert not [name for name in sys.modules if name.startswith("statten_deploy.")]
"""


def test_plain_nir_opens_every_circuit_file(tmp_path: Path) -> None:
    """`nir.read` with its type check, in an interpreter that cannot import this package."""
    paths = []
    for profile in ("core", "portable"):
        for index, (kind, shape) in enumerate([("static", (16, 16)), ("token", (16, 24)), ("dvs-sdt", (16, 16))]):
            network, _, _ = lively(kind, embed_dim=16, depth=1, image_size=shape)
            paths.append(tmp_path / f"{profile}{index}.nir")
            write_nir(lower_to_circuits(network, profile)[0], paths[-1])
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
        module, state = IMPORTERS[tool](nir.NIRGraph(dict(candidate.nodes), edges)), None
        read: list[float] = []
        module.get_submodule("c").register_forward_hook(lambda _, __, y, read=read: read.append(float(y[0, 0, 0, 0])))
        with torch.no_grad():
            for value in (1.0, 2.0):
                result, state = module(torch.full((1, 1, 2, 2), value), state)
        sums[kind] = [*read, float(result[0, 0, 0, 0])]
    assert sums["linked"] == [11, 22, 22]
    assert sums["plain"] == ([1, 12, 20] if tool == "Norse" else [11, 22, 22])
