"""Text from files: shown in messages without harm, and JSON read with everything that can be wrong with it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from statten_deploy.errors import InputError
from statten_deploy.untrusted.limits import MAX_JSON_BYTES, check_small

SHOWN = 60
"""Characters of a value that a message shows."""
_DEPTH = 3
"""Levels of nested values that a message shows."""


def shown(value: object, most: int = SHOWN) -> str:
    """``repr`` of a value from a file, cut: small whatever the value is, also where it contains itself many times."""
    text = _brief(value, _DEPTH)
    return text if len(text) <= most else text[: most - 1] + "…"


def _brief(value: object, depth: int) -> str:
    if isinstance(value, str | bytes):
        return repr(value[: SHOWN + 1])
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, dict | list | tuple) and value and depth <= 0:
        return "…"
    if isinstance(value, dict):
        inner = (f"{_brief(key, depth - 1)}: {_brief(entry, depth - 1)}" for key, entry in _first(value.items(), depth))
        return "{" + ", ".join(inner) + ("}" if len(value) <= depth else ", …}")
    if isinstance(value, list | tuple):
        inner = (_brief(entry, depth - 1) for entry in _first(value, depth))
        text = ", ".join(inner) + ("" if len(value) <= max(depth, 0) else ", …")
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    if isinstance(value, bool | int | float | complex | None):
        return repr(value)
    return f"a {type(value).__name__}"


def _first(values: Iterable[Any], depth: int) -> list[Any]:
    return [value for _, value in zip(range(max(depth, 0)), values, strict=False)]


def printable(text: str) -> str:
    """Text for a terminal: one line, control characters (which could move the cursor) written out."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in line)


def parse_json(text: str | bytes) -> Any:
    """A JSON document in which no name stands twice.

    Raises:
        ValueError: not such a document; whatever the parser raises comes as this.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {shown(twice)} stands twice")
    return found


def read_json(path: Path, what: str) -> Any:
    """A JSON file of at most `MAX_JSON_BYTES`.

    Raises:
        InputError: cannot be read, too large, or not JSON.
    """
    try:
        check_small(path, MAX_JSON_BYTES, f"a {what}")
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not a readable {what} ({reason}); delete it or export again") from None
