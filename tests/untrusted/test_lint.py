"""What must not stand anywhere in the code: everything that could run what a file holds."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("statten_deploy", "models", "export", "examples", "benchmarks")
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
    "runpy",
    "code",
}
CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"load", "load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all"}


def problems(source: str) -> list[str]:
    """Everything forbidden in a Python text, as ``line: what``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        told = {keyword.arg: keyword.value for keyword in node.keywords}
        function = ast.unparse(node.func)
        owner, _, method = function.rpartition(".")
        if function in CALLS:
            found.append(f"{node.lineno}: {function}()")
        if owner == "yaml" and method in LOADERS:
            found.append(f"{node.lineno}: {function}()")
        if owner in ("torch", "torch.jit") and method == "load" and not _is(told.get("weights_only"), True):
            found.append(f"{node.lineno}: {function}() without weights_only=True")
        if owner in ("np", "numpy") and method == "load" and not _is(told.get("allow_pickle"), False):
            found.append(f"{node.lineno}: {function}() without allow_pickle=False")
        if "allow_pickle" in told and not _is(told["allow_pickle"], False):
            found.append(f"{node.lineno}: allow_pickle")
        if "weights_only" in told and not _is(told["weights_only"], True) and method not in ("save_checkpoint",):
            found.append(f"{node.lineno}: weights_only")
        if owner == "onnx" and method == "load" and not _is(told.get("load_external_data"), False):
            found.append(f"{node.lineno}: {function}() without load_external_data=False")
    return found


def _is(value: ast.expr | None, expected: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is expected


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal as m",
        "import shelve",
        "from joblib import load",
        "yaml.load(x, yaml.Loader)",
        "yaml.unsafe_load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "numpy.lib.format.read_array(x, allow_pickle=flag)",
        "eval(x)",
        "exec(x)",
        "onnx.load(x)",
        "trainer.fit(m, weights_only=False)",
    ],
)
def test_the_check_sees(source: str) -> None:
    assert problems(source)


@pytest.mark.parametrize(
    "source",
    ["np.load(x, allow_pickle=False)", "torch.load(x, weights_only=True)", "model.eval()", "import pickletools"],
)
def test_the_check_passes(source: str) -> None:
    assert not problems(source)


def test_the_code() -> None:
    paths = {path.resolve() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert len(paths) > 150
    found = [f"{path.relative_to(ROOT)}:{problem}" for path in sorted(paths) for problem in problems(path.read_text())]
    assert not found, found
