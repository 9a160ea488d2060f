"""The same checkpoint, options and versions give the same bytes, in any process, folder, thread count and hash seed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.conftest import lively_model, small_config
from tests.faults.writes import FORMS

ROOT = Path(__file__).resolve().parents[2]


def written(
    folder: Path, checkpoint: Path, *, seed: str, threads: str, umask: int, cwd: Path, zone: str
) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONHASHSEED": seed,
        "OMP_NUM_THREADS": threads,
        "TZ": zone,
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.faults.writes", str(checkpoint), str(folder)]
    done = subprocess.run(
        command, env=environment, cwd=cwd, umask=umask, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_target_in_two_processes(tmp_path: Path) -> None:
    config = small_config("sliding", pooling="strided", embed_dim=16, num_heads=2, depth=1, time_steps=2, chunk_size=2)
    checkpoint = tmp_path / "m.ckpt"
    model = lively_model(config)
    torch.save({"statten_config": config.model_dump(mode="json"), "state_dict": model.state_dict()}, checkpoint)
    other = tmp_path / "elsewhere" / "m.ckpt"
    other.parent.mkdir()
    shutil.copyfile(checkpoint, other)
    os.utime(other, (10**9, 10**9))
    one = written(tmp_path / "one", checkpoint, seed="1", threads="1", umask=0o022, cwd=tmp_path, zone="UTC")
    two = written(
        tmp_path / "some/where/else", other, seed="2", threads="2", umask=0o077, cwd=other.parent, zone="Asia/Tokyo"
    )
    assert {name for name, *_ in FORMS} <= {name.split("/")[0] for name in one}
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert all(f"{name}.vectors.npz" in one and f"{name}.json" in one for name, *_ in FORMS)
