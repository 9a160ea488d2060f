"""Running graphs in float32: the reference semantics of every node."""

from statten_deploy.simulate.operators import OPERATORS
from statten_deploy.simulate.simulator import Result, Simulator

__all__ = ["OPERATORS", "Result", "Simulator"]
