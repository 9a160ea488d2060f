"""Quantised networks for SANA-FE, and their runs, each once."""

from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import nir
import numpy as np

from statten_deploy.energy.sanafe import compare, emit, simulate
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import SpikeAnd
from statten_deploy.ir.integer import InputEncoder, IntegerConv2d, IntegerLIF, IntegerLinear, TemporalSum
from statten_deploy.quantize import quantize
from tests.conftest import lively_input, lively_model, small_config


@cache
def case(name):
    """(graph, reference, SANA-FE's run, the comparison) of a small network of one block."""
    variant, _, how = name.partition("/")
    config = small_config(variant, depth=1, embed_dim=16, num_heads=4)
    graph = quantize(build_graph(lively_model(config)))
    x = lively_input(config, batch=2).numpy()
    x = (x > 0).astype(np.float32) if how == "spikes" else x
    attention = "circuit" if how == "circuit" else "outside"
    emitted = emit(graph, attention=attention, inputs="spikes" if how == "spikes" else "currents")
    run = simulate(emitted, x, membranes=True)
    reference = IntegerRunner(graph).run(x, spikes=True, membranes=True)
    return SimpleNamespace(graph=graph, x=x, reference=reference, run=run, compared=compare(run))


def line(*nodes, time_steps=6):
    names = [name for name, _ in nodes]
    hints = {"format": 1, "dt": 1e-4, "time_steps": time_steps, "bits": 8, "input": "image"}
    return nir.NIRGraph(dict(nodes), list(pairwise(names)), metadata={"statten": hints}, type_check=False)


def neurons(shape, threshold, dv=2048, bias=0, **fields):
    rank = (shape[0], *(1,) * (len(shape) - 1))
    threshold, bias = (np.broadcast_to(np.reshape(value, (-1, *rank[1:])), rank) for value in (threshold, bias))
    return IntegerLIF(threshold, dv, bias, np.zeros(rank), shape, **fields)


def one_layer(weight, exponent, node, time_steps):
    size = np.shape(weight)[1]
    return line(
        ("x", nir.Input({"input": np.array([size])})),
        ("encoder", InputEncoder(np.ones(1), np.zeros(1))),
        ("w", IntegerLinear(weight, exponent, np.zeros(len(weight)), np.ones(len(weight)))),
        ("lif", node),
        ("y", nir.Output({"output": np.array([len(weight)])})),
        time_steps=time_steps,
    )


def residual(rng, channels=6):
    """Two convolutions, the second around by a residual; an AND; a readout. Nothing is computed outside."""

    def conv(out, into, kernel, padding):
        weight = rng.integers(-40, 60, (out, into, kernel, kernel)) * (rng.random((out, into, kernel, kernel)) < 0.7)
        return IntegerConv2d(weight, rng.integers(0, 2, out), np.ones(out), (1, 1), (padding, padding))

    shape = (channels, 16, 16)
    nodes = {
        "x": nir.Input({"input": np.array([2, 16, 16])}),
        "encoder": InputEncoder(np.ones(2), np.zeros(2)),
        "a.conv": conv(channels, 2, 3, 1),
        "a": neurons(shape, 70, 2048, rng.integers(-500, 1500, channels)),
        "b.conv": conv(channels, channels, 1, 0),
        "b": neurons(shape, 60, 1000, rng.integers(-500, 1500, channels)),
        "both": SpikeAnd(),
        "c": neurons(shape, 90, 2048, rng.integers(-500, 500, channels)),
        "c.conv": conv(channels, channels, 3, 1),
        "flat": nir.Flatten({"input": np.array(shape)}, 0, -1),
        "head": IntegerLinear(
            rng.integers(-127, 128, (4, 256 * channels)), np.zeros(4), rng.integers(-99, 99, 4), np.ones(4)
        ),
        "sum": TemporalSum(0.5),
        "y": nir.Output({"output": np.array([4])}),
    }
    edges = list(pairwise(["x", "encoder", "a.conv", "a", "b.conv", "b"]))
    edges += [("a", "both.a"), ("b", "both.b"), ("both", "c.conv"), ("b.conv", "c"), ("c.conv", "c")]
    edges += [("c", "flat"), ("flat", "head"), ("head", "sum"), ("sum", "y")]
    hints = {"format": 1, "dt": 1e-4, "time_steps": 5, "bits": 8, "input": "frames"}
    return nir.NIRGraph(nodes, edges, metadata={"statten": hints}, type_check=False)


@cache
def by_hand():
    rng = np.random.default_rng(3)
    graph = residual(rng)
    x = (rng.random((2, 5, 2, 16, 16)) < 0.3).astype(float)
    run = simulate(emit(graph, inputs="spikes"), x, membranes=True)
    return graph, run, IntegerRunner(graph).run(x, spikes=True, membranes=True)
