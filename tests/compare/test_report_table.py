"""The comparison on a terminal."""

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from statten_deploy.compare.comparison import BackendResult, Comparison
from statten_deploy.compare.report import render_table
from statten_deploy.compare.report import text as show
from statten_deploy.compare.report.groups import ran, units_of
from tests.compare.comparisons import large, quantised, small
from tests.compare.real_comparison import real

HOSTILE = "[bold red]x[/] \x1b[31m\x07 \u202egnp.exe <b> $\\frac{1}{0}$ \udcff"


def shown(comparison: Comparison, width: int = 80, *, encoding: str = "utf-8", terminal: bool = False) -> str:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, errors="strict")
    colours = {"force_terminal": True, "color_system": "truecolor"} if terminal else {}
    Console(file=file, width=width, _environ={}, **colours).print(render_table(comparison))
    file.flush()
    return buffer.getvalue().decode(encoding)


def row_of(text: str, name: str) -> list[str]:
    """The words of a backend's two lines in the first table that has it."""
    lines = text.splitlines()
    (at, *_) = [number for number, line in enumerate(lines) if line.startswith(f"{name} ")]
    return (lines[at] + " " + lines[at + 1]).split()


def test_numbers_are_those_of_the_comparison():
    text = shown(small())
    assert "tiny on made-up: 10 samples, T = 3, 8 bits, seed 7" in text
    words = " ".join(row_of(text, "nir"))
    for expected in (
        "80.00 %",
        "90.00 %",
        "49.0–94.3",
        "1 differ",
        " 60 ",
        "-1.6 %",
        "4,920",
        "-0.22 %",
        "1.62 ms",
        "2.38 ms",
    ):
        assert expected in words, (expected, words)
    assert "reference" in row_of(text, "torch")
    assert text.count("4.75 ms") == 3
    assert row_of(text, "fixed").count("equal") == 2
    for expected in ("13.58", "13.55", "-0.20 %", "1.235", "4.568", "-0.00057 %"):
        assert expected in text


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "comparison",
    [
        small(),
        large(backends=12, layers=2, profiles=12, classes=None),
        large(backends=5, layers=1, long_names=True),
        large(backends=1, layers=1, profiles=1, samples=1, classes=2),
    ],
)
def test_no_line_is_wider_than_the_console_and_no_number_is_cut(comparison, width):
    text = shown(comparison, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    for row in ran(comparison):
        for number in (show.brief(row.spikes), show.brief(row.synops), show.milliseconds(row.latency.median_ms)):
            assert f" {number} " in text or f" {number}\n" in text
    for profile in comparison.profiles:
        unit, _ = units_of(comparison.backends, profile)
        for row in ran(comparison):
            assert f" {unit.number(row.energy[profile.name].total_pj)}" in text


def test_the_integer_reference_stands_beside_the_float_one():
    text = " ".join(shown(quantised(), 120).split())
    assert "(float32: torch, integer: torch-int, torch-int itself: torch)" in text
    row = " ".join(row_of(shown(quantised()), "torch-int"))
    assert "80.00 %" in row
    assert "-6.7 %" in row
    assert "differ" not in row  # 23 do, but it is another network
    assert " ".join(row_of(shown(quantised()), "fixed")).count("equal") == 2


def test_families_of_energy_share_no_table():
    text = shown(large(backends=2, layers=1, profiles=6), 120)
    tables = text.split("Energy per sample: ")[1:]
    assert [table.split("\n")[0].strip() for table in tables] == ["event counts", "paper convention"]
    assert "paper-" not in tables[0]
    assert "events-" not in tables[1]


def test_a_pipe_gets_no_colours_and_the_same_words():
    plain = shown(small())
    assert "\x1b" not in plain
    coloured = shown(small(), terminal=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_missing_backends_are_rows_with_the_reason_and_problems_come_last():
    comparison = replace(small(), problems=["nir: 1 spike differs, first in stem.lif"])
    lines = shown(comparison).splitlines()
    (lava,) = [line for line in lines if line.startswith("lava")]
    assert "not installed: pip install 'statten-deploy[lava]'" in lava
    assert lines[-1].strip() == "problem: nir: 1 spike differs, first in stem.lif"
    assert "warning: the images were scaled" in lines[-2]
    assert "nir: one neuron fires a step later" in lines[-3]


def test_nothing_ran():
    rows = [BackendResult("lava", "integer", "torch-int", "not installed"), BackendResult("x", "float32", "x", "no")]
    text = shown(replace(small(), backends=rows, raster=None))
    assert "not installed" in text
    assert "Energy per sample" not in text


def test_names_are_text_not_markup_nor_commands_to_the_terminal():
    comparison = small()
    comparison.model = comparison.warnings[0] = comparison.backends[1].name = HOSTILE
    text = shown(comparison, 120)
    assert "[bold red]x[/] \ufffd[31m\ufffd \ufffdgnp.exe <b> $\\frac{1}{0}$ \ufffd on made-up" in text
    assert not {"\x1b", "\x07", "\u202e", "\udcff"} & set(text)


def test_a_terminal_without_unicode():
    comparison = small()
    comparison.model = "modèle 模型"
    text = shown(comparison, encoding="ascii")
    assert "mod?le ??" in text
    assert "59.6-98.2" in text
    assert "uJ" in text


def test_one_arithmetic_stands_together():
    comparison = small()
    comparison.backends = [comparison.backends[number] for number in (2, 0, 4, 3, 1)]
    text = shown(comparison)
    order = [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in NAMES]
    assert order[:5] == ["torch-int", "fixed", "torch", "nir", "lava"]


NAMES = {"torch", "nir", "torch-int", "fixed", "lava"}


def test_no_labels_no_spikes_no_latency():
    row = BackendResult("torch", "float32", "torch", samples=3, predictions=[0, 0, 0])
    words = row_of(shown(replace(small(), backends=[row], raster=None)), "torch")
    assert words == ["torch", "–", "reference", "–", "–", "–", "float32"]


def test_a_real_network():
    comparison, runs = real()
    text = shown(comparison)
    for name, run in runs.items():
        spikes = sum(int(layer.sum()) for layer in run.spikes.values())
        assert f"{spikes:,}" in row_of(text, name)
