"""Runs circuits of stock nodes as they stand, and lines their late results up with the network they were made from."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.compare.executors import Array, Execution, graph_input
from statten_deploy.errors import UnsupportedError
from statten_deploy.export.nir import cut_readout
from statten_deploy.ir import hints, output_names
from statten_deploy.ir.verify import SPIKING
from statten_deploy.passes import MARKER, input_latencies
from statten_deploy.simulate import Simulator


def refuse_changed_circuits(graph: nir.NIRGraph, where: str | Path) -> None:
    """`graph` as `read_nir` gives it: late results are lined up by the attention that the circuits stand for.

    Raises:
        UnsupportedError: circuits that answer late and could not be read back as attention.
    """
    told = hints(graph)
    if int(told.get("latency_steps", 0)) and MARKER in told:
        raise UnsupportedError(
            f"{where}: its circuits were changed after the export, so they cannot be read back as attention, and their "
            f"results are {told['latency_steps']} steps late; export the network again"
        )


class Alignment:
    """By how much the results of a lowered graph are late, and what of them belongs to the network.

    `network` is the graph before lowering: its neuron layers are what is shown, the gates of the circuits are not.
    `every_step` is the lowered graph without the mean at its end.
    """

    def __init__(self, lowered: nir.NIRGraph, network: nir.NIRGraph, time_steps: int) -> None:
        self.time_steps = time_steps
        told = hints(lowered)
        self.extra = int(told.get("latency_steps", 0))
        self.late = {name: int(told.get("latency", {}).get(name, 0)) for name in output_names(lowered)}
        self.arrival = input_latencies(network)
        self.layers = [n for n, node in network.nodes.items() if isinstance(node, SPIKING) and n in lowered.nodes]
        self.held = graph_input(lowered)[1]
        self.every_step, self.means = cut_readout(lowered)

    @property
    def steps(self) -> int:
        """Steps to run."""
        return self.time_steps + self.extra

    def longer(self, x: Array) -> Array:
        """The input for `steps` steps: after the frames [B, T, ...] nothing more comes; an image is held anyway."""
        if not self.extra or self.held:
            return x
        return np.concatenate([x, np.zeros((len(x), self.extra, *x.shape[2:]), dtype=x.dtype)], axis=1)

    def execution(self, outputs: dict[str, Array], recorded: dict[str, NDArray[Any]]) -> Execution:
        """What came out ([B, steps, ...]) and what fired ([steps, B, ...]), as the network gives it."""
        given = {}
        for name, value in outputs.items():
            every = value[:, self.late[name] : self.late[name] + self.time_steps]
            given[name] = every.mean(1, dtype=np.float32) if name in self.means else every
        spikes = {}
        for name, layer in recorded.items():
            first = self.arrival[name]
            spikes[name] = np.asarray(layer[first : first + self.time_steps], dtype=np.bool_)
        return Execution(given, spikes)


class CircuitExecutor:
    """The float simulator on a lowered graph: T + latency steps, every layer and output shifted back."""

    def __init__(self, lowered: nir.NIRGraph, network: nir.NIRGraph, time_steps: int, dt: float) -> None:
        self.name = "nir circuits"
        self.alignment = Alignment(lowered, network, time_steps)
        self.simulator = Simulator(self.alignment.every_step, time_steps=self.alignment.steps, dt=dt)

    def run(self, x: Array) -> Execution:
        result = self.simulator.run(self.alignment.longer(x), record=self.alignment.layers)
        return self.alignment.execution(dict(result.outputs), dict(result.recorded))
