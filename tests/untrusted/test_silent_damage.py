"""One flipped bit of a weight is noticed wherever the sidecar lies beside the artefact."""

from collections.abc import Callable
from pathlib import Path

import pytest

from statten_deploy.comparing import compare_backends
from statten_deploy.errors import InputError
from statten_deploy.evaluate import evaluate
from statten_deploy.export.artefact import sidecar_path, write_sidecar
from statten_deploy.runtime import load
from statten_deploy.source import load_source
from tests.untrusted.formats import FORMATS

READERS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "nir": (load_source, lambda path: evaluate(path, "digits"), compare_backends),
    "onnx": (load, lambda path: evaluate(path, "digits")),
    "onnx-int8": (load, lambda path: evaluate(path, "digits")),
    "net": (lambda path: evaluate(path, "digits"),),
}


@pytest.mark.parametrize("name", READERS)
def test_flipped_bit(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"model{FORMATS[name].suffix}"
    FORMATS[name].make(path)
    write_sidecar(sidecar_path(path), path.name, path, {})
    data = bytearray(path.read_bytes())
    for at in (len(data) // 3, len(data) // 2, len(data) - 1):
        data[at] ^= 4
        path.write_bytes(data)
        for read in READERS[name]:
            with pytest.raises(InputError, match="its SHA-256 differs from model"):
                read(path)
        data[at] ^= 4


def test_a_file_of_this_process_needs_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has just been exported is read back at once; what anyone touched since is read in a child first."""
    asked: list[Path] = []
    monkeypatch.setattr("statten_deploy.untrusted.hdf5.read_in_child", lambda module, path, *rest: asked.append(path))
    path = tmp_path / "a.nir"
    FORMATS["nir"].make(path)
    load_source(path)
    path = path.rename(tmp_path / "b.nir")
    load_source(path)
    assert not asked
    path.write_bytes(path.read_bytes())
    load_source(path)
    assert asked == [path]
