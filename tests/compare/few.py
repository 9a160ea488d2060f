"""What the tests of backends share."""

from typing import Any

from statten_deploy import Comparison

FEW = ("torch", "nir", "onnx", "torch-int", "fixed", "onnx-int8")
"""Those that take no time to start."""
SAMPLES = 5
UNTIMED: dict[str, Any] = {"latency_seconds": 0}


def row(comparison: Comparison, name: str) -> Any:
    (one,) = (row for row in comparison.backends if row.name == name)
    return one
