"""The integer engines as executors: numpy (the reference), torch, a Lava bundle, a netx file."""

from pathlib import Path

import nir

from statten_deploy.compare.executors import Array, IntegerExecution
from statten_deploy.export.lava import LavaRunner
from statten_deploy.export.netx import NetxRunner
from statten_deploy.fixed_point.runner import IntegerResult, IntegerRunner, real_outputs
from statten_deploy.simulate.integer import TorchIntegerRunner


class FixedExecutor:
    """A quantised graph in numpy: the reference of every integer engine."""

    def __init__(self, graph: nir.NIRGraph, *, membranes: bool = False, name: str = "fixed") -> None:
        self.name = name
        self.graph = graph
        self.membranes = membranes
        self.runner: IntegerRunner | TorchIntegerRunner = IntegerRunner(graph)

    def run(self, x: Array) -> IntegerExecution:
        result = self.runner.run(x, spikes=True, membranes=self.membranes)
        return integer_execution(self.graph, result)


class TorchIntExecutor(FixedExecutor):
    """A quantised graph in torch, on the CPU or a CUDA device."""

    def __init__(self, graph: nir.NIRGraph, *, membranes: bool = False, device: str = "cpu") -> None:
        super().__init__(graph, membranes=membranes, name="torch-int")
        self.runner = TorchIntegerRunner(graph, device)


def integer_execution(graph: nir.NIRGraph, result: IntegerResult) -> IntegerExecution:
    """What a runner gave, in the terms of the comparison."""
    return IntegerExecution(real_outputs(graph, result.outputs), result.spikes, result.outputs, result.membranes)


class LavaExecutor:
    """A Lava bundle, in Lava's fixed-point simulator."""

    def __init__(self, folder: Path, *, membranes: bool = False) -> None:
        self.name = "lava"
        self.membranes = membranes
        self.runner = LavaRunner(folder)

    def run(self, x: Array) -> IntegerExecution:
        result = self.runner.run(x, spikes=True, membranes=self.membranes)
        return IntegerExecution(result.real, result.spikes, result.outputs, result.membranes)


class NetxExecutor:
    """A netx file, in lava-dl and Lava's simulator."""

    def __init__(self, path: Path, *, membranes: bool = False) -> None:
        self.name = "netx"
        self.membranes = membranes
        self.runner = NetxRunner(path)

    def run(self, x: Array) -> IntegerExecution:
        result = self.runner.run(x, spikes=True, membranes=self.membranes)
        real = {name: value.astype("float32") for name, value in result.outputs.items()}
        return IntegerExecution(real, result.spikes, result.outputs, result.membranes)
