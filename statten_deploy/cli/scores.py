"""What an evaluation prints, whichever command it belongs to."""

from collections.abc import Mapping

import typer

TITLES = {"45nm-fp32": "literature's convention, 32-bit floats", "45nm-int8": "literature's convention, 8-bit integers"}
"""Of the default profiles whose names do not say what they are."""


def accuracy_line(accuracy: float, top5: float | None, correct: int, samples: int) -> str:
    """``98.61% (355/360), top-5 100.00%``."""
    return f"{accuracy:.2%} ({correct}/{samples})" + ("" if top5 is None else f", top-5 {top5:.2%}")


def show_energy(energy_pj: Mapping[str, float], samples: int, note: str) -> None:
    """A line per cost profile, or why there is none."""
    if note:
        typer.echo(f"energy: not counted ({note})")
        return
    from statten_deploy.compare.report.text import energy_unit

    typer.echo(f"energy per sample, dynamic only, from the spikes of {samples} samples (docs/energy.md):")
    width = max(map(len, energy_pj))
    for name, value in energy_pj.items():
        title = f"  {TITLES[name]}" if name in TITLES else ""
        typer.echo(f"  {name:<{width}}  {energy_unit([value]).text(value):>10}{title}")
