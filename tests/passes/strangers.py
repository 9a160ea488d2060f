"""The importers of Norse, SpikingJelly and snnTorch, as they are published, and how a module that they made is run."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from statten_deploy.compare.executors import TorchExecutor
from statten_deploy.export.nir import original_names
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import CONFIG_KEY
from statten_deploy.models.statten import STAtten
from statten_deploy.passes.latency import input_latencies
from tests.conftest import lively_input, lively_model, small_config

IMPORTERS = ("SpikingJelly", "Norse", "snnTorch")
IMAGES = 16
ZOO = Path(__file__).parents[2] / "models" / "zoo"


def import_with(tool: str, network: nir.NIRGraph) -> nn.Module:
    """The module that a tool makes of a graph. They warn of parts of torch that end, and snnTorch prints arrays."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if tool == "SpikingJelly":
            from spikingjelly.activation_based import nir_exchange

            return nir_exchange.import_from_nir(network, dt=1e-4)
        if tool == "Norse":
            import norse.torch

            return norse.torch.from_nir(network, dt=1e-4)
        from snntorch.import_nir import import_from_nir

        return import_from_nir(network)


def reset(module: nn.Module) -> None:
    """snnTorch keeps states inside its neurons; the others return them."""
    for part in module.modules():
        if hasattr(part, "reset_mem"):
            part.reset_mem()


def run_elsewhere(
    tool: str, path: Path, x: np.ndarray, steps: int, watch: dict[str, str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Outputs [B, T, n] and signals [T, B, n] of watched modules for x [B, ...] or [B, T, ...], sample by sample.

    `watch`: name in the file -> name to give back.
    """
    module = import_with(tool, nir.read(path))
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
            reset(module)
            for t in range(steps):
                frame = sample[min(t, len(sample) - 1)] if x.ndim == 5 else sample
                y, state = module(torch.from_numpy(frame[None]), state)
                outputs.append(y.reshape(-1).numpy())
    signals = {name: np.stack(values).reshape(len(x), steps, -1) for name, values in seen.items()}
    flat = np.stack(outputs).reshape(len(x), steps, -1)
    return flat, {name: value.swapaxes(0, 1) for name, value in signals.items()}


# networks, and what is compared


def digits() -> np.ndarray:
    images = load_digits().images[:: 1797 // IMAGES][:IMAGES] / 16
    return np.kron(images, np.ones((2, 2)))[:, None].astype(np.float32)


def lively(folder: Path, kind: str, **changes: Any) -> tuple[Path, np.ndarray]:
    """A checkpoint with random weights, whose every layer fires, and its input."""
    config = small_config(kind, pooling="strided", **changes)
    path = folder / f"{kind}.ckpt"
    state = lively_model(config).state_dict()
    torch.save({"state_dict": state, CONFIG_KEY: config.model_dump(mode="json")}, path)
    return path, lively_input(config, IMAGES).numpy()


NETWORKS: dict[str, Callable[[Path], tuple[Path, np.ndarray]]] = {
    "trained, sliding window": lambda folder: (ZOO / "digits-stream.ckpt", digits()),
    "SDT": lambda folder: lively(folder, "sdt", num_heads=2),
    "block window": lambda folder: lively(folder, "static", num_heads=2, embed_dim=24, depth=1),
}


def torch_counts(network: STAtten, x: np.ndarray) -> dict[str, np.ndarray]:
    """A[t] of every STAtten attention, [T, B, ...]: what its neuron layer reads."""
    seen: dict[str, np.ndarray] = {}

    def reader(name: str) -> Callable[..., None]:
        return lambda _, inputs: seen.update({name: inputs[0].numpy()})

    neurons = {name: part for name, part in network.named_modules() if name.endswith(".attn_lif")}
    handles = [part.register_forward_pre_hook(reader(name)) for name, part in neurons.items()]
    with torch.no_grad():
        network(torch.from_numpy(x))
    for handle in handles:
        handle.remove()
    return seen


def compare(
    tool: str, path: Path, network: STAtten, x: np.ndarray, late: int
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(kind, name, there, in torch) of spikes of every layer, counts A[t] of every attention, logits of every step."""
    expected, counts = TorchExecutor(network).run(x), torch_counts(network, x)
    steps = network.config.time_steps
    told = {name: node.metadata["statten"] for name, node in nir.read(path).nodes.items()}
    names = original_names(told)
    watch = {file: name for file, name in names.items() if name in expected.spikes or ".statten.out" in name}
    found, signals = run_elsewhere(tool, path, x, steps + late, watch)
    arrival = input_latencies(build_graph(network))
    for name, spikes in expected.spikes.items():
        there = signals[name][arrival[name] : arrival[name] + steps]
        yield "spikes", name, there.reshape(spikes.shape), spikes
    for name, value in counts.items():
        attention = name.replace(".attn_lif", ".statten.out")
        total: Any = sum(signal for key, signal in signals.items() if key.startswith(attention))
        yield "counts", name, total[arrival[name] : arrival[name] + steps].reshape(value.shape), value
    # The head is the last sum of floats, and its last bit depends on how many rows a library multiplies at a time.
    last = torch.from_numpy(expected.spikes["head_lif"].swapaxes(0, 1).astype(np.float32)).flatten(0, 1)
    with torch.no_grad():
        rows = [nn.functional.linear(row[None], network.head.weight, network.head.bias)[0].numpy() for row in last]
    logits = np.stack(rows).reshape(len(x), steps, -1)
    np.testing.assert_allclose(logits.mean(1), expected.outputs["logits"], rtol=0, atol=2e-6)
    yield "logits", "every step", found[:, late:].reshape(logits.shape), logits
