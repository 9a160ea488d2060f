"""Graphs with attention, and what circuits are compared on."""

from typing import Any

import nir
import numpy as np

from statten_deploy.ir import STAttenAttention, TemporalMean, hints, verify
from statten_deploy.ir.graph import parse_endpoint
from statten_deploy.passes.latency import input_latencies
from statten_deploy.simulate import Simulator
from tests.simulate.builders import Edges, conv, frames, graph, inp, lif, out

PROFILES = ("core", "portable")


def attention_graph(
    rng: np.random.Generator, node: STAttenAttention, shape: tuple[int, int, int], steps: int
) -> nir.NIRGraph:
    """Currents -> q, k, v spikes -> counts; the counts and a neuron layer on them are outputs."""
    nodes: dict[str, nir.NIRNode] = {"x": inp(*shape)}
    edges: Edges = []
    for port in "qkv":
        nodes |= {f"{port}.conv": conv(rng, shape[0], shape[0]), port: lif(*shape)}
        edges += [("x", f"{port}.conv"), (f"{port}.conv", port), (port, f"a.{port}")]
    nodes |= {"a": node, "n": lif(*shape, threshold=2.0), "counts": out(*shape), "spikes": out(*shape)}
    return graph(nodes, [*edges, ("a", "counts"), ("a", "n"), ("n", "spikes")], time_steps=steps)


def per_step(network: nir.NIRGraph) -> nir.NIRGraph:
    """The graph without the mean at its end: every step of the outputs."""
    means = {name for name, node in network.nodes.items() if isinstance(node, TemporalMean)}
    feeds = {parse_endpoint(network, target)[0]: source for source, target in network.edges}
    edges = [(feeds[a] if a in means else a, b) for a, b in network.edges if parse_endpoint(network, b)[0] not in means]
    nodes = {name: node for name, node in network.nodes.items() if name not in means}
    return nir.NIRGraph(nodes, edges, metadata=network.metadata, type_check=False)


def assert_same(network: nir.NIRGraph, lowered: nir.NIRGraph, x: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Every output and every spike of the lowered graph is that of the graph, late by what the hints say.

    The extra steps get strange input, which must not matter. Returns the outputs.
    """
    verify(lowered)
    extra = hints(lowered).get("latency_steps", 0)
    longer = x
    if x.ndim == 5 and extra:
        longer = np.concatenate([x, frames(np.random.default_rng(99), len(x), extra, *x.shape[2:])], 1)
    network, lowered = per_step(network), per_step(lowered)
    kept = [name for name in Simulator(network)._spiking if name in lowered.nodes]
    a = Simulator(network).run(x, record=kept)
    b = Simulator(lowered, time_steps=steps + extra).run(longer, record=kept)
    for name, value in a.outputs.items():
        late = hints(lowered).get("latency", {}).get(name, 0)
        np.testing.assert_array_equal(b.outputs[name][:, late : late + steps], value, err_msg=name)
    arrival = input_latencies(network)
    for name, value in a.recorded.items():
        shifted = b.recorded[name][arrival[name] : arrival[name] + steps]
        np.testing.assert_array_equal(shifted, value, err_msg=name)
    return a.outputs


def neurons(network: nir.NIRGraph) -> int:
    return sum(int(node.tau.size) for node in network.nodes.values() if isinstance(node, nir.LIF))


def same_graph(a: Any, b: Any) -> bool:
    return list(a.nodes) == list(b.nodes) and a.edges == b.edges and a.metadata == b.metadata
