"""Files appear whole or not at all: write under a temporary name, verify, rename. Each artefact has a sidecar."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statten_deploy.errors import InputError
from statten_deploy.export.renames import renames
from statten_deploy.export.rooms import ASIDE, ENDING, Room, room
from statten_deploy.sidecar import MANIFEST, file_facts, read_sidecar, sidecar_path
from statten_deploy.version import __version__

__all__ = [
    "MANIFEST",
    "SIDECAR_FORMAT",
    "Staging",
    "file_facts",
    "read_sidecar",
    "sidecar_path",
    "staging",
    "vectors_path",
    "write_sidecar",
]

SIDECAR_FORMAT = 1


@dataclass(eq=False)
class Staging:
    """Temporary files in a room beside their destinations; `commit` moves them all into place."""

    room: Room
    _files: dict[Path, Path] = field(default_factory=dict)
    _obsolete: list[Path] = field(default_factory=list)

    def file(self, destination: Path) -> Path:
        """A temporary path for `destination`, under the same name, in the same file system."""
        if destination.is_dir():
            raise InputError(f"{destination}: is a folder; --out names the file to write")
        return self._staged(destination)

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
        temporary = self._staged(destination)
        temporary.mkdir()
        return temporary

    def _staged(self, destination: Path) -> Path:
        self._files[destination] = self.room.path / destination.name
        return self._files[destination]

    def remove(self, obsolete: Path) -> None:
        """A file of an earlier export that `commit` removes."""
        if obsolete.is_dir():
            raise InputError(f"{obsolete}: is a folder, where an export puts its file; move it away")
        self._obsolete.append(obsolete)

    def commit(self) -> list[Path]:
        """Flush every file to disk and rename it to its final name: the first is the artefact, the others describe it.

        What describes the old artefact goes first, the last file (the sidecar) before all others, then the artefacts
        change places in one step, then the rest follows, the sidecar last. So a process that is killed leaves the old
        artefact or the new one, and whatever stands beside it belongs to it. A failure puts everything back.
        """
        self._flush()
        artefact, *companions = self._files
        aside = self.room.path / ASIDE
        aside.mkdir()
        with renames() as done:
            for old in [*reversed(companions), *self._obsolete]:
                if os.path.lexists(old):
                    done.move(old, aside / old.name)
            done.put(self._files[artefact], artefact, aside / artefact.name)
            for companion in companions:
                done.move(self._files[companion], companion)
        _sync(self.room.folder)
        return list(self._files)

    def _flush(self) -> None:
        mask = _umask()
        for temporary in self._files.values():
            for part in [*temporary.rglob("*"), temporary]:
                part.chmod((0o777 if part.is_dir() else 0o666) & ~mask)  # writers differ in what they give
                _sync(part)


def _sync(path: Path) -> None:
    """Onto the disk; not every file system can do that with folders."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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

    What a killed run left there of the same destination is removed, too.

    Raises:
        InputError: the folder does not exist, or nothing can be written there.
    """
    folder = destination.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; create it or choose another --out")
    try:
        with room(folder, destination.name) as entered:
            yield Staging(entered)
    except OSError as error:
        told = _refused(error, destination)
        if told is None:
            raise
        raise InputError(told) from error


FULL, FORBIDDEN = "free some space, or choose another --out", "choose another --out, or change its permissions"
REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: "a limit on the size of files is set (ulimit -f), or the file system has one",
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.EROFS: FORBIDDEN,
    errno.EIO: "look at the disk, or choose another --out",
    errno.ENAMETOOLONG: "choose a shorter --out",
}


def _refused(error: OSError, destination: Path) -> str | None:
    """What the system said about writing, without temporary names; None where the error is about something else."""
    about = next((Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name), None)
    if about is not None and not (about.name.startswith(destination.name) or any(map(_is_room, about.parts))):
        return None
    if about is None and error.errno not in REMEDIES:
        return None
    shown = destination if about is None or any(map(_is_room, about.parts)) else about
    remedy = REMEDIES.get(error.errno or 0, "choose another --out")
    return f"{shown}: cannot be written ({error.strerror or error}); {remedy}"


def _is_room(name: str) -> bool:
    return name.startswith(".") and name.endswith(ENDING)


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
