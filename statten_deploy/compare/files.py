"""The folder that ``statten-compare`` writes: ``report.json``, ``report.html`` and plots, whole or not at all."""

import json
from pathlib import Path

from statten_deploy.compare.comparison import Comparison
from statten_deploy.export.artefact import staging, write_manifest

KIND = "statten-comparison"
FORMAT = 1


def check_destination(folder: Path) -> None:
    """Refuse early what `write_report` would refuse.

    Raises:
        InputError: the folder above does not exist, or `folder` holds what no comparison wrote.
    """
    with staging(folder) as stage:
        stage.bundle(folder, KIND)


def write_report(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write ``report.json``, ``report.html``, PNG plots and a manifest into `folder`, in place of an older report.

    Returns the files. The same comparison gives the same ``report.json``.

    Raises:
        InputError: as `check_destination`.
    """
    from statten_deploy.compare.report import write_html

    folder = Path(folder)
    with staging(folder) as stage:
        temporary = stage.bundle(folder, KIND)
        document = json.dumps(comparison.to_dict(), indent=2, allow_nan=False)
        (temporary / "report.json").write_text(document + "\n", encoding="utf-8")
        write_html(comparison, temporary)
        write_manifest(temporary, KIND, FORMAT, {"model": comparison.model, "dataset": comparison.dataset})
        stage.commit()
    return sorted(path for path in folder.iterdir() if path.is_file())
