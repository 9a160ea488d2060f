"""Graph-to-graph rewrites: each takes a graph and returns (graph, whether anything changed)."""

from statten_deploy.passes.circuit_cost import Cost, circuit_cost
from statten_deploy.passes.circuit_parts import Profile
from statten_deploy.passes.latency import input_latencies
from statten_deploy.passes.lower_to_circuits import MARKER, MAX_CIRCUIT_NEURONS, lower_to_circuits
from statten_deploy.passes.pairwise_sums import pairwise_sums
from statten_deploy.passes.part_until import part_until
from statten_deploy.passes.portable_pools import portable_pools
from statten_deploy.passes.raise_circuits import raise_circuits
from statten_deploy.passes.raise_lowered import raise_lowered
from statten_deploy.passes.spike_and_to_circuit import spike_and_to_circuit
from statten_deploy.passes.spike_maxpool_to_circuit import spike_maxpool_to_circuit
from statten_deploy.passes.statten_to_circuit import statten_to_circuit
from statten_deploy.passes.token_maxpool_to_circuit import token_maxpool_to_circuit
from statten_deploy.passes.topological_chain import topological_chain

__all__ = [
    "MARKER",
    "MAX_CIRCUIT_NEURONS",
    "Cost",
    "Profile",
    "circuit_cost",
    "input_latencies",
    "lower_to_circuits",
    "pairwise_sums",
    "part_until",
    "portable_pools",
    "raise_circuits",
    "raise_lowered",
    "spike_and_to_circuit",
    "spike_maxpool_to_circuit",
    "statten_to_circuit",
    "token_maxpool_to_circuit",
    "topological_chain",
]
