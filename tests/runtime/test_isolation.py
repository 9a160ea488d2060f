"""What the runtime imports, in an interpreter of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.conftest import samples

USE = """
import json, sys
before = set(sys.modules)
import statten_deploy.runtime
light = set(sys.modules) - before
import numpy as np
from statten_deploy.runtime import load
x = np.load(sys.argv[3])
logits = load(sys.argv[1], threads=1).predict(x).logits
stream = load(sys.argv[2], threads=1).stream()
for frame in x[0]:
    result = stream.push(frame)
stream.restore(stream.state())
assert np.array_equal(result.logits, logits[0])
print(json.dumps([sorted(light), sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def imported(artefact, tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Modules after the import, and after use of both layouts."""
    x = tmp_path_factory.mktemp("x") / "x.npy"
    np.save(x, samples("frames", 2))
    command = [sys.executable, "-c", USE, artefact("frames", "sequence"), artefact("frames", "stream"), x]
    told = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
    light, used = json.loads(told)
    return set(light), set(used)


def others(modules: set[str]) -> set[str]:
    """Top-level names outside the standard library and this package."""
    return {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"statten_deploy"}


def test_nothing_but_numpy_and_onnxruntime_is_imported(imported: tuple[set[str], set[str]]) -> None:
    light, used = imported
    assert others(light) == {"numpy"}
    assert others(used) == {"numpy", "onnxruntime"}


def test_of_this_package_only_light_modules_are_imported(imported: tuple[set[str], set[str]]) -> None:
    ours = {name for name in imported[1] if name.partition(".")[0] == "statten_deploy"}
    rooms = {name.split(".")[1] for name in ours if "." in name}
    assert rooms == {"runtime", "errors", "sidecar", "untrusted", "version"}
    assert {name for name in ours if ".untrusted." in name} == {
        f"statten_deploy.untrusted.{n}" for n in ("limits", "text")
    }
    assert {f"statten_deploy.runtime.{name}" for name in ("session", "stream", "engines")} <= ours


def test_the_folder_names_no_other_room() -> None:
    """Also not inside functions, where an import would show only later."""
    folder = Path(__file__).resolve().parents[2] / "statten_deploy/runtime"
    lines = [line.strip() for path in folder.glob("*.py") for line in path.read_text().splitlines()]
    imports = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    own = {name for name in imports if name.startswith("statten_deploy")}
    assert {name.split(".")[1] for name in own} <= {"runtime", "errors", "sidecar", "untrusted", "version"}
    rest = {name.partition(".")[0] for name in imports - own} - set(sys.stdlib_module_names)
    assert rest == {"numpy", "onnxruntime", "openvino"}
