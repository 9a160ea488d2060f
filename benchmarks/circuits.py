"""What circuits cost: computed, written, read, raised back, and run by strangers (docs/circuits.md).

    python benchmarks/circuits.py                                   # neurons and synapses by the formulas
    python benchmarks/circuits.py --write digits-stream:core cifar10-2-256:core ...
    python benchmarks/circuits.py --importers                       # images, spikes and counts that differ, per tool
    python benchmarks/circuits.py --norse cifar10-2-256             # one image of a portable file in Norse

Networks without a shipped checkpoint, and those that pool currents, get random weights (every layer fires) and
``pooling: strided``. --write takes seconds and peak resident memory of `statten-export` with and without verification
(on two samples), of plain `nir.read`, and compares the ONNX file from the circuits with that from the checkpoint.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch

from statten_deploy.compare.executors import TorchExecutor
from statten_deploy.compare.norse import norse_executor
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import CONFIG_KEY, load_model
from statten_deploy.models.config import ModelConfig, load_config
from statten_deploy.models.statten import STAtten
from statten_deploy.passes import circuit_cost

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the importers are run as in the tests
COMMAND = Path(sys.executable).parent / "statten-export"
NETWORKS = ("digits", "digits-stream", "cifar10-2-256", "cifar10-2-512", "imagenet-8-768")
READ = """
import sys, nir
sys.modules["statten_deploy"] = None
graph = nir.read(sys.argv[1])
print(len(graph.nodes), sum(node.tau.size for node in graph.nodes.values() if isinstance(node, nir.LIF)))
"""


def lively(config: ModelConfig) -> STAtten:
    """Random weights and biases with which every layer fires."""
    generator = torch.Generator().manual_seed(0)
    model = STAtten(config).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)
        elif tensor.dim() == 1 and name.endswith("weight"):
            tensor.uniform_(0.8, 1.6, generator=generator)
        elif tensor.dim() == 1 and name.endswith("bias"):
            tensor.normal_(0.2, 0.4, generator=generator)
        elif tensor.dim() > 1:
            fan_in = tensor[0].numel()
            tensor.normal_(0.1 / fan_in**0.5, 1.8 / fan_in**0.5, generator=generator)
    return model


def strided(name: str) -> ModelConfig:
    return load_config(ROOT / f"models/configs/{name}.yaml").model_copy(update={"pooling": "strided"})


def checkpoint(name: str, folder: Path) -> Path:
    shipped = ROOT / f"models/zoo/{name}.ckpt"
    if shipped.exists() and load_model(shipped).config.pooling == "strided":
        return shipped
    model = lively(strided(name))
    path = folder / f"{name}.ckpt"
    torch.save({"state_dict": model.state_dict(), CONFIG_KEY: model.config.model_dump(mode="json")}, path)
    return path


def sizes() -> None:
    print(f"{'network':<15} {'its neurons':>12} {'profile':<9} {'neurons':>13} {'synapses':>15}  largest layer")
    for name in NETWORKS:
        network = build_graph(STAtten(strided(name)))
        own = sum(node.tau.size for node in network.nodes.values() if type(node).__name__ == "LIF")
        for profile in ("core", "portable"):
            cost = circuit_cost(network, profile)
            neurons, synapses = (sum(getattr(entry, key) for entry in cost.values()) for key in ("neurons", "synapses"))
            layer, largest = max(cost.items(), key=lambda item: item[1].neurons)
            print(f"{name:<15} {own:12,} {profile:<9} {neurons:13,} {synapses:15,}  {layer}: {largest.neurons:,}")


def child(*command: object) -> tuple[float, float, str]:
    """Seconds, peak resident GiB and stdout of one child."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command[0]}: exit status {process.returncode}")
        out.seek(0)
        return time.perf_counter() - start, usage.ru_maxrss / 2**20, out.read().decode()


def write(name: str, profile: str, folder: Path) -> None:
    model, path = checkpoint(name, folder), folder / f"{name}-{profile}.nir"
    options = ["--target", "nir", "--attention", "circuit", "--nir-profile", profile, "--max-circuit-neurons", 10**9]
    quick, quick_peak, _ = child(COMMAND, model, *options, "--out", path, "--no-verify")
    full, full_peak, told = child(COMMAND, model, *options, "--out", path, "--samples", 2, "--json")
    result = json.loads(told)
    read, read_peak, seen = child(sys.executable, "-I", "-c", READ, path)
    nodes, neurons = map(int, seen.split())
    for source, out in ((path, "circuits.onnx"), (model, "network.onnx")):
        back, back_peak, _ = child(COMMAND, source, "--target", "onnx", "--out", folder / out, "--no-verify")
        if out == "circuits.onnx":
            raised, raised_peak = back, back_peak
    a, b = (onnx.load(folder / out, load_external_data=False) for out in ("circuits.onnx", "network.onnx"))
    equal = a.graph == b.graph and list(a.functions) == list(b.functions)
    print(
        f"{name} {profile}: {nodes} nodes, {neurons:,} neurons, {path.stat().st_size / 1e6:.1f} MB\n"
        f"  statten-export --no-verify  {quick:6.1f} s  {quick_peak:5.2f} GiB\n"
        f"  statten-export --samples 2  {full:6.1f} s  {full_peak:5.2f} GiB  "
        f"spikes that differ: {result['spike_mismatches']}, largest difference {result['max_abs_diff']:.3g}\n"
        f"  nir.read                    {read:6.1f} s  {read_peak:5.2f} GiB\n"
        f"  back to ONNX                {raised:6.1f} s  {raised_peak:5.2f} GiB  "
        f"graph equal to that of the checkpoint's file: {equal}",
        flush=True,
    )
    path.unlink()


def importers(folder: Path) -> None:
    from statten_deploy import export_nir
    from statten_deploy.api import ExportOptions
    from tests.passes.strangers import IMPORTERS, compare
    from tests.passes.strangers import NETWORKS as RUN

    print(f"{'network':<24} {'importer':<13} images        spikes  differ    counts  differ  logits  differ       s")
    for name, make in RUN.items():
        model, x = make(folder)
        result = export_nir(model, folder / "n.nir", profile="portable", options=ExportOptions(verify=False))
        for tool in IMPORTERS:
            start, found = time.perf_counter(), {"spikes": [0, 0], "counts": [0, 0], "logits": [0, 0]}
            for kind, _, there, here in compare(tool, folder / "n.nir", load_model(model), x, result.latency_steps):
                found[kind][0] += here.size
                found[kind][1] += int(np.sum(there != here))
            shown = "  ".join(
                f"{found[kind][0]:{w},} {found[kind][1]:7,}" for kind, w in zip(found, (12, 8, 6), strict=True)
            )
            print(f"{name:<24} {tool:<13} {len(x):6} {shown} {time.perf_counter() - start:7.1f}", flush=True)


def norse(name: str, folder: Path) -> None:
    """One random image in Norse and in torch."""
    network = load_model(checkpoint(name, folder))
    start = time.perf_counter()
    executor = norse_executor(build_graph(network), folder)
    made = time.perf_counter()
    image = np.random.default_rng(0).random((1, *executor.input_shape), dtype=np.float32)
    found = executor.run(image)
    done = time.perf_counter()
    expected = TorchExecutor(network).run(image)
    differ = sum(int(np.sum(found.spikes[layer] != spikes)) for layer, spikes in expected.spikes.items())
    sites = sum(spikes.size for spikes in expected.spikes.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name} in Norse: {made - start:.0f} s to write and import, {done - made:.0f} s for an image, {peak:.1f} GiB; "
        f"{differ} of {sites:,} spikes differ, largest difference of outputs "
        f"{np.max(np.abs(found.outputs['logits'] - expected.outputs['logits'])):.3g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", nargs="+", default=[], metavar="NETWORK:PROFILE")
    parser.add_argument("--importers", action="store_true")
    parser.add_argument("--norse", metavar="NETWORK")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for pair in arguments.write:
            write(*pair.split(":"), Path(folder))
        if arguments.importers:
            importers(Path(folder))
        if arguments.norse:
            norse(arguments.norse, Path(folder))
    if not arguments.write and not arguments.importers and not arguments.norse:
        sizes()


if __name__ == "__main__":
    main()
