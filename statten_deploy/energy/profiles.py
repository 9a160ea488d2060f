"""Cost profiles: what one operation costs, with a source and a status for every figure (``profiles/*.toml``)."""

from dataclasses import dataclass
from pathlib import Path

from statten_deploy.energy.tables import Table, built_in, load
from statten_deploy.errors import ConfigError, UnsupportedError

FAMILIES = ("paper", "events")
STATUSES = ("estimated", "measured", "pre-silicon")
UNITS = {"fJ": 1e-3, "pJ": 1.0, "nJ": 1e3}

PAPER_FIGURES = ("mac", "ac")
EVENT_FIGURES = (
    "synop",
    "synop_conv",
    "synop_dense",
    "synop_sparse",
    "mac",
    "neuron_update",
    "neuron_access",
    "neuron_update_inactive",
    "spike",
    "spike_out",
    "axon_out",
    "hop_east_west",
    "hop_north_south",
)

DEFAULT_PROFILES = ("45nm-fp32", "45nm-int8", "loihi1")
"""The convention of the literature for both arithmetics, and a chip by event counts."""

REFUSED = {
    "loihi2": "no energy per operation has been published for Loihi 2 (PMC10326429, Table 3, lists it as NA); "
    "take loihi1 for an order of magnitude, or give a .toml file with figures that you measured"
}


@dataclass(frozen=True)
class Figure:
    """The cost of one operation in pJ, and where it comes from."""

    pj: float
    status: str
    source: str


@dataclass(frozen=True)
class Profile:
    """A set of figures. Family ``paper`` prices MACs and ACs of the paper convention, ``events`` the exact counts."""

    name: str
    title: str
    family: str
    figures: dict[str, Figure]
    notes: tuple[str, ...] = ()


def profile_names() -> tuple[str, ...]:
    """The profiles that this package ships."""
    return built_in("profiles")


def load_profile(profile: str | Path) -> Profile:
    """A profile by name, or a user's own ``.toml`` file.

    Raises:
        UnsupportedError: a chip for which nothing was published.
        ConfigError: the name or the file is wrong; one line says what is.
    """
    if str(profile) in REFUSED:
        raise UnsupportedError(f"profile {str(profile)!r}: {REFUSED[str(profile)]}")
    return load("profiles", profile, "profile", _parse)


def _parse(table: Table) -> Profile:
    family = table.choice("family", FAMILIES)
    known = PAPER_FIGURES if family == "paper" else EVENT_FIGURES
    figures = {name: _figure(entry) for name, entry in table.tables("figures", known).items()}
    profile = Profile(table.text("name"), table.text("title"), family, figures, table.lines("notes"))
    table.done()
    missing = [name for name in _required(profile) if name not in figures]
    if missing:
        raise ConfigError(f"{table.where}: a profile of family {family} needs [figures.{missing[0]}]")
    if profile.name in profile_names() and table.where != profile.name:
        raise ConfigError(f"{table.where}: name {profile.name!r} belongs to a built-in profile; choose another")
    return profile


def _required(profile: Profile) -> tuple[str, ...]:
    if profile.family == "paper":
        return PAPER_FIGURES
    kinds = ("synop_conv", "synop_dense", "synop_sparse")
    return () if all(kind in profile.figures for kind in kinds) else ("synop",)


def _figure(table: Table) -> Figure:
    factor = UNITS[table.choice("unit", tuple(UNITS))]
    figure = Figure(table.number("value") * factor, table.choice("status", STATUSES), table.text("source"))
    table.done()
    return figure
