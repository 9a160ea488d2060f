"""Every format that is read, with small real artefacts of it and the reader that a command would use."""

import argparse
import itertools
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from statten_deploy.compare.executors import OnnxExecutor, OnnxIntegerExecutor
from statten_deploy.energy import load_profile
from statten_deploy.energy.chips import load_chip
from statten_deploy.errors import InputError
from statten_deploy.events import read_events
from statten_deploy.events.readers import aedat4_child
from statten_deploy.events.readers import hdf5 as event_hdf5
from statten_deploy.events.readers.limits import MAX_EVENTS, one_line
from statten_deploy.export.artefact import write_sidecar
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.lava.manifest import read_manifest
from statten_deploy.export.lava.manifest import write_manifest as write_lava_manifest
from statten_deploy.export.lava.runner import LavaRunner
from statten_deploy.export.netx import write_netx
from statten_deploy.export.netx.runner import NetxRunner
from statten_deploy.export.nir import write_nir
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import CONFIG_KEY, load_model
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.runtime import load
from statten_deploy.sidecar import read_sidecar, sidecar_path
from statten_deploy.source import load_source
from statten_deploy.train.config import read_recipe
from statten_deploy.train.data import InputSpec, open_source
from statten_deploy.train.data.images import read_picture
from statten_deploy.train.resume import _read as read_resume
from tests.conftest import lively_model, small_config
from tests.events import encoders
from tests.export.netx.chains import dense_chain
from tests.untrusted.mutations import BINARY, TEXT, ZIP, Mutation, header_text, pickled, words

ROOT = Path(__file__).resolve().parents[2]
CONFIG = small_config("sliding", embed_dim=8, num_heads=2, depth=1, image_size=(8, 8), mlp_ratio=1)
MANY_EVENTS = 1 << 12


@dataclass(frozen=True)
class Format:
    """make: writes an artefact of this suffix. read: what a command does with it, in this process.

    alone: commands read it in a child process, since its library hangs or dies on damage.
    """

    suffix: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    kinds: tuple[Mutation, ...] = BINARY
    alone: bool = False


def _config_dict() -> dict[str, Any]:
    return CONFIG.model_dump(mode="json")


def _ckpt(path: Path) -> None:
    model = lively_model(CONFIG)
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]}
    told = {CONFIG_KEY: _config_dict(), "statten_train": {"lr": 0.1}, "epoch": 3, "optimizer_states": [optimizer]}
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}, **told}, path)


def _released(path: Path) -> None:
    args = argparse.Namespace(img_size=8, time_steps=4, chunk_size=2, pooling_stat="0011", attention_mode="STAtten")
    content = {"state_dict": lively_model(CONFIG).state_dict(), "args": args, "epoch": 3, "arch": "sdt"}
    torch.save(content, path)


def _legacy(path: Path) -> None:
    content = {"state_dict": lively_model(CONFIG).state_dict(), CONFIG_KEY: _config_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _safetensors(path: Path) -> None:
    save_file(dict(lively_model(CONFIG).state_dict()), path, {CONFIG_KEY: json.dumps(_config_dict())})


def _yaml(path: Path) -> None:
    path.write_text(yaml.safe_dump({"model": _config_dict(), "train": {"lr": 0.1, "epochs": 2}}))


def _nir(path: Path) -> None:
    write_nir(build_graph(lively_model(CONFIG)), path)


def _stranger(path: Path) -> None:
    rng = np.random.default_rng(0)
    ones = np.ones((3, 6, 6), np.float32)
    nodes = {
        "input": nir.Input({"input": np.array([1, 8, 8])}),
        "conv": nir.Conv2d(None, rng.normal(size=(3, 1, 3, 3)).astype("f4"), 1, 0, 1, 1, np.zeros(3, np.float32)),
        "lif": nir.LIF(ones * 2e-4, ones, ones * 0, ones),
        "flat": nir.Flatten({"input": np.array([3, 6, 6])}, 0, -1),
        "fc": nir.Affine(rng.normal(size=(4, 108)).astype("f4"), np.zeros(4, np.float32)),
        "out": nir.CubaLIF(*(np.ones(4, np.float32) * v for v in (2e-4, 2e-4, 1, 0, 1))),
        "output": nir.Output({"output": np.array([4])}),
    }
    names = list(nodes)
    nir.write(path, nir.NIRGraph(nodes, list(itertools.pairwise(names))))


def _read_nir(path: Path) -> None:
    load_source(path, time_steps=None if b"time_steps" in path.read_bytes() else 2)


def _integer_graph() -> nir.NIRGraph:
    return quantize(build_graph(lively_model(CONFIG)), QuantizeOptions(8))


def _netx(path: Path) -> None:
    write_netx(dense_chain(np.random.default_rng(0)), path)


def _onnx(path: Path) -> None:
    save_onnx(build_onnx(build_graph(lively_model(CONFIG)), time_steps=4, layout="stream"), path)


def _int8(path: Path) -> None:
    save_onnx(build_integer_onnx(_integer_graph()), path)


def _read_onnx(path: Path) -> None:
    session = load(path, threads=1)
    session.predict(np.zeros((1, *session.sample_shape), np.float32))


def _read_onnx_spikes(path: Path) -> None:
    executor: Any = OnnxExecutor(path, spikes=True)
    if executor.metadata.get("flavour") == "integer":
        executor = OnnxIntegerExecutor(path)
    shape = executor.file.sample_shape
    if None in shape or np.prod(shape) > 1 << 20:
        raise InputError(f"{path}: input of another shape")
    executor.run(np.zeros((1, *shape), np.float32))


def _read_openvino(path: Path) -> None:
    session = load(path, threads=1, engine="openvino")
    session.predict(np.zeros((1, *session.sample_shape), np.float32))


def _npz(path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(path, x=rng.random((6, 1, 8, 8), np.float32), y=np.arange(6) % 3, input=np.zeros((2, 1, 8, 8)))


def _read_npz(path: Path) -> None:
    open_source(path, InputSpec((1, 8, 8), 3))


def _bundle(path: Path) -> None:
    """A bundle in one file: zipped, so that one mutation can meet any of its parts."""
    folder = path.with_name("bundle.lava")
    if not folder.exists():
        write_bundle(_integer_graph(), folder)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("network.json", "weights.npz", "manifest.json"):
            archive.write(folder / name, name)


def _bundle_member(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        _bundle(path.with_name("bundle.zip"))
        path.write_bytes((path.with_name("bundle.lava") / name).read_bytes())

    return make


def _read_bundle(name: str, signed: bool) -> Callable[[Path], None]:
    """The bundle with one file replaced; `signed`: the manifest knows of it."""

    def read(path: Path) -> None:
        folder = path.parent / "mutated.lava"
        if not folder.exists():
            write_bundle(_integer_graph(), folder)
            (path.parent / "sound").mkdir()
            for part in ("network.json", "weights.npz", "manifest.json"):
                (path.parent / "sound" / part).write_bytes((folder / part).read_bytes())
        for part in ("network.json", "weights.npz", "manifest.json"):
            (folder / part).write_bytes((path.parent / "sound" / part).read_bytes())
        told = json.loads((folder / "manifest.json").read_text())
        (folder / name).write_bytes(path.read_bytes())
        if signed:
            write_lava_manifest(folder, {key: told[key] for key in told.keys() - {"kind", "format", "tool", "files"}})
        LavaRunner(folder)
        sys.path.insert(0, str(folder))
        try:
            from statten_lava import worker

            try:
                plan, weights = worker.read_bundle(folder)
                with worker.damaged():
                    worker.encode(plan, weights, np.zeros((1, 1, *plan["input"]["shape"][:4])))
            except worker.BadInputError as error:
                raise InputError(f"{folder}: {error}") from None
        finally:
            sys.path.remove(str(folder))

    return read


def _sidecar(path: Path) -> None:
    artefact = path.with_name("digits.onnx")
    artefact.write_bytes(b"artefact")
    write_sidecar(path, artefact.name, artefact, {"T": 4, "outputs": ["logits"], "verification": {"samples": 32}})


def _read_sidecar(path: Path) -> None:
    artefact = path.parent / "a.onnx"
    artefact.write_bytes(b"artefact")
    sidecar_path(artefact).write_bytes(path.read_bytes())
    read_sidecar(artefact)


def _toml(folder: str, name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        text = (ROOT / f"statten_deploy/energy/{folder}/{name}.toml").read_text()
        path.write_text(text.replace(f'name = "{name}"', 'name = "mine"'))

    return make


def _bytes(encode: Callable[[Any], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(encode(encoders.some_events(60))) and None


def _columns() -> dict[str, Any]:
    events = encoders.some_events(60)
    return {name: getattr(events, name) for name in "txyp"}


def _read_events(path: Path) -> None:
    read_events(path, max_events=MANY_EVENTS)


def _event_hdf5(path: Path) -> None:
    columns = _columns()
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file.create_dataset(f"events/{name}", data=column.astype(np.uint32), compression="gzip")
        file["t_offset"] = 1000
        file.attrs["geometry"] = "34x20"


def _aedat4(path: Path) -> None:
    path.write_bytes((ROOT / "tests/data/events.aedat4").read_bytes())


def _read_aedat4(path: Path) -> None:
    with one_line(path, "AEDAT 4"):
        aedat4_child.decode(path, MAX_EVENTS)


def _image(**options: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (12, 14, 3), np.uint8)
        Image.fromarray(pixels).save(path, **options)

    return make


FORMATS: dict[str, Format] = {
    "ckpt": Format(".ckpt", _ckpt, load_model, ZIP),
    "ckpt-resume": Format(".ckpt", _ckpt, read_resume, ZIP),
    "pth": Format(".pth", _released, load_model, ZIP),
    "pt-legacy": Format(".pt", _legacy, load_model, (*BINARY, pickled)),
    "safetensors": Format(".safetensors", _safetensors, load_model, (*BINARY, header_text)),
    "yaml": Format(".yaml", _yaml, read_recipe, TEXT),
    "nir": Format(".nir", _nir, _read_nir, alone=True),
    "nir-stranger": Format(".nir", _stranger, _read_nir, alone=True),
    "net": Format(".net", _netx, NetxRunner, alone=True),
    "onnx": Format(".onnx", _onnx, _read_onnx),
    "onnx-spikes": Format(".onnx", _onnx, _read_onnx_spikes),
    "onnx-int8": Format(".onnx", _int8, _read_onnx),
    "npz": Format(".npz", _npz, _read_npz, ZIP),
    "lava-plan": Format(".json", _bundle_member("network.json"), _read_bundle("network.json", True), TEXT),
    "lava-weights": Format(".npz", _bundle_member("weights.npz"), _read_bundle("weights.npz", True), ZIP),
    "lava-manifest": Format(".json", _bundle_member("manifest.json"), _read_bundle("manifest.json", False), TEXT),
    "sidecar": Format(".json", _sidecar, _read_sidecar, TEXT),
    "toml-profile": Format(".toml", _toml("profiles", "loihi1"), load_profile, TEXT),
    "toml-chip": Format(".toml", _toml("chips", "loihi1"), load_chip, TEXT),
    "events-npy": Format(
        ".npy",
        lambda p: np.save(p, np.array(encoders.rows(encoders.some_events(60)))),
        _read_events,
        (*BINARY, header_text),
    ),
    "events-npz": Format(".npz", lambda p: np.savez(p, **_columns(), width=34, height=20), _read_events, ZIP),
    "events-bin": Format(".bin", _bytes(encoders.bin_bytes), _read_events),
    "events-dat": Format(".dat", _bytes(encoders.dat_bytes), _read_events),
    "events-evt2": Format(".raw", _bytes(encoders.evt2_bytes), _read_events),
    "events-evt3": Format(".raw", _bytes(encoders.evt3_bytes), _read_events),
    "events-aedat2": Format(".aedat", _bytes(encoders.aedat2_bytes), _read_events),
    "events-aedat3": Format(".aedat", _bytes(encoders.aedat3_bytes), _read_events),
    "events-aedat4": Format(".aedat4", _aedat4, _read_aedat4, alone=True),
    "events-hdf5": Format(".h5", _event_hdf5, lambda p: event_hdf5.read_here(p, MANY_EVENTS), alone=True),
    "png": Format(".png", _image(), lambda p: read_picture(p, 3)),
    "jpeg": Format(".jpg", _image(), lambda p: read_picture(p, 3)),
    "bmp": Format(".bmp", _image(), lambda p: read_picture(p, 1)),
    "tiff": Format(".tif", _image(compression="tiff_lzw"), lambda p: read_picture(p, 3)),
    "webp": Format(".webp", _image(), lambda p: read_picture(p, 3)),
    "ppm": Format(".ppm", _image(), lambda p: read_picture(p, 1)),
}
__all__ = ["FORMATS", "Format", "read_manifest", "words"]
