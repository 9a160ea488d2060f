"""How large the integers of a stream get: its grid times the power of two that thresholds and biases ask for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from statten_deploy.fixed_point.arithmetic import BIAS_EXPONENT_MAX, BIAS_MANTISSA_BITS, CURRENT_SHIFT, THRESHOLD_BITS
from statten_deploy.ir.integer import IntArray
from statten_deploy.quantize.currents import Stream
from statten_deploy.quantize.rounding import Grid, Real, largest_integer

THRESHOLD_TARGET = 1 << 10
"""Thresholds are at least this: their rounding is then finer than that of 8-bit weights, and currents keep room for 2^6
thresholds and more below 24 bits."""
THRESHOLD_LEAST = 1 << 6
"""A bias that does not fit lowers thresholds so far; beyond, it is clipped."""
INTEGRATOR_OCTAVES = 4
"""Integrators have no threshold: currents get so many bits below the grid of the weights, for the halvings to come."""
THRESHOLD_MAX = largest_integer(THRESHOLD_BITS)
BIAS_MAX = largest_integer(BIAS_MANTISSA_BITS) << BIAS_EXPONENT_MAX
"""In membrane units."""


@dataclass
class Plan:
    """The scale of a stream, per channel or (tensor granularity) one for all.

    `units` of the neurons that it reaches and that fire, `biases` of all neurons: integer threshold and bias current
    per unit of K, per element of their leading axes. `lowered`: octaves given up for the range of currents.
    """

    stream: Stream
    grid: Grid
    units: Mapping[str, Real]
    biases: Mapping[str, Real]
    shifts: bool
    lowered: IntArray

    def folded(self, values: Real) -> Real:
        """The largest value per element of the scale, from one per element of a neuron layer's leading axis."""
        largest: Real = values.reshape(len(self.grid.scale), -1).max(1)
        return largest

    def octaves(self) -> IntArray:
        """The power of two on top of the grid."""
        scale = self.grid.scale
        wanted = least = np.zeros(len(scale))
        if self.shifts:
            wanted = np.full(len(scale), float(INTEGRATOR_OCTAVES))
            if self.units:
                lowest = 1 / np.max([self.folded(1 / unit) for unit in self.units.values()], axis=0) * scale
                wanted = np.maximum(0, np.ceil(np.log2(THRESHOLD_TARGET / lowest)))
                least = np.ceil(np.log2(THRESHOLD_LEAST / lowest))
            biases = [self.folded(np.abs(bias)) for bias in self.biases.values()]
            bias = np.max([np.zeros(len(scale)), *biases], axis=0) * scale
            fitting = np.floor(np.log2(BIAS_MAX / np.maximum(bias * (1 << CURRENT_SHIFT), 1.0)))
            wanted = np.minimum(wanted, np.maximum(fitting, least))
        if self.units:
            highest = np.max([self.folded(unit) for unit in self.units.values()], axis=0) * scale
            wanted = np.minimum(wanted, np.floor(np.log2(THRESHOLD_MAX / highest)))
        return np.asarray(wanted, dtype=np.int64) - self.lowered

    def scale(self) -> Real:
        """K: a real current x is the integer ``K x``."""
        return self.grid.scale * 2.0 ** self.octaves()

    def exponents(self, branch: str) -> IntArray:
        """Of a branch; without shifts its weights take the octaves, and lose bits where those are negative."""
        if not self.shifts:
            return np.zeros(len(self.grid.scale), dtype=np.int64)
        return self.grid.exponents[self.stream.branches.index(branch)] + self.octaves()
