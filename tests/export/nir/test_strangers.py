"""Files run by the importers of SpikingJelly, Norse and snnTorch as they are published, and theirs run by us.

A file of stock nodes must give exactly our simulator's outputs in all three; a file with the compact form must be
refused by all three. Weights and inputs are multiples of 1/8, so no order of summation can excuse a difference.
Known limits of the importers shape the graphs: Norse drops AvgPool2d without a word, and Norse and snnTorch flatten
the batch axis too (one sample at a time).
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import MaxPool2d, STAttenAttention, TemporalMean, TokenMaxPool
from statten_deploy.simulate import Simulator
from tests.conftest import lively_model, small_config
from tests.export.nir.integer_graphs import counts, untruncated
from tests.simulate.builders import affine, chain, conv, frames, graph, inp, lif, out, pool, residual_network

spikingjelly_nir = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
norse = pytest.importorskip("norse.torch")
snntorch = pytest.importorskip("snntorch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:nirtorch.* is being deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """snnTorch prints whole parameter arrays while importing."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def import_spikingjelly(network: nir.NIRGraph) -> nn.Module:
    return spikingjelly_nir.import_from_nir(network, dt=1e-4)


def import_norse(network: nir.NIRGraph) -> nn.Module:
    return norse.from_nir(network, dt=1e-4)


def import_snntorch(network: nir.NIRGraph) -> nn.Module:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(network)


IMPORTERS: dict[str, Callable[[nir.NIRGraph], nn.Module]] = {
    "SpikingJelly": import_spikingjelly,
    "Norse": import_norse,
    "snnTorch": import_snntorch,
}
tools = pytest.mark.parametrize("tool", list(IMPORTERS))


def run_elsewhere(tool: str, path: Path, x: np.ndarray) -> np.ndarray:
    """x [1, T, ...] through a tool's importer, one step after the other: [T, outputs]."""
    module = IMPORTERS[tool](nir.read(path))
    state, outputs = None, []
    with torch.no_grad():
        for t in range(x.shape[1]):
            y, state = module(torch.from_numpy(x[:, t]), state)
            outputs.append(y.reshape(-1).numpy())
    return np.stack(outputs)


def head_pool(tool: str) -> nir.NIRNode:
    kind = nir.SumPool2d if tool == "Norse" else nir.AvgPool2d
    return pool(kind, (4, 4), (4, 4), (0, 0))


@tools
@pytest.mark.parametrize("seed", range(3))
def test_residual_network_with_a_pool_circuit(tool: str, seed: int, tmp_path: Path) -> None:
    """Strided convolutions, residual sums, a spike max-pool as circuit, pooled head, neurons, affine readout."""
    rng = np.random.default_rng(seed)
    network = residual_network(rng, head_pool(tool))
    report = write_nir(network, tmp_path / "n.nir")
    assert report.type_checked
    assert report.forms["stem.pool"] == "circuit"
    x = frames(rng, 1, 8, 2, 16, 16)
    ours = Simulator(network).run(x, record="spikes")
    for name, spikes in ours.recorded.items():
        assert 0.05 < spikes.mean() < 0.95, name
    np.testing.assert_array_equal(run_elsewhere(tool, tmp_path / "n.nir", x), ours.outputs["logits"][0])


@tools
def test_spikes_of_every_layer(tool: str, tmp_path: Path) -> None:
    """The network cut behind each neuron layer in turn: the spikes themselves agree."""
    rng = np.random.default_rng(5)
    network = residual_network(rng, head_pool(tool))
    x = frames(rng, 1, 6, 2, 16, 16)
    ours = Simulator(network).run(x, record="spikes").recorded
    for name, spikes in ours.items():
        cut = upstream(network, name, spikes.shape[2:])
        write_nir(cut, tmp_path / "cut.nir")
        found = run_elsewhere(tool, tmp_path / "cut.nir", x)
        np.testing.assert_array_equal(found, spikes.reshape(len(spikes), -1), err_msg=name)


def upstream(network: nir.NIRGraph, last: str, shape: tuple[int, ...]) -> nir.NIRGraph:
    """Everything that `last` depends on, with an Output behind it."""
    needed = {last}
    for _ in network.nodes:
        needed |= {source for source, target in network.edges if target in needed}
    nodes = {name: node for name, node in network.nodes.items() if name in needed}
    edges = [(a, b) for a, b in network.edges if b in needed]
    return graph({**nodes, "y": out(*shape)}, [*edges, (last, "y")])


@tools
def test_a_network_that_ends_in_a_mean(tool: str, tmp_path: Path) -> None:
    """The file gives one value per step; averaging them is the documented readout."""
    rng = np.random.default_rng(1)
    layers: list[tuple[str, nir.NIRNode]] = [
        ("x", inp(6)),
        ("a", affine(rng, 6, 8)),
        ("l", lif(8)),
        ("h", affine(rng, 8, 3)),
    ]
    network = chain(*layers, ("mean", TemporalMean()), ("logits", out(3)))
    write_nir(network, tmp_path / "n.nir")
    x = frames(rng, 1, 8, 6)
    steps = run_elsewhere(tool, tmp_path / "n.nir", x)
    np.testing.assert_array_equal(steps.mean(0), Simulator(network).run(x).outputs["logits"][0])
    assert len(np.unique(steps, axis=0)) > 1


@tools
def test_current_based_neurons(tool: str, tmp_path: Path) -> None:
    """CubaLIF with the parameters all three take: r = tau_mem / dt, w_in = tau_syn / dt, no leak, reset to 0."""
    rng = np.random.default_rng(2)
    one = np.ones(8, dtype=np.float32)
    tau = one * np.float32(2e-4)
    neuron = nir.CubaLIF(tau, tau, one * 2, one * 0, one * np.float32(1.03125), one * 0, one * 2)
    network = chain(("x", inp(6)), ("a", affine(rng, 6, 8)), ("n", neuron), ("y", out(8)))
    write_nir(network, tmp_path / "n.nir")
    x = frames(rng, 1, 5, 6)
    ours = Simulator(network).run(x).outputs["y"][0]
    assert 0.05 < ours.mean() < 0.95
    np.testing.assert_array_equal(run_elsewhere(tool, tmp_path / "n.nir", x), ours)


@tools
@pytest.mark.parametrize("du", [4095, 2047])
def test_quantised_networks(tool: str, du: int, tmp_path: Path) -> None:
    """A file of integers is an ordinary network to them; where nothing is cut off, they compute the same integers."""
    rng = np.random.default_rng(1)
    network, x = untruncated(rng, du), counts(rng, 1)
    report = write_nir(network, tmp_path / "n.nir")
    assert report.type_checked
    expected = IntegerRunner(network).run(x, spikes=True)
    assert all(0.05 < spikes.mean() < 0.95 for spikes in expected.spikes.values())
    steps = run_elsewhere(tool, tmp_path / "n.nir", x)
    np.testing.assert_array_equal(steps.sum(0), expected.outputs["logits"][0])
    assert len(np.unique(steps, axis=0)) > 1


def test_integrate_and_fire_in_spikingjelly(tmp_path: Path) -> None:
    """``dv/dt = R I``: a step adds dt R I. SpikingJelly agrees (it demands R = 1/dt); Norse drops both factors and
    snnTorch runs a leaky neuron instead, so only SpikingJelly is a witness here."""
    rng = np.random.default_rng(3)
    one = np.ones(8, dtype=np.float32)
    network = chain(("x", inp(6)), ("a", affine(rng, 6, 8)), ("n", nir.IF(one * 1e4, one * 1.0625)), ("y", out(8)))
    write_nir(network, tmp_path / "n.nir")
    x = frames(rng, 1, 8, 6)
    ours = Simulator(network).run(x).outputs["y"][0]
    assert 0.05 < ours.mean() < 0.95
    np.testing.assert_array_equal(run_elsewhere("SpikingJelly", tmp_path / "n.nir", x), ours)


# the compact form is refused


def compact_chain(kind: str) -> nir.NIRGraph:
    """One operation that NIR lacks between a neuron layer and the output, as inviting to an importer as it gets."""
    rng = np.random.default_rng(0)
    nodes: dict[str, nir.NIRNode] = {"x": inp(4, 4, 4), "c": conv(rng, 4, 4), "l": lif(4, 4, 4)}
    edges = [("x", "c"), ("c", "l")]
    if kind == "attention":
        nodes["op"] = STAttenAttention(2, 2)
        edges += [("l", f"op.{port}") for port in "qkv"]
    elif kind == "token pool":
        nodes["op"] = TokenMaxPool(2)
        edges += [("l", "op")]
    else:
        nodes["op"] = MaxPool2d((3, 3), (1, 1), (1, 1))
        edges += [("c", "op")]
    return graph({**nodes, "y": out(4, 4, 4)}, [*edges, ("op", "y")])


compact_kinds = pytest.mark.parametrize("kind", ["attention", "token pool", "max pool"])


@compact_kinds
def test_plain_nir_read_refuses_the_compact_form(kind: str, tmp_path: Path) -> None:
    write_nir(compact_chain(kind), tmp_path / "n.nir")
    with pytest.raises(ValueError, match="which does not exist in the graph"):
        nir.read(tmp_path / "n.nir")
    assert isinstance(nir.read(tmp_path / "n.nir", type_check=False), nir.NIRGraph)


@tools
@compact_kinds
def test_importers_refuse_the_compact_form(tool: str, kind: str, tmp_path: Path) -> None:
    """Even where the reader's check was switched off, no tool gets as far as a module."""
    write_nir(compact_chain(kind), tmp_path / "n.nir")
    opened = nir.read(tmp_path / "n.nir", type_check=False)
    with pytest.raises((ValueError, KeyError)):
        IMPORTERS[tool](opened)


def test_spikingjelly_refuses_the_path_itself(tmp_path: Path) -> None:
    write_nir(build_graph(lively_model(small_config("static"))), tmp_path / "n.nir")
    with pytest.raises(ValueError, match="which does not exist in the graph"):
        spikingjelly_nir.import_from_nir(tmp_path / "n.nir")


@tools
def test_importers_take_the_same_file_without_the_operation(tool: str, tmp_path: Path) -> None:
    """The refusals above are about the operation, not about the rest of the file."""
    network = compact_chain("max pool")
    nodes = {name: node for name, node in network.nodes.items() if name != "op"}
    write_nir(graph(nodes, [("x", "c"), ("c", "l"), ("l", "y")]), tmp_path / "n.nir")
    IMPORTERS[tool](nir.read(tmp_path / "n.nir"))


# their files


def simulate_file(path: Path, x: Tensor) -> np.ndarray:
    result = Simulator(read_nir(path)).run(x.numpy().swapaxes(0, 1))
    return next(iter(result.outputs.values()))[0]


def whole_eighths(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-6, 9, parameter.shape, generator=generator) / 8)


def binary_input(size: int) -> Tensor:
    return torch.randint(0, 2, (8, 1, size), generator=torch.Generator().manual_seed(1)).float()


def test_a_file_from_spikingjelly(tmp_path: Path) -> None:
    from spikingjelly.activation_based import functional, neuron

    layers = [nn.Linear(5, 8), neuron.LIFNode(tau=2.0, v_threshold=0.53125)]
    network = nn.Sequential(*layers, nn.Linear(8, 4), neuron.IFNode(v_threshold=0.53125))
    whole_eighths(network)
    nir.write(tmp_path / "n.nir", spikingjelly_nir.export_to_nir(network, torch.zeros(1, 5), dt=1e-4))
    x = binary_input(5)
    functional.reset_net(network)
    expected = torch.cat([network(x[t]) for t in range(8)]).detach().numpy()
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(simulate_file(tmp_path / "n.nir", x), expected)


def test_a_recurrent_file_from_snntorch(tmp_path: Path) -> None:
    """A recurrent layer arrives as a nested graph with a loop."""
    from snntorch.export_nir import export_to_nir

    options: dict[str, Any] = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}
    first = snntorch.Leaky(beta=torch.full((6,), 0.5), threshold=torch.full((6,), 0.53125), **options)
    second = snntorch.RLeaky(
        beta=torch.full((4,), 0.5), threshold=1.03125, all_to_all=True, linear_features=4, output=True, **options
    )
    linear = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4), second.recurrent)
    whole_eighths(linear)
    network = nn.Sequential(linear[0], first, linear[1], second)
    nir.write(tmp_path / "n.nir", export_to_nir(network, torch.zeros(5)))
    x = binary_input(5)
    first.reset_mem()
    second.reset_mem()
    expected = torch.stack([network(x[t])[0].reshape(-1) for t in range(8)]).detach().numpy()
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(simulate_file(tmp_path / "n.nir", x), expected)


def test_a_file_from_norse(tmp_path: Path) -> None:
    """Norse 1.1.0 writes scalars as neuron parameters; a size of one counts for all neurons."""
    layers = [nn.Linear(5, 8), norse.LIFBoxCell(dt=1e-3), nn.Linear(8, 3)]
    network = norse.SequentialState(*layers)
    whole_eighths(network)
    nir.write(tmp_path / "n.nir", norse.to_nir(network, torch.zeros(5)), compression=None)
    found = read_nir(tmp_path / "n.nir")
    kinds = [type(node).__name__ for node in found.nodes.values() if not isinstance(node, nir.Input | nir.Output)]
    assert kinds == ["Affine", "LIF", "Affine"]
    y = Simulator(found, dt=1e-6, time_steps=4).run(np.ones((1, 5), dtype=np.float32))
    assert next(iter(y.outputs.values())).shape == (1, 4, 3)
