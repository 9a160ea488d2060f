"""A comparison reads samples, counts, and forgets: memory does not grow with their number."""

import json
import tracemalloc

from statten_deploy import compare_backends
from tests.conftest import lively_model, small_config

FEW, MANY = 64, 576
PER_SAMPLE = 400
"""Bytes that a sample may leave behind: its class for each backend. One input has 3,072, its spikes far more."""


def peak(samples: int) -> tuple[int, int]:
    """Most bytes that Python and numpy held at a time, and the size of the report."""
    config = small_config("strided", embed_dim=16, num_heads=2, depth=1, time_steps=2)
    tracemalloc.start()
    try:
        found = compare_backends(
            lively_model(config), ["torch", "fixed", "onnx"], samples=samples, batch=16, latency_seconds=0
        )
        assert found.samples == samples
        return tracemalloc.get_traced_memory()[1], len(json.dumps(found.to_dict()))
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_samples() -> None:
    peak(FEW)  # imports and caches
    (few, small), (many, large) = peak(FEW), peak(MANY)
    assert many - few < PER_SAMPLE * (MANY - FEW)
    assert large - small < 100 * (MANY - FEW)
