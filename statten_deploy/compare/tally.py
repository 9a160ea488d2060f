"""What one backend gave, batch by batch. Spikes are counted and dropped: memory does not grow with the data set."""

from math import sqrt
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.compare.comparison import LayerResult
from statten_deploy.compare.executors import Array, Execution
from statten_deploy.compare.verify import predicted_classes
from statten_deploy.energy import Counts, EnergyCounter, LayerCounts
from statten_deploy.energy.counter import InputKind

Labels = NDArray[np.int64]

CLASSES_RANK = 3
"""Of an output with one value per class: [batch, classes] or [batch, T, classes]; a feature map has more axes."""
CONFUSION_CLASSES = 256
"""A matrix of more classes than this is nothing to look at."""
NORMAL_95 = 1.959963984540054
"""97.5 % of a normal distribution lie below."""


class Tally:
    """Totals of one backend. `predictions` alone grows, by one class per sample.

    Args:
        graph: what the spikes are counted on. input: what its Input carries, as `EnergyCounter` takes it.
    """

    def __init__(self, graph: nir.NIRGraph, input: InputKind | None) -> None:
        self.counter = EnergyCounter(graph, input=input)
        self.samples = self.correct = self.same = 0
        self.labelled = False
        """Whether `correct` means something."""
        self.mismatches = self.sites = 0
        self.predictions: list[int] = []
        self.confusion: NDArray[np.int64] | None = None

    def update(self, x: Array, found: Execution, expected: Execution | None, labels: Labels | None) -> None:
        """Add what a backend gave for x [B, ...]. `expected`: the reference's, where the backend is not one itself."""
        self.counter.update(found.spikes, x)
        self.samples += len(x)
        if expected is not None:
            for name in expected.spikes.keys() & found.spikes.keys():
                self.mismatches += int(np.count_nonzero(expected.spikes[name] != found.spikes[name]))
                self.sites += expected.spikes[name].size
        predicted, other = classes_of(found), None if expected is None else classes_of(expected)
        if predicted is None:
            return
        self.predictions += predicted.tolist()
        if other is not None:
            self.same += int((predicted == other).sum())
        if labels is not None:
            self.labelled = True
            self.correct += int((predicted == labels).sum())
            self._confuse(labels, predicted, next(iter(found.outputs.values())).shape[-1])

    def _confuse(self, labels: Labels, predicted: Labels, classes: int) -> None:
        known = 0 if self.confusion is None else len(self.confusion)
        size = max(known, classes, int(labels.max()) + 1)
        if size > CONFUSION_CLASSES:
            return
        if self.confusion is None or size > known:
            larger = np.zeros((size, size), dtype=np.int64)
            if self.confusion is not None:
                larger[:known, :known] = self.confusion
            self.confusion = larger
        np.add.at(self.confusion, (labels, predicted), 1)


def classes_of(execution: Execution) -> Labels | None:
    """The class of every sample; None where the output is a feature map."""
    output = next(iter(execution.outputs.values()))
    return predicted_classes(output) if output.ndim <= CLASSES_RANK else None


def layer_results(counts: Counts, reference: Counts | None) -> list[LayerResult]:
    """The counts of every node, beside those of the reference's node of the same name."""
    return [_layer(layer, reference.by_name.get(layer.name) if reference else None) for layer in counts.layers]


def _layer(found: LayerCounts, expected: LayerCounts | None) -> LayerResult:
    operates = found.role not in ("neurons", "input") and not (found.macs or found.reads)  # on events, not on currents
    return LayerResult(
        name=found.name,
        role=found.role,
        neurons=found.neurons,
        spikes=found.spikes,
        spikes_by_step=found.spikes_by_step,
        firing_rate=found.firing_rate,
        synops=found.event_ops,
        relative_spikes=relative(found.spikes, expected.spikes) if expected and found.spikes_by_step else None,
        relative_synops=relative(found.event_ops, expected.event_ops) if expected and operates else None,
        macs=found.macs,
        paper_macs=found.paper_macs,
        paper_acs=float(found.paper_acs),
    )


def relative(found: float, expected: float) -> float | None:
    """``(found - expected) / expected``, 0 where both are 0; None where only `expected` is."""
    if found == expected:
        return 0.0
    return (found - expected) / expected if expected else None


def wilson_interval(correct: int, samples: int) -> tuple[float, float]:
    """95 % confidence interval of a share, ``(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` (Wilson 1927)."""
    n, p, z = samples, correct / samples, NORMAL_95
    middle, scale = p + z * z / (2 * n), 1 + z * z / n
    spread = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def raster_of(execution: Execution, sample: int) -> dict[str, NDArray[Any]]:
    """The spikes of one sample of a batch, per layer [T, neurons]."""
    return {name: layer[:, sample].reshape(len(layer), -1).copy() for name, layer in execution.spikes.items()}
