"""The main job on the built-in data: export every shipped checkpoint to every target, verify, run, compare backends.

    make demo            (or: python examples/demo.py --out demo)

Uses the commands exactly as a user types them and prints each one. Trains nothing, downloads nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ("digits", "digits-stream")
TARGETS = {
    "NIR": ("nir", "{}.nir"),
    "ONNX": ("onnx", "{}.onnx"),
    "NIR, 8 bits": ("nir", "{}.8bit.nir", "--bits", 8),
    "ONNX, int8": ("onnx-int8", "{}.int8.onnx"),
    "Lava, 8 bits": ("lava", "{}.lava"),
}
"""What is shown -> target, file, options."""
CHAIN = ("digits-stream", "patch_embed.proj_lif1")
"""netx holds chains of layers only: the first two of this checkpoint."""
COMPARED = ("digits-stream", 32)
"""All backends run this checkpoint, on so many test images: Norse takes them one by one."""
BIN = Path(sys.executable).parent


def call(*arguments: object) -> dict:
    """Run one of our commands with --json, show it, and stop at the first failure."""
    done = start(*arguments, "--json", capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip() or f"exit status {done.returncode}")
    return json.loads(done.stdout)


def start(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run one of our commands and show it."""
    shown = [str(argument).removeprefix(f"{ROOT}/") for argument in arguments if argument != "--json"]
    print("$", " ".join(shown), flush=True)
    return subprocess.run([str(BIN / shown[0]), *map(str, arguments[1:])], check=False, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    table = Table(title="digits: 360 test images, every artefact run from its file")
    for column in ("checkpoint", "runs as", "size", "accuracy", "same class as torch", "spikes", "spikes that differ*"):
        table.add_column(column, justify="left" if column in ("checkpoint", "runs as") else "right")
    began = time.perf_counter()
    for name in CHECKPOINTS:
        checkpoint = ROOT / f"models/zoo/{name}.ckpt"
        reference = call("statten-run", checkpoint, "--data", "digits")
        add_row(table, name, "torch", checkpoint, reference, reference, None)
        for label, (target, file, *options) in TARGETS.items():
            path = out / file.format(name)
            export = call(
                "statten-export", checkpoint, "--target", target, *options, "--out", path, "--test-vectors", 8
            )
            result = call("statten-run", path, "--data", "digits")
            add_row(table, name, label, path, result, reference, export)
        trained = ROOT / f"models/zoo/{name}-4bit.ckpt"
        result = call("statten-run", trained, "--data", "digits")
        add_row(table, name, "torch, trained for 4 bits", trained, result, reference, None)
    name, layer = CHAIN
    path = out / f"{name}.net"
    checkpoint = ROOT / f"models/zoo/{name}.ckpt"
    export = call("statten-export", checkpoint, "--target", "netx", "--until", layer, "--out", path, "--samples", 4)
    table.add_row(name, f"netx, to {layer}", size(path), "", "", "", f"{export['spike_mismatches']:,}")
    console = Console(width=120 if not sys.stdout.isatty() else None)
    console.print(table)
    console.print(
        "* per (neuron, step), on the samples the export verified itself on: float artefacts against torch, integer "
        "ones against the integer reference",
        style="dim",
    )
    name, samples = COMPARED
    folder = out / f"{name}.compare"
    done = start("statten-compare", ROOT / f"models/zoo/{name}.ckpt", "--samples", samples, "--out", folder)
    if done.returncode:
        sys.exit(done.returncode)
    console.print(
        f"artefacts, sidecars, test vectors and the comparison are in {out}/; {time.perf_counter() - began:.0f} s"
    )


def size(path: Path) -> str:
    """Of a file, or of all files of a bundle."""
    parts = [path, *path.rglob("*")]
    return f"{sum(part.stat().st_size for part in parts if part.is_file()) / 1000:.0f} kB"


def add_row(
    table: Table, name: str, backend: str, path: Path, result: dict, reference: dict, export: dict | None
) -> None:
    same = sum(a == b for a, b in zip(result["predictions"], reference["predictions"], strict=True))
    table.add_row(
        name,
        backend,
        size(path),
        f"{result['accuracy']:.2%}",
        f"{same}/{len(result['predictions'])}",
        f"{sum(layer['spikes'] for layer in result['layers']):,}",
        "" if export is None else f"{export['spike_mismatches']:,}",
    )


if __name__ == "__main__":
    main()
