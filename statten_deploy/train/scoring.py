"""Accuracy and firing rates of a network on a split, in floats or in integers."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import nir
import numpy as np
import torch
from torch import Tensor, nn

from statten_deploy.ir.integer import IntegerLIF
from statten_deploy.models.neurons import LIF
from statten_deploy.models.statten import STAtten
from statten_deploy.simulate.integer import TorchIntegerRunner


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `samples`; firing rate of every neuron layer = spikes / (neurons · steps · samples)."""

    correct: int
    samples: int
    firing_rates: dict[str, float]

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


@contextmanager
def count_spikes(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While open, adds up [spikes, places] of every LIF layer of `model`, by module name."""
    totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, LIF):

            def record(_: nn.Module, __: tuple[Tensor, ...], spikes: Tensor, name: str = name) -> None:
                totals[name] += torch.tensor([int(spikes.count_nonzero()), spikes.numel()], dtype=torch.float64)

            handles.append(module.register_forward_hook(record))
    try:
        yield totals
    finally:
        for handle in handles:
            handle.remove()


def evaluate(model: STAtten, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str = "cpu") -> Accuracy:
    """Run `model` in evaluation mode over (x [B, ...], classes [B]) batches."""
    model = model.to(device).eval()
    correct = samples = 0
    with torch.inference_mode(), count_spikes(model) as totals:
        for x, target in batches:
            predicted = model(x.to(device)).argmax(1).cpu()
            correct += int((predicted == target).sum())
            samples += len(target)
    return Accuracy(correct, samples, {name: float(spikes / places) for name, (spikes, places) in totals.items()})


def evaluate_integers(
    graph: nir.NIRGraph, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str = "cpu"
) -> Accuracy:
    """Run the quantised `graph` of a network over (x [B, ...], classes [B]) batches, in integers."""
    runner = TorchIntegerRunner(graph, device)
    (output,) = (name for name, node in graph.nodes.items() if isinstance(node, nir.Output))
    layers = {name: int(np.prod(node.shape)) for name, node in graph.nodes.items() if isinstance(node, IntegerLIF)}
    spikes = dict.fromkeys(layers, 0)
    correct = samples = 0
    for x, target in batches:
        result = runner.run(x.numpy())
        correct += int((result.outputs[output].argmax(1) == target.numpy()).sum())
        samples += len(target)
        for name, counts in result.spike_counts.items():
            spikes[name] += int(counts.sum())
    places = runner.network.time_steps * samples
    return Accuracy(correct, samples, {name: spikes[name] / (neurons * places) for name, neurons in layers.items()})
