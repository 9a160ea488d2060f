"""Numbers and names as people read them. A number never reads as 0, 1 or equal unless it is."""

import unicodedata
from collections.abc import Iterable, Sequence
from math import floor, isfinite, log10
from typing import NamedTuple

NONE = "–"
"""Shown where there is no value."""
EQUAL = "equal"

_TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
"""Characters that change the direction of the text around them."""


def plain(text: object) -> str:
    """One line of visible text: what controls a terminal, turns text around or is no character becomes U+FFFD."""
    line = " ".join(str(text).split())
    return "".join("\ufffd" if _invisible(c) else c for c in line)


def _invisible(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs") or ord(c) in _TURNING or ord(c) & 0xFFFE == 0xFFFE


def shortened(text: object, width: int) -> str:
    """At most `width` characters, the middle left out: names of layers differ at their ends."""
    line = plain(text)
    if len(line) <= width:
        return line
    tail = (width - 1) // 2
    return f"{line[: width - 1 - tail]}…{line[len(line) - tail :]}"


def labels(names: Sequence[str], width: int) -> list[str]:
    """Short names, numbered where shortening made two of them alike."""
    short = [shortened(name, width) for name in names]
    if len(set(short)) == len(set(names)):
        return short
    return [f"{number} {shortened(name, width - 4)}" for number, name in enumerate(names, 1)]


def listed(names: Sequence[str], width: int) -> str:
    """Names with commas between, as many as fit, and how many more there are."""
    for count in range(len(names), 1, -1):
        rest = len(names) - count
        text = ", ".join(map(plain, names[:count])) + (f" + {rest} more" if rest else "")
        if len(text) <= width:
            return text
    more = f" + {len(names) - 1} more" if len(names) > 1 else ""
    return shortened(names[0], width - len(more)) + more if names else NONE


def count(number: float) -> str:
    """Every digit, thousands apart."""
    return f"{number:,}"


def samples(number: int) -> str:
    """``1 sample``, ``360 samples``."""
    return f"{count(number)} sample{'' if number == 1 else 's'}"


def brief(number: int, width: int = 13) -> str:
    """Every digit if they fit, else four of them: 52.35 T."""
    whole = count(number)
    if len(whole) <= width:
        return whole
    value, prefix = float(number), ""
    for prefix in ("k", "M", "G", "T", "P", "E"):  # noqa: B007 - the last one tried is the one to show
        value /= 1000
        if abs(value) < 999.95:
            break
    return f"{value:#.4g} {prefix}"


def percent(share: float | None, decimals: int = 2) -> str:
    """``97.22 %``; 100 and 0 only where it is so."""
    if share is None or not isfinite(share):
        return NONE
    text, unit = f"{share * 100:.{decimals}f}", 10.0**-decimals
    if share < 1 and float(text) >= 100:
        return f">{100 - unit:.{decimals}f} %"
    if share > 0 and float(text) == 0:
        return f"<{unit:.{decimals}f} %"
    return f"{text} %"


def interval(shares: tuple[float, float] | None) -> str:
    """In percent: ``94.9–98.9``."""
    return NONE if shares is None else f"{shares[0] * 100:.1f}–{shares[1] * 100:.1f}"


def relative(value: float | None) -> str:
    """A signed difference in percent with two digits, ``equal`` for exactly none."""
    if value is None or not isfinite(value):
        return NONE
    if value == 0:
        return EQUAL
    number = value * 100
    if abs(number) < 1e-4:
        return f"{number:+.1e} %"
    return f"{number:+,.{max(0, 1 - floor(log10(abs(number))))}f} %"


class EnergyUnit(NamedTuple):
    """A unit that suits a column of energies, and the decimals that give its largest value four digits."""

    symbol: str
    pj: float
    decimals: int

    def number(self, energy_pj: float) -> str:
        """Without the unit."""
        if not isfinite(energy_pj):
            return NONE
        text = f"{energy_pj / self.pj:,.{self.decimals}f}"
        if energy_pj > 0 and not text.strip("0.,"):
            return f"<{10.0**-self.decimals:.{self.decimals}f}"
        return text if energy_pj else "0"

    def text(self, energy_pj: float) -> str:
        """With the unit."""
        return f"{self.number(energy_pj)} {self.symbol}"


_UNITS = (("J", 1e12), ("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3), ("pJ", 1.0))


def energy_unit(energies_pj: Iterable[float]) -> EnergyUnit:
    """The unit in which the largest of these reads as 1 to 999."""
    largest = max((value for value in energies_pj if isfinite(value)), default=0.0)
    symbol, pj = next(((symbol, pj) for symbol, pj in _UNITS if largest >= pj), _UNITS[-1])
    return EnergyUnit(symbol, pj, max(0, 3 - max(0, floor(log10(largest / pj)))) if largest >= pj else 3)


def milliseconds(value: float) -> str:
    """Three digits: ``0.412 ms``, ``12.3 ms``, ``1,234 ms``."""
    if not isfinite(value):
        return NONE
    digits = 0 if value <= 0 else floor(log10(value))
    return f"{value:,.{min(3, max(0, 2 - digits))}f} ms"
