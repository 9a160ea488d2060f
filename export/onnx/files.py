"""The file: metadata, and the bytes on disk."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx

from statten_deploy.errors import ConfigError, UnsupportedError
from statten_deploy.export.onnx.builder import BATCH, ModelWriter
from statten_deploy.ir.graph import hints

LARGEST_FILE = (1 << 31) - 1
"""Bytes in one protobuf message."""


def write_metadata(
    b: ModelWriter,
    graph: nir.NIRGraph,
    time_steps: int,
    dt: float,
    metadata: Mapping[str, str],
    *,
    flavour: str,
) -> None:
    """Fill `metadata_props`: the graph's hints (numbers and text as text, the rest as JSON), then `metadata`.

    ``layout``, ``flavour``, ``time_steps``, ``dt``, ``input`` and, of a stream, ``steps_per_call``, ``states`` and
    ``step_outputs`` describe the file itself and are always those it was built with.

    Raises:
        ConfigError: `metadata` contradicts them, or holds something that is not text.
    """
    found = hints(graph)
    entries = {str(key): _text(value) for key, value in found.items()}
    own = {
        "layout": "stream" if b.streams else "sequence",
        "flavour": flavour,
        "time_steps": str(time_steps),
        "dt": repr(dt),
        "input": "image" if found.get("input") == "image" else "frames",
        **b.told,
    }
    if b.streams:
        states = [
            {"input": s.input, "output": s.output, "dtype": s.dtype.name, "shape": [BATCH, *s.shape]} for s in b.states
        ]
        own |= {"steps_per_call": str(b.time_steps), "states": json.dumps(states)}
        own["step_outputs"] = json.dumps([output.name for output in b.model.graph.output if _has_time_axis(b, output)])
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ConfigError(f"metadata {key!r}: {value!r}: ONNX metadata is text; write keys and values as str")
        if own.get(key, value) != value:
            raise ConfigError(f"metadata {key!r} is {value!r}, but the model was built with {own[key]!r}; leave it out")
    entries |= {**metadata, **own}
    for key in sorted(entries):
        b.model.metadata_props.add(key=key, value=entries[key])


def _has_time_axis(b: ModelWriter, output: onnx.ValueInfoProto) -> bool:
    """Whether an output is [batch, steps, ...]: one axis more than a step of a sample and the batch."""
    shape = b.shapes.get(output.name)
    return shape is not None and len(output.type.tensor_type.shape.dim) == len(shape) + 2


def _text(value: Any) -> str:
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return plain if isinstance(plain, str) else json.dumps(plain, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON does not know: numpy values, and the bytes that HDF5 makes of text."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.decode() if isinstance(value, bytes) else str(value)


def save_onnx(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a model as one self-contained file, checked; the same model always gives the same bytes.

    The file appears under `path` when it is complete and `onnx.checker` (full, with shape inference) accepts it, or
    not at all.

    Raises:
        UnsupportedError: the model is larger than the 2 GiB that one file can hold.
        onnx.checker.ValidationError: the model is not valid ONNX.
        OSError: the file cannot be written.
    """
    target = Path(path)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > LARGEST_FILE - (1 << 24):  # the rest is far below 16 MiB
        raise UnsupportedError(
            f"{target}: {weights / 1e9:.1f} GB of weights do not fit into one ONNX file (2 GiB); export a smaller model"
        )
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(temporary, full_check=True)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
