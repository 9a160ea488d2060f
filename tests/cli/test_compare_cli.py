"""``statten-compare`` as users type it: a table, a folder that appears whole, and three exit statuses."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nir
import pytest
from rich.progress import Progress

from statten_deploy import targets
from statten_deploy.backends import BACKENDS
from statten_deploy.cli import compare as cli
from statten_deploy.compare import report as report_module
from statten_deploy.train.data.split import fixed_order
from tests.cli.commands import DIGITS, ZOO, compare, error_line, run

STREAM = ZOO / "digits-stream.ckpt"
FEW = ("--backends", "torch,torch-int,nir,onnx,onnx-int8", "--samples", 6)
UNTIMED = ("--latency-seconds", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one comparison."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    assert compare(STREAM, *FEW, "--latency-seconds", 1e-6, "--out", folder) == 0
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the page and its plots, which take seconds and are looked at elsewhere."""
    monkeypatch.setattr(report_module, "write_html", lambda comparison, folder: [])


def test_the_report_has_the_fields_of_the_interface(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    assert (report["model"], report["dataset"], report["samples"], report["seed"]) == ("digits-stream", "digits", 6, 0)
    assert report["reference"] == {"float32": "torch", "integer": "torch-int"}
    assert [row["name"] for row in report["backends"]] == FEW[1].split(",")
    assert report["problems"] == []
    for row in report["backends"]:
        assert 0 <= row["accuracy_interval"][0] <= row["accuracy"] <= row["accuracy_interval"][1] <= 1
        assert row["accuracy"] == row["correct"] / 6
        assert row["energy_pj"].keys() == {"45nm-fp32", "45nm-int8", "loihi1"}
        assert row["latency_ms"].keys() == {"median", "p90", "batch", "runs"}
        assert row["spikes"] == sum(layer["spikes"] for layer in row["layers"] if layer["role"] == "neurons")
        assert row["synops"] == sum(layer["synops"] for layer in row["layers"])
        for layer in row["layers"]:
            assert layer.keys() >= {"name", "neurons", "spikes", "firing_rate", "synops"}
            if layer["spikes"]:
                assert layer["firing_rate"] == pytest.approx(layer["spikes"] / (layer["neurons"] * 4 * 6))
        for profile, total in row["energy_pj"].items():
            assert math.isclose(sum(row["energy"][profile]["layers_pj"].values()), total)


class Links(HTMLParser):
    """Everything a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data")]


def test_the_folder_is_complete(made: Path) -> None:
    names = {path.name for path in made.iterdir()}
    assert {"report.json", "report.html", "manifest.json"} < names
    assert sum(name.endswith(".png") for name in names) >= 5
    assert names - {"manifest.json"} == set(json.loads((made / "manifest.json").read_text())["files"])
    page = (made / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert [link for link in links.found if not link.startswith(("data:", "#"))] == []
    assert "digits-stream" in page


def test_what_is_printed(here: Path, capsys: pytest.CaptureFixture[str], undrawn: None) -> None:
    assert compare(STREAM, "--backends", "onnx", "--samples", 2, *UNTIMED) == 0
    told = capsys.readouterr()
    assert "digits-stream on digits: 2 samples" in told.out
    assert re.search(r"torch +100.00 % +reference", told.out)
    assert re.search(r"onnx +100.00 % +100.00 %", told.out)
    assert told.out.rstrip().endswith("wrote digits-stream.compare/report.html and report.json")
    assert told.err == ""


def test_json_is_the_report_and_the_same_again(here: Path, capsys: pytest.CaptureFixture[str], undrawn: None) -> None:
    options = (STREAM, "--backends", "onnx,nir", "--samples", 3, "--seed", 7, *UNTIMED, "--json")
    assert compare(*options) == 0
    first = capsys.readouterr().out
    assert json.loads(first) == json.loads((here / "digits-stream.compare" / "report.json").read_text())
    assert compare(*options) == 0  # over the older report
    assert capsys.readouterr().out == first


def test_a_bar_on_a_terminal_leaves_stdout_alone(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.setattr(cli, "on_terminal", lambda: True)
    seen = []
    monkeypatch.setattr(Progress, "update", lambda bar, task, **told: seen.append(told))
    assert compare(STREAM, "--backends", "onnx", "--samples", 2, *UNTIMED, "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2
    assert [told["description"] for told in seen] == ["torch", "onnx"] * 2
    assert [(told["completed"], told["total"]) for told in seen] == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_the_same_numbers_as_statten_run(made: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All samples would take long: the report's own samples, by their classes."""
    report = json.loads((made / "report.json").read_text())
    assert run(STREAM, "--data", "digits", "--json") == 0
    everything = json.loads(capsys.readouterr().out)
    chosen = sorted(fixed_order(360, 0)[:6])
    assert report["backends"][0]["predictions"] == [everything["predictions"][i] for i in chosen]


def test_a_checkpoint_trained_for_four_bits(here: Path, capsys: pytest.CaptureFixture[str], undrawn: None) -> None:
    trained = ZOO / "digits-stream-4bit.ckpt"
    options = ("--samples", 16, "--batch", 16, *UNTIMED, "--json")
    assert compare(trained, "--backends", "torch-int,onnx-int8,onnx", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bits"] == 4
    assert "trained for weights of 4 bits; float backends run the float network behind them" in report["warnings"]
    rows = {row["name"]: row for row in report["backends"]}
    assert rows["onnx-int8"]["spikes"] == rows["torch-int"]["spikes"] != rows["onnx"]["spikes"]
    assert rows["torch-int"]["correct"] >= 14


@pytest.fixture
def wrong_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer of the integer ONNX file gets one weight of the first layer wrong by one."""

    def broken(graph: nir.NIRGraph, **options: Any) -> Any:
        graph.nodes["patch_embed.proj_conv1"].weight[3, 5, 1, 1] += 1
        model = build(graph, **options)
        graph.nodes["patch_embed.proj_conv1"].weight[3, 5, 1, 1] -= 1
        return model

    build = targets.build_integer_onnx
    monkeypatch.setattr(targets, "build_integer_onnx", broken)


def test_a_wrong_artefact_is_status_1_and_in_the_report(
    here: Path, capsys: pytest.CaptureFixture[str], wrong_file: None, undrawn: None
) -> None:
    assert compare(STREAM, "--backends", "onnx-int8", "--samples", 3, *UNTIMED, "--json") == 1
    told = capsys.readouterr()
    assert told.err.startswith("statten-compare: error: onnx-int8: layer 'patch_embed.proj_lif1': ")
    first = min(fixed_order(360, 0)[:3])  # the number in the data set
    assert f"differ, first at step 0, sample {first}, neuron (3, " in told.err
    assert told.err.count("\n") == 1
    report = json.loads((here / "digits-stream.compare" / "report.json").read_text())
    assert json.loads(told.out) == report
    assert len(report["problems"]) >= 1


def test_debug_shows_what_an_engine_raised(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    def fall_over(*_: Any, **__: Any) -> Any:
        raise RuntimeError("fell over")

    monkeypatch.setattr(targets, "build_onnx", fall_over)
    options = (STREAM, "--backends", "nir,onnx", "--samples", 1, *UNTIMED)
    assert compare(*options) == 1
    told = capsys.readouterr()
    assert told.err == "statten-compare: error: onnx: cannot be set up: RuntimeError: fell over\n"
    assert re.search(r"nir +100.00 % +100.00 %", told.out)
    assert compare(*options, "--debug") == 1
    assert ", in fall_over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backends", "torch,loihi"), "--backends loihi: unknown; expected some of torch, torch-int, nir"),
        (("--backends", " , "), "--backends: names none"),
        (("--profile", "loihi2"), "profile 'loihi2': no energy per operation has been published for Loihi 2"),
        (("--profile", "loihi3"), "profile 'loihi3': unknown; give one of"),
        (("--profile", "no.toml"), "no.toml: cannot be read"),
        (("--bits", 9), "--bits 9: expected 2 to 8"),
        (("--samples", 361), "has 360 samples, --samples asks for 361"),
        (("--data", "nothing"), "nothing: no such data"),
        (("--out", "no/such/folder"), "no/such: no such folder"),
        (("--out", "/proc/x"), "/proc/x: cannot be written ("),
        (("--out", "/"), "/: cannot be replaced; --out names the folder to write"),
        (("--out", "/etc/hostname"), "/etc/hostname: is no folder; --out names the folder to write"),
        (("--device", "tpu"), "device 'tpu' cannot be used here"),
        (("--granularity", "row"), "'row'"),
        (("--time-steps", 5), "--time-steps 5: the checkpoint says 4"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], said: str
) -> None:
    assert compare(STREAM, *arguments) == 2
    assert said in error_line(capsys)
    assert list(here.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "precious").write_text("")
    assert compare(DIGITS, "--out", "mine") == 2  # before anything is computed
    assert "holds what no export wrote: precious" in error_line(capsys)
    bundle = here / "digits.lava"
    bundle.mkdir()
    (bundle / "manifest.json").write_text('{"kind": "statten-lava-bundle", "format": 1, "files": {}}')
    assert compare(DIGITS, "--out", bundle) == 2
    assert "manifest.json" in error_line(capsys)
    assert sorted(path.name for path in here.rglob("*")) == ["digits.lava", "manifest.json", "mine", "precious"]


def test_the_report_appears_whole_or_not_at_all(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(comparison: Any, folder: Path) -> None:
        (folder / "half.png").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module, "write_html", fails)
    assert compare(STREAM, "--backends", "onnx", "--samples", 1, *UNTIMED) == 2
    assert "No space left on device" in error_line(capsys)
    assert list(here.iterdir()) == []


def test_ctrl_c_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("statten_deploy.comparing.compare_backends", interrupted)
    assert compare(STREAM) == 130
    assert error_line(capsys) == "statten-compare: error: interrupted; files it writes are complete or as they were\n"
    assert list(here.iterdir()) == []


def test_a_model_that_is_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "model.xyz").write_text("")
    for name in ("model.xyz", "nothing"):
        assert compare(name) == 2
        assert "expected a checkpoint (.ckpt, .pth, .pth.tar, .pt, .safetensors) or a .nir file" in error_line(capsys)


def test_the_names_in_the_help_are_the_backends() -> None:
    assert cli.NAMES.split(",") == list(BACKENDS)
