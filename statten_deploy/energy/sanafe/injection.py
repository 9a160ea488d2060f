"""What no synapse computes: the currents of real inputs, attention, maxima and rounded sums, from the spikes so far."""

from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.energy.sanafe.network import UNIT, Population, SpikingNetwork, synaptic_bounds
from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point import CURRENT_SHIFT, shift, wrap
from statten_deploy.fixed_point.ranges import CURRENT_LIMIT
from statten_deploy.fixed_point.runner import OPERATIONS
from statten_deploy.ir.graph import predecessors
from statten_deploy.ir.verify import time_step

Int = NDArray[np.int64]


class Injection:
    """The currents into one population, in units of its potential."""

    def __init__(self, network: SpikingNetwork, population: Population) -> None:
        self.network, self.population = network, population
        self.graph = network.lowered
        self.into = predecessors(self.graph)
        self.bounds = synaptic_bounds(population)
        self.steps = network.time_steps + network.late

    def current(self, frames: NDArray[Any], spikes: dict[str, NDArray[np.bool_]], at: int) -> NDArray[np.float64]:
        """At step `at` of the population; its level makes sure that all spikes this needs have been recorded.

        Raises:
            UnsupportedError: the sum with the synapses may leave the 24-bit state.
        """
        known: dict[str, Int] = {}
        total = sum(self._value(source, frames, spikes, known) for source in self.population.outside)
        steps = np.asarray(total)[:, 0]
        now = steps[at + self.population.start if len(steps) > 1 else 0].reshape(-1).astype(np.int64)
        found = shift(now, self.population.exponent)
        if not self.population.connections:
            return wrap(np.left_shift(found, CURRENT_SHIFT)) / UNIT
        least, most = self.bounds
        if np.any(found + most > CURRENT_LIMIT) or np.any(found + least <= -CURRENT_LIMIT):
            raise UnsupportedError(
                f"{self.population.name}: its currents may wrap, which SANA-FE does not do; quantise with fewer bits"
            )
        return found.astype(np.float64)

    def _value(
        self, name: str, frames: NDArray[Any], spikes: dict[str, NDArray[np.bool_]], known: dict[str, Int]
    ) -> Int:
        """A node's value at all steps of the graph [1 or T, 1, *shape]; steps that have not happened are 0."""
        if name not in known:
            node = self.graph.nodes[name]
            if isinstance(node, nir.Input):
                known[name] = frames[:, None] if len(frames) == 1 else self._from(0, frames)[:, None]
            elif name in self.network.populations:
                population = self.network.populations[name]
                fired = spikes[name].reshape(population.steps, 1, *population.shape)
                known[name] = self._from(population.start, fired.astype(np.int64))
            else:
                operands = [
                    sum(self._value(source, frames, spikes, known) for source in sources)
                    for sources in self.into[name].values()
                ]
                known[name] = self._apply(node, operands)
        return known[name]

    def _from(self, start: int, values: NDArray[Any]) -> NDArray[Any]:
        """Values that begin at a later step of the graph, 0 before and after."""
        after = self.steps - start - len(values)
        return np.pad(values, ((start, after), *((0, 0),) * (values.ndim - 1)))

    def _apply(self, node: nir.NIRNode, operands: list[Any]) -> Int:
        if isinstance(node, nir.Delay):
            (x,) = operands
            wait = round(float(np.max(node.delay)) / time_step(self.graph))
            every = np.broadcast_to(x, (self.steps, *x.shape[1:]))
            return self._from(wait, every[: self.steps - wait])
        return np.asarray(OPERATIONS[type(node)](node, None, *operands))
