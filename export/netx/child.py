"""Runs lava-dl's `Network` under Lava and saves what every layer did. Started by `runner.py`, imports nothing of ours.

Argument: one JSON object with ``network``, ``folder``, ``options`` of `Network` and ``membranes``. Reads ``frames.npy``
[steps, C, H, W] in the folder and writes ``result.npz`` with ``s<k>`` and ``v<k>`` [steps, W, H, C] of layer k.
When standard input closes, the runner is gone or wants no more: the whole process group ends, the folder is removed.
"""

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

MISSING = 3
GRACE_SECONDS = 0.5
"""From SIGTERM to SIGKILL: Python's resource tracker removes shared memory when the others are gone."""


def watch_parent(folder: str) -> None:
    """Fork a process that waits for the end of standard input, then ends this group and removes `folder`.

    A process, not a thread: it does not stop when Lava blocks the interpreter or the simulation fails meanwhile.
    """
    if os.fork():
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        return
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.killpg(0, signal.SIGKILL)


def make_importable() -> None:
    """Lava's `ByteEncoder` is the default of dataclass fields; from Python 3.11 on it must be hashable for that.

    lava-dl imports its object detection with everything else, and with that OpenCV: netx needs neither.
    """
    sys.modules["lava.lib.dl.slayer.object_detection"] = ModuleType("object_detection")
    original: Any = dataclasses.dataclass

    def hashable(cls: Any = None, /, **options: Any) -> Any:
        def decorate(kind: Any) -> Any:
            return original(kind, **{**options, "unsafe_hash": True} if kind.__name__ == "ByteEncoder" else options)

        return decorate if cls is None else decorate(cls)

    dataclasses.dataclass = hashable
    try:
        import lava.magma.compiler.var_model  # noqa: F401
    finally:
        dataclasses.dataclass = original


def simulate(task: dict[str, Any]) -> None:
    """Run all frames, and as many steps more as the last layer is late."""
    import numpy as np
    from lava.lib.dl.netx.hdf5 import Network
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.monitor.process import Monitor

    folder = Path(task["folder"])
    frames = np.load(folder / "frames.npy", allow_pickle=False)
    network = Network(task["network"], **task["options"])
    steps = len(frames) + len(network.layers)
    padded = np.concatenate([frames, np.zeros((steps - len(frames), *frames.shape[1:]), frames.dtype)])
    source = Source(data=padded.T)  # [W, H, C, steps]
    source.s_out.connect(network.inp)
    sinks, monitors = [], []
    for layer in network.layers:
        sink = Sink(shape=layer.out.shape, buffer=steps)
        layer.out.connect(sink.a_in)
        sinks.append(sink)
        if task["membranes"]:
            monitor = Monitor()
            monitor.probe(layer.neuron.v, steps)
            monitors.append(monitor)
    try:
        network.run(condition=RunSteps(steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        recorded: dict[str, Any] = {}
        for k, sink in enumerate(sinks):
            recorded[f"s{k}"] = np.moveaxis(sink.data.get().astype(np.int8), -1, 0)
        for k, (monitor, layer) in enumerate(zip(monitors, network.layers, strict=False)):
            ((values,),) = (list(of.values()) for of in monitor.get_data().values())
            recorded[f"v{k}"] = values.reshape(steps, *layer.out.shape).astype(np.int32)
    finally:
        network.stop()
    np.savez(folder / "result.npz", **recorded)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    watch_parent(given["folder"])
    try:
        make_importable()
        import lava.lib.dl.netx.hdf5  # noqa: F401
    except ImportError as missing:
        sys.stderr.write(f"{missing}\n")
        sys.exit(MISSING)
    simulate(given)
