"""Runs circuits of stock nodes as they stand, and lines their late results up with the network they were made from."""

import nir
import numpy as np

from statten_deploy.compare.executors import Array, Execution, graph_input
from statten_deploy.export.nir import cut_readout
from statten_deploy.ir import hints, output_names
from statten_deploy.ir.verify import SPIKING
from statten_deploy.passes import input_latencies
from statten_deploy.simulate import Simulator


class CircuitExecutor:
    """The float simulator on a lowered graph: T + latency steps, every layer and output shifted back.

    `network` is the graph before lowering: its neuron layers are what is shown, the gates of the circuits are not.
    """

    def __init__(self, lowered: nir.NIRGraph, network: nir.NIRGraph, time_steps: int, dt: float) -> None:
        self.name = "nir circuits"
        self.time_steps = time_steps
        told = hints(lowered)
        self.extra = int(told.get("latency_steps", 0))
        self.late = {name: int(told.get("latency", {}).get(name, 0)) for name in output_names(lowered)}
        self.arrival = input_latencies(network)
        self.layers = [n for n, node in network.nodes.items() if isinstance(node, SPIKING) and n in lowered.nodes]
        self.held = graph_input(lowered)[1]
        every_step, self.means = cut_readout(lowered)
        self.simulator = Simulator(every_step, time_steps=time_steps + self.extra, dt=dt)

    def run(self, x: Array) -> Execution:
        if self.extra and not self.held:  # frames: nothing more comes
            x = np.concatenate([x, np.zeros((len(x), self.extra, *x.shape[2:]), dtype=x.dtype)], axis=1)
        result = self.simulator.run(x, record=self.layers)
        outputs = {}
        for name, value in result.outputs.items():
            steps = value[:, self.late[name] : self.late[name] + self.time_steps]
            outputs[name] = steps.mean(1, dtype=np.float32) if name in self.means else steps
        spikes = {}
        for name, recorded in result.recorded.items():
            first = self.arrival[name]
            spikes[name] = np.asarray(recorded[first : first + self.time_steps], dtype=np.bool_)
        return Execution(outputs, spikes)
