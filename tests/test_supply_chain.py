"""Licences of what we bring, and what is imported without being asked for."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LICENCES = runpy.run_path(str(ROOT / ".ci" / "licences.py"))
TABLE: dict[str, tuple[str, str]] = LICENCES["table"]()
GPL_ALLOWED = {"sanafe", "datasets", "dev"}


def brought() -> list[tuple[str, str, str]]:
    return [(name, told, group) for name, (told, group) in TABLE.items() if group != "none"]


def test_every_package_is_listed_with_its_licence() -> None:
    """A package that came or changed its licence: `make licences`, and look at what it says."""
    assert len(brought()) > 60
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    assert [name for name, told, _ in brought() if f"| {name} | {told} |" not in text] == []


def test_every_licence_is_known() -> None:
    assert [(name, told) for name, told, _ in brought() if LICENCES["unknown"](told)] == []
    assert LICENCES["unknown"]("MIT AND Beerware") == "Beerware"
    assert LICENCES["unknown"]("") == "nothing"


def test_copyleft_is_optional() -> None:
    assert [
        name for name, told, group in brought() if LICENCES["COPYLEFT"].search(told) and group not in GPL_ALLOWED
    ] == []
    core = [told for _, told, group in brought() if group == "core"]
    assert len(core) > 30
    assert not any(LICENCES["WEAK_COPYLEFT"].search(told) for told in core)
    assert LICENCES["COPYLEFT"].search(TABLE["sanafe"][0]) if "sanafe" in TABLE else True


def test_nothing_of_an_extra_is_imported_unasked() -> None:
    program = (
        "import sys, statten_deploy.comparing, statten_deploy.energy, statten_deploy.evaluate; "
        "print([m for m in ('sanafe', 'norse', 'lava', 'tonic', 'expelliarmus', 'soxr', 'sinabs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_onnxruntime_does_not_report_its_use(tmp_path: Path) -> None:
    """Where it would, and there is no home folder to keep an identifier of the device in, it says so on stderr."""
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    program = "import os\nfrom statten_deploy.runtime.engines import import_onnxruntime\nimport_onnxruntime()\n"
    program += "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**kept, "HOME": str(tmp_path / "missing"), "XDG_CACHE_HOME": str(tmp_path / "missing")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_pins_are_exact() -> None:
    for name in ("constraints.txt", "constraints-tools.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins = [line.split(";")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
        assert len(pins) > 20
        assert [pin for pin in pins if pin.count("==") != 1] == []
