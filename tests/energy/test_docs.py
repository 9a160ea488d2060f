"""docs/energy.md says what the code does."""

import re
from pathlib import Path

import pytest

from statten_deploy.energy import load_profile, profile_names

TEXT = (Path(__file__).parents[2] / "docs" / "energy.md").read_text(encoding="utf-8")
CODE, OWN_PROFILE = re.findall(r"```(?:python|toml)\n(.*?)```", TEXT, re.DOTALL)[:2]


def test_the_measured_ratios(monkeypatch):
    """The page's own lines on all 360 images; spikes may flip between machines, so three digits."""
    monkeypatch.chdir(Path(__file__).parents[2])
    found = {}
    exec(compile(CODE, "docs/energy.md", "exec"), found)
    (row,) = re.findall(r"paper convention / exact \| \*\*(.*?)\*\* \| \*\*(.*?)\*\*", TEXT)
    assert [found["ratios"][name] for name in ("digits", "digits-stream")] == pytest.approx(
        [float(n) for n in row], abs=2e-3
    )


def test_the_table_of_profiles():
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*)$", TEXT, re.MULTILINE))
    assert set(rows) == set(profile_names())
    for name, row in rows.items():
        for figure in load_profile(name).figures.values():
            assert re.search(rf"(?<![\d.]){figure.pj:g}(\.0)?(?![\d.])", row), (name, figure)
            assert figure.status in row


def test_the_profile_of_ones_own(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(OWN_PROFILE)
    assert load_profile(path).figures["synop"].pj == 3.1
