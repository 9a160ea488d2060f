"""Groups of neurons with synapses, in the units of SANA-FE: what `emit` makes of a quantised graph.

Between populations there are only synapses, so a spike arrives one step later: a population of level L works on step t
of a sample at step t + L. Spikes for a population further away are passed on by relays, one neuron and one step each.

One unit of potential is 64 of the membrane, one of the sum ``a`` (docs/fixed_point.md): weights and thresholds are the
graph's integers, biases are 64ths.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import nir
import numpy as np

from statten_deploy.energy.sanafe.linear import Matrix, Real
from statten_deploy.fixed_point import CURRENT_SHIFT
from statten_deploy.ir.shapes import Shape

Role = Literal["input", "neurons", "gates", "readout", "relay"]
Inputs = Literal["currents", "spikes"]

UNIT = 1 << CURRENT_SHIFT
"""Membrane units per unit of potential."""


@dataclass(frozen=True)
class Connection:
    """Synapses from one population; `weights` [source, population]. `via`: the nodes that they stand for, in order."""

    source: str
    via: tuple[str, ...]
    weights: Matrix
    lag: int = 0
    """Steps that the spikes wait besides (a Delay of a circuit)."""


@dataclass(frozen=True)
class Population:
    """``v <- trunc64(v · leak) + Σ w s + bias + injected``, fires on ``v > threshold``, then v <- 0; flattened arrays.

    Works for `steps` steps, from `start` on (later than 0 behind the block window of a circuit), which is the chip's
    step level + start. `outside`: nodes whose currents are injected. `synapses`: the kind that a cost profile charges.
    """

    name: str
    role: Role
    shape: Shape
    threshold: Real
    leak: float
    bias: Real
    connections: tuple[Connection, ...]
    outside: tuple[str, ...] = ()
    exponent: int = 0
    synapses: str = "synop_sparse"
    level: int = 0
    start: int = 0
    steps: int = 0

    @property
    def first(self) -> int:
        """The chip's step at which it starts."""
        return self.level + self.start

    @property
    def size(self) -> int:
        """Neurons."""
        return prod(self.shape)


@dataclass(frozen=True)
class SpikingNetwork:
    """Populations in topological order. `graph` is what was given, `lowered` what was emitted (circuits in place).

    `late`: steps by which block windows of a circuit answer late. `outside`: nodes that no synapses compute, and why.
    """

    graph: nir.NIRGraph
    lowered: nir.NIRGraph
    inputs: Inputs
    populations: dict[str, Population]
    outside: dict[str, str]
    time_steps: int
    late: int

    @property
    def steps(self) -> int:
        """Steps until the last population has worked on the last step of a sample."""
        return max(population.first + population.steps for population in self.populations.values())

    @property
    def neurons(self) -> int:
        """Neurons of all populations but inputs."""
        return sum(population.size for population in self.populations.values() if population.role != "input")

    @property
    def synapses(self) -> int:
        """Connections between neurons."""
        return sum(c.weights.nnz for population in self.populations.values() for c in population.connections)


def synaptic_bounds(population: Population) -> tuple[Real, Real]:
    """Per neuron the least and the most that its synapses can add in one step."""
    least = most = np.zeros(population.size)
    for connection in population.connections:
        least = least + np.asarray(connection.weights.minimum(0).sum(0)).reshape(-1)
        most = most + np.asarray(connection.weights.maximum(0).sum(0)).reshape(-1)
    return least, most
