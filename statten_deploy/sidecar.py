"""The sidecar of an artefact, as anyone reads it: ``model.onnx.json`` beside ``model.onnx``. Standard library only."""

import hashlib
from pathlib import Path
from typing import Any

from statten_deploy.errors import InputError
from statten_deploy.untrusted.text import read_json

MANIFEST = "manifest.json"
"""In a bundle (an artefact that is a folder): the SHA-256 of every other file."""


def sidecar_path(artefact: Path) -> Path:
    """``model.nir`` -> ``model.nir.json``."""
    return artefact.with_name(artefact.name + ".json")


def file_facts(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file; of a bundle, the SHA-256 of its manifest (which has all others) and total size."""
    if path.is_dir():
        size = sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
        return {**file_facts(path / MANIFEST), "bytes": size}
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def read_sidecar(artefact: Path) -> dict[str, Any] | None:
    """The sidecar of an artefact, checked against the file's SHA-256; None when there is none.

    Raises:
        InputError: the sidecar is not JSON, or the artefact changed since it was written.
    """
    path = sidecar_path(artefact)
    if not path.is_file():
        return None
    document = read_json(path, "JSON sidecar")
    if not isinstance(document, dict) or "sha256" not in document:
        raise InputError(f"{path}: not a sidecar of this tool (no 'sha256'); delete it or export again")
    if document["sha256"] != file_facts(artefact)["sha256"]:
        raise InputError(
            f"{artefact}: its SHA-256 differs from {path.name}: the file was changed or damaged; export again"
        )
    return document
