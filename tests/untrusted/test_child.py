"""The child process that reads first: what it finds comes back as it was, and it is stopped at its limits."""

from pathlib import Path

import h5py
import pytest

from statten_deploy.errors import ConfigError, InputError
from statten_deploy.export.nir import read_nir
from statten_deploy.untrusted import child, limits
from tests.untrusted.formats import FORMATS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    FORMATS["nir-stranger"].make(tmp_path / "a.nir")
    return tmp_path / "a.nir"


def test_sound_files_and_what_is_wrong_with_others(path: Path) -> None:
    assert set(read_nir(path).nodes) >= {"conv", "lif", "out"}
    with h5py.File(path, "r+") as file:
        file["node/nodes/lif/extra"] = h5py.SoftLink("/node")
    with pytest.raises(
        InputError, match=rf"^{path}: /node/nodes/lif/extra is a link; a NIR file holds its data itself$"
    ):
        read_nir(path)


def test_a_child_that_hangs_or_dies(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATTEN_MAX_SECONDS", "0.3")
    monkeypatch.setattr(child, "START", "import time; time.sleep(60)")
    with pytest.raises(InputError, match=r"not a readable HDF5 file \(not read within 0.3 s; where the file is sound"):
        read_nir(path)
    monkeypatch.setenv("STATTEN_MAX_SECONDS", "60")
    monkeypatch.setattr(child, "START", "import os; os.abort()")
    with pytest.raises(InputError, match="the reader was ended by signal 6"):
        read_nir(path)


@pytest.mark.parametrize(("told", "expected"), [("64M", 64 << 20), ("2g", 2 << 30), ("1000", 1000)])
def test_the_limit_is_the_environment_s(monkeypatch: pytest.MonkeyPatch, told: str, expected: int) -> None:
    monkeypatch.setenv("STATTEN_MAX_BYTES", told)
    assert limits.max_bytes() == expected
    limits.check_bytes("a", expected)
    with pytest.raises(InputError, match="raise the limit with STATTEN_MAX_BYTES"):
        limits.check_bytes("a", expected + 1)


@pytest.mark.parametrize("told", ["much", "-1", "0", "1.5G", "9" * 5000, "G"])
def test_limits_that_are_none(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("STATTEN_MAX_BYTES", told)
    with pytest.raises(ConfigError, match="expected a number of bytes, such as 2000000000 or 16G"):
        limits.max_bytes()
    monkeypatch.setenv("STATTEN_MAX_SECONDS", told if told != "9" * 5000 else "nan")
    if told != "1.5G":
        with pytest.raises(ConfigError, match="expected a number of seconds"):
            limits.max_seconds()


def test_the_default_is_no_more_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATTEN_MAX_BYTES", raising=False)
    monkeypatch.setattr(limits, "_physical_memory", lambda: 4 << 30)
    assert limits.max_bytes() == 3 << 30
    monkeypatch.setattr(limits, "_physical_memory", lambda: 64 << 30)
    assert limits.max_bytes() == limits.DEFAULT_MAX_BYTES == 8 << 30
