"""Networks of four tools, their NIR files made by their own exporters, and what the networks themselves compute.

Weights are multiples of 1/8 and decays powers of two, so that floats are exact in any order and integers of 8 bits
hold everything: all comparisons are for equality. Thresholds are met exactly wherever a tool fires on >=.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import nir
import norse.torch as norse
import numpy as np
import sinabs
import sinabs.layers as sl
import snntorch
import torch
from sinabs.activation import MembraneReset, SingleSpike
from snntorch.export_nir import export_to_nir as export_snntorch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir as export_spikingjelly
from torch import Tensor, nn

from statten_deploy.export.nir import write_nir

STEPS = 6
HALF = 1 / log(2)
"""A time constant with which exp(-1 / tau) is a half."""


@dataclass
class Foreign:
    """A file, the input [B, T, ...] and what the tool's own network gives for it [B, T, ...], up to `atol`."""

    tool: str
    path: Path
    x: np.ndarray
    expected: np.ndarray
    dt: float | None = None
    atol: float = 0.0


def eighths(network: nn.Module, largest: int = 8, seed: int = 0) -> nn.Module:
    """Every weight and bias a multiple of 1/8; recurrent ones included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for parameter in module.parameters():
                    drawn = torch.randint(2 - largest, largest + 1, parameter.shape, generator=generator)
                    parameter.copy_(drawn / 8)
    return network


def events(*shape: int, batch: int = 3, seed: int = 1) -> np.ndarray:
    """Counts of 0 to 2, [B, T, ...]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (batch, STEPS, *shape), generator=generator).float().numpy()


def step_by_step(network: nn.Module, x: np.ndarray, call: Callable[..., Any]) -> np.ndarray:
    """[B, T, ...] through `call(frame [B, ...], state) -> (output, state)`."""
    state, found = None, []
    with torch.no_grad():
        for t in range(x.shape[1]):
            y, state = call(torch.from_numpy(x[:, t]), state)
            found.append(y.reshape(len(x), -1).numpy())
    return np.stack(found, axis=1)


# SpikingJelly


class JellyResidual(nn.Module):
    """Convolutions with two residual sums, LIF, PLIF and IF, pool, flatten, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer.Conv2d(2, 4, 3, padding=1)
        self.first = neuron.LIFNode(2.0, v_threshold=0.5)
        self.a = layer.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = neuron.IFNode(1.0)
        self.b = layer.Conv2d(4, 4, 1)
        self.third = neuron.ParametricLIFNode(2.0, v_threshold=0.5)
        self.pool = layer.AvgPool2d(2)
        self.flat = layer.Flatten()
        self.head = layer.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.a(self.first(h))
        h = h + self.b(self.second(h))
        return self.head(self.flat(self.pool(self.third(h))))


def spikingjelly_network(network: nn.Module, shape: tuple[int, ...], path: Path) -> Foreign:
    eighths(network)
    nir.write(path, export_spikingjelly(network, torch.zeros(1, *shape)))
    x = events(*shape)
    functional.reset_net(network)
    return Foreign("spikingjelly", path, x, step_by_step(network, x, lambda frame, _: (network(frame), None)))


def spikingjelly_residual(path: Path) -> Foreign:
    return spikingjelly_network(JellyResidual(), (2, 4, 4), path)


def spikingjelly_cuba(path: Path) -> Foreign:
    """CUBALIF behind biased weights, LIF without decay of its input, linear without bias."""
    cuba = neuron.CUBALIFNode(c_decay=0.5, v_decay=0.5, v_threshold=2.0, v_reset=0.0)
    plain = neuron.LIFNode(2.0, decay_input=False, v_threshold=1.0)
    layers = [nn.Linear(5, 8), cuba, nn.Linear(8, 6), plain, nn.Linear(6, 3, bias=False)]
    return spikingjelly_network(nn.Sequential(*layers), (5,), path)


# snnTorch

ZERO: dict[str, Any] = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
"""The reset that NIR has."""


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value)


def snntorch_network(network: nn.Module, shape: tuple[int, ...], path: Path) -> Foreign:
    eighths(network)
    sample, ignored = (torch.zeros(1, *shape), [0]) if len(shape) == 3 else (torch.zeros(*shape), [])
    nir.write(path, export_snntorch(network, sample, ignore_dims=ignored))
    x = events(*shape)
    for module in network.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()

    def call(frame: Tensor, _: Any) -> tuple[Tensor, None]:
        y = network(frame)
        return (y[0] if isinstance(y, tuple) else y), None

    return Foreign("snntorch", path, x, step_by_step(network, x, call))


def snntorch_conv(path: Path) -> Foreign:
    neurons = snntorch.Leaky(beta=full(0.5, 4, 4, 4), threshold=full(1.0, 4, 4, 4), **ZERO)
    second = snntorch.Leaky(beta=full(0.5, 6), threshold=full(0.75, 6), **ZERO)
    layers = [nn.Conv2d(2, 4, 3, padding=1), neurons, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), second]
    return snntorch_network(nn.Sequential(*layers, nn.Linear(6, 3)), (2, 4, 4), path)


def snntorch_synaptic(path: Path) -> Foreign:
    first = snntorch.Synaptic(alpha=full(0.5, 8), beta=full(0.75, 8), threshold=full(2.0, 8), **ZERO)
    second = snntorch.Synaptic(alpha=full(0.75, 6), beta=full(0.5, 6), threshold=full(3.0, 6), **ZERO)
    layers = [nn.Linear(5, 8), first, nn.Linear(8, 6, bias=False), second, nn.Linear(6, 3)]
    return snntorch_network(nn.Sequential(*layers), (5,), path)


def snntorch_recurrent(path: Path) -> Foreign:
    """RLeaky: all to all with a bias, and one to one."""
    dense = snntorch.RLeaky(beta=0.5, threshold=full(1.5, 6), linear_features=6, **ZERO)
    single = snntorch.RLeaky(beta=0.5, V=full(-0.75, 6), all_to_all=False, threshold=full(1.0, 6), **ZERO)
    layers = [nn.Linear(5, 6), dense, nn.Linear(6, 6), single, nn.Linear(6, 3)]
    return snntorch_network(nn.Sequential(*layers), (5,), path)


def snntorch_recurrent_synaptic(path: Path) -> Foreign:
    """RSynaptic: the same with a synaptic memory and membranes that keep nothing.

    It has no reset to zero that works, so nothing may depend on the reset.
    """
    free: dict[str, Any] = {"init_hidden": True, "reset_mechanism": "none", "beta": full(0.0, 6), "alpha": 0.5}
    dense = snntorch.RSynaptic(linear_features=6, threshold=full(1.5, 6), **free)
    single = snntorch.RSynaptic(V=full(-0.5, 6), all_to_all=False, threshold=full(1.0, 6), output=True, **free)
    return snntorch_network(nn.Sequential(nn.Linear(5, 6), dense, nn.Linear(6, 6), single), (5,), path)


# Norse


def norse_network(network: nn.Module, shape: tuple[int, ...], path: Path, dt: float | None = None) -> Foreign:
    """`dt` None: both the cells and the export have Norse's default of a millisecond."""
    eighths(network)
    exported = norse.to_nir(network, torch.zeros(*shape), **({} if dt is None else {"dt": 1.0}))
    if len(shape) == 1:
        nir.write(path, exported, compression=None)  # its neurons have scalars, which HDF5 does not compress
    else:
        write_nir(exported, path)  # nir.write fails on its convolutions, which have no input shape
    x = events(*shape)
    found = step_by_step(network, x, network) if len(shape) == 1 else one_by_one(network, x)
    # a millisecond times a millisecond is no power of two: membranes of the readout are off by a rounding
    return Foreign("norse", path, x, found, dt, 1e-6 if dt is None else 0.0)


def one_by_one(network: nn.Module, x: np.ndarray) -> np.ndarray:
    """Norse's exporter takes convolutions without a batch axis, so the network has none."""
    return np.concatenate([step_by_step(network, sample[None], squeezed(network)) for sample in x])


def squeezed(network: nn.Module) -> Callable[..., Any]:
    return lambda frame, state: network(frame[0], state)


def norse_box(path: Path) -> Foreign:
    """LIFBox cells and a leaky readout, with the defaults of cells and exporter."""
    parameters = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.5))
    readout = norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=torch.tensor(500.0)))
    layers = [nn.Linear(5, 8), norse.LIFBoxCell(parameters), nn.Linear(8, 3), readout]
    return norse_network(norse.SequentialState(*layers), (5,), path)


def norse_cuba(path: Path) -> Foreign:
    """LIF cells with a synaptic current, integrate and fire, a leaky readout."""
    dt = 2.0**-10
    parameters = norse.LIFParameters(
        tau_syn_inv=torch.tensor(512.0), tau_mem_inv=torch.tensor(256.0), v_th=torch.tensor(0.75)
    )
    fire = norse.IAFCell(norse.IAFParameters(v_th=torch.tensor(2.0)))
    readout = norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=torch.tensor(512.0)), dt=dt)
    layers = [nn.Linear(5, 8), norse.LIFCell(parameters, dt=dt), nn.Linear(8, 6), fire, nn.Linear(6, 3), readout]
    return norse_network(norse.SequentialState(*layers), (5,), path, dt)


def norse_conv(path: Path) -> Foreign:
    dt = 2.0**-10
    parameters = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(512.0), v_th=torch.tensor(0.5))
    first, second = (norse.LIFBoxCell(parameters, dt=dt) for _ in range(2))
    layers = [nn.Conv2d(2, 4, 3, padding=1), first, nn.Conv2d(4, 3, 3, stride=2), second]
    return norse_network(norse.SequentialState(*layers), (2, 4, 4), path, dt)


# Sinabs


def sinabs_network(layers: list[nn.Module], shape: tuple[int, ...], path: Path, **options: Any) -> Foreign:
    network, x = eighths(nn.Sequential(*layers)), events(*shape)
    rows = torch.from_numpy(x).flatten(0, 1)
    with torch.no_grad():
        network(rows)  # shapes of the states become known
        exported = sinabs.to_nir(network, rows)
        if len(shape) == 3:
            exported.infer_types()  # else nir.write fails on its convolutions
        nir.write(path, exported, **options)
        sinabs.reset_states(network)
        return Foreign("sinabs", path, x, network(rows).reshape(*x.shape[:2], -1).numpy())


FIRE: dict[str, Any] = {"spike_fn": SingleSpike, "reset_fn": MembraneReset(), "batch_size": 3}
"""The firing and the reset that NIR has."""


def sinabs_conv(path: Path) -> Foreign:
    first, second = (sl.IAFSqueeze(spike_threshold=torch.tensor(threshold), **FIRE) for threshold in (2.0, 1.0))
    layers = [nn.Conv2d(2, 4, 3, padding=1), first, sl.SumPool2d(2), nn.Conv2d(4, 4, 3, padding=1, bias=False)]
    return sinabs_network([*layers, second, nn.Flatten(), nn.Linear(16, 3)], (2, 4, 4), path)


def sinabs_leaky(path: Path) -> Foreign:
    neurons = sl.LIFSqueeze(tau_mem=HALF, spike_threshold=torch.tensor(0.5), **FIRE)
    layers = [nn.Linear(5, 8), neurons, nn.Linear(8, 3), sl.ExpLeakSqueeze(tau_mem=HALF, batch_size=3)]
    return sinabs_network(layers, (5,), path, compression=None)


NETWORKS: dict[str, Callable[[Path], Foreign]] = {
    make.__name__: make
    for make in (
        spikingjelly_residual,
        spikingjelly_cuba,
        snntorch_conv,
        snntorch_synaptic,
        snntorch_recurrent,
        snntorch_recurrent_synaptic,
        norse_box,
        norse_cuba,
        norse_conv,
        sinabs_conv,
        sinabs_leaky,
    )
}


# networks as people train them: real weights, odd time constants; 64 spiking outputs over 20 steps, 8 samples


def realistic(tool: str, path: Path) -> Foreign:
    """Two layers of 64 neurons with random weights; those of snnTorch are recurrent, those of Norse current-based."""
    torch.manual_seed(0)
    first, second = nn.Linear(20, 64), nn.Linear(64, 64)
    with torch.no_grad():
        for linear in (first, second):
            linear.weight.mul_(4)
    x = (torch.rand(8, 20, 20) < 0.3).float().numpy()
    return _REALISTIC[tool](first, second, x, path)


def _realistic_spikingjelly(first: nn.Module, second: nn.Module, x: np.ndarray, path: Path) -> Foreign:
    layers = [first, neuron.LIFNode(3.3, v_threshold=0.3), second, neuron.LIFNode(5.7, v_threshold=0.2)]
    network = nn.Sequential(*layers)
    nir.write(path, export_spikingjelly(network, torch.zeros(1, 20)))
    functional.reset_net(network)
    return Foreign("spikingjelly", path, x, step_by_step(network, x, lambda frame, _: (network(frame), None)))


def _realistic_snntorch(first: nn.Module, second: nn.Module, x: np.ndarray, path: Path) -> Foreign:
    dense = snntorch.RLeaky(beta=0.9, threshold=full(2.0, 64), linear_features=64, **ZERO)
    network = nn.Sequential(first, dense, second, snntorch.Leaky(beta=full(0.8, 64), threshold=full(2.0, 64), **ZERO))
    nir.write(path, export_snntorch(network, torch.zeros(20)))
    for module in (network[1], network[3]):
        module.reset_mem()
    return Foreign("snntorch", path, x, step_by_step(network, x, lambda frame, _: (network(frame), None)))


def _realistic_norse(first: nn.Module, second: nn.Module, x: np.ndarray, path: Path) -> Foreign:
    values = {"tau_syn_inv": torch.tensor(300.0), "tau_mem_inv": torch.tensor(170.0), "v_th": torch.tensor(0.4)}
    box = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(250.0), v_th=torch.tensor(0.3)))
    network = norse.SequentialState(first, norse.LIFCell(norse.LIFParameters(**values)), second, box)
    nir.write(path, norse.to_nir(network, torch.zeros(20)), compression=None)
    return Foreign("norse", path, x, step_by_step(network, x, network))


def _realistic_sinabs(first: nn.Module, second: nn.Module, x: np.ndarray, path: Path) -> Foreign:
    options = {**FIRE, "batch_size": 8}
    one, two = (
        sl.LIFSqueeze(tau_mem=tau, spike_threshold=torch.tensor(theta), **options)
        for tau, theta in ((3.3, 0.3), (5.7, 0.2))
    )
    network, rows = nn.Sequential(first, one, second, two), torch.from_numpy(x).flatten(0, 1)
    with torch.no_grad():
        network(rows)
        nir.write(path, sinabs.to_nir(network, rows), compression=None)
        sinabs.reset_states(network)
        return Foreign("sinabs", path, x, network(rows).reshape(8, 20, 64).numpy())


_REALISTIC: dict[str, Callable[..., Foreign]] = {
    "spikingjelly": _realistic_spikingjelly,
    "snntorch": _realistic_snntorch,
    "norse": _realistic_norse,
    "sinabs": _realistic_sinabs,
}
TOOLS = tuple(_REALISTIC)
