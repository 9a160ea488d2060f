"""lava-dl's HDF5 network format (`.net`) for chains of layers, and a simulation of such files under Lava."""

from statten_deploy.export.netx.biases import round_biases
from statten_deploy.export.netx.chain import sequential_part
from statten_deploy.export.netx.runner import NetxRunner
from statten_deploy.export.netx.writer import NetxReport, write_netx

__all__ = ["NetxReport", "NetxRunner", "round_biases", "sequential_part", "write_netx"]
