"""What is looked at before anything is built: every node that cannot be written is named at once."""

from collections.abc import Callable, Container, Mapping
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import GraphError, UnsupportedError
from statten_deploy.export.onnx.builder import Shape
from statten_deploy.export.onnx.neurons import has_memory
from statten_deploy.export.onnx.ops import passes_at_once
from statten_deploy.ir.graph import input_names, part
from statten_deploy.ir.nodes import STAttenAttention
from statten_deploy.ir.schedule import loops, windows_in_loops


def refuse_unknown(graph: nir.NIRGraph, known: Container[type]) -> None:
    """Name every node that the export has no emitter for.

    Raises:
        UnsupportedError: there are such nodes.
    """
    unknown = [f"{name!r} ({type(node).__name__})" for name, node in graph.nodes.items() if type(node) not in known]
    if unknown:
        raise UnsupportedError(
            f"{len(unknown)} of {len(graph.nodes)} nodes cannot be written as ONNX: {', '.join(unknown)}. "
            "The node types that can are listed in docs/onnx.md; replace these nodes or choose another target"
        )


def refuse_loops(graph: nir.NIRGraph, dt: float = 1.0) -> None:
    """Loops are computed step by step: they need a neuron, and operations that look at one step at a time.

    Raises:
        UnsupportedError: loops without that; the message names the nodes.
    """
    problems = windows_in_loops(graph)
    for names in loops(graph):
        bare = [
            name for name in names if not has_memory(graph.nodes[name]) or passes_at_once(graph.nodes[name], dt).any()
        ]
        if any(loops(part(graph, bare))):
            problems.append(f"{', '.join(bare)} (a loop without neurons: put neurons into it)")
    if problems:
        raise UnsupportedError(f"cannot be written as ONNX: {'; '.join(problems)}")


def _attention(node: STAttenAttention, shape: Shape, time_steps: int, dt: float) -> str | None:
    if node.mode == "block" and time_steps % node.window:
        return f"{time_steps} time steps are not a multiple of its window of {node.window}; choose another time_steps"
    return None


def _delay(node: nir.Delay, shape: Shape, time_steps: int, dt: float) -> str | None:
    steps = np.asarray(node.delay, dtype=np.float64) / dt
    error = np.abs(steps - np.rint(steps))
    if np.max(error, initial=0.0) > 1e-3:
        worst = float(np.ravel(node.delay)[np.argmax(error)])
        return f"a delay of {worst:g} s is not a whole number of time steps of {dt:g} s; choose another dt"
    return None


LIMITS: dict[type[nir.NIRNode], Callable[[Any, Shape, int, float], str | None]] = {
    STAttenAttention: _attention,
    nir.Delay: _delay,
}
"""Options that cannot be written: (node, its output shape, time steps, dt) -> the reason, or None."""


def refuse_options(graph: nir.NIRGraph, shapes: Mapping[str, Shape], time_steps: int, dt: float) -> None:
    """Name every node whose options cannot be written.

    Raises:
        UnsupportedError: there are such nodes.
        GraphError: an Input without a shape.
    """
    for name in input_names(graph):
        if name not in shapes:
            raise GraphError(f"Input {name!r} has no shape; set its input_type to the shape of one step of one sample")
    problems = [
        f"{name!r} ({type(node).__name__}): {reason}"
        for name, node in graph.nodes.items()
        if type(node) in LIMITS and (reason := LIMITS[type(node)](node, shapes[name], time_steps, dt))
    ]
    if problems:
        raise UnsupportedError(f"cannot be written as ONNX: {'; '.join(problems)}")
