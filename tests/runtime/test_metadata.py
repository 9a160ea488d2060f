"""The reader of metadata against ONNX's own, and against damaged files."""

from contextlib import suppress
from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statten_deploy.errors import InputError
from statten_deploy.export.onnx import build_onnx
from statten_deploy.runtime import Interface, read_facts
from tests.export.onnx.onnx_harness import F32, chain, lif, small_network

PATH_FIXTURE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PATH_FIXTURE
@given(entries=st.dictionaries(st.text(max_size=300), st.text(max_size=300), max_size=5), functions=st.booleans())
def test_reads_what_onnx_wrote(tmp_path: Path, entries: dict[str, str], functions: bool) -> None:
    node = lif((4,)) if functions else nir.Scale(np.ones(4, F32))
    model = build_onnx(chain((4,), node), time_steps=2)
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    model.model_version = -3  # a varint of ten bytes
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    facts = read_facts(path)
    assert facts.metadata == entries
    assert facts.functions is functions


@PATH_FIXTURE
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with suppress(InputError):
        read_facts(path)


def test_a_truncated_file_is_refused_or_lacks_its_metadata(tmp_path: Path) -> None:
    content = build_onnx(small_network(depth=1), layout="stream").SerializeToString()
    whole = tmp_path / "whole.onnx"
    whole.write_bytes(content)
    wanted = read_facts(whole).metadata
    path = tmp_path / "model.onnx"
    refused = 0
    for end in [*range(0, len(content), 997), *range(len(content) - 3000, len(content), 61)]:
        path.write_bytes(content[:end])
        try:
            assert read_facts(path).metadata.items() < wanted.items()
        except InputError:
            refused += 1
    assert refused > 50


def test_a_length_beyond_the_file_reads_nothing(tmp_path: Path) -> None:
    """A claim of 2^60 bytes must not be believed."""
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes([14 << 3 | 2]) + b"\x80" * 8 + b"\x10")
    with pytest.raises(InputError, match="not an ONNX file"):
        read_facts(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.onnx: no such file; expected an ONNX file"):
        read_facts(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is a folder"):
        read_facts(tmp_path)


GOOD = {"layout": "stream", "time_steps": "4", "steps_per_call": "2", "input": "frames", "states": "[]"}


@pytest.mark.parametrize(
    "change",
    [
        {"time_steps": "four"},
        {"steps_per_call": "3"},
        {"steps_per_call": "0"},
        {"time_steps": "65538"},
        {"steps_per_call": None},
        {"input": None},
        {"states": "{"},
        {"states": "[1]"},
        {"states": '[{"input": "a", "output": "b", "dtype": "object", "shape": ["batch"]}]'},
        {"states": '[{"input": "a", "output": "b", "dtype": "float32", "shape": [3]}]'},
        {"input_range": "[0]"},
        {"input_range": "[[0], 1]"},
        {"states": "[" * 100000},
    ],
)
def test_metadata_that_contradict_themselves(change: dict[str, str | None]) -> None:
    Interface.of(GOOD, "x.onnx")
    metadata = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(InputError, match=r"^x.onnx: its metadata contradict themselves; export it again$"):
        Interface.of(metadata, "x.onnx")


def test_files_of_other_tools_are_refused() -> None:
    with pytest.raises(InputError, match="no layout in its metadata; expected a file that statten-export wrote"):
        Interface.of({}, "x.onnx")
    with pytest.raises(InputError, match="layout 'spiral'"):
        Interface.of({**GOOD, "layout": "spiral"}, "x.onnx")
