"""Files appear whole or not at all: write under a temporary name, verify, rename. Each artefact has a sidecar."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statten_deploy.errors import InputError
from statten_deploy.sidecar import MANIFEST, file_facts, read_sidecar, sidecar_path
from statten_deploy.version import __version__

__all__ = [
    "MANIFEST",
    "SIDECAR_FORMAT",
    "Staging",
    "discard_all",
    "file_facts",
    "read_sidecar",
    "sidecar_path",
    "staging",
    "vectors_path",
    "write_sidecar",
]

SIDECAR_FORMAT = 1


_ACTIVE: "list[Staging]" = []
"""Stagings under way in this process, for `discard_all`."""


def discard_all() -> bool:
    """Remove every temporary file of this process; whether there was any staging. For signal handlers."""
    active = bool(_ACTIVE)
    for stage in list(_ACTIVE):
        stage.discard()
    return active


@dataclass(eq=False)
class Staging:
    """Temporary files beside their destinations; `commit` moves them all into place."""

    folder: Path
    _files: dict[Path, Path] = field(default_factory=dict)
    _obsolete: list[Path] = field(default_factory=list)

    def file(self, destination: Path) -> Path:
        """A temporary path for `destination`, with the same suffix, in the same file system."""
        if destination.is_dir():
            raise InputError(f"{destination}: is a folder; --out names the file to write")
        with self._writable(destination):
            handle, name = tempfile.mkstemp(prefix=f".{destination.stem}.", suffix=destination.suffix, dir=self.folder)
        os.close(handle)
        self._files[destination] = Path(name)
        return Path(name)

    def bundle(self, destination: Path, kind: str = "statten") -> Path:
        """A temporary folder for `destination`, an artefact that is a folder with a manifest.

        Raises:
            InputError: something stands there that is not a bundle (whose kind begins with `kind`), or holds files that
                no export wrote.
        """
        if destination.is_symlink():
            raise InputError(f"{destination}: is a link; --out names the folder to write")
        if destination.exists() and not destination.is_dir():
            raise InputError(f"{destination}: is no folder; --out names the folder to write")
        if not destination.name:
            raise InputError(f"{destination}: cannot be replaced; --out names the folder to write")
        if destination.exists():
            foreign = _foreign_files(destination, kind)
            if foreign:
                raise InputError(
                    f"{destination}: exists and holds what no export wrote: {', '.join(foreign[:4])}; move it away or "
                    "choose another --out"
                )
        with self._writable(destination):
            name = tempfile.mkdtemp(prefix=f".{destination.stem}.", suffix=destination.suffix, dir=self.folder)
        self._files[destination] = Path(name)
        return Path(name)

    @contextmanager
    def _writable(self, destination: Path) -> Iterator[None]:
        """What the system says to a temporary name, said of the one that the user gave."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{destination}: cannot be written in {self.folder} ({error.strerror}); choose another --out"
            ) from None

    def remove(self, obsolete: Path) -> None:
        """A file of an earlier export that `commit` removes."""
        self._obsolete.append(obsolete)

    def commit(self) -> list[Path]:
        """Flush every file to disk and rename it to its final name, sidecars last."""
        mask = _umask()
        for temporary in self._files.values():
            for part in [temporary, *temporary.rglob("*")]:
                part.chmod((0o777 if part.is_dir() else 0o666) & ~mask)  # temporary files are private
                if part.is_file():
                    with part.open("rb") as stream:
                        os.fsync(stream.fileno())
        for obsolete in self._obsolete:
            obsolete.unlink(missing_ok=True)
        for destination, temporary in self._files.items():
            if destination.is_dir():  # a folder cannot be replaced in one step: the old one goes aside first
                aside = Path(tempfile.mkdtemp(prefix=f".{destination.stem}.", suffix=".old", dir=self.folder))
                destination.replace(aside)
                temporary.replace(destination)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.replace(destination)
        return list(self._files)

    def discard(self) -> None:
        """Remove what was not committed."""
        for temporary in self._files.values():
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_manifest(folder: Path, kind: str, form: int, content: Mapping[str, Any]) -> None:
    """Describe every file that stands in `folder`, which makes it a bundle. The same files give the same bytes."""
    document = {
        "kind": kind,
        "format": form,
        "tool": {"name": "statten-deploy", "version": __version__},
        **content,
        "files": {name: file_facts(folder / name) for name in bundle_files(folder)},
    }
    (folder / MANIFEST).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def bundle_files(folder: Path) -> list[str]:
    """Every file under `folder` but the manifest and Python's caches, as POSIX paths, sorted."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if "__pycache__" not in path.parts and path.name != MANIFEST)


def _foreign_files(bundle: Path, kind: str) -> list[str]:
    """What stands in a folder beside the files that its manifest lists; everything where there is no manifest."""
    listed: set[str] = set()
    try:
        document = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        if document["format"] and document["kind"].startswith(kind):
            listed = {MANIFEST, *document["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    present = [part.relative_to(bundle) for part in bundle.rglob("*") if part.is_file() or part.is_symlink()]
    return sorted(str(part) for part in present if str(part) not in listed and "__pycache__" not in part.parts)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def staging(destination: Path) -> Iterator[Staging]:
    """Stage files beside `destination`; anything not committed is removed, whatever happens.

    Raises:
        InputError: the folder does not exist.
    """
    folder = destination.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; create it or choose another --out")
    stage = Staging(folder)
    _ACTIVE.append(stage)
    try:
        yield stage
    finally:
        stage.discard()
        _ACTIVE.remove(stage)


def vectors_path(artefact: Path) -> Path:
    """``model.nir`` -> ``model.nir.vectors.npz``."""
    return artefact.with_name(artefact.name + ".vectors.npz")


def write_sidecar(path: Path, artefact_name: str, artefact: Path, content: Mapping[str, Any]) -> None:
    """Write the sidecar of `artefact` (a staged file that will be called `artefact_name`). No time stamps: the same
    export gives the same bytes."""
    document = {
        "format": SIDECAR_FORMAT,
        "artefact": artefact_name,
        **file_facts(artefact),
        "tool": {"name": "statten-deploy", "version": __version__},
        **content,
    }
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
