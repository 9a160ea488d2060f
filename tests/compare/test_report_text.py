"""How numbers and names read. Nothing may read as exactly 0, 1 or equal that is not."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.compare.report import text as show
from statten_deploy.compare.report.groups import blocks, file_stem

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=80)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, "100.00 %"),
        (0.999999, ">99.99 %"),
        (0.9722222, "97.22 %"),
        (0.0, "0.00 %"),
        (1e-9, "<0.01 %"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_percent(share, expected):
    assert show.percent(share) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "equal"),
        (-0.0, "equal"),
        (1e-12, "+1.0e-10 %"),
        (-0.0022308, "-0.22 %"),
        (0.000012, "+0.0012 %"),
        (0.5, "+50 %"),
        (12.0, "+1,200 %"),
        (None, "–"),
    ],
)
def test_relative(value, expected):
    assert show.relative(value) == expected


@settings(deadline=None)
@given(st.floats(-1e6, 1e6).filter(bool))
def test_a_difference_never_reads_as_none(value):
    text = show.relative(value)
    assert float(text.removesuffix(" %").replace(",", "")) / 100 == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize(
    ("energies", "texts"),
    [
        ([30_510_000.0, 1.0], ["30.51 µJ", "<0.01 µJ"]),
        ([999.94], ["999.9 pJ"]),
        ([13_580.25, 13_552.5], ["13.58 nJ", "13.55 nJ"]),
        ([7.46e9], ["7.460 mJ"]),
        ([2.5e15], ["2,500 J"]),
        ([0.25], ["0.250 pJ"]),
        ([0.0], ["0 pJ"]),
    ],
)
def test_energies_of_a_column_share_a_unit(energies, texts):
    unit = show.energy_unit(energies)
    assert [unit.text(energy) for energy in energies] == texts


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e16), min_size=1, max_size=5))
def test_energies_are_rounded_never_more_than_half_a_digit(energies):
    unit = show.energy_unit(energies)
    for energy in energies:
        text = unit.number(energy)
        if text.startswith("<"):
            assert 0 < energy <= float(text[1:]) * unit.pj
        else:
            assert float(text.replace(",", "")) == pytest.approx(energy / unit.pj, abs=0.5001 * 10.0**-unit.decimals)
    assert len(unit.number(max(energies)).replace(",", "").replace(".", "").lstrip("0")) <= 6


def test_counts_show_every_digit_while_there_is_room():
    assert show.brief(1_234_567_890) == "1,234,567,890"
    assert show.brief(69_100_000_000_000) == "69.10 T"
    assert show.brief(999_999, width=5) == "1.000 M"
    assert show.samples(1) == "1 sample"
    assert show.samples(50_000) == "50,000 samples"


@settings(deadline=None)
@given(ANY_TEXT)
def test_plain_text_is_one_line_that_any_file_and_terminal_takes(text):
    found = show.plain(text)
    assert "\n" not in found
    assert found.encode("utf-8").decode("utf-8") == found
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in found)
    assert show.plain(found) == found


@settings(deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=6, unique=True), st.integers(12, 30))
def test_labels_are_short_and_tell_names_apart(names, width):
    found = show.labels(names, width)
    assert all(len(label) <= width for label in found)
    assert len(set(found)) == len({show.plain(name) for name in names}) or len(set(found)) == len(names)


def test_labels_keep_both_ends():
    names = ["block.0.attn.shortcut_lif", "block.1.attn.shortcut_lif"]
    assert show.labels(names, 16) == ["block.0.…cut_lif", "block.1.…cut_lif"]
    alike = ["x" * 30 + "a" + "y" * 30, "x" * 30 + "b" + "y" * 30]
    assert [label[:2] for label in show.labels(alike, 16)] == ["1 ", "2 "]


def test_lists_say_how_many_are_left_out():
    assert show.listed(["torch", "nir"], 40) == "torch, nir"
    assert show.listed(["torch", "nir", "onnx", "norse"], 20) == "torch, nir + 2 more"
    assert show.listed(["a" * 50, "b"], 20) == "aaaaa…aaaaa + 1 more"
    assert show.listed([], 20) == "–"


@settings(deadline=None)
@given(st.lists(ANY_TEXT, max_size=8))
def test_file_names_are_harmless_and_all_different(texts):
    taken: list[str] = []
    for text in texts:
        taken.append(file_stem(text, taken))
    assert len({name.lower() for name in taken}) == len(texts)
    for name in taken:
        assert name.isascii()
        assert re.fullmatch("[A-Za-z0-9_-]+", name)
        assert len(name) < 70


def test_blocks_of_a_deep_network():
    parts = ("attn.q", "attn.k", "mlp.fc1", "mlp.fc2")
    names = ["patch_embed.conv", "patch_embed.lif", *(f"block.{n}.{part}" for n in range(8) for part in parts), "head"]
    found = blocks(dict.fromkeys(names, 1.0), 12)
    assert list(found) == ["patch_embed", *(f"block.{n}" for n in range(8)), "head"]
    assert [name for members in found.values() for name in members] == names
    heavy = {**dict.fromkeys(names, 1.0), "block.3.mlp.fc1": 40.0}
    assert {"block.2", "block.3.attn", "block.3.mlp.fc1", "block.3.mlp.fc2"} <= set(blocks(heavy, 13))
    assert {"block.3.attn", "block.3.mlp"} <= set(blocks(heavy, 11))


@settings(deadline=None)
@given(st.lists(st.text("ab.", min_size=1, max_size=6), min_size=1, max_size=12, unique=True), st.integers(1, 12))
def test_blocks_hold_every_layer_once(names, limit):
    found = blocks({name: float(number + 1) for number, name in enumerate(names)}, limit)
    assert sorted(name for members in found.values() for name in members) == sorted(names)
    assert len(found) <= limit


def test_numpy_numbers_are_numbers():
    assert show.percent(np.float64(0.5)) == "50.00 %"
    assert show.count(np.int64(1_000)) == "1,000"
