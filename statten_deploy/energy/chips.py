"""What a chip's cores hold, with sources (``chips/*.toml``)."""

from dataclasses import dataclass
from pathlib import Path

from statten_deploy.energy.tables import Table, built_in, load

LIMITS = ("neurons", "output_axons", "input_axons", "memory_bytes")


@dataclass(frozen=True)
class Limit:
    """The most that one core holds of something."""

    value: int
    source: str


@dataclass(frozen=True)
class Chip:
    """Cores per chip and limits per core. `neuron_bytes`: what a neuron takes of the memory that weights lie in."""

    name: str
    title: str
    cores: int
    neuron_bytes: int
    shares_kernels: bool
    limits: dict[str, Limit]
    notes: tuple[str, ...]


def chip_names() -> tuple[str, ...]:
    """The chips that this package describes."""
    return built_in("chips")


def load_chip(chip: str | Path) -> Chip:
    """A chip by name, or a user's own ``.toml`` file.

    Raises:
        ConfigError: the name or the file is wrong; one line says what is.
    """
    return load("chips", chip, "chip", _parse)


def _parse(table: Table) -> Chip:
    found = table.tables("limits", LIMITS)
    limits = {name: _limit(found[name]) for name in LIMITS if name in found}
    chip = Chip(
        name=table.text("name"),
        title=table.text("title"),
        cores=table.whole("cores"),
        neuron_bytes=int(table.number("neuron_bytes")),
        shares_kernels=table.yes("shares_kernels"),
        limits=limits,
        notes=table.lines("notes"),
    )
    table.done()
    return chip


def _limit(table: Table) -> Limit:
    limit = Limit(table.whole("value"), table.text("source"))
    table.done()
    return limit
