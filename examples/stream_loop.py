"""A push loop: a frame in, an answer out whenever there is one. The device needs numpy and onnxruntime only.

On a workstation: the export. On the device: everything below `load`.

python examples/stream_loop.py
"""

import tempfile
from pathlib import Path

import numpy as np

from statten_deploy.runtime import load

ROOT = Path(__file__).resolve().parents[1]
CONFIDENT = 0.9


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.onnx"
        images, labels = export(path)

        session = load(path, threads=1)
        stream = session.stream()
        for image, label in zip(images, labels, strict=True):
            stream.reset()  # a new sample; without it, membranes and mean go on
            for _ in range(session.time_steps):
                result = stream.push(image)
                if result is not None and (result.complete or confidence(result.logits) > CONFIDENT):
                    break
            print(f"digit {label}: {result.label} after {result.steps} of {result.time_steps} steps")

        np.savez(Path(folder) / "state.npz", **stream.state())  # a device that is switched off goes on later
        with np.load(Path(folder) / "state.npz", allow_pickle=False) as saved:
            stream.restore(saved)


def confidence(logits):
    """Softmax of the first class."""
    exponentials = np.exp(logits - logits.max())
    return exponentials.max() / exponentials.sum()


def export(path):
    """What a workstation does beforehand: the file for the device, and a few test images."""
    from statten_deploy import export_onnx
    from statten_deploy.models.config import load_config
    from statten_deploy.train.data import load_arrays

    export_onnx(ROOT / "models/zoo/digits-stream.ckpt", path, layout="stream")
    x, y = load_arrays("digits", "evaluation", load_config(ROOT / "models/configs/digits-stream.yaml"))
    return x[:8], y[:8]


if __name__ == "__main__":
    main()
