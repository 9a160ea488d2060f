"""Commits that fail half way, that are disturbed, and what killed runs left."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from statten_deploy.errors import InputError
from statten_deploy.export import renames
from statten_deploy.export.artefact import MANIFEST, read_sidecar, sidecar_path, staging, vectors_path, write_sidecar
from statten_deploy.export.rooms import ASIDE, room, scratch, sweep


def write(path: Path, content: bytes, vectors: bytes | None = None) -> None:
    with staging(path) as stage:
        temporary = stage.bundle(path) if path.suffix == ".lava" else stage.file(path)
        if temporary.is_dir():
            (temporary / "weights").write_bytes(content)
            (temporary / MANIFEST).write_text('{"kind": "statten", "format": 1, "files": {"weights": 1}}')
        else:
            temporary.write_bytes(content)
        if vectors is None:
            stage.remove(vectors_path(path))
        else:
            stage.file(vectors_path(path)).write_bytes(vectors)
        write_sidecar(stage.file(sidecar_path(path)), path.name, temporary, {"vectors": str(vectors)})
        stage.commit()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("suffix", [".nir", ".lava"])
@pytest.mark.parametrize("failing", range(5))
def test_a_rename_that_fails_puts_everything_back(
    suffix: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two go aside, the artefacts change places, two follow."""
    path = tmp_path / f"m{suffix}"
    write(path, b"old", b"old vectors")
    before, left = content(tmp_path), failing
    plain, exchange = Path.rename, renames.exchange

    def counted(call):
        def inner(source: Path, destination: Path) -> object:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(errno.ENOSPC, "No space left on device", str(source))
            return call(source, destination)

        return inner

    monkeypatch.setattr(Path, "rename", counted(plain))
    monkeypatch.setattr(renames, "exchange", counted(exchange))
    with pytest.raises(InputError, match=r"m\.\w+.* cannot be written \(No space left on device\); free some space"):
        write(path, b"new", b"new vectors")
    monkeypatch.undo()
    assert content(tmp_path) == before
    assert failing < 5
    write(path, b"new", None)
    assert vectors_path(path).exists() is False


def test_systems_that_cannot_exchange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renames, "exchange", lambda first, second: False)
    for name in ("m.nir", "m.lava"):
        for generation in (b"one", b"two"):
            write(tmp_path / name, generation)
        sidecar = read_sidecar(tmp_path / name)
        assert sidecar is not None
    assert (tmp_path / "m.nir").read_bytes() == (tmp_path / "m.lava/weights").read_bytes() == b"two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.lava", "m.lava.json", "m.nir", "m.nir.json"]


def test_a_folder_that_was_set_aside_comes_back(tmp_path: Path) -> None:
    """Where names cannot be exchanged, a kill can come between the two renames that replace a bundle."""
    left = tmp_path / ".m.lava.0123.partial" / ASIDE / "m.lava"
    left.mkdir(parents=True)
    (left / "weights").write_text("old")
    sweep(tmp_path, "m.lava")
    assert content(tmp_path) == {"m.lava/weights": b"old"}


def test_rooms_of_running_processes_of_other_names_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / ".m.nir.5555.partial").symlink_to(tmp_path / "precious")
    (tmp_path / ".m.nir.6666.partial").write_text("a file")
    (tmp_path / ".other.nir.7777.partial").mkdir()
    (tmp_path / ".m.nir.8888.partial" / "inner").mkdir(parents=True)
    with room(tmp_path, "m.nir") as running:
        program = "import pathlib, sys\n"
        program += "from statten_deploy.export.rooms import sweep\nsweep(pathlib.Path(sys.argv[1]), 'm.nir')"
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
        assert running.path.is_dir()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"precious", ".m.nir.5555.partial", ".m.nir.6666.partial", ".other.nir.7777.partial"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_all_files_are_in_place(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.nir"
    write(path, b"old", b"old vectors")
    exchange = renames.exchange

    def disturbed(first: Path, second: Path) -> bool:
        os.kill(os.getpid(), number)
        return exchange(first, second)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(renames, "exchange", disturbed)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            write(path, b"new", b"new vectors")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert (path.read_bytes(), vectors_path(path).read_bytes(), sidecar["vectors"]) == (
        b"new",
        b"new vectors",
        "b'new vectors'",
    )
    assert len(list(tmp_path.iterdir())) == 3


def test_what_stands_where_files_belong(tmp_path: Path) -> None:
    path = tmp_path / "m.nir"
    vectors_path(path).mkdir()
    (vectors_path(path) / "precious").write_text("")
    for vectors in (None, b"new"):
        with pytest.raises(InputError, match=r"m\.nir\.vectors\.npz: is a folder"):
            write(path, b"new", vectors)
    assert content(tmp_path) == {"m.nir.vectors.npz/precious": b""}


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 100 + ".nir")  # 204 bytes; a sidecar's has 5 more
    write(path, b"x")
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InputError, match=r"File name too long.*choose a shorter --out"):
        write(tmp_path / ("é" * 125 + ".nir"), b"x")
    assert len(list(tmp_path.iterdir())) == 2


def test_scratch_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = "import os\nfrom statten_deploy.export.rooms import scratch\n"
    program += "with scratch('statten-x'):\n    os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with scratch("statten-x") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []
