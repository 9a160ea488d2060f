"""Several processes of one machine, started by Lightning and by torchrun, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from statten_deploy.errors import ConfigError
from statten_deploy.train import read_recipe, train
from statten_deploy.train.config import TrainConfig
from statten_deploy.train.distributed import layout
from tests.train.ddp_worker import gradients
from tests.train.recipes import write_recipe, write_stripes

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"random_shift": 0, "random_rotation": 0, "epochs": 2}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(command: list[str]) -> str:
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz", count=100)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """One process with batches of 8."""
    folder = tmp_path_factory.mktemp("alone")
    result = train(read_recipe(write_recipe(folder / "r.yaml", train=PLAIN)), data, folder / "out", device="cpu")
    assert result.train_samples == 64
    return folder / "out"


def last(folder: Path) -> dict[str, Any]:
    raw: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)
    return raw


def check_like_alone(folder: Path, alone: Path) -> None:
    """The same steps with the same gradients, but for rounding.

    A bias in front of a batch norm has the gradient 0; AdamW makes steps of what is left of it by rounding. The running
    mean behind follows it, and what the network computes does not change.
    """
    one, two = last(alone), last(folder)
    assert one["global_step"] == two["global_step"] == 16  # 64 samples: 8 steps of 8, or of 4 by each of two
    assert two["statten_processes"] == 2
    expected, found = (without_idle(each["statten_trained"]) for each in (one, two))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-4, msg=name)
    rates = [scheduler["_last_lr"] for scheduler in (one["lr_schedulers"][0], two["lr_schedulers"][0])]
    assert rates[0] == rates[1]


def without_idle(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    idle = {name for name in state if name.endswith("_conv.bias")}
    idle |= {name.replace("_conv.bias", "_bn.running_mean") for name in idle}
    return {name: value for name, value in state.items() if name not in idle}


def test_started_by_lightning(data: Path, alone: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", train={**PLAIN, "batch_size": 4})
    command = [str(Path(sys.executable).parent / "statten-train"), "--config", str(recipe), "--data", str(data)]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu", "--devices", "2", "--json"]
    result = json.loads(run(command))  # one object: only the first process tells
    assert result["processes"] == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "best.ckpt", "last.ckpt", "recipe.yaml", "csv", "tensorboard",
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "out/csv").iterdir()] == ["version_0"]
    check_like_alone(tmp_path / "out", alone)
    longer = read_recipe(recipe, epochs=3)
    with pytest.raises(ConfigError, match="was trained by 2 processes, this run has 1"):
        train(longer, data, device="cpu", resume=tmp_path / "out/last.ckpt")


def test_started_by_torchrun(data: Path, alone: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", train={**PLAIN, "batch_size": 4})
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    run([*command, "--standalone", "-m", "tests.train.ddp_worker", str(recipe), str(data), str(tmp_path / "out")])
    check_like_alone(tmp_path / "out", alone)
    expected = gradients(0, 1)
    for rank in range(2):
        found = torch.load(tmp_path / f"out/gradients-{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # float64: no membrane is so close to a threshold that another order of additions changes a spike
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate(values)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}


def test_layout_is_what_the_launcher_started() -> None:
    assert layout(config(), {}) == (1, 1)
    assert layout(config(devices=4, nodes=2), {"NODE_RANK": "1"}) == (4, 2)
    with pytest.raises(ConfigError, match="--nodes 2: nothing has started this process on other machines"):
        layout(config(nodes=2), {})
    assert layout(config(devices="auto"), {}) == ("auto", 1)
    assert layout(config(), TORCHRUN) == layout(config(devices=4, nodes=2), TORCHRUN) == (4, 2)
    assert layout(config(devices="auto"), SRUN) == (8, 2)
    assert layout(config(), {**SRUN, "SLURM_JOB_NAME": "bash"}) == (1, 1)  # a shell on the cluster
    with pytest.raises(ConfigError, match="--devices 2: torchrun has started 4 processes on each of 2 nodes; drop"):
        layout(config(devices=2), TORCHRUN)
    with pytest.raises(ConfigError, match="--nodes 4: srun has started 8 processes on each of 2 nodes"):
        layout(config(nodes=4), SRUN)
