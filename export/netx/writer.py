"""Writing a chain of quantised layers as lava-dl's HDF5 network description.

The file is what `lava.lib.dl.netx.hdf5.Network` reads: ``layer/<i>`` with ``type``, ``shape``, ``weight``, ``bias`` and
``neuron``. Its first layer is an input without neurons, so that the first convolution takes graded bytes. netx has no
place for the scale of those bytes, the names of the layers or the number of steps: they stand under ``statten``, which
netx does not look at (docs/netx.md).
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.export.hdf5_files import create_hdf5
from statten_deploy.export.netx.chain import Chain, Layer, read_chain
from statten_deploy.export.netx.limits import CHIP_BIAS, largest_bias, membrane_bias
from statten_deploy.fixed_point.arithmetic import CURRENT_SHIFT
from statten_deploy.ir.graph import hints
from statten_deploy.ir.integer import IntegerConv2d
from statten_deploy.ir.verify import verify
from statten_deploy.untrusted import own

FORMAT = 1
MESSAGE_BITS = 8
"""`input_message_bits` of `Network`: the input is graded, not binary."""


@dataclass(frozen=True)
class NetxReport:
    """What was written: the names of the layers, and the steps by which the last one's spikes are late."""

    path: Path
    layers: tuple[str, ...]
    latency_steps: int
    warnings: tuple[str, ...]


def write_netx(graph: nir.NIRGraph, path: str | Path) -> NetxReport:
    """Write a quantised chain to a `.net` file; identical graphs give identical bytes.

    `sequential_part` cuts a chain out of a larger network. Open the file with
    ``Network(path, input_message_bits=8, reset_interval=T, reset_offset=1)``: the reset keeps biases from running
    before the first input reaches a layer, and starts every sample of T steps afresh.

    Raises:
        GraphError: the graph is not valid. UnsupportedError: what netx cannot hold, all of it by name.
        InputError: the folder does not exist. OSError: the file cannot be written.
    """
    path = Path(path)
    verify(graph)
    chain = read_chain(graph)
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: cannot be written (the folder {path.parent} does not exist)")
    flat = chain.layers[0].flattened
    with create_hdf5(path) as file:
        layers = [_input((prod(chain.shape),) if flat else chain.shape)]
        for index, layer in enumerate(chain.layers):
            layers += [{"type": "flatten"}] if layer.flattened and index else []
            layers.append(_layer(layer))
        for index, values in enumerate(layers):
            _write(file.create_group(f"layer/{index}"), values)
        _write(file.create_group("statten"), _told(chain, graph))
    own.remember(path)
    warnings = [
        f"biases of {layer.name!r} reach {largest_bias(layer.neurons)} times {1 << CURRENT_SHIFT}: Lava simulates "
        f"that, the chip keeps {CHIP_BIAS}"
        for layer in chain.layers
        if largest_bias(layer.neurons) > CHIP_BIAS
    ]
    names = tuple(layer.name for layer in chain.layers)
    return NetxReport(path, names, len(names), tuple(warnings))


def _input(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"type": "input", "shape": np.array(shape, dtype=np.int64)}


def _layer(layer: Layer) -> dict[str, Any]:
    weights, neurons = layer.weights, layer.neurons
    values: dict[str, Any] = {
        "shape": np.array(neurons.shape, dtype=np.int64),
        "weight": weights.weight.astype(np.int8),
        "bias": (membrane_bias(neurons) >> CURRENT_SHIFT).astype(np.int32),
        "neuron": {
            "type": "CUBA",
            "iDecay": neurons.du + 1,  # netx takes one off again
            "vDecay": neurons.dv,
            "vThMant": int(neurons.threshold.reshape(-1)[0]),
            "refDelay": 1,
            "gradedSpike": False,
        },
    }
    if isinstance(weights, IntegerConv2d):
        pairs = {name: np.array(getattr(weights, name), dtype=np.int64) for name in ("stride", "padding", "dilation")}
        return {"type": "conv", **values, **pairs, "groups": weights.groups}
    return {"type": "dense", **values}


def _told(chain: Chain, graph: nir.NIRGraph) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "scale": chain.encoder.scale,
        "zero_point": chain.encoder.zero_point,
        "shape": np.array(chain.shape, dtype=np.int64),
        "image": hints(graph).get("input") == "image",
        "time_steps": int(hints(graph)["time_steps"]),
        "layers": np.array([layer.name.encode() for layer in chain.layers]),
        "output": np.array([chain.output.encode()]),
    }


def _write(group: h5py.Group, values: dict[str, Any]) -> None:
    for name, value in sorted(values.items()):
        if isinstance(value, dict):
            _write(group.create_group(name), value)
        elif isinstance(value, str):
            group.create_dataset(name, data=np.array([value.encode()]))  # netx decodes fixed-length text
        else:
            large = isinstance(value, np.ndarray) and value.nbytes > 4096
            group.create_dataset(name, data=value, compression="gzip" if large else None)
