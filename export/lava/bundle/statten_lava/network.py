"""The plan of a network (network.json) as connected Lava processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lava.proc.io.source import RingBuffer
from lava.proc.lif.process import LIFReset

from . import processes

Array = np.ndarray[Any, np.dtype[Any]]
Plan = Mapping[str, Any]

STAGES: dict[str, type[processes.Stage]] = {
    "conv": processes.Conv,
    "linear": processes.Linear,
    "sum_pool": processes.SumPool,
    "max_pool": processes.MaxPool,
    "token_max_pool": processes.TokenMaxPool,
    "flatten": processes.Flatten,
    "shift": processes.Shift,
    "delay": processes.Delay,
    "previous": processes.Previous,
    "li": processes.Leaky,
    "temporal_sum": processes.TemporalSum,
}
"""Operations with one input; `lif`, `and` and `attention` are written out below."""


@dataclass
class Recording:
    """What a probe writes: a file of [rows, batch, *shape]."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Network:
    """The processes by name, and what is recorded: (``spikes`` / ``membranes`` / ``output``, node) -> file."""

    processes: dict[str, Any]
    recordings: dict[tuple[str, str], Recording]


def build(
    plan: Plan,
    weights: Mapping[str, Array],
    frames: Array,
    *,
    rounds: int,
    folder: Path,
    spikes: bool,
    membranes: bool,
) -> Network:
    """Connect everything; `frames` [B, C, H, W, steps] are the encoded integers of `rounds` batches of T steps."""
    batch, time_steps = frames.shape[0], int(plan["time_steps"])
    made: dict[str, Any] = {plan["input"]["encoder"]: RingBuffer(data=frames)}
    network = Network(made, {})

    def probe(kind: str, node: Plan, dtype: str, source: Any) -> None:
        shape = (batch, *node["shape"])
        path = folder / f"{kind}-{len(network.recordings)}.bin"
        recording = Recording(path, dtype, (rounds * time_steps, *shape))
        np.memmap(path, dtype=dtype, mode="w+", shape=recording.shape).flush()
        options = {"path": str(path), "dtype": dtype, "rows": rounds * time_steps, "start": node["start"]}
        name = f"{kind}/{node['name']}"
        if kind == "membranes" and node["op"] == "lif":
            made[name] = processes.MembraneProbe(shape=shape, name=name, **options)
            made[name].v.connect_var(source)
        else:
            made[name] = processes.SpikeProbe(shape=shape, name=name, **options)
            source.connect(made[name].a_in)
        network.recordings[kind, node["name"]] = recording

    made |= {node["name"]: _process(node, weights, batch, time_steps) for node in plan["nodes"]}
    for node in plan["nodes"]:  # in a second round: what comes back in a loop is made later than who reads it
        process = made[node["name"]]
        for port, sources in node["inputs"].items():
            for source in sources:
                made[source].s_out.connect(getattr(process, port))
        if node["op"] == "lif" and spikes:
            probe("spikes", node, "bool", process.s_out)
        if node["op"] in ("lif", "li") and membranes:
            probe("membranes", node, "int32", process.v if node["op"] == "lif" else process.s_out)
    output = plan["output"]
    probe("output", output, "int32", made[output["source"]].s_out)
    return network


def _process(node: Plan, weights: Mapping[str, Array], batch: int, time_steps: int) -> Any:
    shapes = {port: (batch, *shape) for port, shape in node["input_shapes"].items()}
    arrays = {name: weights[f"{node['name']}/{name}"] for name in node["arrays"]}
    times = {"start": node["start"], "latency": node["latency"], "time_steps": time_steps}
    options = {**node["options"], **arrays, **times}
    name, shape = node["name"], (batch, *node["shape"])
    if node["op"] == "lif":
        return _neurons(node, arrays, shape, time_steps)
    if node["op"] == "and":
        return processes.And(shapes=shapes, shape_out=shape, name=name, **options)
    if node["op"] == "attention":
        return processes.Attention(shape_out=shape, name=name, **options)
    return STAGES[node["op"]](shape_in=shapes["a_in"], shape_out=shape, name=name, **options)


def _neurons(node: Plan, arrays: Mapping[str, Array], shape: tuple[int, ...], time_steps: int) -> LIFReset:
    """Lava's own neurons. The reset, just before a sample's first step arrives here, forgets the sample before it."""
    threshold = node["options"]["threshold"]  # one number, or None: one per channel
    vth = np.broadcast_to(arrays["threshold"], shape).astype(np.int32) if threshold is None else threshold
    return LIFReset(
        shape=shape,
        du=node["options"]["du"],
        dv=node["options"]["dv"],
        vth=vth,
        bias_mant=np.broadcast_to(arrays["bias_mantissa"], shape).astype(np.int32),
        bias_exp=np.broadcast_to(arrays["bias_exponent"], shape).astype(np.int32),
        reset_interval=time_steps,
        reset_offset=(node["start"] + 1) % time_steps,
        name=node["name"],
    )
