"""Which ONNX files an engine may see: all that are exported, and none that holds anything else."""

import ast
from contextlib import nullcontext
from pathlib import Path

import onnx
import pytest
from onnx import helper

from statten_deploy.errors import InputError
from statten_deploy.runtime.structure import OPERATORS, check_structure
from tests.untrusted.formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]


def test_every_operator_that_is_exported_is_known() -> None:
    """Names of operators in the code of the exporter; add a new one to `OPERATORS` in runtime/structure.py."""
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    sources = [ast.parse(path.read_text()) for path in (ROOT / "export/onnx").rglob("*.py")]
    texts = {node.value for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert texts & known == OPERATORS


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_exported_files_pass_and_so_does_onnx_s_checker(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.onnx"
    FORMATS[name].make(path)
    check_structure(path)
    onnx.checker.check_model(str(path), full_check=True)


def test_operators_of_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    FORMATS["onnx"].make(path)
    sound = path.read_bytes()
    for domain, kind in (("", "Loop"), ("com.microsoft", "Crop"), ("statten", "X")):
        told = f"'{domain}.{kind}'" if domain else f"'{kind}'"
        model = onnx.load_model_from_string(sound)
        model.graph.node[0].op_type, model.graph.node[0].domain = kind, domain
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=f"not loaded: operator {told} is none of ours"):
            check_structure(path)


def test_two_graphs_in_one_file(tmp_path: Path) -> None:
    """A parser merges them; what is checked must be what is run."""
    path = tmp_path / "a.onnx"
    FORMATS["onnx"].make(path)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(InputError, match="it holds 2 graphs"):
        check_structure(path)


def _calling(path: Path, calls: dict[str, list[str]], first: str) -> None:
    """A sound file with these functions, each a chain of calls, and a call of the first."""
    FORMATS["onnx"].make(path)
    model = onnx.load_model_from_string(path.read_bytes())
    for name, called in calls.items():
        steps = [
            helper.make_node(inner, [f"v{i}"], [f"v{i + 1}"], domain="statten" if inner in calls else "")
            for i, inner in enumerate(called)
        ]
        outputs = [f"v{len(called)}"]
        model.functions.append(helper.make_function("statten", name, ["v0"], outputs, steps, model.opset_import))
    model.graph.node.append(helper.make_node(first, [model.graph.input[0].name], ["unused"], domain="statten"))
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("calls", [{"F": ["F"]}, {"G": ["Neg"], "F": ["G", "H"], "H": ["Neg", "F"]}])
def test_functions_that_call_themselves(tmp_path: Path, calls: dict[str, list[str]]) -> None:
    _calling(tmp_path / "a.onnx", calls, "F")
    with pytest.raises(InputError, match="not loaded: functions call themselves, or one another more than 8 deep"):
        check_structure(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("levels", "times", "message"),
    [(6, 2, None), (5, 20, "unfold to more than 250,000 nodes"), (40, 2, "more than 8 deep")],
)
def test_functions_that_unfold_without_end(tmp_path: Path, levels: int, times: int, message: str | None) -> None:
    """Each calls the next one twice: an engine that puts the bodies in place of the calls never comes to an end."""
    calls = {f"F{i}": [f"F{i + 1}"] * times for i in range(levels)} | {f"F{levels}": ["Neg"]}
    _calling(tmp_path / "a.onnx", calls, "F0")
    with pytest.raises(InputError, match=message) if message else nullcontext():
        check_structure(tmp_path / "a.onnx")
