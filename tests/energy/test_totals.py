import numpy as np
import pytest

from statten_deploy.compare.executors import GraphExecutor
from statten_deploy.energy import EnergyCounter, synops_bounds
from statten_deploy.errors import InputError
from statten_deploy.frontend import build_graph
from tests.conftest import lively_input, lively_model, small_config


def run(variant):
    config = small_config(variant)
    graph, x = build_graph(lively_model(config)), lively_input(config).numpy()
    spikes = GraphExecutor(graph).run(x).spikes
    counter = EnergyCounter(graph)
    counter.update(spikes, x)
    return graph, {name: int(value.sum()) for name, value in spikes.items()}, counter.counts()


def test_totals_bound_the_exact_counts():
    graph, totals, counts = run("dvs")
    bounds = synops_bounds(graph, totals, samples=3, steps=4)
    known = {name: bound for name, bound in bounds.items() if bound is not None}
    assert all(bound.lowest <= counts[name].synops <= bound.highest for name, bound in known.items())
    assert not known["patch_embed.rpe_conv"].exact  # 3 x 3 with padding: borders are open
    assert known["block.0.mlp.fc1_conv"].exact  # 1 x 1: every spike reaches as many
    assert bounds["patch_embed.proj_conv3"] is None  # behind a pool
    assert bounds["patch_embed.proj_conv"] is None  # behind the input


def test_the_bounds_are_reached():
    graph, totals, _ = run("strided")
    fan_out = 288  # of 32 channels in the middle of the 4 x 4 grid; 192 at its edges, 128 in its corners
    corners, middle = 4 * 32 * 12, 4 * 32 * 12
    bounds = synops_bounds(graph, totals | {"patch_embed.proj_lif3": corners}, samples=3, steps=4)
    found = bounds["patch_embed.rpe_conv"]
    assert (found.lowest, found.highest) == (corners * 128, middle * fan_out)
    one_more = synops_bounds(graph, totals | {"patch_embed.proj_lif3": corners + 1}, samples=3, steps=4)
    found = one_more["patch_embed.rpe_conv"]
    assert (found.lowest, found.highest) == (corners * 128 + 192, middle * fan_out + 192)


def test_totals_that_cannot_be():
    graph, totals, _ = run("static")
    with pytest.raises(InputError, match="no total for the spikes of head_lif"):
        synops_bounds(graph, {name: n for name, n in totals.items() if name != "head_lif"}, samples=3, steps=4)
    with pytest.raises(InputError, match="head_lif: 385 spikes, but 32 neurons can fire 0 to 384 times"):
        synops_bounds(graph, totals | {"head_lif": 385}, samples=3, steps=4)
    assert np.sum(list(totals.values())) > 0
