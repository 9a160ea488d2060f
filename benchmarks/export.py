"""Export time and peak memory per target, each in a process of its own, verification included.

    python benchmarks/export.py [digits cifar10-2-512 imagenet-8-768]

Networks without a shipped checkpoint get random weights. Prints seconds, peak resident memory and file sizes, and how
much of the time the verification takes (the same export with and without it).
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from statten_deploy.models.checkpoint import CONFIG_KEY
from statten_deploy.models.config import load_config
from statten_deploy.models.statten import STAtten

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).parent / "statten-export"


def checkpoint(name: str, folder: Path) -> Path:
    shipped = ROOT / f"models/zoo/{name}.ckpt"
    if shipped.exists():
        return shipped
    torch.manual_seed(0)
    config = load_config(ROOT / f"models/configs/{name}.yaml")
    model = STAtten(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):  # so that every layer fires
            torch.nn.init.normal_(module.weight, std=1.8 * module.weight[0].numel() ** -0.5)
    path = folder / f"{name}.ckpt"
    torch.save({"state_dict": model.state_dict(), CONFIG_KEY: config.model_dump(mode="json")}, path)
    return path


def measure(arguments: list[str]) -> tuple[float, float, int]:
    """Seconds, peak resident GiB, exit status of one child."""
    start = time.perf_counter()
    child = subprocess.Popen([str(COMMAND), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - start, usage.ru_maxrss / 2**20, child.returncode


def main() -> None:
    names = sys.argv[1:] or ["digits", "cifar10-2-512", "imagenet-8-768"]
    print("network          target       s  peak GiB  s unverified  peak GiB  ratio       MB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network in names:
            model = checkpoint(network, folder)
            for target in ("nir", "onnx"):
                out = folder / f"{network}.{target}"
                arguments = [str(model), "--target", target, "--out", str(out)]
                quick, quick_peak, status = measure([*arguments, "--no-verify"])
                full, peak, verified = measure(arguments)
                size = out.stat().st_size / 1e6 if out.exists() else float("nan")
                note = "" if status == verified == 0 else f"  exit status {status}, {verified}"
                print(
                    f"{network:<16} {target:<7} {full:6.1f} {peak:9.2f} {quick:13.1f} {quick_peak:9.2f} "
                    f"{full / quick:6.2f} {size:8.1f}{note}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
