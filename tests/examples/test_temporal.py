"""The temporal experiment on a miniature grid: its runs, its statistics, and the table of the shipped results."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import tests.train.recipes  # noqa: F401 - imports Lightning before warnings are errors

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples/temporal"
MINI = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "embed_dim=16", "--set", "lr=0.02")


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("temporal_experiment", FOLDER / "experiment.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["temporal_experiment"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["temporal_experiment"]


@pytest.fixture(scope="module")
def shipped(experiment):
    return experiment.read_results(FOLDER / "results.csv")


def test_a_run_is_a_line_and_is_not_run_again(experiment, tmp_path: Path, capsys, monkeypatch) -> None:
    results, figure = tmp_path / "r.csv", tmp_path / "f.png"
    grid = ("--results", str(results), "--variants", "sliding-4", "--seeds", "3", *MINI)
    experiment.main([*grid, "--figure", str(figure)])
    (run,) = experiment.read_results(results)
    assert (run.variant, run.seed, run.samples) == ("sliding-4", 3, 360)
    assert f"| sliding-4 | {100 * run.correct / 360:.2f} | " in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")
    with results.open("a") as file:
        file.write("sdt,0,abc,1")  # a line that a kill cut short
    monkeypatch.setattr(experiment, "run_one", lambda *_: pytest.fail("it was there already"))
    experiment.main(grid)
    with pytest.raises(SystemExit):
        experiment.main(["--results", str(results), "--variants", "sliding-4", "--seeds", "3"])
    assert "of another recipe; give another --results" in capsys.readouterr().err


def test_variants_have_the_same_parameters_and_training(experiment) -> None:
    from statten_deploy.models.statten import STAtten

    recipes = {name: experiment.recipe_of(name, 0) for name in experiment.VARIANTS}
    sizes = {sum(p.numel() for p in STAtten(recipe.model).parameters()) for recipe in recipes.values()}
    assert len(sizes) == 1
    assert len({recipe.train for recipe in recipes.values()}) == 1
    assert len({experiment.digest(recipe) for recipe in recipes.values()}) == len(recipes)
    assert experiment.digest(recipes["sdt"]) == experiment.digest(experiment.recipe_of("sdt", 4))


def test_paired_differences_against_scipy(experiment) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(80, 2, 5), rng.normal(78, 2, 5)
    found = experiment.paired(dict(enumerate(a)), dict(enumerate(b)), 9)
    test = stats.ttest_rel(a, b)
    for level, half in ((0.95, found.half), (1 - 0.05 / 9, found.half_together)):
        interval = test.confidence_interval(level)
        assert found.mean - half == pytest.approx(interval.low)
        assert found.mean + half == pytest.approx(interval.high)


def test_the_shipped_table_is_that_of_the_shipped_runs(experiment, shipped) -> None:
    assert {(run.variant, run.seed) for run in shipped} == {
        (name, seed) for name in experiment.VARIANTS for seed in experiment.SEEDS
    }
    assert {run.recipe for run in shipped} == {
        experiment.digest(experiment.recipe_of(name, 0)) for name in experiment.VARIANTS
    }
    document = (ROOT / "docs/temporal.md").read_text()
    assert experiment.table(shipped) in document
    by_variant = {
        name: [100 * r.correct / r.samples for r in shipped if r.variant == name] for name in experiment.VARIANTS
    }
    for name, values in by_variant.items():
        row = next(line for line in document.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |" in row
        assert " ".join(f"{value:.2f}" for value in values) in row
        if name != "sdt":
            interval = stats.ttest_rel(values, by_variant["sdt"]).confidence_interval(1 - 0.05 / 9)
            cell = row.split("|")[4]
            assert re.match(rf" {np.mean(values) - np.mean(by_variant['sdt']):+.2f} ± ".replace("+", r"\+"), cell)
            assert ("*" in cell) == (interval.low > 0 or interval.high < 0)


def test_a_difference_needs_the_whole_interval(experiment) -> None:
    found = experiment.Difference(1.0, 0.5, 1.5)
    assert not found.distinguishable
    assert replace(found, half_together=0.9).distinguishable
