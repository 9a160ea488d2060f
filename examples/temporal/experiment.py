"""Does attention over time help? Sequential digits: SDT against STAtten, same size, same training, five seeds each.

    python examples/temporal/experiment.py --results results.csv        runs what is missing, then prints the table

A run is one line of the results file, so a stopped grid goes on where it was. Everything below was settled before the
first run of the grid and is not chosen by its results:

Task. The 8x8 digits column by column, one column a step (T = 8), 1437 training and 360 test images. A step sees nothing
    of other columns, so all that joins them is the neurons' memory and, in STAtten, attention across steps.
Networks. models/configs/sequential-digits.yaml (1 block of width 64, 4 heads, 4 tokens a step) with the attention of
    `VARIANTS`; all have the same parameters. `block-1` is the control: STAtten's attention inside a step, none across.
Training. That recipe for every variant: no variant is tuned. No epoch is chosen: the last one is kept. The test split
    is used once, after training. The learning rate is that of the recipe `digits`; width and epochs were set by what
    one busy core can do in an hour, after six trial runs on 70 % of the training images, scored on the other 30 %, and
    one run each of `sdt` and `block-1` with 16 epochs, which took too long.
Measured. Test accuracy, and energy per image from the spikes of the whole test split, as `statten-compare` counts it.
Analysis. Differences are paired by seed (mean of five, 95 % interval of Student's t with 4 degrees of freedom):
    every variant minus SDT, and every window minus `block-1`. A difference is called distinguishable only if its
    interval at 95 % for all comparisons of its column together (Bonferroni) leaves out zero.
"""

import argparse
import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t as student

from statten_deploy.train import Recipe, read_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "models/configs/sequential-digits.yaml"

VARIANTS: dict[str, tuple[str, ...]] = {
    "sdt": ("model.attention=SDT",),
    "block-1": ("model.chunk_size=1",),
    "block-2": ("model.chunk_size=2",),
    "block-4": ("model.chunk_size=4",),
    "block-8": ("model.chunk_size=8",),
    "sliding-2": ("model.chunk_size=2", "model.window=sliding"),
    "sliding-4": ("model.chunk_size=4", "model.window=sliding"),
    "sliding-8": ("model.chunk_size=8", "model.window=sliding"),
    "token-2": ("model.divide=token", "model.token_groups=2"),
    "token-4": ("model.divide=token", "model.token_groups=4"),
}
"""Steps of a window, or groups of tokens, behind the name. block-8 and sliding-8 reach over the whole sequence."""
SEEDS = (0, 1, 2, 3, 4)
BASELINE, CONTROL = "sdt", "block-1"


@dataclass(frozen=True)
class Run:
    """One trained network on the test split. Counts are totals over its images, energies pJ per image."""

    variant: str
    seed: int
    recipe: str
    """Digest of model and training, without the seed."""
    correct: int
    samples: int
    parameters: int
    spikes: int
    synops: int
    macs: int
    fp32_pj: float
    """By the profile 45nm-fp32, the convention of the literature."""
    loihi1_pj: float
    train_seconds: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, half the width of its 95 % interval, and of that for all comparisons together."""

    mean: float
    half: float
    half_together: float

    @property
    def distinguishable(self) -> bool:
        return abs(self.mean) > self.half_together


def recipe_of(variant: str, seed: int, changes: Sequence[str] = ()) -> Recipe:
    return read_recipe(RECIPE, [*VARIANTS[variant], f"train.seed={seed}", f"model.name={variant}", *changes])


def digest(recipe: Recipe) -> str:
    # What is at its default is left out, so that options to come change nothing.
    train = recipe.train.model_dump(mode="json", exclude={"seed"}, exclude_defaults=True)
    settings = recipe.model.model_dump(mode="json", exclude_defaults=True), train
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def run_one(variant: str, seed: int, changes: Sequence[str]) -> Run:
    """Train, then count on the test split."""
    from statten_deploy import compare_backends
    from statten_deploy.train import train

    recipe = recipe_of(variant, seed, changes)
    with tempfile.TemporaryDirectory(prefix="temporal-") as folder:
        trained = train(recipe, out=Path(folder), device="cpu")
        found = compare_backends(trained.checkpoint, ["torch"], data=recipe.model.dataset, latency_seconds=0)
    (row,) = found.backends
    assert row.correct == trained.test_correct, "two ways to evaluate the same network"
    return Run(
        variant,
        seed,
        digest(recipe),
        row.correct,
        row.samples,
        trained.parameters,
        row.spikes,
        row.synops,
        row.macs,
        round(row.energy["45nm-fp32"].total_pj, 1),
        round(row.energy["loihi1"].total_pj, 1),
        trained.seconds,
    )


def read_results(path: Path) -> list[Run]:
    """Finished runs; a line that a kill cut short is no run."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    kinds = {field.name: field.type for field in fields(Run)}
    return [Run(**{name: kinds[name](value) for name, value in row.items()}) for row in csv.DictReader(lines)]


def append(path: Path, run: Run) -> None:
    known = read_results(path)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Run)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(each) for each in [*known, run])
    partial.replace(path)


def paired(values: Mapping[int, float], baseline: Mapping[int, float], comparisons: int) -> Difference:
    """values - baseline over the seeds that both have."""
    found = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if len(found) < 2:
        return Difference(mean(found), float("nan"), float("nan"))
    error = stdev(found) / len(found) ** 0.5
    half, together = (float(student.ppf(1 - 0.05 / (2 * count), len(found) - 1)) * error for count in (1, comparisons))
    return Difference(mean(found), half, together)


def table(runs: Sequence[Run]) -> str:
    """Markdown: a row per variant, differences in points of per cent, energies as a share of SDT's."""
    by_variant = {name: {run.seed: run for run in runs if run.variant == name} for name in VARIANTS}
    shown = {name: found for name, found in by_variant.items() if found}
    accuracy = {name: {seed: 100 * run.accuracy for seed, run in found.items()} for name, found in shown.items()}
    lines = [
        "| attention | accuracy, mean ± std | each seed | minus SDT (95 %) | minus block-1 (95 %) | spikes | SynOps "
        "| 45 nm FP32 | Loihi 1 |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in shown.items():
        values = [accuracy[name][seed] for seed in sorted(found)]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        cells = [
            name,
            f"{mean(values):.2f}{spread}",
            " ".join(f"{value:.2f}" for value in values),
            *(_cell(name, other, accuracy) for other in (BASELINE, CONTROL)),
            *(
                f"{mean(getattr(run, key) / run.samples for run in found.values()):,.0f}"
                for key in ("spikes", "synops")
            ),
            f"{mean(run.fp32_pj for run in found.values()) / 1e3:.1f} nJ",
            f"{mean(run.loihi1_pj for run in found.values()) / 1e6:.3f} µJ",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(other: str) -> list[str]:
    """Who is compared with the baseline, or with the control."""
    return [name for name in VARIANTS if name != other and not (other == CONTROL and name == BASELINE)]


def _cell(name: str, other: str, accuracy: Mapping[str, Mapping[int, float]]) -> str:
    if name not in compared(other) or not accuracy[name].keys() & accuracy.get(other, {}).keys():
        return ""
    found = paired(accuracy[name], accuracy[other], len(compared(other)))
    return f"{found.mean:+.2f} ± {found.half:.2f}{' *' if found.distinguishable else ''}"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Accuracy of every run, and mean energy, per variant."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = [name for name in VARIANTS if any(run.variant == name for run in runs)]
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    for place, name in enumerate(names):
        found = [run for run in runs if run.variant == name]
        values = [100 * run.accuracy for run in found]
        top.plot([place] * len(values), values, "o", color="tab:blue", alpha=0.45, markersize=5)
        top.plot([place - 0.25, place + 0.25], [mean(values)] * 2, color="black", linewidth=2)
        bottom.bar(place, mean(run.loihi1_pj for run in found) / 1e6, color="tab:gray", width=0.6)
    top.set_ylabel("test accuracy (%)")
    bottom.set_ylabel("µJ per image\n(Loihi 1 figures)")
    bottom.set_xticks(range(len(names)), names, rotation=30, ha="right")
    top.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("temporal.csv"), help="One line per finished run.")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="Run these only.")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="Change the recipe of all.")
    parser.add_argument("--figure", type=Path, help="Also draw the results.")
    options = parser.parse_args(arguments)
    variants, seeds = options.variants.split(","), [int(seed) for seed in options.seeds.split(",")]
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        parser.error(f"--variants {','.join(unknown)}: unknown; expected some of {', '.join(VARIANTS)}")
    for seed in seeds:  # a seed of all variants before the next seed: what is there can always be compared
        for name in variants:
            expected = digest(recipe_of(name, seed, options.set))
            done = {run.seed: run for run in read_results(options.results) if run.variant == name}
            if seed not in done:
                run = run_one(name, seed, options.set)
                append(options.results, run)
                print(f"{name} seed {seed}: {run.correct}/{run.samples} in {run.train_seconds:.0f} s", flush=True)
            elif done[seed].recipe != expected:
                parser.error(f"{options.results}: {name} seed {seed} is of another recipe; give another --results")
    runs = read_results(options.results)
    print(table(runs))
    print("* distinguishable from zero, all comparisons of the column together at 95 % (Bonferroni)")
    if options.figure is not None:
        draw(runs, options.figure)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
