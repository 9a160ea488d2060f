"""Names that the two halves of run.py agree on."""

from pathlib import Path


def unfinished(output: Path, process: int) -> Path:
    """Where the output grows until it is complete: in its folder, under another name."""
    return output.with_name(f".{output.name}.{process}.npz")
