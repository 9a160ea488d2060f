"""Full disks, forbidden folders, limits: one line, exit status 2, the old artefact as it was, nothing temporary."""

import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from statten_deploy.export import hdf5_files
from statten_deploy.export.nir.hdf5 import write_file
from statten_deploy.frontend import build_graph
from tests.cli.commands import DIGITS, error_line, export
from tests.conftest import lively_model, small_config

FLAGS: dict[str, list[str]] = {
    "nir": ["--attention", "compact"],
    "onnx": [],
    "onnx-int8": [],
    "lava": [],
    "netx": ["--until", "patch_embed.proj_lif"],
}
SUFFIX = {"nir": ".nir", "onnx": ".onnx", "onnx-int8": ".onnx", "lava": ".lava", "netx": ".net"}


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        monkeypatch.chdir(name)
        yield Path(name)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file larger than this, as `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As Python starts; a library that another test has loaded may have put the default back, which ends the process.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("target", FLAGS)
def test_files_that_do_not_fit(target: str, open_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """HDF5 would write part of a file when it closes it, and complain from C: `capfd` would see that."""
    name = f"m{SUFFIX[target]}"
    arguments = [DIGITS, "--target", target, "--out", name, "--no-verify", *FLAGS[target]]
    assert export(*arguments) == 0
    before = content(open_folder)
    capfd.readouterr()
    with file_limit(3000):
        assert export(*arguments) == 2
    assert f"{name}: cannot be written (File too large); a limit on the size of files" in error_line(capfd)
    assert content(open_folder) == before
    assert sorted(path.name for path in open_folder.iterdir()) == [name, f"{name}.json"]


@pytest.mark.parametrize("limit", [0, 100, 2_000, 10_000, 50_000, 90_000])
def test_hdf5_fails_wherever_the_disk_is_full(limit: int, open_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = build_graph(lively_model(small_config("static")))
    with file_limit(limit), pytest.raises(OSError, match="File too large") as raised:
        write_file(open_folder / "m.nir", graph)
    assert raised.value.filename == str(open_folder / "m.nir")
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_is_full(open_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A real one, of 8 KiB."""
    disk = open_folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        for target, flags in FLAGS.items():
            out = disk / f"m{SUFFIX[target]}"
            assert export(DIGITS, "--target", target, "--out", out, "--no-verify", *flags) == 2
            line = error_line(capfd)
            assert f"{out}: cannot be written (No space left on device); free some space, or choose" in line
            assert list(disk.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert export(DIGITS, "--target", "nir", "--out", disk / "m.nir") == 2
        assert "m.nir: cannot be written (Read-only file system); choose another --out" in error_line(capfd)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_is_not_ours(open_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [DIGITS, "--target", "onnx", "--out", "m.onnx", "--no-verify"]
    assert export(*arguments) == 0
    before = content(open_folder)
    capfd.readouterr()
    open_folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        assert export(*arguments) == 2
    finally:
        os.seteuid(user)
        open_folder.chmod(0o755)
    assert "m.onnx: cannot be written (Permission denied); choose another --out, or change" in error_line(capfd)
    assert content(open_folder) == before


def test_errors_about_other_files_are_not_ours(open_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.savez(open_folder / "data.npz", y=np.zeros(3))
    assert export(DIGITS, "--target", "onnx", "--calibration", open_folder / "data.npz") == 2
    assert "data.npz: no array 'x'" in error_line(capfd)
    assert [path.name for path in open_folder.iterdir()] == ["data.npz"]


def test_what_a_full_disk_refuses_is_read_back(open_folder: Path) -> None:
    """HDF5 reads its own bookkeeping again before it is told; anything else there ends the process."""
    stream = hdf5_files._Patient(open_folder / "m.nir")
    stream.write(b"0123456789")
    with file_limit(14):
        stream.seek(8)
        stream.write(b"abcdefghijkl")
        stream.seek(2)
        stream.write(b"--")
        stream.seek(18)
        stream.write(b"yz!")
    assert stream.error is not None
    stream.seek(0)
    assert stream.read(100) == b"01--4567abcdefghijyz!"
    stream.seek(6)
    assert stream.read(4) == b"67ab"
    stream.close()
