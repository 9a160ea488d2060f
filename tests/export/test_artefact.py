"""Files appear whole or not at all, and a sidecar notices every change."""

import json
import os
import stat
from pathlib import Path

import pytest

from statten_deploy.errors import InputError
from statten_deploy.export.artefact import (
    MANIFEST,
    read_sidecar,
    sidecar_path,
    staging,
    vectors_path,
    write_sidecar,
)


def write(path: Path, content: bytes = b"artefact") -> None:
    with staging(path) as stage:
        temporary = stage.file(path)
        temporary.write_bytes(content)
        write_sidecar(stage.file(sidecar_path(path)), path.name, temporary, {"target": "nir"})
        stage.commit()


def test_commit_moves_everything_into_place(tmp_path: Path) -> None:
    path = tmp_path / "m.nir"
    write(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.nir", "m.nir.json"]
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert (sidecar["artefact"], sidecar["bytes"], sidecar["target"]) == ("m.nir", 8, "nir")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "m.nir"
    write(path, b"old")

    def fail() -> None:
        with staging(path) as stage:
            stage.file(path).write_bytes(b"new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.nir", "m.nir.json"]


def test_same_content_gives_the_same_sidecar(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "m.nir")
        texts.append((folder / "m.nir.json").read_bytes())
    assert texts[0] == texts[1]


def test_changed_artefact_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.nir"
    write(path)
    path.write_bytes(b"artefacT")
    with pytest.raises(InputError, match="SHA-256 differs"):
        read_sidecar(path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 1}), "\udc80"])
def test_broken_sidecars(tmp_path: Path, content: str) -> None:
    path = tmp_path / "m.nir"
    write(path)
    sidecar_path(path).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="sidecar"):
        read_sidecar(path)


def test_no_sidecar_is_fine(tmp_path: Path) -> None:
    (tmp_path / "m.nir").write_bytes(b"")
    assert read_sidecar(tmp_path / "m.nir") is None


def test_destination_must_be_possible(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "no" / "m.nir", "no such folder"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=said), staging(path) as stage:
            stage.file(path)


def write_bundle(path: Path, content: str) -> None:
    with staging(path) as stage:
        folder = stage.bundle(path)
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text(content)
        manifest = {"kind": "statten-test", "format": 1, "files": {"inner/weights": content}}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        write_sidecar(stage.file(sidecar_path(path)), path.name, folder, {"target": "lava"})
        stage.commit()


def test_a_bundle_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.lava"
    for content in ("one", "two"):
        write_bundle(path, content)
        assert (path / "inner" / "weights").read_text() == content
        sidecar = read_sidecar(path)
        assert sidecar is not None
        assert sidecar["bytes"] == 3 + (path / MANIFEST).stat().st_size
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.lava", "m.lava.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((path / "inner").stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((path / MANIFEST).stat().st_mode) == 0o666 & ~umask
    (path / MANIFEST).write_text("changed")
    with pytest.raises(InputError, match="SHA-256 differs"):
        read_sidecar(path)
    with pytest.raises(InputError, match=r"holds what no export wrote: inner/weights, manifest\.json"):
        write_bundle(path, "three")
    assert (path / "inner" / "weights").read_text() == "two"


def test_files_that_were_put_into_a_bundle_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.lava"
    write_bundle(path, "one")
    (path / "frames.npz").write_text("precious")
    with pytest.raises(InputError, match=r"holds what no export wrote: frames\.npz"):
        write_bundle(path, "two")
    (path / "frames.npz").unlink()
    link = tmp_path / "link.lava"
    for target in (path, tmp_path / "nowhere"):
        link.symlink_to(target)
        with pytest.raises(InputError, match="is a link"):
            write_bundle(link, "two")
        link.unlink()
    assert (path / "inner" / "weights").read_text() == "one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.lava", "m.lava.json"]


def test_a_failed_bundle_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "m.lava"
    write_bundle(path, "old")

    def fail() -> None:
        with staging(path) as stage:
            (stage.bundle(path) / MANIFEST).write_text("new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fail()
    assert (path / "inner" / "weights").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.lava", "m.lava.json"]


def test_names() -> None:
    assert sidecar_path(Path("a/m.nir")) == Path("a/m.nir.json")
    assert vectors_path(Path("a/m.onnx")) == Path("a/m.onnx.vectors.npz")
