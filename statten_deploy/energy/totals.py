"""What spike totals alone can tell. Without knowing where a layer fired, borders leave SynOps open."""

from collections.abc import Mapping
from dataclasses import dataclass

import nir
import numpy as np

from statten_deploy.energy.fanout import WEIGHTED, WINDOWS, Int, fan_out
from statten_deploy.energy.signals import FIRING
from statten_deploy.errors import InputError
from statten_deploy.ir.graph import inline_subgraphs, predecessors
from statten_deploy.ir.shapes import infer_shapes


@dataclass(frozen=True)
class Bounds:
    """SynOps of one node lie between the two; they are exact where the two agree."""

    lowest: int
    highest: int

    @property
    def exact(self) -> bool:
        """Whether the total settles the count."""
        return self.lowest == self.highest


def synops_bounds(
    graph: nir.NIRGraph, totals: Mapping[str, int], *, samples: int, steps: int
) -> dict[str, Bounds | None]:
    """SynOps of connections and pools from each neuron layer's total number of spikes.

    Every site can fire at most samples · steps times, so `totals` spikes reach at least what the sites of least fan-out
    reach. None for nodes that do not read neurons directly: what pools, gates and attention pass on depends on which
    spikes coincide.

    Raises:
        InputError: a neuron layer has no total, or one that its neurons cannot have fired.
    """
    graph = inline_subgraphs(graph)
    shapes, found = infer_shapes(graph), dict[str, Bounds | None]()
    for name, into in predecessors(graph).items():
        node = graph.nodes[name]
        if not isinstance(node, (*WEIGHTED, *WINDOWS)):
            continue
        sources = into["input"]
        if not all(isinstance(graph.nodes[source], FIRING) for source in sources):
            found[name] = None
            continue
        reached = fan_out(node, shapes[sources[0]], shapes[name]).reshape(-1)
        parts = [_extremes(reached, source, totals, samples * steps) for source in sources]
        found[name] = Bounds(sum(low for low, _ in parts), sum(high for _, high in parts))
    return found


def _extremes(reached: Int, source: str, totals: Mapping[str, int], times: int) -> tuple[int, int]:
    if source not in totals:
        raise InputError(f"no total for the spikes of {source}; every neuron layer is needed")
    spikes = int(totals[source])
    if not 0 <= spikes <= reached.size * times:
        raise InputError(
            f"{source}: {spikes} spikes, but {reached.size} neurons can fire 0 to {reached.size * times} times"
        )
    ordered = np.sort(reached)
    full, rest = divmod(spikes, times)
    low = int(ordered[:full].sum()) * times + (int(ordered[full]) * rest if rest else 0)
    ordered = ordered[::-1]
    high = int(ordered[:full].sum()) * times + (int(ordered[full]) * rest if rest else 0)
    return low, high
