"""One example of every class of message, made by really going wrong: ``python -m tests.untrusted.messages``."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import torch

from statten_deploy import errors
from statten_deploy.cli.common import UsageError
from statten_deploy.compare.executors import TorchExecutor
from statten_deploy.compare.verify import verify_against
from statten_deploy.errors import StattenError, VerificationError
from statten_deploy.events import read_events
from statten_deploy.export.artefact import write_sidecar
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.lava.runner import LavaRunner
from statten_deploy.export.nir import read_nir
from statten_deploy.models.checkpoint import load_model
from statten_deploy.models.config import load_config
from statten_deploy.runtime import load
from statten_deploy.sidecar import read_sidecar, sidecar_path
from statten_deploy.train.data import InputSpec, open_source
from statten_deploy.untrusted import limits
from tests.conftest import lively_input, lively_model
from tests.untrusted.bombs import npz_of_zeros, onnx_file, onnx_loop, pt_bytearray
from tests.untrusted.formats import CONFIG, FORMATS, _integer_graph

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/messages.md"
HEAD = """# Messages

Every error is one line, of a class in `statten_deploy/errors.py`, which decides the exit status. One example of each
kind, as it is printed (`python -m tests.untrusted.messages` makes them by going wrong and writes this page; a test
compares).

| class | exit status | example |
|---|---:|---|
"""


def changed(path: Path, content: Any) -> Path:
    path.write_text(content) if isinstance(content, str) else torch.save(content, path)
    return path


def made(folder: Path, name: str, suffix: str = "") -> Path:
    path = folder / f"model{suffix or FORMATS[name].suffix}"
    FORMATS[name].make(path)
    return path


def no_file(folder: Path) -> None:
    load_model(folder / "model.ckpt")


def damaged_checkpoint(folder: Path) -> None:
    path = made(folder, "ckpt")
    path.write_bytes(path.read_bytes()[:5000])
    load_model(path)


def code(folder: Path) -> None:
    pt_bytearray(folder / "model.pt")
    load_model(folder / "model.pt")


def not_finite(folder: Path) -> None:
    state = {**lively_model(CONFIG).state_dict(), "head.bias": torch.full((5,), torch.nan)}
    load_model(changed(folder / "model.ckpt", {"state_dict": state}))


def configuration_missing(folder: Path) -> None:
    load_model(changed(folder / "model.pt", lively_model(CONFIG).state_dict()))


def contradiction(folder: Path) -> None:
    load_model(made(folder, "ckpt"), {"embed_dim": 64})


def invalid(folder: Path) -> None:
    load_config(changed(folder / "model.yaml", "time_steps: 5\nchunk_size: 2\n"))


def aliases(folder: Path) -> None:
    load_config(changed(folder / "model.yaml", "a: &a [1]\nb: *a\n"))


def too_large(folder: Path) -> None:
    npz_of_zeros(folder / "data.npz")
    limits.check_bytes(folder / "data.npz", 9 << 30, most=8 << 30)


def dangling(folder: Path) -> None:
    nodes = {"input": nir.Input({"input": np.array([3])}), "output": nir.Output({"output": np.array([3])})}
    nir.write(folder / "model.nir", nir.NIRGraph(nodes, [("input", "nowhere")], type_check=False))
    read_nir(folder / "model.nir")


def link(folder: Path) -> None:
    with h5py.File(made(folder, "nir-stranger"), "r+") as file:
        file["node/nodes/lif/extra"] = h5py.ExternalLink("/etc/hostname", "/")
    read_nir(folder / "model.nir")


def unknown_node(folder: Path) -> None:
    with h5py.File(made(folder, "nir-stranger"), "r+") as file:
        del file["node/nodes/lif/type"]
        file["node/nodes/lif/type"] = "Sigmoid"
    read_nir(folder / "model.nir")


def changed_since(folder: Path) -> None:
    path = made(folder, "onnx")
    write_sidecar(sidecar_path(path), path.name, path, {})
    path.write_bytes(path.read_bytes()[:-1])
    read_sidecar(path)


def foreign_operator(folder: Path) -> None:
    onnx_loop(folder / "model.onnx")
    from statten_deploy.runtime import check_structure

    check_structure(folder / "model.onnx")


def foreign_file(folder: Path) -> None:
    onnx_file(folder / "model.onnx")
    load(folder / "model.onnx")


def bundle(folder: Path) -> None:
    write_bundle(_integer_graph(), folder / "model.lava")
    (folder / "model.lava/run.py").write_text("")
    LavaRunner(folder / "model.lava")


def objects(folder: Path) -> None:
    np.savez(folder / "data.npz", x=np.zeros((2, 1, 8, 8)), y=np.array([None, 1], dtype=object))
    open_source(folder / "data.npz", InputSpec((1, 8, 8)))


def picture(folder: Path) -> None:
    changed(folder / "image.png", "no image")
    FORMATS["png"].read(folder / "image.png")


def events(folder: Path) -> None:
    path = made(folder, "events-bin")
    path.write_bytes(path.read_bytes()[:-1])
    read_events(path)


def encoding(folder: Path) -> None:
    read_events(changed(folder / "model.raw", "% evt 2.1\n% end\n"))


def profile(folder: Path) -> None:
    FORMATS["toml-profile"].read(changed(folder / "mine.toml", 'family = "paper"\n'))


def disagreement(folder: Path) -> None:
    configs = (CONFIG.model_copy(update={"depth": depth}) for depth in (2, 1))
    first, second = (TorchExecutor(lively_model(config)) for config in configs)
    found = verify_against(first, second, lively_input(CONFIG, 2).numpy())
    raise VerificationError(found.problems[-1])


def usage(folder: Path) -> None:
    raise UsageError("--until belongs to --target netx")


EXAMPLES: tuple[Callable[[Path], None], ...] = (
    no_file,
    damaged_checkpoint,
    code,
    not_finite,
    configuration_missing,
    contradiction,
    invalid,
    aliases,
    profile,
    too_large,
    dangling,
    link,
    unknown_node,
    changed_since,
    foreign_operator,
    foreign_file,
    bundle,
    objects,
    picture,
    events,
    encoding,
    disagreement,
    usage,
)


def document() -> str:
    """The page, made anew."""
    rows = []
    for example in EXAMPLES:
        with tempfile.TemporaryDirectory() as name:
            try:
                example(Path(name))
            except StattenError as error:
                text = str(error).replace(f"{name}/", "").replace("|", "\\|")
                rows.append((type(error).__name__, error.exit_status, text))
    rows.sort(key=lambda row: [*errors.__all__, "UsageError"].index(row[0]))
    return HEAD + "".join(f"| `{name}` | {status} | {text} |\n" for name, status, text in rows)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
