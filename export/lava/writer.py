"""Write a quantised graph as a Lava bundle: code copied as it stands, weights and plan as data."""

import json
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import nir
import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.export.lava.manifest import write_manifest
from statten_deploy.export.lava.plan import Plan, make_plan
from statten_deploy.ir.graph import hints

TEMPLATE = "statten_deploy.export.lava.bundle"
COPIED = ("run.py", "README.md", "statten_lava")


@dataclass(frozen=True)
class BundleReport:
    """What was written.

    `latency_steps`: steps by which results leave late. `undocumented`: where neurons use what Lava's simulator takes
    and its documentation does not promise, such as one threshold per channel; empty for `--granularity tensor`.
    """

    folder: Path
    files: tuple[Path, ...]
    latency_steps: int
    processes: int
    neuron_layers: int
    undocumented: tuple[str, ...]


def write_bundle(graph: nir.NIRGraph, folder: Path) -> BundleReport:
    """Write the bundle into a new or empty folder. The same graph gives the same bytes.

    Raises:
        InputError: `folder` holds something, or its parent does not exist.
        UnsupportedError: the graph has nodes or numbers that Lava cannot hold; all are named.
    """
    folder = Path(folder)
    plan = make_plan(graph)
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder.parent}: no such folder; create it or choose another name")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: exists already; a bundle is written into an empty folder")
    folder.mkdir(exist_ok=True)
    _fill(folder, plan, graph)
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    return BundleReport(
        folder=folder,
        files=tuple(written),
        latency_steps=plan.latency_steps,
        processes=len(plan.document["nodes"]),
        neuron_layers=plan.neuron_layers,
        undocumented=plan.undocumented,
    )


def _fill(folder: Path, plan: Plan, graph: nir.NIRGraph) -> None:
    for name in COPIED:
        _copy(files(TEMPLATE) / name, folder / name)
    told = {key: hints(graph)[key] for key in ("name", "bits", "granularity") if key in hints(graph)}
    document = json.dumps({**told, **plan.document}, indent=1, allow_nan=False) + "\n"
    (folder / "network.json").write_text(document, encoding="utf-8")
    np.savez(folder / "weights.npz", **plan.arrays)  # type: ignore[arg-type]
    times = {key: plan.document[key] for key in ("time_steps", "latency_steps")}
    frame = plan.document["input"]["shape"]
    described = {
        "model": told,
        **times,
        "input_shape": frame if hints(graph).get("input") == "image" else [times["time_steps"], *frame],
        "classes": hints(graph).get("classes"),
        "output": plan.document["output"]["name"],
        "undocumented": list(plan.undocumented),
    }
    write_manifest(folder, described)


def _copy(source: Traversable, target: Path) -> None:
    if source.is_file():
        target.write_bytes(source.read_bytes())
        return
    target.mkdir()
    for child in sorted(source.iterdir(), key=lambda item: item.name):
        if child.name.endswith(".py") or (child.is_dir() and child.name != "__pycache__"):
            _copy(child, target / child.name)
