"""The in-memory graph: `nir.NIRGraph` with stock nodes and the few operations NIR lacks."""

from statten_deploy.ir.graph import (
    hints,
    inline_subgraphs,
    input_names,
    is_cyclic,
    output_names,
    parse_endpoint,
    ports,
    predecessors,
    successors,
    topological_order,
)
from statten_deploy.ir.integer import is_quantised
from statten_deploy.ir.nodes import (
    EXTENSION_NODES,
    MaxPool2d,
    SpikeAnd,
    SpikeMaxPool2d,
    STAttenAttention,
    TemporalMean,
    TokenMaxPool,
)
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.ir.verify import verify

__all__ = [
    "EXTENSION_NODES",
    "MaxPool2d",
    "STAttenAttention",
    "SpikeAnd",
    "SpikeMaxPool2d",
    "TemporalMean",
    "TokenMaxPool",
    "hints",
    "infer_shapes",
    "inline_subgraphs",
    "input_names",
    "is_cyclic",
    "is_quantised",
    "output_names",
    "parse_endpoint",
    "ports",
    "predecessors",
    "successors",
    "topological_order",
    "verify",
]
