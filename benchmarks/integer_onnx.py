"""Integer ONNX against float32 ONNX: milliseconds per image, file sizes, peak memory.

    python benchmarks/integer_onnx.py [digits cifar10-2-256 imagenet-8-768] [--threads 2] [--batches 1 16] [--runs 30]

Networks without a shipped checkpoint get random weights with which every layer fires. Both files run in turns, so that
a busy machine slows down both; printed are medians. Inputs are random; spikes do not change how long a run takes.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from statten_deploy.export.onnx import build_onnx
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import load_model
from statten_deploy.models.config import load_config
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions, quantize

ROOT = Path(__file__).resolve().parents[1]


def network(name: str) -> STAtten:
    shipped = ROOT / f"models/zoo/{name}.ckpt"
    if shipped.exists():
        return load_model(shipped)
    torch.manual_seed(0)
    model = STAtten(load_config(ROOT / f"models/configs/{name}.yaml"))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):  # so that every layer fires
            torch.nn.init.normal_(module.weight, std=1.8 * module.weight[0].numel() ** -0.5)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0.2, 0.4)
    return model.eval()


def session(data: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def measure(sessions: list[ort.InferenceSession], x: np.ndarray, runs: int) -> list[float]:
    """Median milliseconds per image of each session, taken in turns."""
    taken: list[list[float]] = [[] for _ in sessions]
    for _ in range(runs + 2):
        for times, ready in zip(taken, sessions, strict=True):
            start = time.perf_counter()
            ready.run(None, {ready.get_inputs()[0].name: x})
            times.append(1e3 * (time.perf_counter() - start) / len(x))
    return [statistics.median(times[2:]) for times in taken]


def sample(model: STAtten, batch: int) -> np.ndarray:
    config = model.config
    frame = (config.in_channels, *config.image_size)
    random = np.random.default_rng(0)
    if config.input == "image":
        return random.random((batch, *frame), dtype=np.float32)
    return random.poisson(0.5, (batch, config.time_steps, *frame)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["digits", "cifar10-2-256"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--bits", type=int, default=8)
    given: Any = parser.parse_args()
    print("network          batch  float32 ms  integer ms  ratio  float32 MB  integer MB  size  peak GiB")
    for name in given.networks:
        model = network(name)
        graph = build_graph(model)
        quantised = quantize(graph, QuantizeOptions(given.bits))
        files = [build_onnx(graph).SerializeToString(), build_integer_onnx(quantised).SerializeToString()]
        sessions = [session(data, given.threads) for data in files]
        plain_mb, integer_mb = (len(data) / 1e6 for data in files)
        for batch in given.batches:
            plain, integer = measure(sessions, sample(model, batch), given.runs)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{name:<16} {batch:5d} {plain:11.3f} {integer:11.3f} {plain / integer:6.2f} {plain_mb:11.2f} "
                f"{integer_mb:11.2f} {integer_mb / plain_mb:5.3f} {peak:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
