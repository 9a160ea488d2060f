"""No file runs code: whatever a pickle would call is named and refused, wherever it hides."""

import argparse
import os
import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statten_deploy.errors import InputError
from statten_deploy.events import read_events
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.lava.manifest import write_manifest
from statten_deploy.export.lava.runner import LavaRunner
from statten_deploy.models.checkpoint import load_model
from statten_deploy.models.config import read_yaml
from statten_deploy.train.data import InputSpec, open_source
from statten_deploy.train.resume import check_resume
from tests.untrusted.formats import CONFIG, _integer_graph, lively_model


class Call:
    """Unpickling this calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def calls(target: Path) -> dict[str, Any]:
    touch = f"touch {target}"
    return {
        "os": Call(os.system, touch),
        "builtins": Call(exec, f"open({str(target)!r}, 'w')"),
        "numpy": Call(np.save, str(target), 1),
        "torch": Call(torch.save, {}, str(target)),
        "partial": Call(partial, os.system, touch),
        "load": Call(torch.load, str(target)),
    }


@pytest.mark.parametrize("kind", calls(Path("x")))
@pytest.mark.parametrize("where", ["top", "state", "args", "nested", "key"])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints(tmp_path: Path, kind: str, where: str, zipped: bool) -> None:
    target, evil = tmp_path / "ran", calls(tmp_path / "ran")[kind]
    content: Any = {"state_dict": lively_model(CONFIG).state_dict(), "args": argparse.Namespace(img_size=8)}
    if where == "top":
        content = evil
    elif where == "state":
        content["state_dict"]["head.weight"] = evil
    elif where == "args":
        content["args"].evil = evil
    elif where == "nested":
        content["optimizer"] = {"state": [OrderedDict(a=(1, [evil]))]}
    else:
        content["evil"] = {(evil,): 1}
    path = tmp_path / "a.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"it refers to \S+, which is no part of weights and could run code"):
        load_model(path)
    with pytest.raises(InputError, match="it refers to"):
        check_resume(path, None)  # type: ignore[arg-type]  # refused before the recipe is looked at
    assert not target.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    path, target = tmp_path / "a.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {target}"), protocol))
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_model(path)
    assert not target.exists()


def test_arrays_of_objects(tmp_path: Path) -> None:
    evil = np.array([Call(os.system, f"touch {tmp_path / 'ran'}")] * 2, dtype=object)
    spec = InputSpec((1, 8, 8), 3)
    np.savez(tmp_path / "x.npz", x=evil)
    np.savez(tmp_path / "y.npz", x=np.zeros((2, 1, 8, 8)), y=evil)
    np.savez(tmp_path / "e.npz", t=evil, x=evil, y=evil, p=evil)
    np.save(tmp_path / "e.npy", evil, allow_pickle=True)
    for read, name in (
        (lambda path: open_source(path, spec), "x.npz"),
        (lambda path: open_source(path, spec), "y.npz"),
        (read_events, "e.npz"),
        (read_events, "e.npy"),
    ):
        with pytest.raises(InputError):
            read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    for tag in ("python/object/apply:os.system [touch ran]", "python/name:os.system", "python/module:os"):
        (tmp_path / "a.yaml").write_text(f"a: !!{tag}\n")
        with pytest.raises(InputError, match="could not determine a constructor"):
            read_yaml(tmp_path / "a.yaml")


def test_code_of_a_strangers_bundle_is_not_run(tmp_path: Path) -> None:
    """A manifest that agrees with changed code proves nothing: only this version's own code is run."""
    folder = tmp_path / "a.lava"
    write_bundle(_integer_graph(), folder)
    LavaRunner(folder)
    for name in ("run.py", "statten_lava/worker.py", "statten_lava/extra.py", "sitecustomize.py"):
        code = folder / name
        before = code.read_bytes() if code.exists() else None
        code.write_bytes((before or b"") + b"\nimport os; os.system('touch ran')\n")
        write_manifest(folder, {"latency_steps": 0, "input_shape": [1], "classes": None, "output": "o"})
        with pytest.raises(InputError, match=f"brings code that is not this version's: {name}; export again"):
            LavaRunner(folder)
        code.unlink() if before is None else code.write_bytes(before)
