"""Quantised graphs by hand."""

from itertools import pairwise
from typing import Any

import nir
import numpy as np

from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
    TemporalSum,
)
from tests.simulate.builders import inp, out


def conv(rng: np.random.Generator, shape: tuple[int, ...], exponents: list[int], **geometry: Any) -> IntegerConv2d:
    scale = rng.uniform(0.1, 5000, shape[0])
    return IntegerConv2d(rng.integers(-127, 128, shape), exponents, scale, **{"stride": 1, "padding": 1, **geometry})


def neurons(
    rng: np.random.Generator, shape: tuple[int, ...], threshold: int, bias: int = 40, dv: int = 2048, **fields: Any
) -> IntegerLIF:
    rank = (shape[0], *(1,) * (len(shape) - 1))
    mantissa = rng.integers(-bias, bias + 1, rank)
    return IntegerLIF(np.full(rank, threshold), dv, mantissa, rng.integers(6, 8, rank), shape, **fields)


def everything(rng: np.random.Generator) -> nir.NIRGraph:
    """Residual branches, both neuron models, all exponents, pools that are a sum, a mean and neither."""
    nodes: dict[str, nir.NIRNode] = {
        "image": inp(2, 12, 12),
        "encoder": InputEncoder(np.array([1 / 255, 0.02]), np.array([0, 37])),
        "a.conv": conv(rng, (4, 2, 3, 3), [0, 1, 2, 3], stride=(2, 2)),
        "a.lif": neurons(rng, (4, 6, 6), 30000, 900),
        "b.conv": conv(rng, (6, 2, 3, 1), [-2, -1, 0, 1, 2, 0], groups=2, padding=(1, 0)),
        "b.lif": neurons(rng, (6, 6, 6), 100, 30, dv=1000),
        "c.conv": conv(rng, (6, 6, 3, 3), [0, 0, 1, 1, 0, 0], dilation=(1, 2), padding=(1, 2)),
        "c.lif": neurons(rng, (6, 6, 6), 200, 60, dv=700, du=2000),
        "d.conv": conv(rng, (6, 6, 1, 1), [0] * 6, padding=0),
        "mean": IntegerSumPool2d((2, 2), (2, 2), -2),
        "d.lif": neurons(rng, (6, 3, 3), 60, 20, dv=4096),
        "sum": IntegerSumPool2d((3, 3), (3, 3), 0),
        "s.lif": neurons(rng, (6, 1, 1), 20, 0, input_exponent=3),
        "third": IntegerSumPool2d((3, 3), (3, 3), -3),
        "flat": nir.Flatten({"input": np.array([6, 1, 1])}, 0, -1),
        "e.fc": IntegerLinear(rng.integers(-7, 8, (6, 6)), [0, 1, 0, 2, 0, 0], np.zeros(6), np.ones(6)),
        "e.lif": neurons(rng, (6,), 5, 2, dv=0),
        "head": IntegerLinear(
            rng.integers(-127, 128, (5, 6)), np.zeros(5), rng.integers(-99, 99, 5), np.full(5, 280.5)
        ),
        "readout": TemporalSum(0.000893),
        "logits": out(5),
    }
    edges = list(pairwise(["image", "encoder", "a.conv", "a.lif", "b.conv", "b.lif", "c.conv", "c.lif", "d.conv"]))
    edges += [("d.conv", "mean"), ("b.conv", "mean"), ("mean", "d.lif"), ("d.lif", "sum"), ("sum", "s.lif")]
    edges += [("s.lif", "flat"), ("flat", "e.fc"), ("e.fc", "e.lif"), ("e.lif", "head"), ("head", "readout")]
    edges += [("readout", "logits"), ("d.lif", "third"), ("third", "third.lif"), ("third.lif", "thirds")]
    nodes |= {"third.lif": neurons(rng, (6, 1, 1), 1, 0), "thirds": out(6, 1, 1)}
    told = {"format": 1, "dt": 1e-4, "time_steps": 5, "bits": 8, "granularity": "channel", "input": "image"}
    return nir.NIRGraph(nodes, edges, metadata={"statten": told}, type_check=False)


def untruncated(rng: np.random.Generator, du: int = 4095) -> nir.NIRGraph:
    """Biases are multiples of 64 and four halvings cut nothing off; one threshold per layer."""
    zeros = np.zeros(5)
    nodes: dict[str, nir.NIRNode] = {
        "image": inp(2, 8, 8),
        "encoder": InputEncoder(np.ones(2), np.zeros(2)),
        "a.conv": conv(rng, (4, 2, 3, 3), [0, 1, 1, 0], stride=(2, 2)),
        "a.lif": neurons(rng, (4, 4, 4), 900, 200),
        "b.conv": conv(rng, (6, 4, 3, 3), [2, 0, 0, 1, 1, 0]),
        "b.lif": neurons(rng, (6, 4, 4), 200, 0 if du < 4095 else 60, du=du),
        "flat": nir.Flatten({"input": np.array([6, 4, 4])}, 0, -1),
        "c.fc": IntegerLinear(rng.integers(-127, 128, (5, 96)), zeros, zeros, np.ones(5)),
        "c.lif": neurons(rng, (5,), 300, 200),
        "head": IntegerLinear(rng.integers(-127, 128, (5, 5)), zeros, rng.integers(-99, 99, 5), np.ones(5)),
        "readout": TemporalSum(0.25),
        "logits": out(5),
    }
    told = {"format": 1, "dt": 1e-4, "time_steps": 4, "bits": 8}
    return nir.NIRGraph(nodes, list(pairwise(nodes)), metadata={"statten": told}, type_check=False)


def counts(rng: np.random.Generator, batch: int) -> np.ndarray:
    return rng.integers(0, 4, (batch, 4, 2, 8, 8)).astype(np.float32)
