"""The list of a bundle's files with their SHA-256: written with it, checked before anything of it is run."""

from pathlib import Path
from typing import Any

from statten_deploy.errors import InputError
from statten_deploy.export import artefact
from statten_deploy.export.artefact import MANIFEST, bundle_files, file_facts
from statten_deploy.untrusted.text import SHOWN, read_json, shown

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
        return bool(read_json(folder / MANIFEST, "manifest").get("kind") == KIND)
    except (InputError, AttributeError):
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
    document: dict[str, Any] = read_json(folder / MANIFEST, "manifest")
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
        wrong = [name if name.isprintable() and len(name) < SHOWN else shown(name) for name in wrong]
        named = ", ".join(wrong[:NAMED]) + (f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else "")
        raise InputError(f"{folder}: changed or damaged since it was exported: {named}; export again")
    foreign = [name for name in _loadable(folder) if listed[name].get("sha256") != OWN_CODE.get(name)]
    if foreign:
        raise InputError(
            f"{folder}: brings code that is not this version's: {', '.join(foreign[:NAMED])}; export again, or run "
            "its run.py yourself if you trust it"
        )
    return document


def _own_code() -> dict[str, str]:
    """SHA-256 of the code that a bundle of this version holds: what a stranger wrote is never run from here."""
    folder = Path(__file__).with_name("bundle")
    names = (name for name in _loadable(folder) if name != "__init__.py" and "__pycache__" not in name)
    return {name: file_facts(folder / name)["sha256"] for name in names}


def _loadable(folder: Path) -> list[str]:
    """What Python could import from `folder`: source, byte code, libraries, and links, which may lead to any of it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or (path.is_file() and path.name.lower().endswith(CODE))
    )


OWN_CODE = _own_code()
