"""Energy per sample, counted beside an evaluation: exact on the samples that are counted, which are not all of many."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import nir
import numpy as np
from numpy.typing import ArrayLike

from statten_deploy.energy.cost import energy
from statten_deploy.energy.counter import EnergyCounter, InputKind
from statten_deploy.energy.profiles import DEFAULT_PROFILES, load_profile
from statten_deploy.errors import StattenError
from statten_deploy.ir.graph import hints

COUNTED_SAMPLES = 1024
"""About so many samples are counted at most: counting costs more than running, and the mean settles long before."""


@dataclass(frozen=True)
class EnergyEstimate:
    """pJ per sample by profile, dynamic only, from the events of `samples` samples; empty where `note` says why."""

    samples: int = 0
    energy_pj: dict[str, float] = field(default_factory=dict)
    note: str = ""


class EnergyEstimator:
    """Counts the events of evenly spaced batches of an evaluation over `samples` samples.

    estimator = EnergyEstimator(graph, 50_000)
    for index, (x, spikes) in enumerate(batches):
        if estimator.wants(index):
            estimator.add(spikes, x)
    estimate = estimator.estimate()
    """

    def __init__(self, graph: nir.NIRGraph, samples: int) -> None:
        self.graph = graph
        self.every = max(1, -(-samples // COUNTED_SAMPLES))
        self._counter: EnergyCounter | None = None
        self._note = ""

    def wants(self, index: int) -> bool:
        """Whether batch `index` is one of those that are counted."""
        return not self._note and index % self.every == 0

    def add(self, spikes: Mapping[str, ArrayLike], x: ArrayLike) -> None:
        """Add a batch: spikes [T, B, ...] of every neuron layer, and the input [B, ...].

        What cannot be counted is noted: an evaluation does not fail for it.
        """
        try:
            if self._counter is None:
                self._counter = EnergyCounter(self.graph, input=likely_input(self.graph, x))
            self._counter.update(spikes, x)
        except StattenError as error:
            self._note = str(error)

    def estimate(self, profiles: tuple[str, ...] = DEFAULT_PROFILES) -> EnergyEstimate:
        """Of everything added so far."""
        if self._note or self._counter is None:
            return EnergyEstimate(note=self._note or "no sample was counted")
        counts = self._counter.counts()
        costs = {name: energy(counts, load_profile(name)).total_pj for name in profiles}
        return EnergyEstimate(counts.samples, costs)


def likely_input(graph: nir.NIRGraph, x: ArrayLike) -> InputKind:
    """What the graph's Input carries: an image where it says so, else events where `x` holds whole numbers."""
    if hints(graph).get("input") == "image":
        return "image"
    return "events" if np.array_equal(np.rint(x), x) else "frames"
