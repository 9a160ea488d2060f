"""What the exporters of other tools lose or cannot write, each in its smallest case: docs/nir.md tells users.

A test that fails here says that a tool was mended, and that the table in docs/nir.md and `conventions` want a change.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

pytest.importorskip("sinabs")
pytest.importorskip("norse.torch")
pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly.activation_based")

import norse.torch as norse
import sinabs
import sinabs.layers as sl
import snntorch
import torch
from sinabs.activation import MembraneReset, MultiSpike, SingleSpike
from snntorch.export_nir import export_to_nir as export_snntorch
from spikingjelly.activation_based import layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir as export_spikingjelly
from torch import Tensor, nn

from statten_deploy.errors import GraphError, InputError
from statten_deploy.export.nir import as_written_by, read_nir
from statten_deploy.export.onnx import build_onnx
from statten_deploy.simulate import Simulator
from tests.export.nir.foreign import FIRE, ZERO, full

pytestmark = [
    pytest.mark.filterwarnings("ignore:nirtorch.* is being deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def one(value: float) -> nn.Linear:
    """1 -> 1 with this weight and no bias."""
    linear = nn.Linear(1, 1)
    with torch.no_grad():
        linear.weight.fill_(value)
        linear.bias.fill_(0)
    return linear


def ours(graph: nir.NIRGraph, tool: str, x: list[float], dt: float | None = None) -> list[float]:
    """Our simulator on a graph of one input and one output."""
    frames = np.array(x, dtype=np.float32).reshape(1, -1, 1)
    (y,) = Simulator(as_written_by(graph, tool, dt)).run(frames).outputs.values()
    return [float(value) for value in y.ravel()]


def theirs(network: nn.Module, x: list[float]) -> list[float]:
    """A network that keeps its states to itself."""
    with torch.no_grad():
        found = [network(torch.tensor([[value]])) for value in x]
    return [float((y[0] if isinstance(y, tuple) else y).item()) for y in found]


# snnTorch


def test_snntorch_does_not_write_how_it_resets() -> None:
    """By default it subtracts the threshold; the file says reset to zero."""
    x = [1.75, 1.75, 0.0, 0.0]
    network = nn.Sequential(one(1.0), snntorch.Leaky(beta=full(0.5, 1), threshold=full(1.0, 1), init_hidden=True))
    graph = export_snntorch(network, torch.zeros(1))
    network[1].reset_mem()
    assert theirs(network, x) == [1, 1, 0, 0]
    assert ours(graph, "snntorch", x) == [1, 1, 0, 0]
    x = [2.75, 0.75, 0.25, 0.0]
    network[1].reset_mem()
    assert theirs(network, x) == [1, 1, 0, 0]
    assert ours(graph, "snntorch", x) == [1, 0, 0, 0]


def test_snntorch_recurrent_layers_lose_the_step_after_a_spike() -> None:
    """With reset_delay (the default) RLeaky throws away what arrives then; NIR's neurons do not."""
    x = [2.0, 2.0, 2.0, 2.0]
    found = {}
    for delay in (False, True):
        options = {**ZERO, "reset_delay": delay, "output": True}
        cell = snntorch.RLeaky(beta=0.5, V=full(0.0, 1), all_to_all=False, threshold=full(1.0, 1), **options)
        network = nn.Sequential(one(1.0), cell)
        graph = export_snntorch(network, torch.zeros(1))
        cell.reset_mem()
        found[delay] = theirs(network, x)
        assert ours(graph, "snntorch", x) == [1, 1, 1, 1]
    assert found == {False: [1, 1, 1, 1], True: [1, 0, 1, 0]}


def test_snntorch_recurrent_synapses_have_no_reset_to_zero_that_works() -> None:
    options: dict[str, Any] = {"V": full(0.0, 1), "all_to_all": False, "threshold": full(1.0, 1), **ZERO}
    cell = snntorch.RSynaptic(alpha=0.5, beta=full(0.5, 1), **options)
    with pytest.raises(TypeError, match="NoneType"):
        cell(torch.ones(1, 1))


@pytest.mark.parametrize("scalar", ["beta", "threshold"])
def test_snntorch_cannot_write_scalars(scalar: str) -> None:
    """One number for a layer, as in its tutorials."""
    values: dict[str, Any] = {"beta": full(0.5, 2), "threshold": full(1.0, 2), scalar: 0.5}
    network = nn.Sequential(nn.Linear(1, 2), snntorch.Leaky(init_hidden=True, **values))
    with pytest.raises((ValueError, AssertionError), match=r"type mismatch|same shape"):
        export_snntorch(network, torch.zeros(1))


# residuals: the tracer of nirtorch's extract_nir_graph does not see additions


class Residual(nn.Module):
    def __init__(self, *neurons: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.first, self.last = neurons

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.last(self.b(self.first(h)) + h)


def test_additions_are_lost_without_a_word() -> None:
    """What stands behind the sum is not in the file; SpikingJelly's exporter keeps it."""
    leaky = [snntorch.Leaky(beta=full(0.5, 3), threshold=full(1.0, 3), **ZERO) for _ in range(2)]
    fire = [sl.IAFSqueeze(spike_threshold=torch.tensor(1.0), **{**FIRE, "batch_size": 1}) for _ in range(2)]
    box = [norse.LIFBoxCell() for _ in range(2)]
    with torch.no_grad():
        networks = {
            "snntorch": export_snntorch(Residual(*leaky), torch.zeros(3)),
            "sinabs": sinabs.to_nir(Residual(*fire), torch.zeros(1, 3)),
            "norse": norse.to_nir(NorseResidual(*box), torch.zeros(3)),
        }
    for tool, graph in networks.items():
        assert "last" not in graph.nodes, tool
        assert ("b", "output") in graph.edges, tool
    jelly = Residual(neuron.LIFNode(), neuron.IFNode())
    graph = export_spikingjelly(jelly, torch.zeros(1, 3))
    assert {("a", "last"), ("b", "last"), ("last", "output")} <= set(graph.edges)


class NorseResidual(Residual):
    """Norse's cells return (output, state)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.last(self.b(self.first(h)[0]) + h)[0]


# Norse


def test_norse_writes_time_constants_times_dt() -> None:
    """10 ms become 10 us with the default dt of the export; dt=1.0 writes seconds."""
    cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(100.0)))
    network = norse.SequentialState(nn.Linear(1, 1), cell)
    written = [norse.to_nir(network, torch.zeros(1), **options).nodes["1"].tau for options in ({}, {"dt": 1.0})]
    np.testing.assert_allclose(written, [1e-5, 1e-2], rtol=1e-6)


def test_norse_leaves_out_the_input_weight_of_synapses() -> None:
    """An input of 1 adds 1 to its synaptic current; the file says dt / tau_syn = 0.5."""
    dt = 2.0**-10
    values = {"tau_syn_inv": torch.tensor(512.0), "tau_mem_inv": torch.tensor(1024.0), "v_th": torch.tensor(0.75)}
    network = norse.SequentialState(one(1.0), norse.LIFCell(norse.LIFParameters(**values), dt=dt))
    graph = norse.to_nir(network, torch.zeros(1), dt=1.0)
    state, spikes = None, []
    with torch.no_grad():
        for value in (1.0, 0.5, 0.0):
            y, state = network(torch.tensor([value]), state)
            spikes.append(float(y.item()))
    assert spikes == ours(graph, "norse", [1.0, 0.5, 0.0], dt) == [1, 1, 0]
    frames = np.array([1.0, 0.5, 0.0], dtype=np.float32).reshape(1, 3, 1)
    (plain,) = Simulator(graph, dt=dt).run(frames).outputs.values()
    assert plain.ravel().tolist() == [0, 0, 0]


def test_norse_files_need_care_to_be_written_and_read(tmp_path: Path) -> None:
    graph = norse.to_nir(norse.SequentialState(nn.Linear(2, 3), norse.LIFBoxCell()), torch.zeros(2))
    with pytest.raises(TypeError, match="Scalar datasets don't support chunk/filter options"):
        nir.write(tmp_path / "n.nir", graph)
    nir.write(tmp_path / "n.nir", graph, compression=None)
    with pytest.raises(ValueError, match="type mismatch"):
        nir.read(tmp_path / "n.nir")
    assert read_nir(tmp_path / "n.nir").nodes["1"].tau.shape == ()
    conv = norse.SequentialState(nn.Conv2d(1, 2, 3), norse.LIFBoxCell())
    with pytest.raises(TypeError, match="One of data, shape or dtype must be specified"):
        nir.write(tmp_path / "n.nir", norse.to_nir(conv, torch.zeros(1, 4, 4)), compression=None)
    bare = norse.SequentialState(nn.Conv2d(1, 2, 3, bias=False), norse.LIFBoxCell())
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'detach'"):
        norse.to_nir(bare, torch.zeros(1, 4, 4))


def test_what_norse_has_no_node_for_is_named_at_once() -> None:
    """Its exporter puts None there, also for recurrent cells; nir.write would fail on the first of them."""
    layers = [nn.Linear(4, 4), norse.LIFRecurrentCell(4, 4), nn.Linear(4, 4), norse.LICell(), norse.LSNNCell()]
    graph = norse.to_nir(norse.SequentialState(*layers), torch.zeros(4))
    with pytest.raises(GraphError) as caught:
        Simulator(graph)
    for name in ("'1' is None", "'3' is None", "'4' is None"):
        assert f"{name}: the tool that made the graph has no NIR node for this module" in str(caught.value)
    with pytest.raises(InputError, match=r"3 of 7 nodes cannot be written as ONNX: '1' \(NoneType\), '3' .*, '4'"):
        build_onnx(graph, time_steps=2)


# Sinabs


def sinabs_one(x: list[float], **options: Any) -> tuple[list[float], nir.NIRGraph]:
    values = {"spike_threshold": torch.tensor(1.0), "batch_size": 1, **options}
    network = nn.Sequential(one(1.0), sl.IAFSqueeze(**values))
    rows = torch.tensor(x).reshape(-1, 1)
    with torch.no_grad():
        network(rows)
        graph = sinabs.to_nir(network, rows)
        sinabs.reset_states(network)
        return [float(value) for value in network(rows).ravel()], graph


def test_sinabs_does_not_write_how_it_fires_and_resets() -> None:
    """By default it fires several times a step and subtracts; the file says once and reset to zero."""
    x = [2.5, 0.5, 0.0]
    default, graph = sinabs_one(x)
    assert default == [2, 1, 0]
    assert ours(graph, "sinabs", x) == [1, 0, 0]
    single, graph = sinabs_one(x, spike_fn=SingleSpike, reset_fn=MembraneReset())
    assert single == ours(graph, "sinabs", x) == [1, 0, 0]
    assert sinabs_one(x, spike_fn=MultiSpike, reset_fn=MembraneReset())[0] == [2, 0, 0]


def test_sinabs_does_not_write_synapses() -> None:
    fire = {"spike_threshold": torch.tensor(1.0), **FIRE, "batch_size": 1}
    network = nn.Sequential(one(1.0), sl.LIFSqueeze(tau_mem=2.0, tau_syn=2.0, **fire))
    with torch.no_grad():
        network(torch.ones(1, 1))
        graph = sinabs.to_nir(network, torch.ones(1, 1))
    assert type(graph.nodes["1"]) is nir.LIF


@pytest.mark.parametrize("kind", ["Merge", "AvgPool2d", "MaxPool2d"])
def test_sinabs_cannot_write_merges_and_pools(kind: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            self.module = sl.Merge() if kind == "Merge" else getattr(nn, kind)(2)

        def forward(self, x: Tensor) -> Any:
            h = self.conv(x)
            return self.module(h, h) if isinstance(self.module, sl.Merge) else self.module(h)

    with torch.no_grad(), pytest.raises(NotImplementedError, match="not supported"):
        sinabs.to_nir(Network(), torch.zeros(1, 1, 4, 4))


# SpikingJelly


def test_spikingjelly_fires_at_the_threshold_and_nir_above() -> None:
    network = nn.Sequential(one(1.0), neuron.IFNode(1.0))
    graph = export_spikingjelly(network, torch.zeros(1, 1))
    assert theirs(network, [1.0]) == ours(graph, "spikingjelly", [1.0]) == [1]
    (plain,) = Simulator(graph).run(np.ones((1, 1, 1), dtype=np.float32)).outputs.values()
    assert plain.item() == 0


def test_spikingjelly_refuses_what_nir_lacks() -> None:
    """Soft resets, max-pools and recurrent containers raise in the exporter."""
    soft = nn.Sequential(one(1.0), neuron.LIFNode(v_reset=None))
    with pytest.raises(NotImplementedError, match="soft reset"):
        export_spikingjelly(soft, torch.zeros(1, 1))
    pool = nn.Sequential(layer.Conv2d(1, 1, 1), neuron.LIFNode(), layer.MaxPool2d(2))
    with pytest.raises(ValueError, match="The only supported function is addition"):
        export_spikingjelly(pool, torch.zeros(1, 1, 4, 4))
    loop = nn.Sequential(nn.Linear(2, 2), layer.LinearRecurrentContainer(neuron.LIFNode(), 2, 2))
    with pytest.raises(torch.fx.proxy.TraceError):
        export_spikingjelly(loop, torch.zeros(1, 2))
