"""Graphs with loops and with integrators that integers compute exactly: weights of eighths, decays of powers of two."""

from itertools import pairwise

import nir
import numpy as np

from statten_deploy.ir import TemporalMean
from tests.quantize.test_other_graphs import conv, cuba, eighths, full, graph, inp, lif, out, powers

STEPS = 4


def integrator(kind: str, shape: tuple[int, ...], r: object = 1.0) -> nir.NIRNode:
    """LI, I or CubaLI; time constants of two steps."""
    dt, zeros = np.float32(1e-4), full(0, shape)
    if kind == "LI":
        return nir.LI(full(2 * dt, shape), full(r, shape), zeros)
    if kind == "I":
        return nir.I(full(r, shape) / dt)
    return nir.CubaLI(full(2 * dt, shape), full(2 * dt, shape), full(r, shape), zeros, full(2, shape))


def readout(rng: np.random.Generator, kind: str, *, mean: bool, flat: bool = True) -> nir.NIRGraph:
    """Spiking layer, biased weights, integrators; a convolution in front of the latter where not `flat`."""
    nodes: dict[str, nir.NIRNode] = {"input": inp(2, 4, 4), "conv": conv(eighths(rng, 3, 2, 3, 3), eighths(rng, 3))}
    nodes["hidden"] = lif((3, 4, 4), threshold=0.375)
    if flat:
        nodes["flat"] = nir.Flatten({"input": np.array([3, 4, 4])}, 0, -1)
        nodes["head"] = nir.Affine(eighths(rng, 5, 48), eighths(rng, 5))
    else:
        nodes["head"] = conv(eighths(rng, 5, 3, 3, 3), eighths(rng, 5))
    shape = (5,) if flat else (5, 4, 4)
    nodes["membrane"] = integrator(kind, shape)
    if mean:
        nodes["mean"] = TemporalMean()
    nodes["logits"] = out(*shape)
    return graph(nodes, list(pairwise(nodes)))


def recurrent(rng: np.random.Generator, neuron: str, *, spatial: bool = False) -> nir.NIRGraph:
    """A layer that feeds itself through biased weights, with one more in the loop, and a leaky readout behind."""
    shape, size = ((4, 3, 3), 4) if spatial else ((6,), 6)

    def weights(out: int, into: int) -> nir.NIRNode:
        if spatial:
            return conv(eighths(rng, out, into, 3, 3, largest=3), eighths(rng, out))
        return nir.Affine(eighths(rng, out, into), eighths(rng, out))

    kinds = {
        "lif": lambda: lif(shape, r=powers(rng, size), threshold=rng.integers(2, 6, size) / 8),
        "if": lambda: nir.IF(full(1e4, shape), full(0.75, shape), full(0, shape)),
        "cuba": lambda: cuba(shape, r=powers(rng, size), w_in=2, threshold=rng.integers(2, 8, size) / 8),
    }
    nodes: dict[str, nir.NIRNode] = {
        "input": inp(*((2, 3, 3) if spatial else (5,))),
        "in": weights(size, 2 if spatial else 5),
        "a": kinds[neuron](),
        "forth": weights(size, size),
        "b": kinds[neuron](),
        "back": weights(size, size),
        "self": weights(size, size),
        "head": weights(3, size),
        "li": integrator("LI", (3, *shape[1:])),
        "spikes": out(*shape),
        "logits": out(3, *shape[1:]),
    }
    edges = [("input", "in"), ("in", "a"), ("a", "forth"), ("forth", "b"), ("b", "back"), ("back", "a")]
    edges += [("a", "self"), ("self", "a"), ("b", "head"), ("head", "li"), ("li", "logits"), ("b", "spikes")]
    return graph(nodes, edges)


def tangled(rng: np.random.Generator, neuron: str = "lif") -> nir.NIRGraph:
    """Recurrent edges into weights of several inputs and out of the same weights: a[t] reads W (a[t-1] + b[t-2])."""
    kinds = {"lif": lambda: lif((4,), threshold=0.375), "cuba": lambda: cuba((4,), r=2, w_in=2, threshold=0.5)}

    def weights(into: int = 4) -> nir.NIRNode:
        return nir.Affine(eighths(rng, 4, into), eighths(rng, 4))

    nodes: dict[str, nir.NIRNode] = {"input": inp(5), "in": weights(5), "a": kinds[neuron](), "both": weights()}
    nodes |= {"b": kinds[neuron](), "more": weights(), "head": weights(), "logits": out(4)}
    edges = [("input", "in"), ("in", "a"), ("a", "both"), ("both", "b"), ("b", "both"), ("both", "a"), ("b", "head")]
    edges += [("a", "more"), ("b", "more"), ("more", "a"), ("more", "b"), ("head", "logits")]
    return graph(nodes, edges)


LATE = {("back", "a"), ("self", "a")}
"""The edges of `recurrent` that are read a step later."""


def rough(rng: np.random.Generator, subject: nir.NIRGraph) -> nir.NIRGraph:
    """The same graph with weights and time constants that no integer meets."""
    for node in subject.nodes.values():
        for field in ("weight", "bias"):
            if hasattr(node, field):
                shape = np.shape(getattr(node, field))
                setattr(node, field, rng.normal(0.05, 0.4, shape).astype(np.float32))
        for field, steps in (("tau", 3.3), ("tau_mem", 5.7), ("tau_syn", 2.9)):
            if hasattr(node, field):
                setattr(node, field, np.full_like(getattr(node, field), steps * 1e-4))
    return subject


def events(rng: np.random.Generator, subject: nir.NIRGraph, samples: int = 3) -> np.ndarray:
    shape = subject.nodes["input"].input_type["input"]
    return rng.poisson(0.6, size=(samples, STEPS, *shape)).clip(0, 3).astype(np.float32)
