"""Bundles that fail, hang, are damaged or are interrupted: one error, the real reason, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

from statten_deploy.errors import InputError, StattenError
from statten_deploy.export.lava import LavaRunner, write_bundle
from statten_deploy.export.lava.bundle.statten_lava import supervise
from statten_deploy.export.lava.manifest import write_manifest
from tests.export.lava.conftest import ROOT, processes_of


@pytest.fixture
def bundle(tmp_path: Path, integer_network) -> Path:
    return write_bundle(integer_network("sdt", depth=1)[0], tmp_path / "bundle").folder


@pytest.fixture
def x(integer_network) -> np.ndarray:
    return integer_network("sdt", depth=1)[1]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: no process, no temporary file."""
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield
        wait_for(lambda: processes_of(tmp_path) == {}, 15)
        wait_for(lambda: list(Path(name).iterdir()) == [], 5)


def edit(bundle: Path, change: Callable[[dict], None]) -> None:
    """Change network.json and make the manifest fit."""
    path = bundle / "network.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    edit_manifest(bundle)


def edit_manifest(bundle: Path) -> None:
    """Make the manifest fit."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    write_manifest(bundle, {key: manifest[key] for key in ("latency_steps", "input_shape", "classes", "output")})


def first_conv(document: dict) -> dict:
    return next(node for node in document["nodes"] if node["op"] == "conv")


def test_traceback_of_a_process_that_fails_while_running(bundle: Path, x: np.ndarray) -> None:
    """Lava itself would wait for ever: the other processes wait for this one."""
    edit(bundle, lambda document: first_conv(document)["options"].update(padding=[0, 0]))
    name = first_conv(json.loads((bundle / "network.json").read_text()))["name"]
    with pytest.raises(StattenError, match=f"process '{name}' failed") as caught:
        LavaRunner(bundle, limit_s=60).run(x)
    notes = "\n".join(caught.value.__notes__)
    assert "Traceback" in notes
    assert "cannot reshape array" in notes
    assert "processes/__init__.py" in notes


def test_traceback_of_a_process_that_cannot_be_built(bundle: Path, x: np.ndarray) -> None:
    edit(bundle, lambda document: first_conv(document)["options"].update(groups=5))
    with pytest.raises(StattenError, match="ValueError: cannot reshape array") as caught:
        LavaRunner(bundle, limit_s=60).run(x)
    assert "in __init__" in "\n".join(caught.value.__notes__)


def test_time_limit(bundle: Path, x: np.ndarray) -> None:
    with pytest.raises(StattenError, match="stopped at the time limit of 1 s"):
        LavaRunner(bundle, limit_s=1).run(np.repeat(x, 300, 0), batch=1)
    assert processes_of(bundle) == {}  # at once, not some time later


def test_processes_that_ignore_sigterm_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.5)
    code = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(); sys.stdout.flush(); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        supervise._end_group(process.pid)
        assert processes_of(tmp_path) == {}


def test_shared_memory_of_processes_that_had_to_be_killed_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's resource tracker, which would do it, is killed with them. That of other processes stays."""
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.5)
    code = (
        "import signal, time; from multiprocessing.shared_memory import SharedMemory; signal.signal(15, signal.SIG_IGN)"
    )
    code += "; memory = SharedMemory(create=True, size=99); print(memory.name, flush=True); time.sleep(60)"
    mine = SharedMemory(create=True, size=99)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        with process:
            assert process.stdout is not None
            segment = Path("/dev/shm") / process.stdout.readline().strip()
            assert segment.is_file()
            supervise._end_group(process.pid)
        assert not segment.exists()
        assert (Path("/dev/shm") / mine.name).is_file()
    finally:
        mine.close()
        mine.unlink()


def test_a_run_py_that_hangs_is_stopped(
    bundle: Path, x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the limit itself; this one does not, nor does it see that its standard input closes."""
    monkeypatch.setattr("statten_deploy.export.lava.runner.STOP_SECONDS", 0.5)
    hanging = tmp_path / "python"
    hanging.write_text(f"#!/bin/bash\nexec -a {bundle} sleep 600\n")
    hanging.chmod(0o755)
    with pytest.raises(StattenError, match=r"run\.py hangs, 0\.5 s were its limit; stopped"):
        LavaRunner(bundle, limit_s=0.5, python=str(hanging)).run(x)
    assert processes_of(bundle) == {}


def test_damaged_bundles_are_not_started(bundle: Path, x: np.ndarray) -> None:
    runner = LavaRunner(bundle)
    (bundle / "statten_lava" / "evil.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match=r"changed or damaged .*: statten_lava/evil\.py"):
        runner.run(x)
    (bundle / "statten_lava" / "evil.py").unlink()
    (bundle / "weights.npz").write_bytes(b"PK")
    (bundle / "run.py").unlink()
    with pytest.raises(InputError, match=r"run\.py, weights\.npz"):
        runner.run(x)
    (bundle / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="not a Lava bundle"):
        LavaRunner(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "numpy.so",
        "numpy.pyc",
        "lava.cpython-311-x86_64-linux-gnu.so",
        "statten_lava/__pycache__/worker.cpython-311.pyc",
    ],
)
def test_code_beside_the_listed_files_is_refused(bundle: Path, name: str) -> None:
    (bundle / "notes.txt").write_text("mine")
    LavaRunner(bundle)
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"changed or damaged .*: {name}; export again"):
        LavaRunner(bundle)


def test_links_to_code_are_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle / "numpy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"changed or damaged .*: numpy; export again"):
        LavaRunner(bundle)


def test_many_changed_files_are_one_short_line(bundle: Path) -> None:
    for index in range(20):
        (bundle / f"m{index:02}.py").touch()
    with pytest.raises(InputError, match=r": m00.py, .*, m07.py and 12 more; export again"):
        LavaRunner(bundle)


def test_a_manifest_whose_list_is_none(bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for files in ([1], {}, None):
        path.write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(InputError, match=r"'files' must list run\.py and the other files"):
            LavaRunner(bundle)
    path.write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(InputError, match="format 2, this version reads 1"):
        LavaRunner(bundle)


def without(*keys: str) -> Callable[[dict], None]:
    def remove(document: dict) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return remove


NONSENSE: dict[str, tuple[Callable[[dict], None], str]] = {
    "no nodes": (without("nodes"), "KeyError: 'nodes'"),
    "no steps": (without("time_steps"), "KeyError: 'time_steps'"),
    "nodes of numbers": (lambda document: document.update(nodes=[1]), "TypeError"),
    "negative steps": (lambda document: document.update(time_steps=-4), "ValueError: time_steps is -4"),
    "input of text": (lambda document: document.update(input="x"), "TypeError"),
    "a scale of text": (lambda document: document["input"].update(scale=["a", "b", "c"]), "ValueError: a scale is"),
    "unknown encoder": (lambda document: document["input"].update(encoder="x"), "KeyError: 'x/zero_point"),
    "unknown source": (lambda document: document["output"].update(source="x"), "KeyError: 'x'"),
    "unknown operation": (lambda document: first_conv(document).update(op="x"), "KeyError: 'x'"),
    "unknown input": (lambda document: first_conv(document).update(inputs={"a_in": ["x"]}), "KeyError: 'x'"),
    "unknown port": (lambda document: first_conv(document).update(inputs={"x": ["x"]}), "KeyError|AttributeError"),
}


@pytest.mark.parametrize("kind", list(NONSENSE))
def test_nonsense_with_a_matching_manifest_is_one_line(bundle: Path, x: np.ndarray, kind: str) -> None:
    change, reason = NONSENSE[kind]
    edit(bundle, change)
    with pytest.raises(InputError, match=f"^{bundle}: damaged bundle: ({reason})") as caught:
        LavaRunner(bundle, limit_s=60).run(x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("network.json", b"[" * 9999, ": damaged bundle: "),
        ("weights.npz", b"PK\3\4 no", "/weights.npz: not a readable .npz file "),
    ],
)
def test_unreadable_content_with_a_matching_manifest_is_one_line(
    bundle: Path, x: np.ndarray, name: str, data: bytes, said: str
) -> None:
    (bundle / name).write_bytes(data)
    edit_manifest(bundle)
    with pytest.raises(InputError, match=f"^{bundle}{said}") as caught:
        LavaRunner(bundle, limit_s=60).run(x)
    assert "\n" not in str(caught.value)


def test_running_it_by_hand_leaves_no_caches(bundle: Path, x: np.ndarray, tmp_path: Path) -> None:
    """They are code that the manifest does not list."""
    np.savez(tmp_path / "frames.npz", x=x[..., 0])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, str(bundle / "run.py"), "--input", str(tmp_path / "frames.npz")]
    command += ["--output", str(tmp_path / "out.npz")]
    assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False).returncode == 2
    LavaRunner(bundle)


def test_input_that_does_not_fit_is_one_line(bundle: Path, x: np.ndarray) -> None:
    runner = LavaRunner(bundle, limit_s=60)
    with pytest.raises(InputError, match=r"x is \[3, 3, 16\], expected \[N, 3, 16, 16\] or \[N, 4, 3, 16, 16\]"):
        runner.run(x[..., 0])
    with pytest.raises(InputError, match="finite numbers"):
        runner.run(np.full_like(x, np.nan))
    with pytest.raises(InputError, match="cannot be started"):
        LavaRunner(bundle, python="/no/such/python").run(x)


def started(tmp_path: Path, code: str, *arguments: str) -> tuple[subprocess.Popen, dict[int, list[str]]]:
    """A process running `code`, once Lava's processes exchange data: (it, what `processes_of` says then)."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: sum(map(bool, processes_of(tmp_path).values())) > 20)
    return process, processes_of(tmp_path)


CALLER = """
import sys, numpy as np
from pathlib import Path
from statten_deploy.export.lava import LavaRunner
LavaRunner(Path(sys.argv[1])).run(np.load(sys.argv[2])["x"], batch=1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_calling_process(bundle: Path, x: np.ndarray, tmp_path: Path, number: int) -> None:
    np.savez(tmp_path / "frames.npz", x=np.repeat(x, 300, 0))
    caller, family = started(tmp_path, CALLER, str(bundle), str(tmp_path / "frames.npz"))
    caller.send_signal(number)
    assert caller.wait(120) != 0
    wait_for(lambda: processes_of(tmp_path) == {})
    wait_for(lambda: not any(Path(name).exists() for names in family.values() for name in names))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_run_py(bundle: Path, x: np.ndarray, tmp_path: Path, number: int) -> None:
    """SIGKILL as well: the child watches its parent."""
    np.savez(tmp_path / "frames.npz", x=np.repeat(x, 300, 0))
    arguments = [str(bundle / "run.py"), "--input", str(tmp_path / "frames.npz"), "--output", str(tmp_path / "out.npz")]
    code = "import os, sys; os.execv(sys.executable, [sys.executable, '-B', *sys.argv[1:]])"
    process, family = started(tmp_path, code, *arguments, "--batch", "1")
    os.kill(process.pid, number)
    assert process.wait(120) == (143 if number == signal.SIGTERM else -number)
    wait_for(lambda: processes_of(tmp_path) == {})
    wait_for(lambda: not any(Path(name).exists() for names in family.values() for name in names))
    assert not list(tmp_path.glob("*out.npz*"))
