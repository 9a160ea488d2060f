"""Integer chains by hand, with every number that netx can hold."""

from itertools import pairwise
from typing import Any

import nir
import numpy as np

from statten_deploy.ir.integer import InputEncoder, IntegerConv2d, IntegerLIF, IntegerLinear

STEPS = 5


def integer_chain(*nodes: tuple[str, nir.NIRNode], time_steps: int = STEPS) -> nir.NIRGraph:
    names = [name for name, _ in nodes]
    hints = {"format": 1, "dt": 1e-4, "time_steps": time_steps, "bits": 8, "granularity": "tensor"}
    return nir.NIRGraph(dict(nodes), list(pairwise(names)), metadata={"statten": hints}, type_check=False)


def conv(rng: np.random.Generator, out: int, per_group: int, kernel: tuple[int, int], **geometry: Any) -> IntegerConv2d:
    weight = rng.integers(-127, 128, (out, per_group, *kernel))
    return IntegerConv2d(weight, np.zeros(out), np.ones(out), **{"stride": 1, "padding": 0, **geometry})


def dense(rng: np.random.Generator, out: int, size: int) -> IntegerLinear:
    zeros = np.zeros(out)
    return IntegerLinear(rng.integers(-127, 128, (out, size)), zeros, zeros, np.ones(out))


def lif(rng: np.random.Generator, shape: tuple[int, ...], threshold: int, dv: int = 2048, du: int = 4095) -> IntegerLIF:
    """Biases around a quarter of the threshold, in multiples of 64."""
    rank = (shape[0], *(1,) * (len(shape) - 1))
    bias = rng.integers(-threshold // 4, threshold // 2, rank)
    exponent = max(0, int(np.ceil(np.log2(np.abs(bias).max() / 4095)))) + 6
    return IntegerLIF(np.full(rank, threshold), dv, bias >> (exponent - 6), np.full(rank, exponent), shape, du=du)


def convolutional_chain(rng: np.random.Generator) -> nir.NIRGraph:
    """Oblong strides, paddings and dilations, groups, a zero point, synaptic memory, a flatten, two dense layers."""
    return integer_chain(
        ("frames", nir.Input({"input": np.array([2, 7, 9])})),
        ("encoder", InputEncoder(np.array([1 / 255, 0.01]), np.array([30, 100]))),
        ("a.conv", conv(rng, 4, 2, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))),
        ("a", lif(rng, (4, 4, 7), 12000)),
        ("b.conv", conv(rng, 6, 2, (1, 3), padding=(0, 1), groups=2)),
        ("b", lif(rng, (6, 4, 7), 150, dv=700, du=1000)),
        ("flat", nir.Flatten({"input": np.array([6, 4, 7])}, 0, -1)),
        ("c.fc", dense(rng, 5, 168)),
        ("c", lif(rng, (5,), 200, dv=4096)),
        ("d.fc", dense(rng, 3, 5)),
        ("d", lif(rng, (3,), 60, dv=0, du=3000)),
        ("spikes", nir.Output({"output": np.array([3])})),
    )


def dense_chain(rng: np.random.Generator) -> nir.NIRGraph:
    """A flattened image into a dense layer."""
    return integer_chain(
        ("image", nir.Input({"input": np.array([2, 3, 4])})),
        ("encoder", InputEncoder(np.array([1 / 255, 1 / 255]), np.array([0, 5]))),
        ("flat", nir.Flatten({"input": np.array([2, 3, 4])}, 0, -1)),
        ("a.fc", dense(rng, 8, 24)),
        ("a", lif(rng, (8,), 9000, du=2047)),
        ("y", nir.Output({"output": np.array([8])})),
        time_steps=4,
    )
