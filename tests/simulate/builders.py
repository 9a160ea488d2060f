"""Small graphs by hand. Weights, biases and inputs are multiples of 1/8, so that sums are exact in any order."""

from itertools import pairwise
from typing import Any

import nir
import numpy as np

from statten_deploy.ir import SpikeMaxPool2d

DT = 1e-4
Edges = list[tuple[str, str]]


def graph(nodes: dict[str, nir.NIRNode], edges: Edges, **hints: Any) -> nir.NIRGraph:
    metadata = {"statten": {"format": 1, "dt": DT, **hints}} if hints else {}
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)


def chain(*nodes: tuple[str, nir.NIRNode], **hints: Any) -> nir.NIRGraph:
    """A graph of one path, each node with one port."""
    names = [name for name, _ in nodes]
    return graph(dict(nodes), list(pairwise(names)), **hints)


def inp(*shape: int) -> nir.Input:
    return nir.Input({"input": np.array(shape)})


def out(*shape: int) -> nir.Output:
    return nir.Output({"output": np.array(shape)})


def eighths(rng: np.random.Generator, *shape: int, largest: int = 8) -> np.ndarray:
    return (rng.integers(-largest, largest + 1, size=shape) / 8).astype(np.float32)


def conv(
    rng: np.random.Generator,
    channels_in: int,
    channels_out: int,
    kernel: int | tuple[int, int] = 3,
    stride: Any = 1,
    padding: Any = 1,
    dilation: Any = 1,
    groups: int = 1,
) -> nir.Conv2d:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = eighths(rng, channels_out, channels_in // groups, *size)
    return nir.Conv2d(None, weight, stride, padding, dilation, groups, eighths(rng, channels_out) + np.float32(0.125))


def affine(rng: np.random.Generator, size_in: int, size_out: int) -> nir.Affine:
    return nir.Affine(eighths(rng, size_out, size_in), eighths(rng, size_out) + np.float32(0.125))


def lif(*shape: int, threshold: float = 1.0, tau_steps: float = 2.0) -> nir.LIF:
    """Fires on v >= threshold, as the networks do."""
    ones = np.ones(shape, dtype=np.float32)
    below = np.nextafter(np.float32(threshold), np.float32(-np.inf))
    return nir.LIF(ones * np.float32(tau_steps * DT), ones, ones * 0, ones * below, ones * 0)


def pool(kind: type[Any], kernel: Any, stride: Any, padding: Any = 0) -> Any:
    return kind(*(np.asarray(value) for value in (kernel, stride, padding)))


def residual_network(rng: np.random.Generator, readout: nir.NIRNode | None = None, **hints: Any) -> nir.NIRGraph:
    """Strided conv-LIF stem, spike max-pool, two residual branches, pooled head; edges deliberately out of order."""
    nodes: dict[str, nir.NIRNode] = {
        "image": inp(2, 16, 16),
        "stem.conv": conv(rng, 2, 4, 3, 2),
        "stem.lif": lif(4, 8, 8),
        "stem.pool": SpikeMaxPool2d((3, 3), (2, 2), (1, 1)),
        "a.conv": conv(rng, 4, 6),
        "a.lif": lif(6, 4, 4),
        "b.conv": conv(rng, 6, 6),
        "b.lif": lif(6, 4, 4),
        "c.conv": conv(rng, 6, 6),
        "pool": readout or pool(nir.AvgPool2d, (4, 4), (4, 4), (0, 0)),
        "flat": nir.Flatten({"input": np.array([6, 1, 1])}, 0, -1),
        "head_lif": lif(6, threshold=0.5),
        "head": affine(rng, 6, 5),
        "logits": out(5),
    }
    edges = [
        *[("image", "stem.conv"), ("stem.conv", "stem.lif"), ("stem.lif", "stem.pool"), ("stem.pool", "a.conv")],
        *[("a.conv", "b.lif"), ("a.conv", "a.lif"), ("a.lif", "b.conv"), ("b.conv", "b.lif"), ("b.lif", "c.conv")],
        *[("a.conv", "pool"), ("b.conv", "pool"), ("c.conv", "pool"), ("pool", "flat"), ("flat", "head_lif")],
        *[("head_lif", "head"), ("head", "logits")],
    ]
    return graph(nodes, edges, **hints)


def frames(rng: np.random.Generator, batch: int, steps: int, *shape: int) -> np.ndarray:
    return eighths(rng, batch, steps, *shape, largest=24)


def spikes(rng: np.random.Generator, *shape: int, rate: float = 0.4) -> np.ndarray:
    return (rng.random(shape) < rate).astype(np.float32)
