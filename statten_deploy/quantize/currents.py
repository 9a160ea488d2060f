"""Which nodes carry currents into which neurons, and which of them must share one scale."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import nir

from statten_deploy.errors import UnsupportedError
from statten_deploy.ir import MaxPool2d, STAttenAttention, predecessors

WEIGHTED = (nir.Conv2d, nir.Affine, nir.Linear)
"""Nodes whose output is a current with a scale that can be chosen."""
CARRIERS = (MaxPool2d, nir.AvgPool2d, nir.Flatten)
"""Nodes that pass a current on."""
COUNTED = (STAttenAttention, nir.SumPool2d)
"""Nodes whose output is a count: its scale is 1."""


@dataclass
class Stream:
    """Currents that are added somewhere, and so share a scale per channel; `branches` in order, each once."""

    branches: list[str] = field(default_factory=list)
    neurons: list[str] = field(default_factory=list)


def weighted_sources(graph: nir.NIRGraph, name: str) -> list[str]:
    """The weighted nodes whose currents reach `name` without passing a neuron, in edge order."""
    found: list[str] = []
    for sources in predecessors(graph)[name].values():
        for source in sources:
            node = graph.nodes[source]
            inner = [source] if isinstance(node, WEIGHTED) else []
            if isinstance(node, CARRIERS):
                inner = weighted_sources(graph, source)
            found += [item for item in inner if item not in found]
    return found


def counted_source(graph: nir.NIRGraph, name: str) -> str | None:
    """The counting node that alone feeds the neuron `name`, if one does.

    Raises:
        UnsupportedError: counts and currents meet in one neuron; they have no common integer scale.
    """
    sources = [source for group in predecessors(graph)[name].values() for source in group]
    counted = [source for source in sources if isinstance(graph.nodes[source], COUNTED)]
    if not counted:
        return None
    if len(sources) > 1:
        raise UnsupportedError(
            f"neuron layer {name!r}: counts from {counted[0]!r} and other currents add up there; "
            "the fixed-point arithmetic has no common scale for them"
        )
    return counted[0]


def streams(graph: nir.NIRGraph, neurons: Iterable[str]) -> list[Stream]:
    """Group weighted nodes that are added in any neuron; one stream per group, in the order of the graph."""
    merged: list[Stream] = []
    for neuron in neurons:
        sources = weighted_sources(graph, neuron)
        if not sources:
            continue
        joined = Stream(list(sources), [neuron])
        apart: list[Stream] = []
        for stream in merged:
            if set(stream.branches) & set(sources):
                joined.branches = stream.branches + [s for s in joined.branches if s not in stream.branches]
                joined.neurons = stream.neurons + [n for n in joined.neurons if n not in stream.neurons]
            else:
                apart.append(stream)
        merged = [*apart, joined]
    return merged
