"""The package as others see it: what is installed, what importing costs, which names exist."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import statten_deploy

ROOT = Path(__file__).resolve().parents[1]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_exported_names_exist_and_are_all() -> None:
    for name in statten_deploy.__all__:
        assert getattr(statten_deploy, name) is not None
    assert set(statten_deploy._HOME) | {"__version__"} == set(statten_deploy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = statten_deploy.nonsense


def test_importing_the_package_or_a_command_does_not_import_torch() -> None:
    commands = ("export", "run", "train", "compare")
    imports = "; ".join(f"import statten_deploy.cli.{name}" for name in commands)
    assert (
        python(f"import sys, statten_deploy; {imports}; print('torch' in sys.modules, 'onnx' in sys.modules)")
        == "False False"
    )


def test_wheel_holds_only_statten_deploy(tmp_path: Path) -> None:
    """Models and exporters land inside the package, configurations and shipped checkpoints with them."""
    tree = tmp_path / "tree"
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "demo", "runs")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=unwanted)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel(r'{tmp_path}'))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tree, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"statten_deploy"}
    for expected in (
        "statten_deploy/py.typed",
        "statten_deploy/models/statten.py",
        "statten_deploy/models/configs/digits.yaml",
        "statten_deploy/models/zoo/digits.ckpt",
        "statten_deploy/export/onnx/build.py",
        "statten_deploy/export/nir/__init__.py",
        "statten_deploy/runtime/session.py",
        "statten_deploy/energy/profiles/loihi1.toml",
        "statten_deploy/energy/chips/loihi2.toml",
        "statten_deploy/compare/report/templates/report.html",
        "statten_deploy/compare/report/templates/parts.html",
        "statten_deploy/compare/report/templates/report.css",
        "statten_deploy/export/lava/bundle/README.md",
        "statten_deploy/export/lava/bundle/run.py",
        "statten_deploy/export/lava/bundle/statten_lava/processes/__init__.py",
    ):
        assert expected in names, expected


def test_console_scripts_point_at_functions() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_error_tree_in_the_docstring_is_the_real_one() -> None:
    from statten_deploy import errors

    for name in errors.__all__:
        assert name in (errors.__doc__ or "")
        assert issubclass(getattr(errors, name), errors.StattenError)
    assert errors.GraphError("x").exit_status == 2
    assert errors.VerificationError("x").exit_status == 1


def test_nothing_loads_pickles_or_unsafe_yaml() -> None:
    """Files come from strangers: no full unpickler, no unsafe loader, anywhere in the package."""
    forbidden = ("weights_only=False", "allow_pickle=True", "yaml.load(", "pickle.load")
    sources = [*ROOT.glob("statten_deploy/**/*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("export/**/*.py")]
    assert len(sources) > 30
    assert [(path.name, text) for path in sources for text in forbidden if text in path.read_text()] == []
