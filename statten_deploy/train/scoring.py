"""Accuracy, firing rates and energy of a network on a split, in floats or in integers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from statten_deploy.energy import EnergyEstimate, EnergyEstimator
from statten_deploy.ir.integer import IntegerLIF
from statten_deploy.models.neurons import LIF
from statten_deploy.models.statten import STAtten
from statten_deploy.simulate.integer import TorchIntegerRunner

TOP = 5
"""Top-5: the class is among the five with the largest logits. Says nothing where there are no more classes."""


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `samples`; firing rate of every neuron layer = spikes / (neurons · steps · samples).

    `top5`: so many have their class among the five likeliest; None where there are no more than five.
    """

    correct: int
    samples: int
    firing_rates: dict[str, float]
    top5: int | None = None
    energy: EnergyEstimate = field(default_factory=EnergyEstimate)

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


def in_top(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64], k: int = TOP) -> int | None:
    """How many of `labels` [B] are among the `k` largest of `logits` [B, classes]; the first of equals is the larger.

    None where there are no more than k classes.
    """
    if logits.shape[-1] <= k:
        return None
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return int((order == labels[:, None]).any(-1).sum())


@contextmanager
def count_spikes(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While open, adds up [spikes, places] of every LIF layer of `model`, by module name."""
    totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))

    def record(name: str, spikes: Tensor) -> None:
        totals[name] += torch.tensor([int(spikes.count_nonzero()), spikes.numel()], dtype=torch.float64)

    with _watched(model, record):
        yield totals


def evaluate(
    model: STAtten,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    estimator: EnergyEstimator | None = None,
) -> Accuracy:
    """Run `model` in evaluation mode over (x [B, ...], classes [B]) batches; `estimator` counts events on the way."""
    model = model.to(device).eval()
    tally = _Tally()
    latest: dict[str, Tensor] = {}
    with torch.inference_mode(), count_spikes(model) as totals, _watched(model, latest.__setitem__):
        for index, (x, target) in enumerate(batches):
            tally.add(model(x.to(device)).float().cpu().numpy(), target.numpy())
            if estimator is not None and estimator.wants(index):
                estimator.add({name: spikes.bool().cpu().numpy() for name, spikes in latest.items()}, x.numpy())
    rates = {name: float(spikes / places) for name, (spikes, places) in totals.items()}
    return tally.accuracy(rates, estimator)


def evaluate_integers(
    graph: nir.NIRGraph,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    estimator: EnergyEstimator | None = None,
) -> Accuracy:
    """Run the quantised `graph` of a network over (x [B, ...], classes [B]) batches, in integers."""
    runner = TorchIntegerRunner(graph, device)
    (output,) = (name for name, node in graph.nodes.items() if isinstance(node, nir.Output))
    layers = {name: int(np.prod(node.shape)) for name, node in graph.nodes.items() if isinstance(node, IntegerLIF)}
    spikes = dict.fromkeys(layers, 0)
    tally = _Tally()
    for index, (x, target) in enumerate(batches):
        counted = estimator is not None and estimator.wants(index)
        result = runner.run(x.numpy(), spikes=counted)
        tally.add(result.outputs[output], target.numpy())
        for name, counts in result.spike_counts.items():
            spikes[name] += int(counts.sum())
        if estimator is not None and counted:
            estimator.add(result.spikes, x.numpy())
    places = runner.network.time_steps * tally.samples
    rates = {name: spikes[name] / (neurons * places) for name, neurons in layers.items()}
    return tally.accuracy(rates, estimator)


class _Tally:
    """Right answers so far."""

    def __init__(self) -> None:
        self.correct = self.samples = 0
        self.top5: int | None = None

    def add(self, logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> None:
        self.correct += int((logits.argmax(-1) == labels).sum())
        self.samples += len(labels)
        found = in_top(logits, labels)
        if found is not None:
            self.top5 = (self.top5 or 0) + found

    def accuracy(self, rates: dict[str, float], estimator: EnergyEstimator | None) -> Accuracy:
        energy = EnergyEstimate(note="not asked for") if estimator is None else estimator.estimate()
        return Accuracy(self.correct, self.samples, rates, self.top5, energy)


@contextmanager
def _watched(model: nn.Module, record: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, `record` sees the name and the spikes [T, B, ...] of every LIF layer of `model` when it has run."""

    def hook_of(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, spikes: record(name, spikes)

    handles = [
        module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if isinstance(module, LIF)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
