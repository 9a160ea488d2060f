"""Export time and peak memory per target, each in a process of its own, verification included.

    python benchmarks/export.py [--networks digits imagenet-8-768] [--targets onnx onnx-int8] [--no-unverified]

Networks without a shipped checkpoint get random weights. Prints seconds from the start of the process to its end, the
peak of the memory that the process and its children hold together, and file sizes; how much of it the verification
takes (the same export without it); and for a target that refuses the network, its reason. A GiB is 2^30 bytes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
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


TARGETS = {
    "nir": ["nir"],
    "nir-portable": ["nir", "--nir-profile", "portable"],
    "nir-8-bit": ["nir", "--bits", "8"],
    "onnx": ["onnx"],
    "onnx-stream": ["onnx", "--layout", "stream"],
    "onnx-int8": ["onnx-int8"],
    "onnx-int8-qdq": ["onnx-int8", "--flavour", "qdq"],
    "onnx-int8-stream": ["onnx-int8", "--layout", "stream"],
    "lava": ["lava"],
    "netx": ["netx"],
}
"""Of ``--target``, with the options that make a file of another kind."""
SUFFIX = {"nir": ".nir", "onnx": ".onnx", "onnx-int8": ".onnx", "lava": ".lava", "netx": ".net"}


@dataclass
class Usage:
    """One child: seconds, peak resident GiB of it and its children, exit status, the last line of what it said."""

    seconds: float
    peak: float
    status: int
    reason: str


def resident(parent: int) -> int:
    """Bytes that a process and everything below it hold; what several of them share counts once."""
    pids = [parent]
    for pid in pids:
        with suppress(OSError):  # it has ended
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError):
            if len(pids) == 1:  # costs less to look at
                return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            total += int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0]) * 1024
    return total


def measure(arguments: list[str]) -> Usage:
    """Run ``statten-export`` in a child and watch its memory, at most every 20 ms."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen([str(COMMAND), *arguments], stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            pause = 0.02
            while not ended.wait(pause):
                began = time.perf_counter()
                peak = max(peak, resident(child.pid))
                pause = max(0.02, 20 * (time.perf_counter() - began))  # many processes take long to look at

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        ended.set()
        watcher.join()
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    peak = max(peak, usage.ru_maxrss * 1024)  # what rose and fell between two looks
    return Usage(seconds, peak / 2**30, child.returncode, said[-1] if said else "")


def size(path: Path) -> int:
    return sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())


def report(network: str, title: str, model: Path, folder: Path, arguments: argparse.Namespace) -> None:
    """One line."""
    target, *options = TARGETS[title]
    out = folder / f"{network}.{title}{SUFFIX[target]}"
    command = [str(model), "--target", target, *options, "--out", str(out), *arguments.options]
    full = measure(command)
    if full.status:
        print(f"{network:<16} {title:<17} {full.seconds:6.1f}  exit status {full.status}: {full.reason}", flush=True)
        return
    line = f"{network:<16} {title:<17} {full.seconds:6.1f} {full.peak:9.2f} {size(out) / 1e6:8.1f}"
    if not arguments.no_unverified:
        quick = measure([*command, "--no-verify"])
        line += f" {quick.seconds:13.1f} {quick.peak:9.2f} {full.seconds / quick.seconds:6.2f}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export time and peak memory per target.")
    parser.add_argument("--networks", nargs="+", default=["digits", "cifar10-2-512", "imagenet-8-768"])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--no-unverified", action="store_true", help="leave out the runs with --no-verify")
    parser.add_argument("options", nargs="*", help="behind --: further options of statten-export")
    arguments = parser.parse_args()
    print("network          target                 s  peak GiB       MB  s unverified  peak GiB  ratio")
    with tempfile.TemporaryDirectory() as name:
        for network in arguments.networks:
            model = checkpoint(network, Path(name))
            for title in arguments.targets:
                report(network, title, model, Path(name), arguments)


if __name__ == "__main__":
    main()
