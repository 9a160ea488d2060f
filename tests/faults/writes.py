"""Writes every target in a process of its own: `python -m tests.faults.writes MODEL FOLDER`."""

import sys
from pathlib import Path

from statten_deploy.api import ExportOptions, export

FORMS: list[tuple[str, str, dict[str, str | bool], int | None]] = [
    ("core.nir", "nir", {"attention": "circuit"}, None),
    ("portable.nir", "nir", {"attention": "circuit", "nir_profile": "portable"}, None),
    ("compact.nir", "nir", {"attention": "compact"}, None),
    ("integer.nir", "nir", {}, 8),
    ("m.onnx", "onnx", {}, None),
    ("stream.onnx", "onnx", {"layout": "stream", "spike_counts": True}, None),
    ("int8.onnx", "onnx-int8", {}, 4),
    ("qdq.onnx", "onnx-int8", {"flavour": "qdq"}, None),
    ("int8.stream.onnx", "onnx-int8", {"layout": "stream"}, None),
    ("m.lava", "lava", {}, None),
    ("m.net", "netx", {"until": "patch_embed.proj_lif1"}, None),
]

if __name__ == "__main__":
    for name, target, flags, bits in FORMS:
        options = ExportOptions(verify=False, test_vectors=2, bits=bits)
        export(Path(sys.argv[1]), target, Path(sys.argv[2]) / name, options=options, flags=flags)
