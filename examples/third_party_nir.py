"""Take a graph that knows nothing about this project, built from stock NIR nodes, to ONNX.

    python examples/third_party_nir.py

A NIR file does not say how many steps a sample has, so `time_steps` is given here (the command has ``--time-steps``).
"""

import tempfile
from pathlib import Path

import nir
import numpy as np
import onnxruntime

from statten_deploy import Simulator, export_onnx, read_nir

T, DT = 10, 1e-4


def build(seed: int = 0) -> nir.NIRGraph:
    """conv -> LIF -> sum-pool -> flatten -> affine -> recurrent LIF -> affine, a residual around the loop."""
    rng = np.random.default_rng(seed)

    def normal(mean: float, deviation: float, *shape: int) -> np.ndarray:
        return rng.normal(mean, deviation, shape).astype(np.float32)

    def lif(shape: tuple[int, ...]) -> nir.LIF:
        one = np.ones(shape, np.float32)
        return nir.LIF(tau=one * 2 * DT, r=one, v_leak=0 * one, v_threshold=one, v_reset=0 * one)

    nodes = {
        "input": nir.Input({"input": np.array([2, 8, 8])}),
        "conv": nir.Conv2d((8, 8), normal(0, 0.4, 8, 2, 3, 3), 1, 1, 1, 1, normal(0.2, 0.2, 8)),
        "neurons": lif((8, 8, 8)),
        "pool": nir.SumPool2d(np.array([4, 4]), np.array([4, 4]), np.array([0, 0])),
        "flatten": nir.Flatten({"input": np.array([8, 2, 2])}, 0, -1),
        "hidden": nir.Affine(
            rng.normal(0, 0.3, (16, 32)).astype(np.float32), rng.normal(0, 0.3, 16).astype(np.float32)
        ),
        "hidden_neurons": lif((16,)),
        "back": nir.Affine(normal(0, 0.3, 16, 16), normal(0, 0.1, 16)),
        "readout": nir.Affine(normal(0, 0.5, 3, 16), normal(0, 0.3, 3)),
        "skip": nir.Affine(normal(0, 0.1, 3, 32), normal(0, 0.3, 3)),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [
        ("input", "conv"),
        ("conv", "neurons"),
        ("neurons", "pool"),
        ("pool", "flatten"),
        ("flatten", "hidden"),
        ("hidden", "hidden_neurons"),
        ("hidden_neurons", "back"),
        ("back", "hidden_neurons"),
        ("hidden_neurons", "readout"),
        ("flatten", "skip"),
        ("readout", "output"),
        ("skip", "output"),
    ]
    return nir.NIRGraph(nodes, edges)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "stranger.nir", Path(folder) / "stranger.onnx"
        nir.write(source, build())
        export_onnx(source, target, time_steps=T)

        frames = np.random.default_rng(1).poisson(0.7, (4, T, 2, 8, 8)).astype(np.float32)
        (found,) = onnxruntime.InferenceSession(str(target)).run(["output"], {"input": frames})
        expected = Simulator(read_nir(source), time_steps=T).run(frames).outputs["output"]
        print(f"output {found.shape} (batch, step, value); largest difference {np.abs(found - expected).max():.2g}")


if __name__ == "__main__":
    main()
