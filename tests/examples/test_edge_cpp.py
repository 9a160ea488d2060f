"""examples/edge_cpp: built with CMake against the onnxruntime of the wheel, and run.

The wheel has the library but no headers, and neither PyPI, npm nor Debian 12 has a package with both. `onnxruntime_abi`
therefore declares what the program calls; with ONNXRUNTIME_ROOT in the environment the real headers are used instead.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from statten_deploy.runtime import load
from tests.runtime.conftest import samples, write

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/edge_cpp"

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="needs CMake and a C++ compiler"
)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built program. Warnings are errors."""
    build = tmp_path_factory.mktemp("build")
    root = os.environ.get("ONNXRUNTIME_ROOT") or str(wheel_as_root(tmp_path_factory.mktemp("onnxruntime")))
    settings = [f"-DONNXRUNTIME_ROOT={root}", "-DCMAKE_CXX_FLAGS=-Werror", "-DCMAKE_BUILD_TYPE=Debug"]
    for command in (["-S", EXAMPLE, "-B", build, *settings], ["--build", build]):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "edge"


def wheel_as_root(folder: Path) -> Path:
    """The layout of a release of onnxruntime: the wheel's library, and the declarations of this test."""
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    shutil.copytree(Path(__file__).parent / "onnxruntime_abi", folder / "include")
    return folder


def vectors(folder: Path, x: np.ndarray, logits: np.ndarray) -> Path:
    """What --test-vectors writes, turned by the script of the example."""
    np.savez_compressed(folder / "vectors.npz", input=x, output=logits)
    script = [sys.executable, EXAMPLE / "vectors_to_raw.py", folder / "vectors.npz", folder / "vectors.raw"]
    subprocess.run([str(part) for part in script], check=True)
    return folder / "vectors.raw"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("layout", ["sequence", "stream"])
@pytest.mark.parametrize("network", ["image", "frames", "sliding"])
def test_it_gives_the_answers_of_the_runtime(edge: Path, tmp_path: Path, network: str, layout: str) -> None:
    x = samples(network, 4)
    model = write(tmp_path / "net.onnx", network, layout=layout)
    expected = load(model, threads=1).predict(x)
    done = run(edge, model, vectors(tmp_path, x, expected.logits), "--threads", 1, "--tolerance", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "4 of 4 labels agree, largest difference 0"
    assert [int(line.split()[-1]) for line in lines[:-1]] == expected.labels.tolist()
    calls = 1 if layout == "sequence" else 4 if network == "sliding" else 2
    assert all(len(line.partition(": ")[2].split()) == calls for line in lines[:-1])  # an answer for every call


def test_answers_that_differ_are_exit_status_1(edge: Path, tmp_path: Path) -> None:
    x = samples("frames", 2)
    model = write(tmp_path / "net.onnx", "frames", layout="stream")
    logits = load(model, threads=1).predict(x).logits
    logits[1, (logits[1].argmax() + 1) % 5] += 100
    done = run(edge, model, vectors(tmp_path, x, logits))
    assert done.returncode == 1
    assert "1 of 2 labels agree, largest difference 100" in done.stdout
    assert "(expected " in done.stdout
    slightly = load(model, threads=1).predict(x).logits + np.float32(0.5)
    done = run(edge, model, vectors(tmp_path, x, slightly))
    assert done.returncode == 1
    assert "2 of 2 labels agree, largest difference 0.5" in done.stdout


def test_bad_input_is_one_line_and_exit_status_2(edge: Path, tmp_path: Path) -> None:
    x = samples("frames", 2)
    model = write(tmp_path / "net.onnx", "frames", layout="stream")
    good = vectors(tmp_path, x, np.zeros((2, 5), np.float32))
    cut, zero = tmp_path / "cut.raw", tmp_path / "zero.onnx"
    changed = onnx.load(model)
    next(entry for entry in changed.metadata_props if entry.key == "steps_per_call").value = "0"
    onnx.save(changed, zero)
    content = good.read_bytes()
    huge = content[:16] + np.array([2**40], "<i8").tobytes() + content[24:]
    other = vectors(Path(shutil.copytree(tmp_path, tmp_path / "other")), x[:, :3], np.zeros((2, 5), np.float32))
    cases = [
        ([], "usage: edge"),
        ([tmp_path / "none.onnx", good], "none.onnx"),
        ([model, tmp_path / "none.raw"], "not readable, or not written by vectors_to_raw.py"),
        ([model, model], "not readable, or not written by vectors_to_raw.py"),
        ([model, other], "its samples are not what the network takes"),
        ([model, good, "--threads"], "--threads needs a value"),
        ([model, good, "--moon", 1], "unknown option --moon"),
        ([model, good, "--threads", "two"], "--threads: expected a whole number of at least 1, found 'two'"),
        ([model, good, "--threads", -1], "--threads: expected a whole number of at least 1, found '-1'"),
        ([zero, good], "steps_per_call of the file: expected a whole number of at least 1, found '0'"),
    ]
    for end in (3, 20, 40, len(content) - 1):
        cases.append(([model, tmp_path / f"{end}.raw"], "raw"))
        (tmp_path / f"{end}.raw").write_bytes(content[:end])
    cut.write_bytes(huge)
    cases.append(([model, cut], "ends too early"))
    for arguments, message in cases:
        done = run(edge, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("edge: error: ")
        assert message in done.stderr
