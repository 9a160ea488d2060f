"""Lava bundles: every spike, membrane and logit against the integer runner, and milliseconds per step.

Two shipped checkpoints on 32 images and the CIFAR network of 2 blocks and 256 channels on one, with random weights that
make every layer fire. `python benchmarks/lava.py`; minutes.
"""

import sys
import tempfile
import time
from pathlib import Path

import nir
import numpy as np

from statten_deploy.export.lava import LavaRunner, write_bundle
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import load_model
from statten_deploy.models.config import load_config
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train.data import load_arrays

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def cases() -> dict[str, tuple[nir.NIRGraph, np.ndarray]]:
    from tests.conftest import lively_input, lively_model

    found = {}
    for name in ("digits", "digits-stream"):
        model = load_model(ROOT / f"models/zoo/{name}.ckpt")
        x, _ = load_arrays("digits", "test", model.config)
        for granularity in ("channel", "tensor"):
            graph = quantize(build_graph(model), QuantizeOptions(8, granularity))
            found[f"{name}, {granularity}, 32 images"] = (graph, x[:32])
            found[f"{name}, {granularity}, 1 image"] = (graph, x[:1])
    config = load_config(ROOT / "models/configs/cifar10-2-256.yaml")
    graph = quantize(build_graph(lively_model(config)), QuantizeOptions(8, "channel"))
    found["CIFAR 2-256, channel, 1 image"] = (graph, lively_input(config, batch=1).numpy())
    return found


def main() -> None:
    for title, (graph, x) in cases().items():
        started = time.perf_counter()
        expected = IntegerRunner(graph).run(x, spikes=True, membranes=True)
        reference = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            runner = LavaRunner(write_bundle(graph, Path(folder) / "bundle").folder)
            plain = runner.run(x).facts
            found = runner.run(x, spikes=True, membranes=True)
        wrong = sum((found.spikes[name] != layer).sum() for name, layer in expected.spikes.items())
        wrong += sum((found.membranes[name] != layer).sum() for name, layer in expected.membranes.items())
        wrong += sum((found.outputs["logits"] != logits).sum() for logits in expected.outputs.values())
        values = 2 * sum(layer.size for layer in expected.spikes.values())
        print(
            f"{title}: {wrong} of {values} spikes and membranes differ in {len(expected.spikes)} layers; "
            f"{plain['ms_per_step']:.0f} ms per step ({plain['processes']} processes, {plain['steps']} steps, start "
            f"{plain['start_seconds']:.1f} s); probed {found.facts['ms_per_step']:.0f}; runner {reference:.2f} s in all"
        )


if __name__ == "__main__":
    main()
