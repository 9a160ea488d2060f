"""What the tests of Lava bundles share."""

import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

from statten_deploy.export.lava import LavaResult
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.quantize import QuantizeOptions, quantize
from tests.conftest import lively_input, lively_model, small_config

ROOT = Path(__file__).resolve().parents[3]
STOCK = ROOT / ".venv/python3.10/bin/python"
"""Made by `make setup` where there is a Python 3.10: Lava as it is published."""


@pytest.fixture
def integer_network() -> Callable[..., tuple[nir.NIRGraph, np.ndarray]]:
    """(quantised graph, input) of a small network whose layers all fire."""

    def make(
        variant: str, bits: int = 8, granularity: str = "channel", *, samples: int = 3, **changes: object
    ) -> tuple[nir.NIRGraph, np.ndarray]:
        model = lively_model(small_config(variant, **changes))
        graph = quantize(build_graph(model), QuantizeOptions(bits, granularity))
        return graph, lively_input(model.config, batch=samples).numpy()

    return make


@pytest.fixture
def assert_same() -> Callable[[nir.NIRGraph, np.ndarray, LavaResult], None]:
    """Every spike, every membrane and the logits of a Lava run against the integer runner's."""

    def compare(graph: nir.NIRGraph, x: np.ndarray, found: LavaResult) -> None:
        with torch.no_grad():
            expected = IntegerRunner(graph).run(x, spikes=True, membranes=True)
        assert found.spikes.keys() == found.membranes.keys() == expected.spikes.keys()
        assert sum(layer.sum() for layer in expected.spikes.values()) > 0
        for name, spikes in expected.spikes.items():
            np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
            np.testing.assert_array_equal(found.membranes[name], expected.membranes[name], err_msg=name)
        assert found.outputs.keys() == expected.outputs.keys()
        for name, output in expected.outputs.items():
            np.testing.assert_array_equal(found.outputs[name], output, err_msg=name)

    return compare


def processes_of(folder: Path) -> dict[int, list[str]]:
    """pid -> names of its shared memory, of every live process whose command line names `folder`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            mentioned = os.fsencode(folder) in (entry / "cmdline").read_bytes()
            if mentioned:
                maps = (entry / "maps").read_text().split()
                found[int(entry.name)] = sorted({word for word in maps if word.startswith("/dev/shm/")})
        except OSError:
            continue  # gone meanwhile
    return found


def site_packages() -> str:
    """Where this environment keeps numpy and Lava."""
    return sysconfig.get_path("purelib")


def interpreters() -> list[tuple[str, ...]]:
    """Command lines of every Python with Lava that is at hand; in none of them statten_deploy can be imported."""
    here = (sys.executable, "-S")  # without the editable installation; its packages come by PYTHONPATH
    return [here, *([(str(STOCK),)] if STOCK.exists() else [])]
