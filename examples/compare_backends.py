"""Compare the shipped checkpoint in several backends from Python, and write the report.

    python examples/compare_backends.py            (or: statten-compare models/zoo/digits-stream.ckpt)

Every exported backend runs from the file that the exporter wrote. What is not installed is a row that says so.
"""

import argparse
from pathlib import Path

from rich.console import Console

from statten_deploy import compare_backends, write_report
from statten_deploy.compare.report import render_table

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("digits-stream.compare"))
    options = parser.parse_args()
    comparison = compare_backends(
        ROOT / "models/zoo/digits-stream.ckpt",
        ("torch", "torch-int", "nir", "onnx", "fixed", "onnx-int8", "lava"),
        samples=options.samples,
        profiles=("truenorth", "seneca"),  # beside the literature's convention and Loihi 1
        latency_seconds=0.5,
    )
    Console().print(render_table(comparison))

    # The same numbers for programs: `comparison.to_dict()` is report.json.
    rows = {row.name: row for row in comparison.backends}
    integers = [row for row in rows.values() if row.arithmetic == "integer" and not row.unavailable]
    assert len({(row.spikes, row.synops) for row in integers}) == 1, "integer engines count the same, to the last spike"
    exact = rows["torch"]
    convention = sum(layer.paper_acs for layer in exact.layers)
    print(f"firing rate times MACs says {convention / exact.synops:.3f} times the SynOps that happened")
    for problem in comparison.problems:
        print("problem:", problem)
    print("wrote", *(path for path in write_report(comparison, options.out) if path.suffix != ".png"))


if __name__ == "__main__":
    main()
