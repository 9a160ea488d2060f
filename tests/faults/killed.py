"""What a SIGKILL would leave before an export's first step on disk, before its second, and so on to the last.

Run as a program with an empty folder and targets; prints one JSON object. A killed process writes nothing more and what
it wrote stays, so the folder as it stands at a step is what the kill leaves: it is copied there, and looked at. Steps
are what Python's audit events call one (files opened, renamed, removed, folders made, `renameat2` looked up); what C
libraries do lies between two of them. `test_killed.py` kills real commands at random moments besides.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from statten_deploy.api import ExportOptions, export
from statten_deploy.compare.comparison import Comparison
from statten_deploy.compare.files import write_report
from statten_deploy.compare.report import page
from statten_deploy.export.artefact import read_sidecar, sidecar_path, vectors_path
from statten_deploy.export.rooms import sweep
from statten_deploy.sidecar import file_facts

STEPS = frozenset(
    {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "ctypes.dlsym"}
)
RELATIVE = frozenset({"os.remove", "os.rmdir"})
"""With `shutil.rmtree`, names inside a folder that is open."""
SUFFIX = {"nir": ".nir", "onnx": ".onnx", "onnx-int8": ".onnx", "lava": ".lava", "netx": ".net", "report": ".compare"}
Export = Callable[[Path, int], object]


def exporter(target: str) -> Export:
    """Writes an artefact of one of two networks. Without test vectors for 1, which has those of 0 to remove."""
    from tests.conftest import lively_model, small_config

    if target == "report":
        comparisons = drawn_comparisons()
        return lambda path, which: write_report(comparisons[which % 2], path)
    config = small_config("strided", embed_dim=16, num_heads=2, depth=1, time_steps=2, chunk_size=2)
    models = [lively_model(config, seed=seed) for seed in (0, 1)]
    flags = {"until": "patch_embed.proj_lif1"} if target == "netx" else {}

    def write(path: Path, which: int) -> None:
        options = ExportOptions(verify=False, test_vectors=0 if which == 1 else 1)
        export(models[which % 2], target, path, options=options, flags=flags)

    return write


def drawn_comparisons() -> list[Comparison]:
    """Two comparisons whose pages and plots are made once, not in every attempt."""
    from tests.compare.comparisons import small

    found = [replace(small(), seed=seed) for seed in (0, 1)]
    pages = {}
    for comparison in found:
        drawn = page.Page(comparison)
        pages[comparison.seed] = SimpleNamespace(html=partial(str, drawn.html()), plots=drawn.plots)
    page.Page = lambda comparison: pages[comparison.seed]  # type: ignore[assignment,misc]
    return found


class Watch:
    """Calls `at_step` before every step in `folder`, while there is a folder."""

    def __init__(self, at_step: Callable[[], object]) -> None:
        self.at_step, self.folder = at_step, ""
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.folder or event not in STEPS:
            return
        name = str(arguments[0])
        if event == "ctypes.dlsym" or self.folder in name or (event in RELATIVE and not os.path.isabs(name)):
            folder, self.folder = self.folder, ""
            self.at_step()
            self.folder = folder


def content(path: Path) -> str | None:
    """SHA-256 of a file, or of every file of a folder; None where nothing is."""
    if path.is_dir():
        return json.dumps(
            {str(part.relative_to(path)): content(part) for part in sorted(path.rglob("*")) if part.is_file()}
        )
    return file_facts(path)["sha256"] if path.exists() else None


def state(path: Path) -> list[str | None]:
    """Artefact, test vectors, sidecar."""
    return [content(part) for part in (path, vectors_path(path), sidecar_path(path))]


def wrong(found: list[str | None], generations: list[list[str | None]]) -> str:
    """What is left must be one generation, of which only what stands beside the artefact may be missing."""
    for whole in generations:
        if found[0] == whole[0] and all(
            part in (None, other) for part, other in zip(found[1:], whole[1:], strict=True)
        ):
            if found[2] is not None and found != whole:
                return "a sidecar without the vectors that it lists"
            return ""
    return "neither the old artefact nor the new one"


def main(target: str, folder: Path) -> dict[str, object]:
    """Every step of every transition between nothing, with vectors, and without vectors."""
    folder.mkdir()
    write = exporter(target)
    counts, problems, seen = [], [], set()
    generations: dict[int | None, list[str | None]] = {None: [None, None, None]}
    for which in (0, 1, 2):
        at = folder / f"whole{which}"
        at.mkdir()
        write(at / f"m{SUFFIX[target]}", which)
        generations[which] = state(at / f"m{SUFFIX[target]}")
    left = folder / "left"
    shown: list[Path] = []
    watch = Watch(lambda: shown.append(Path(shutil.copytree(shown[0], left / str(len(shown))))))
    for old, new in ((None, 0), (0, 1), (1, 2)):
        at = folder / f"{old}-{new}"
        shutil.copytree(folder / f"whole{old}", at) if old is not None else at.mkdir()
        shown[:] = [at]
        watch.folder = str(at)
        write(at / f"m{SUFFIX[target]}", new)
        watch.folder = ""
        for step, place in enumerate([*shown[1:], at]):
            path = place / f"m{SUFFIX[target]}"
            found = state(path)
            said = wrong(found, [generations[old], generations[new]])
            if not said and path.exists() and target != "report":
                read_sidecar(path)  # raises where it is that of another artefact
            seen.add("old" if found[0] == generations[old][0] else "new")
            sweep(place, path.name)
            rest = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith("m."))
            if said or rest or state(path)[0] != found[0] or (place == at and found != generations[new]):
                problems.append(f"{old} -> {new}, step {step}: {said or rest or 'not what it should be'}")
        counts.append(len(shown))
        shutil.rmtree(left)
    return {"points": counts, "seen": sorted(seen), "problems": problems}


if __name__ == "__main__":
    base = Path(sys.argv[1])
    print(json.dumps({target: main(target, base / target) for target in sys.argv[2:]}))
