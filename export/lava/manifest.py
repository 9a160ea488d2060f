"""The list of a bundle's files with their SHA-256: written with it, checked before anything of it is run."""

import json
from pathlib import Path
from typing import Any

from statten_deploy.errors import InputError
from statten_deploy.export import artefact
from statten_deploy.export.artefact import MANIFEST, bundle_files, file_facts

KIND = "statten-lava-bundle"
FORMAT = 1
CODE = (".py", ".pyc", ".pyo", ".pyw", ".pth", ".so", ".pyd", ".dll", ".dylib")
"""Suffixes of what Python loads, here or on another system."""
NAMED = 8
"""Most files that a message names."""


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Describe every file that stands in `folder`. The same files give the same bytes."""
    artefact.write_manifest(folder, KIND, FORMAT, content)


def is_bundle(folder: Path) -> bool:
    """Whether `folder` holds a manifest of this kind; the files may be damaged all the same."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with every file checked: what it lists is there and unchanged, and no code stands beside it.

    Raises:
        InputError: not a bundle, or one that was changed; the message names the files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a Lava bundle")
    if not is_bundle(folder):
        raise InputError(
            f"{folder}: not a Lava bundle (no readable {MANIFEST} of kind {KIND}); export with --target lava"
        )
    document: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if document.get("format") != FORMAT:
        raise InputError(
            f"{folder / MANIFEST}: format {document.get('format')!r}, this version reads {FORMAT}; export again"
        )
    listed = document.get("files")
    if not isinstance(listed, dict) or "run.py" not in listed:
        raise InputError(f"{folder / MANIFEST}: 'files' must list run.py and the other files; export again")
    present = bundle_files(folder)
    wrong = [name for name in listed if name not in present or file_facts(folder / name) != listed[name]]
    wrong += [name for name in _loadable(folder) if name not in listed]
    if wrong:
        named = ", ".join(wrong[:NAMED]) + (f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else "")
        raise InputError(f"{folder}: changed or damaged since it was exported: {named}; export again")
    return document


def _loadable(folder: Path) -> list[str]:
    """What Python could import from `folder`: source, byte code, libraries, and links, which may lead to any of it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or (path.is_file() and path.name.lower().endswith(CODE))
    )
