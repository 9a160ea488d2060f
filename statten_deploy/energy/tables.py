"""Reads the data files of cost profiles and chips: TOML, checked to the last key, refused in one line."""

import tomllib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from statten_deploy.errors import ConfigError
from statten_deploy.untrusted.limits import MAX_CONFIG_BYTES
from statten_deploy.untrusted.text import shown

T = TypeVar("T")


LARGEST = 1e30
"""No cost or size comes near."""


class Table:
    """One TOML table; what is not asked for is refused by `done`. `where` names it in messages."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where = where
        self.values = dict(values)

    def text(self, key: str, default: str | None = None) -> str:
        """A non-empty string of one line."""
        value = self.values.pop(key, default)
        if not isinstance(value, str) or (not value.strip() and default is None) or "\n" in value or len(value) > 1000:
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}, expected one line of text")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.values.pop(key, None)
        if value not in allowed:
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}, expected one of {', '.join(allowed)}")
        return str(value)

    def number(self, key: str) -> float:
        """A finite number, not negative."""
        value = self.values.pop(key, None)
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST  # not NaN
        if not good or value is None:
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}, expected a number that is not negative")
        return float(value)

    def whole(self, key: str) -> int:
        """A whole number from 1 on."""
        value = self.values.pop(key, None)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**53:
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}, expected a whole number from 1 on")
        return value

    def yes(self, key: str) -> bool:
        """true or false."""
        value = self.values.pop(key, None)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}, expected true or false")
        return value

    def lines(self, key: str) -> tuple[str, ...]:
        """A list of strings; none by default."""
        value = self.values.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and len(item) <= 1000 for item in value):
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}, expected a list of texts")
        return tuple(value)

    def tables(self, key: str, known: tuple[str, ...]) -> dict[str, "Table"]:
        """Sub-tables whose names must be known, at least one."""
        value = self.values.pop(key, None)
        if not isinstance(value, dict) or not value or not all(isinstance(item, dict) for item in value.values()):
            raise ConfigError(f"{self.where}: expected tables [{key}.NAME], NAME one of {', '.join(known)}")
        unknown = [name for name in value if name not in known]
        if unknown:
            raise ConfigError(f"{self.where}: unknown {key} {', '.join(unknown)}; known are {', '.join(known)}")
        return {name: Table(f"{self.where}, [{key}.{name}]", item) for name, item in value.items()}

    def done(self) -> None:
        """Refuse what is left over."""
        if self.values:
            raise ConfigError(f"{self.where}: unknown key {', '.join(map(str, self.values))}; remove it")


def built_in(folder: str) -> tuple[str, ...]:
    """Names of the data files that this package ships in `folder`."""
    found = files("statten_deploy.energy").joinpath(folder).iterdir()
    return tuple(sorted(item.name.removesuffix(".toml") for item in found if item.name.endswith(".toml")))


def load(folder: str, name: str | Path, what: str, parse: Callable[[Table], T]) -> T:
    """A built-in file by its name, or a user's file by its path (``*.toml``).

    Raises:
        ConfigError: no such name or file, not TOML, or something in it is wrong; one line says what and where.
    """
    names = built_in(folder)
    if str(name) in names:
        return parse(_table(str(name), files("statten_deploy.energy").joinpath(folder, f"{name}.toml").read_bytes()))
    path = Path(name)
    if path.suffix != ".toml":
        raise ConfigError(f"{what} {str(name)!r}: unknown; give one of {', '.join(names)}, or a .toml file of your own")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error.strerror}); expected a TOML file") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{what} {path}: larger than {MAX_CONFIG_BYTES} bytes; expected a small TOML file")
    return parse(_table(str(path), content))


def _table(where: str, content: bytes) -> Table:
    try:
        return Table(where, tomllib.loads(content.decode("utf-8")))
    except (ValueError, RecursionError) as error:  # tomllib's own is a ValueError; numbers and text raise others
        raise ConfigError(f"{where}: not a TOML file ({' '.join(str(error).split())[:200]})") from None


def _shown(value: object) -> str:
    return "missing" if value is None else shown(value)
