"""Accuracy by bits and granularity of the shipped checkpoints, without and with calibration, and what an engine costs.

    python benchmarks/quantisation.py [--engines]

Correct of the 360 test images; calibration on 128 training images. ``--engines`` adds milliseconds per image of the
integer engines at 8 bits per channel: medians of interleaved runs.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from statten_deploy.api import CALIBRATION_SAMPLES
from statten_deploy.compare.executors import Executor, OnnxExecutor, OnnxIntegerExecutor, TorchExecutor
from statten_deploy.compare.integers import FixedExecutor, LavaExecutor, TorchIntExecutor
from statten_deploy.compare.verify import predicted_classes
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.source import load_source
from statten_deploy.train.data import load_arrays

ZOO = Path(__file__).resolve().parents[1] / "models/zoo"
BITS = (8, 6, 4, 3, 2)


def correct(executor: Executor, x: np.ndarray, y: np.ndarray) -> int:
    found = predicted_classes(next(iter(executor.run(x).outputs.values())))
    return int((found == y).sum())


def accuracy() -> Table:
    table = Table(title="correct of 360 test images")
    for column in ("checkpoint", "scale per", "calibrated", *(f"{bits} bits" for bits in BITS)):
        table.add_column(column)
    for name in ("digits", "digits-stream"):
        source = load_source(ZOO / f"{name}.ckpt")
        x, y = load_arrays("digits", "test", source.config)
        training = load_arrays("digits", "calibration", source.config)[0][:CALIBRATION_SAMPLES]
        table.add_row(name, "float", "", str(correct(source.reference, x, y)))
        for granularity in ("channel", "tensor"):
            for samples in (None, training):
                graphs = [quantize(source.graph, QuantizeOptions(bits, granularity), samples) for bits in BITS]
                found = [str(correct(FixedExecutor(graph), x, y)) for graph in graphs]
                table.add_row(name, granularity, "no" if samples is None else "yes", *found)
    for path in sorted(ZOO.glob("*bit.ckpt")):
        source = load_source(path)
        x, y = load_arrays("digits", "test", source.config)
        table.add_row(path.stem, "trained for it", "", str(correct(source.runnable()[0], x, y)))
    return table


def engines(rounds: int = 5) -> Table:
    table = Table(title="milliseconds per image, 8 bits per channel (median of interleaved runs; Lava with start-up)")
    for column in ("checkpoint", "engine", "1 image", "32 images"):
        table.add_column(column)
    for name in ("digits", "digits-stream"):
        source = load_source(ZOO / f"{name}.ckpt")
        x, _ = load_arrays("digits", "test", source.config)
        graph = quantize(source.graph)
        with tempfile.TemporaryDirectory() as folder:
            save_onnx(build_onnx(source.graph), Path(folder) / "float.onnx")
            save_onnx(build_integer_onnx(graph), Path(folder) / "int8.onnx")
            write_bundle(graph, Path(folder) / "m.lava")
            candidates: dict[str, Executor] = {
                "torch, float": TorchExecutor(source.network),
                "onnx, float": OnnxExecutor(Path(folder) / "float.onnx"),
                "fixed (numpy)": FixedExecutor(graph),
                "torch-int": TorchIntExecutor(graph),
                "onnx-int8": OnnxIntegerExecutor(Path(folder) / "int8.onnx"),
                "lava": LavaExecutor(Path(folder) / "m.lava"),
            }
            times: dict[tuple[str, int], list[float]] = {}
            for _ in range(rounds):
                for engine, executor in candidates.items():
                    for count in (1, 32):
                        start = time.perf_counter()
                        executor.run(x[:count])
                        times.setdefault((engine, count), []).append((time.perf_counter() - start) / count * 1000)
        for engine in candidates:
            medians = [f"{statistics.median(times[engine, count]):.2f}" for count in (1, 32)]
            table.add_row(name, engine, *medians)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", action="store_true", help="time the engines instead")
    Console(width=120).print(engines() if parser.parse_args().engines else accuracy())


if __name__ == "__main__":
    main()
