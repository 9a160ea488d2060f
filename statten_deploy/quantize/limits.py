"""Currents that stay inside the 24-bit state: proved from the weights, or bounded on calibration data."""

from collections.abc import Mapping
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.arithmetic import DECAY_BITS, STATE_BITS, STATE_MAX
from statten_deploy.fixed_point.observe import observe
from statten_deploy.fixed_point.ranges import CURRENT_LIMIT, integer_ranges
from statten_deploy.ir.integer import IntArray, IntegerLI
from statten_deploy.quantize.post_training import Quantizer
from statten_deploy.quantize.rounding import Real

INPUT_LIMIT = (1 << STATE_BITS) - 1
"""Always proved of a neuron's input: 32 bits then hold it in units of the membrane, and float32 holds it exactly."""
MARGIN = 2
"""Where the proof of 2^17 fails, the largest current of the calibration run must fit so many times."""


def input_bounds(graph: nir.NIRGraph) -> dict[str, IntArray]:
    """The largest \\|a\\| of every neuron layer, whatever the input, per element of its leading axis."""
    return {name: np.maximum(np.abs(bound.low), np.abs(bound.high)) for name, bound in integer_ranges(graph)[1].items()}


def current_bounds(graph: nir.NIRGraph, bounds: Mapping[str, IntArray] | None = None) -> dict[str, Real]:
    """The largest synaptic current in units of a; with a memory inputs pile up to ``a 4096 / (du + 1)``.

    `bounds`: what `input_bounds` gives, if it is known.
    """
    bounds = input_bounds(graph) if bounds is None else bounds
    return {name: bound * ((1 << DECAY_BITS) / (graph.nodes[name].du + 1)) for name, bound in bounds.items()}


def prove_inputs(quantizer: Quantizer) -> nir.NIRGraph:
    """Lower scales until every \\|a\\| is below 2^24 by proof; the graph.

    Raises:
        UnsupportedError: a count that is too large already; weights beyond any exponent.
    """
    while True:
        graph = quantizer.build()
        bounds = _unshifted_bounds(graph)
        over = {n: _octaves(bound / INPUT_LIMIT) for n, bound in bounds.items() if bound.max() > INPUT_LIMIT}
        for name in set(saturating(graph)) - over.keys():  # bits that integrators can spare
            if quantizer.spares(name):
                over[name] = np.ones(len(bounds[name]), dtype=np.int64)
        stuck = [name for name, octaves in over.items() if not quantizer.lower(name, octaves)]
        if stuck:
            raise UnsupportedError(f"no fixed-point form for: {'; '.join(stuck)} (its counts can exceed 24 bits)")
        if not over:
            quantizer.check_exponents()
            return graph


def saturating(graph: nir.NIRGraph) -> list[str]:
    """Integrators whose membranes are not proved to stay inside the state."""
    results, _ = integer_ranges(graph)
    return [n for n, node in graph.nodes.items() if isinstance(node, IntegerLI) and results[n].magnitude >= STATE_MAX]


def _unshifted_bounds(graph: nir.NIRGraph) -> dict[str, IntArray]:
    """A right shift comes after the sum, so the sum itself must fit."""
    return {name: bound << max(0, -graph.nodes[name].input_exponent) for name, bound in input_bounds(graph).items()}


def calibrate_currents(quantizer: Quantizer, x: NDArray[Any]) -> nir.NIRGraph:
    """Lower scales until every current that is not proved to stay clear of the wrap fits `MARGIN` times on `x`.

    The graph's metadata keeps under ``calibrated`` the largest \\|u\\| seen of those layers, in units of a.
    """
    while True:
        graph = prove_inputs(quantizer)
        unproved = [name for name, bound in current_bounds(graph).items() if bound.max() > CURRENT_LIMIT]
        full = saturating(graph)
        if not unproved and not full:
            return graph
        seen = observe(graph, x).neurons
        over = {name: _octaves(MARGIN * seen[name].largest_current / CURRENT_LIMIT) for name in unproved}
        for name in full:
            octaves = _octaves(MARGIN * seen[name].largest_membrane / STATE_MAX)
            over[name] = np.maximum(over.get(name, octaves), octaves)
        lowered = [name for name, octaves in over.items() if octaves.any() and quantizer.lower(name, octaves)]
        if not lowered:
            graph.metadata["statten"]["calibrated"] = {n: int(seen[n].largest_current.max()) for n in over}
            return graph


def _octaves(excess: Real) -> IntArray:
    """By how many powers of two to divide to come down to 1."""
    return np.asarray(np.ceil(np.log2(np.maximum(excess, 1.0))), dtype=np.int64)
