"""Turn the test vectors of ``statten-export --test-vectors N`` into a file that C++ reads without a library.

python examples/edge_cpp/vectors_to_raw.py digits.onnx.vectors.npz digits.raw

Little-endian: the 8 bytes ``STATTEN1``, then for input and output each: rank and sizes as int64, numbers as float32.
"""

import sys
from pathlib import Path

import numpy as np


def main(source: str, target: str) -> None:
    with np.load(source, allow_pickle=False) as vectors, Path(target).open("wb") as file:
        file.write(b"STATTEN1")
        for name in ("input", "output"):
            array = np.ascontiguousarray(vectors[name], dtype="<f4")
            file.write(np.array([array.ndim, *array.shape], dtype="<i8").tobytes() + array.tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
