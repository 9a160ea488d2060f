"""Graph-to-graph rewrites: each takes a graph and returns (graph, whether anything changed)."""

from statten_deploy.passes.raise_circuits import raise_circuits
from statten_deploy.passes.spike_maxpool_to_circuit import spike_maxpool_to_circuit

__all__ = ["raise_circuits", "spike_maxpool_to_circuit"]
