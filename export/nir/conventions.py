"""What the files of other tools leave out: how the tool that wrote a file reads its numbers.

NIR says what a neuron computes over time, not how a program steps through it, and exporters write less than their own
simulator knows. With the name of the tool, a graph becomes one whose numbers mean in NIR what they mean there.
docs/nir.md shows each of these conventions with a minimal case; what a file does not say at all cannot be put back.
"""

from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from statten_deploy.errors import ConfigError, UnsupportedError
from statten_deploy.ir.graph import hints, inline_subgraphs
from statten_deploy.ir.verify import SPIKING


@dataclass(frozen=True)
class Convention:
    """How a tool steps through the numbers that its exporter writes.

    dt: seconds per step of a file written with the exporter's defaults.
    fires_at_threshold: neurons fire on v >= v_threshold; NIR's on v > v_threshold.
    exact_decay: membranes keep exp(-dt / tau) of themselves in a step; ours keep 1 - dt / tau.
    if_per_step: an IF adds r · I per step; NIR's adds dt · r · I.
    synapse_jumps: an input I adds I to the synaptic current, and the file does not say so: w_in = tau_syn / dt.
    li_jumps: an input I adds r · I to the membrane of an LI, and the file does not say so: r times tau / dt.
    starts_at_reset: membranes start at v_reset; NIR's at v_leak.
    dt_is_fixed: no other dt gives what the tool computes.
    assumed: what the file does not say about neurons that fire, and is read as it stands here.
    """

    dt: float = 1e-4
    dt_is_fixed: bool = False
    starts_at_reset: bool = False
    assumed: str = ""
    fires_at_threshold: bool = False
    exact_decay: bool = False
    if_per_step: bool = False
    synapse_jumps: bool = False
    li_jumps: bool = False


CONVENTIONS: dict[str, Convention] = {
    "norse": Convention(dt=1e-6, if_per_step=True, synapse_jumps=True, assumed="neurons reset to 0"),
    "sinabs": Convention(
        dt=1.0,
        dt_is_fixed=True,
        fires_at_threshold=True,
        exact_decay=True,
        li_jumps=True,
        assumed="one spike in a step at most (SingleSpike), a reset to 0 (MembraneReset), norm_input as by default",
    ),
    "snntorch": Convention(dt_is_fixed=True, assumed='neurons reset to 0 at once (reset_mechanism="zero", no delay)'),
    "spikingjelly": Convention(fires_at_threshold=True, starts_at_reset=True),
}
"""Measured with Norse 1.1.0, Sinabs 3.1.3, snnTorch 1.0.0 and SpikingJelly 2.0.0."""


def as_written_by(graph: nir.NIRGraph, tool: str, dt: float | None = None) -> nir.NIRGraph:
    """The graph with the numbers that `tool` means; its hints hold dt and the tool.

    Args:
        graph: as `read_nir` gives it, or as the tool's exporter does.
        tool: one of `CONVENTIONS`.
        dt: seconds per step; the tool's default without it. Norse's is the dt of its cells times that of the export.

    Raises:
        ConfigError: no such tool, a dt that is not the tool's, or a graph that says itself what its numbers mean.
        UnsupportedError: neurons that start at another membrane than NIR's; all are named.
    """
    if tool not in CONVENTIONS:
        raise ConfigError(f"written by {tool!r}: known are {', '.join(CONVENTIONS)}")
    if "dt" in hints(graph):
        raise ConfigError(f"written by {tool!r}: the graph says itself what its numbers mean; leave this out")
    convention = CONVENTIONS[tool]
    step = convention.dt if dt is None else dt
    if not (np.isfinite(step) and step > 0):
        raise ConfigError(f"dt must be a positive number of seconds, got {step}")
    if convention.dt_is_fixed and step != convention.dt:
        raise ConfigError(f"dt {step:g} with written by {tool!r}: its files mean {convention.dt:g}; leave dt out")
    flat = inline_subgraphs(graph)
    if convention.starts_at_reset:
        _refuse_other_starts(flat, tool)
    nodes = {name: _meant(node, convention, step) for name, node in flat.nodes.items()}
    known = {**flat.metadata, "statten": {**hints(flat), "dt": step, "written_by": str(tool)}}
    return nir.NIRGraph(nodes, flat.edges, metadata=known, type_check=False)


def _refuse_other_starts(graph: nir.NIRGraph, tool: str) -> None:
    found = [
        f"{name!r} ({type(node).__name__})"
        for name, node in graph.nodes.items()
        if hasattr(node, "v_reset") and np.any(np.asarray(node.v_reset) != np.asarray(getattr(node, "v_leak", 0)))
    ]
    if found:
        raise UnsupportedError(
            f"{', '.join(found)}: membranes of {tool} start at v_reset, NIR's at v_leak or 0, and here they differ; "
            "train with v_reset = 0"
        )


def _meant(node: Any, convention: Convention, dt: float) -> nir.NIRNode:
    changes: dict[str, Any] = {}
    if convention.fires_at_threshold and isinstance(node, SPIKING) and hasattr(node, "v_threshold"):
        threshold = _f32(node.v_threshold)
        below = np.nextafter(
            threshold, np.float32(-np.inf)
        )  # below 0 that is no normal number, which engines may flush
        changes["v_threshold"] = np.where(threshold == 0, -np.finfo(np.float32).tiny, below).astype(np.float32)
    if convention.exact_decay:
        for field in ("tau", "tau_mem", "tau_syn"):
            if hasattr(node, field):
                changes[field] = _f32(dt / -np.expm1(-dt / np.asarray(getattr(node, field), dtype=np.float64)))
    if convention.li_jumps and isinstance(node, nir.LI):
        changes["r"] = _f32(np.asarray(node.r, dtype=np.float64) * changes.get("tau", node.tau) / dt)
    if convention.if_per_step and isinstance(node, nir.IF):
        changes["r"] = _f32(np.asarray(node.r, dtype=np.float64) / dt)
    if convention.synapse_jumps and isinstance(node, nir.CubaLIF):
        changes["w_in"] = _f32(np.asarray(node.tau_syn, dtype=np.float64) / dt)
    if not changes:
        return node
    given = {field: np.asarray(changes.get(field, value)) for field, value in vars(node).items() if field in _FIELDS}
    return replace(node, **given)


_FIELDS = ("tau", "tau_mem", "tau_syn", "r", "v_leak", "v_threshold", "v_reset", "w_in")


def _f32(value: Any) -> Any:
    return np.asarray(value, dtype=np.float32)
