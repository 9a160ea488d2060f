"""Licences of everything that is installed, from the packages' own metadata: ``docs/licences.md``.

``python .ci/licences.py`` writes the file; a test compares it with what is installed.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "licences.md"
ROOT = "statten-deploy"
GROUPS = ("core", "openvino", "events", "lava", "simulators", "sanafe", "datasets", "dev")
"""The package itself, then its extras; a package is listed under the first that needs it."""
BESIDE = {"lava-nc": "lava", "lava-dl": "lava", "sinabs": "simulators"}
"""Installed without their dependencies (Makefile)."""
INSTALLERS = frozenset({ROOT, "pip"})
TOLD = {
    "aedat": "MIT",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "expelliarmus": "GPL-2.0",
    "hdf5plugin": "MIT AND BSD-2-Clause AND BSD-3-Clause AND Zlib AND Apache-2.0",
    "importrosbag": "GPL-3.0-or-later",
    "matplotlib": "PSF-2.0",
    "neurobench": "Apache-2.0",
    "norse": "LGPL-3.0",
    "nvidia-nvtx": "Apache-2.0",
    "spikingjelly": "Apache-2.0",
}
"""What metadata leave open, from the licence files of these packages or their repositories."""
NAMES = {
    "mit license": "MIT",
    "apache software license": "Apache-2.0",
    "osi approved :: apache software license": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "bsd license": "BSD",
    "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "isc license": "ISC",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "gnu general public license v3 (gplv3)": "GPL-3.0-only",
    "gnu lesser general public license v2 or later (lgplv2+)": "LGPL-2.1-or-later",
}
KNOWN = re.compile(
    r"\(?(MIT|MIT-0|MIT-CMU|0BSD|Apache-2\.0|BSD|BSD-2-Clause|BSD-3-Clause|BSL-1\.0|ISC|MPL-2\.0|PSF-2\.0|Zlib|"
    r"LLVM-exception|L?GPL(-[\d.]+)?(-only|-or-later)?|LicenseRef-NVIDIA-Proprietary)\)?"
)
COPYLEFT = re.compile(r"(?<!L)GPL")
WEAK_COPYLEFT = re.compile(r"LGPL")


def normal(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(found: Distribution) -> str:
    """An SPDX expression, or what the package says in its place."""
    metadata = found.metadata
    told = TOLD.get(normal(metadata["Name"])) or metadata.get("License-Expression")
    if told:
        return told
    lines = (metadata.get("License") or "").strip().splitlines()
    said = lines[0].strip() if lines else ""
    kinds = [item.split(" :: ")[-1] for item in metadata.get_all("Classifier") or [] if item.startswith("License ::")]
    for text in (said.replace("), (", ") AND ("), *kinds):
        named = NAMES.get(text.lower(), text)
        if unknown(named) is None:
            return named
    return said or "unknown"


def unknown(expression: str) -> str | None:
    """The first word of an expression that is no licence we know."""
    words = [word for word in expression.split() if word not in ("AND", "OR", "WITH")]
    return next((word for word in words if not KNOWN.fullmatch(word)), None if words else "nothing")


def installed() -> dict[str, Distribution]:
    """Every package of this environment, by normal name."""
    return {normal(found.metadata["Name"]): found for found in distributions()}


def _needs(packages: dict[str, Distribution], name: str, extra: str) -> Iterator[tuple[str, set[str]]]:
    """Of the package itself: what pyproject.toml says now, not what it said when it was installed."""
    if name == ROOT:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    else:
        lines = packages[name].requires or []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield normal(requirement.name), set(requirement.extras)


def closure(packages: dict[str, Distribution], group: str) -> set[str]:
    """What the package itself or one of its extras brings, with all that these need."""
    wanted = [(ROOT, "" if group == "core" else group)] + [(name, "") for name, of in BESIDE.items() if of == group]
    seen: set[tuple[str, str]] = set()
    while wanted:
        item = wanted.pop()
        if item in seen or item[0] not in packages:
            continue
        seen.add(item)
        for name, extras in _needs(packages, *item):
            wanted += [(name, extra) for extra in extras | {""}]
    return {name for name, _ in seen}


def table() -> dict[str, tuple[str, str]]:
    """Name -> (licence, the first group that brings it)."""
    packages = installed()
    brought = {group: closure(packages, group) for group in GROUPS}
    rows = {}
    for name, found in sorted(packages.items()):
        if name not in INSTALLERS:
            rows[name] = licence(found), next((group for group in GROUPS if name in brought[group]), "none")
    return rows


def page() -> str:
    """The text of ``docs/licences.md``."""
    rows = table()
    lines = [
        "# Licences",
        "",
        "statten-deploy itself is MIT. Below is everything that `make setup` installs beside it, with the licence",
        "the package states; versions: [constraints.txt](../constraints.txt). `make licences` writes this page,",
        "`tests/test_supply_chain.py` fails where it no longer fits or a licence is unknown.",
        "",
        "- **core**: nothing under the GPL or LGPL. NVIDIA's libraries come with torch from PyPI on Linux; torch's",
        "  build for the CPU needs none of them.",
        "- **GPL**: SANA-FE (extra `sanafe`), tonic (extra `datasets`), and tools of the tests alone (`dev`). No",
        "  module of ours imports them before a run in SANA-FE or a download is asked for; the tests check that.",
        "- **LGPL**: Norse, lava-nc and soxr, each behind an extra, unmodified, imported when asked for.",
    ]
    for group in GROUPS:
        chosen = {name: told for name, (told, of) in rows.items() if of == group}
        if chosen:
            lines += ["", f"## {group}", "", "| package | licence |", "|---|---|"]
            lines += [f"| {name} | {told} |" for name, told in chosen.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
