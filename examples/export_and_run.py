"""Export the shipped checkpoint to ONNX, then use the file with nothing but onnxruntime and numpy.

python examples/export_and_run.py
"""

import tempfile
from pathlib import Path

import onnxruntime
from sklearn.datasets import load_digits

from statten_deploy import export_onnx

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.onnx"
        result = export_onnx(ROOT / "models/zoo/digits.ckpt", path)
        assert result.agreement is not None
        print(f"exported and verified: {result.agreement.prediction_agreement:.0%} of the predictions agree")

        # What an embedded pipeline needs: five lines. Pixels in [0, 1], doubled in size as in training.
        session = onnxruntime.InferenceSession(str(path))
        images = upsample(load_digits().images[:10] / 16)
        (logits,) = session.run(["logits"], {"image": images})
        print("predicted:", logits.argmax(1))
        print("labels:   ", load_digits().target[:10])


def upsample(images):
    """[N, 8, 8] -> float32 [N, 1, 16, 16], as the built-in data set does it."""
    import torch
    from torch.nn import functional as F

    batch = torch.tensor(images, dtype=torch.float32)[:, None]
    return F.interpolate(batch, scale_factor=2, mode="bilinear", align_corners=False).numpy()


if __name__ == "__main__":
    main()
