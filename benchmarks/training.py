"""A training step (forward, loss, backward, optimizer) against plain eager PyTorch and SpikingJelly; memory of BPTT.

    python benchmarks/training.py                                        # CIFAR 2-256, batch 16, on the CPU
    python benchmarks/training.py --memory --network cifar10dvs-2-256-t16 --batch 4
    python benchmarks/training.py --device cuda --batch 64               # or make bench-cuda

Networks run in turns, so that a busy machine slows down all of them; printed are medians and their ratios to the eager
baseline (`eager_statten.py`: the released architecture, one LIF step at a time). Memory is the peak of one step in a
process of its own, less what the process had before it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from eager_statten import EagerSTAtten, spikingjelly_lif
from torch.nn import functional as F

from statten_deploy.models.config import ModelConfig, load_config
from statten_deploy.models.statten import STAtten
from statten_deploy.train.parts import Parts, seconds_compiling

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "eager": "eager, one LIF step at a time",
    "eager-16": "the same in 16 bits",
    "spikingjelly": "SpikingJelly's multi-step LIF",
    "plain": "statten-train",
    "compiled": "train.compile",
    "compiled-16": "train.compile, 16 bits",
    "checkpointed": "train.checkpoint_activations",
    "compiled-checkpointed": "both",
}
TIMED = ("eager", "spikingjelly", "plain", "compiled", "eager-16", "compiled-16")
WEIGHED = ("eager", "spikingjelly", "plain", "checkpointed", "compiled", "compiled-checkpointed")


def make_step(name: str, config: ModelConfig, batch: int, device: str) -> Callable[[], float]:
    """One training step of the network called `name`; returns its loss."""
    torch.manual_seed(0)
    frame = (config.in_channels, *config.image_size)
    x = torch.rand(batch, *(frame if config.input == "image" else (config.time_steps, *frame)), device=device)
    target = torch.arange(batch, device=device) % config.num_classes
    ours = name.startswith(("plain", "compiled", "checkpointed"))
    parts = Parts(compiled="compiled" in name, checkpointed="checkpointed" in name)
    if ours:
        model: torch.nn.Module = STAtten(config)
        if parts.compiled or device == "cuda":
            model = model.to(memory_format=torch.channels_last)
    else:
        model = EagerSTAtten(config, spikingjelly_lif) if name == "spikingjelly" else EagerSTAtten(config)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=name.endswith("16")):
            logits = model.forward_steps(x, parts) if ours else model.forward_steps(x)
            loss = F.cross_entropy(logits.float().mean(0), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for the device

    return step


def timed(config: ModelConfig, batch: int, device: str, rounds: int, names: Sequence[str]) -> None:
    steps, seconds = {}, {}
    for name in names:
        before = seconds_compiling()
        steps[name] = make_step(name, config, batch, device)
        steps[name]()
        steps[name]()
        spent = seconds_compiling() - before
        if spent:
            print(f"{NETWORKS[name]}: {spent:.0f} s to compile", flush=True)
        seconds[name] = []
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["eager"])
    print(f"{'one training step':<34}{'median ms':>10}{'fastest':>9}{'times as fast':>15}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{NETWORKS[name]:<34}{1e3 * median:10.0f}{1e3 * min(values):9.0f}{base / median:15.2f}")


def weigh(name: str, config: ModelConfig, batch: int, device: str) -> None:
    """Print the peak MiB that one step adds, as JSON."""
    make_step(name, config.model_copy(update={"depth": 1}), 1, device)()  # what the libraries need once
    step = make_step(name, config, batch, device)
    if device == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        print(json.dumps((torch.cuda.max_memory_allocated() - before) / 2**20))
        return
    before = resident()
    step()
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before))


def resident() -> float:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(arguments: argparse.Namespace) -> None:
    weights: dict[str, float] = {}
    print(f"{'peak of one training step':<34}{'MiB':>10}{'of eager':>10}")
    for name in arguments.only or WEIGHED:
        command = [sys.executable, __file__, "--weigh", name, "--network", arguments.network]
        command += ["--batch", str(arguments.batch), "--device", arguments.device, "--threads", str(arguments.threads)]
        weights[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"{NETWORKS[name]:<34}{weights[name]:10.0f}{weights[name] / weights['eager']:10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10-2-256", help="a recipe of models/configs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, help="these instead of all; eager comes first")
    parser.add_argument("--weigh", choices=NETWORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/training.py: no CUDA device here; run it where there is one, or with --device cpu")
    torch.set_num_threads(arguments.threads)
    config = load_config(ROOT / f"models/configs/{arguments.network}.yaml")
    if arguments.weigh:
        weigh(arguments.weigh, config, arguments.batch, arguments.device)
    elif arguments.memory:
        memory(arguments)
    else:
        print(f"{arguments.network}, batch {arguments.batch}, {arguments.device}, torch {torch.__version__}")
        timed(config, arguments.batch, arguments.device, arguments.rounds, arguments.only or TIMED)


if __name__ == "__main__":
    main()
