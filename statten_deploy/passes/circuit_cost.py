"""What circuits cost, as formulas: known before anything is built."""

from dataclasses import dataclass
from math import prod
from typing import Any

import nir

from statten_deploy.ir.graph import parse_endpoint, predecessors
from statten_deploy.ir.nodes import SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool
from statten_deploy.ir.shapes import Shape, infer_shapes
from statten_deploy.ir.verify import time_step
from statten_deploy.passes.circuit_parts import Profile
from statten_deploy.passes.latency import BINARY, RESETTABLE, delay_of, input_latencies, is_memoryless
from statten_deploy.passes.statten_to_circuit import count_bits

TIME = "timing"
"""The entry for clocks, the start pulse and, in portable, for spikes that wait for a block window."""


@dataclass(frozen=True)
class Cost:
    """What the circuits of one layer add to a network.

    neurons: LIF neurons. synapses: pairs of a spiking neuron (or input) and a neuron that it reaches without another
    neuron between them, once per delay; for attention also those that carry the counts to the neuron behind it.
    formula: how the neurons are counted.
    """

    neurons: int
    synapses: int
    formula: str


def circuit_cost(graph: nir.NIRGraph, profile: Profile = "core") -> dict[str, Cost]:
    """Cost of every layer that `lower_to_circuits` turns into a circuit, and of telling time (``timing``).

    The sum of `neurons` is exactly what the lowered graph has more than the graph.

    Raises:
        GraphError: shapes that do not meet, a cyclic graph.
    """
    shapes, into = infer_shapes(graph), predecessors(graph)
    found: dict[str, Cost] = {}
    for name, node in graph.nodes.items():
        fed = {port: sources[0] for port, sources in into[name].items() if sources}
        if isinstance(node, STAttenAttention):
            found[name] = _attention(node, shapes[name], profile, fed["k"] == fed["v"])
        elif isinstance(node, SpikeAnd):
            size = prod(shapes[name])
            found[name] = Cost(size, size if fed["a"] == fed["b"] else 2 * size, "C N")
        elif isinstance(node, SpikeMaxPool2d):
            reach = shapes[name][0] * prod(_reach(node, shapes[fed["input"]], shapes[name]))
            found[name] = Cost(prod(shapes[name]), reach, "C N")
        elif isinstance(node, TokenMaxPool):
            channels, tokens = shapes[name][0], prod(shapes[name][1:])
            near = node.num_heads * (3 * channels // node.num_heads - 2) * (3 * tokens - 2)
            found[name] = Cost(channels * tokens, near, "C N")
    timing = _timing(graph, shapes, profile)
    if timing.neurons:
        found[TIME] = timing
    return found


def _attention(node: STAttenAttention, shape: Shape, profile: Profile, shared: bool) -> Cost:
    C, N, S, G = shape[0], prod(shape[1:]), node.window, node.token_groups
    P, n = C * (C // node.num_heads), count_bits(node, N)
    wait = delay_of(node)
    neurons = P * N * (1 + n) + P * G * n
    synapses = 2 * P * N + P * (n * S * N + G * n * (n - 1) // 2) + 3 * P * N * n
    formula = "P N (1 + n) + P G n"
    if wait:
        synapses += P * G * n + (P * N * n * wait if profile == "core" else 0)
    if profile == "portable" and S > 1:
        delays = (1 if shared else 2) * C * N * (S - 1) + C * N * wait
        neurons += P * N * (S - 1) + 3 * delays + P * G * n * wait
        synapses += 2 * P * N * (S - 1) + 6 * delays + P * G * n * wait
        waits = 3 * ((1 if shared else 2) + bool(wait))
        formula = f"P N (S + n) + P G n{' S' if wait else ''} + {waits} C N (S - 1)"
    return Cost(neurons, synapses, f"{formula}, P = {P}, N = {N}, n = {n}, S = {S}, G = {G}")


def _reach(pool: Any, given: Shape, gives: Shape) -> list[int]:
    """Per axis: how many (input, output) pairs the windows hold inside the grid."""
    axes = zip(given[1:], gives[1:], pool.kernel_size, pool.stride, pool.padding, strict=True)
    return [sum(min(i * s - p + k, size) - max(i * s - p, 0) for i in range(count)) for size, count, k, s, p in axes]


def waiting(graph: nir.NIRGraph) -> dict[str, int]:
    """Spiking nodes whose spikes wait for a block window in the portable profile, with the most steps they wait."""
    into, arrival = predecessors(graph), input_latencies(graph)
    longest: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()

    def late(name: str, steps: int) -> None:
        if steps == 0 or (name, steps) in seen:
            return
        seen.add((name, steps))
        node = graph.nodes[name]
        if isinstance(node, BINARY):
            longest[name] = max(longest.get(name, 0), steps)
            return
        for sources in into[name].values():
            for source in sources:
                late(source, arrival[name] + steps - arrival[source] - delay_of(graph.nodes[source]))

    for source, endpoint in graph.edges:
        target = parse_endpoint(graph, endpoint)[0]
        late(source, arrival[target] - arrival[source] - delay_of(graph.nodes[source]))
    return longest


def _timing(graph: nir.NIRGraph, shapes: dict[str, Shape], profile: Profile) -> Cost:
    arrival, dt = input_latencies(graph), time_step(graph)
    windows = {name: node for name, node in graph.nodes.items() if isinstance(node, STAttenAttention)}
    phases: dict[int, int] = {}
    for name, node in windows.items():
        if delay_of(node):
            phases[node.window] = max(phases.get(node.window, 0), arrival[name] % node.window)
    restarts = {
        name: arrival[name]
        for name, node in graph.nodes.items()
        if arrival[name] and isinstance(node, RESETTABLE) and not is_memoryless(node, dt)
    }
    portable = profile == "portable"
    start = bool(restarts) or (portable and any(node.window > 1 for node in windows.values()))
    elements = sum(phases.values()) + max(restarts.values(), default=1) - 1 if portable else 0
    spikes = sum(prod(shapes[name]) * steps for name, steps in waiting(graph).items()) if portable else 0
    periods = set(phases) | ({2} if start else set())
    neurons = len(periods) + start + 3 * (elements + spikes)
    synapses = start + 6 * (elements + spikes) + sum(prod(shapes[name]) for name in restarts)
    return Cost(neurons, synapses, f"{len(periods) + start} + 3 x {elements + spikes} spikes that wait a step")
