"""Where training's time goes: phases that add up, operations per step, and a run that is the same as without."""

from pathlib import Path

import pytest
import torch

from statten_deploy.models.checkpoint import load_model
from statten_deploy.train import read_recipe, train
from statten_deploy.train.profiling import ACTIVE, WAIT, WARMUP, TrainProfiler
from statten_deploy.train.run import TrainResult
from tests.train.recipes import write_recipe, write_stripes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, TrainResult]:
    folder = tmp_path_factory.mktemp("profile")
    recipe = read_recipe(write_recipe(folder / "tiny.yaml", train={"epochs": 2}))
    data = write_stripes(folder / "stripes.npz")
    profiled = train(recipe, data, folder / "profiled", device="cpu", profile=True)
    return folder, profiled, train(recipe, data, folder / "plain", device="cpu")


def test_phases_add_up_to_the_run(runs: tuple[Path, TrainResult, TrainResult]) -> None:
    profile = runs[1].profile
    assert profile is not None
    assert profile.steps == 2 * 8  # epochs of 57 samples in batches of 8
    assert sum(phase.seconds for phase in profile.phases) == pytest.approx(profile.seconds)
    assert profile.seconds <= runs[1].seconds
    times = {phase.name: phase for phase in profile.phases}
    expected = {"data", "forward", "backward", "optimizer", "moving average", "validation", "checkpoints"}
    assert times.keys() == expected | {"profiler", "other"}
    assert all(phase.seconds > 0 for phase in profile.phases)
    assert all(times[name].calls == 16 for name in ("forward", "backward", "optimizer", "moving average"))


def test_operations_are_those_of_one_step(runs: tuple[Path, TrainResult, TrainResult]) -> None:
    profile = runs[1].profile
    assert profile is not None
    assert profile.recorded_steps == ACTIVE
    convolutions = [m for m in load_model(runs[1].checkpoint).modules() if isinstance(m, torch.nn.Conv2d)]
    found = {operation.name: operation for operation in profile.operations}
    assert found["aten::convolution"].calls == found["aten::convolution_backward"].calls == len(convolutions)
    assert sum(operation.share for operation in profile.operations) == pytest.approx(1)
    costs = [operation.milliseconds for operation in profile.operations]
    assert costs == sorted(costs, reverse=True)


def test_the_file_has_it_all_and_training_is_the_same(runs: tuple[Path, TrainResult, TrainResult]) -> None:
    folder, profiled, plain = runs
    assert profiled.profile is not None
    text = (folder / "profiled/profile.txt").read_text()
    assert text == profiled.profile.text() + "\n"
    assert all(operation.name in text for operation in profiled.profile.operations)
    assert f"and {len(profiled.profile.operations) - 3} more" in profiled.profile.text(operations=3)
    assert plain.profile is None
    assert not (folder / "plain/profile.txt").exists()
    one, other = (load_model(result.checkpoint).state_dict() for result in (profiled, plain))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_of_few_steps_says_so(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path / "t.yaml", train={"epochs": 1, "warmup_epochs": 0, "batch_size": 60}))
    profile = train(recipe, write_stripes(tmp_path / "s.npz"), tmp_path / "run", device="cpu", profile=True).profile
    assert profile is not None
    assert (profile.steps, profile.recorded_steps, profile.operations) == (1, 0, ())
    assert f"needs more than {WAIT + WARMUP} training steps" in profile.text()


def test_batches_between_optimizer_steps_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    profiler = TrainProfiler("cpu")
    monkeypatch.setattr(profiler, "_now", lambda: float(next(clock)))
    forward, step = "[Strategy]SingleDeviceStrategy.training_step", "[LightningModule]StattenModule.optimizer_step"
    with profiler.profile(forward):  # only adds up gradients: 1 s
        pass
    with profiler.profile(step):  # 5 s, of which 1 + 1 belong to others
        for inside in (forward, "moving average"):
            with profiler.profile(inside):
                pass
    profiler._ended = 20.0
    seconds = {phase.name: phase.seconds for phase in profiler.result().phases}
    assert seconds["forward"] == 1 + 1
    assert seconds["moving average"] == 1
    assert seconds["optimizer"] == 5 - 1 - 1
