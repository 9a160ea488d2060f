"""Small artefacts for the runtime: written without torch, weights whose sums are exact in every engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statten_deploy.export.artefact import sidecar_path, write_sidecar
from statten_deploy.export.onnx import build_onnx, save_onnx
from tests.export.onnx.onnx_harness import network_input, small_network

NETWORKS: dict[str, dict[str, Any]] = {
    "image": {},
    "frames": {"dvs": True},
    "sliding": {"dvs": True, "attention": {"window": 2, "mode": "sliding"}},
}
"""A block window on images, one on frames (two steps a call), and a sliding one on frames (one step a call)."""


def write(path: Path, network: str = "frames", *, sidecar: bool = True, **options: Any) -> Path:
    """An artefact of one of the `NETWORKS` with its sidecar; `options` are those of `build_onnx`."""
    graph = small_network(1, depth=1, time_steps=4, **NETWORKS[network])
    save_onnx(build_onnx(graph, spike_counts=True, **options), path)
    if sidecar:
        write_sidecar(sidecar_path(path), path.name, path, {})
    return path


def samples(network: str, count: int, seed: int = 1) -> np.ndarray:
    graph = small_network(1, depth=1, time_steps=4, **NETWORKS[network])
    return next(iter(network_input(graph, count, seed).values()))


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(network, layout) -> a file, written once."""
    folder = tmp_path_factory.mktemp("artefacts")

    def get(network: str, layout: str = "stream") -> Path:
        path = folder / f"{network}.{layout}.onnx"
        metadata = {"input_range": "[0, null]" if network != "image" else "[0, 1]", "classes": "5"}
        return path if path.exists() else write(path, network, layout=layout, metadata=metadata)

    return get
