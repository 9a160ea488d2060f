"""A file for another engine than the one it is verified in: what it gives there, as its users run it."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from statten_deploy.compare.executors import Array
from statten_deploy.compare.verify import Agreement
from statten_deploy.runtime import load

LAST_BIT = 3e-7
"""Outputs that are currents or membranes get their unit in float64, which OpenVINO computes in float32."""


def verify_in_openvino(agreement: Agreement, path: Path, samples: Array) -> None:
    """Add what differs in OpenVINO from onnxruntime, where the file agrees already; a note where it is not installed.

    OpenVINO fuses and moves what onnxruntime does not: a file can be right in the one and wrong in the other.
    """
    if find_spec("openvino") is None:
        agreement.notes.append("OpenVINO is not installed: verified in onnxruntime only; pip install openvino")
        return
    expected, found = (load(path, engine=engine).predict(samples).outputs for engine in ("onnxruntime", "openvino"))
    for name, values in expected.items():
        unlike = ~np.isclose(found[name], values, rtol=LAST_BIT, atol=0)
        if unlike.any():
            where = tuple(int(i) for i in np.argwhere(unlike)[0])
            agreement.problems.append(
                f"output {name!r}: {np.count_nonzero(unlike)} numbers differ in OpenVINO, first at sample {where[0]}, "
                f"index {where[1:]}"
            )
