"""A quantised network in SANA-FE (an extra, GPL-3.0): are its spikes ours, and why is its energy another?

    python examples/sanafe_energy.py models/zoo/digits-stream.ckpt --until patch_embed.proj_lif1
    python examples/sanafe_energy.py models/zoo/digits-stream.ckpt        # all layers: half a minute, 3 GB

Runs test images of the digits through SANA-FE's Loihi and through the integer reference, and prints one row per figure
of the cost profile: our count, what SANA-FE counts besides or leaves out, its count. docs/energy.md explains the rows.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from statten_deploy.energy.sanafe import Comparison, compare, emit, simulate
from statten_deploy.errors import StattenError
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.passes import part_until
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.source import load_source
from statten_deploy.train.data import InputSpec, load_arrays


def main(arguments: Sequence[str] | None = None) -> Comparison:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a checkpoint of the digits")
    parser.add_argument("--until", metavar="LAYER", help="the part of the network up to a neuron layer")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--circuit", action="store_true", help="attention as a circuit of gates (small networks)")
    told = parser.parse_args(arguments)

    source = load_source(told.model)
    images, _ = load_arrays("digits", "evaluation", InputSpec(source.input_shape, source.classes))
    graph = quantize(source.graph, QuantizeOptions(told.bits))
    if told.until:
        graph = part_until(graph, told.until)
    network = emit(graph, attention="circuit" if told.circuit else "outside")
    run = simulate(network, images[: told.samples])
    reference = IntegerRunner(graph).run(images[: told.samples], spikes=True)

    console = Console(soft_wrap=True)
    different = sum(int(np.sum(run.spikes[name] != spikes)) for name, spikes in reference.spikes.items())
    total = sum(int(spikes.sum()) for spikes in reference.spikes.values())
    console.print(f"{network.neurons:,} neurons and {network.synapses:,} synapses on {run.placement.used} cores")
    console.print(f"{total:,} spikes, {different} of them different from the integer reference")
    for name, why in network.outside.items():
        console.print(f"computed outside: {name} ({why})")
    compared = compare(run)
    console.print(table(compared))
    return compared


def table(compared: Comparison) -> Table:
    """One row per figure, then the energies; per sample."""
    shown = Table("figure", "pJ", "ours", "differences", "SANA-FE", show_lines=True)
    for row in compared.rows:
        differences = "\n".join(f"{n / compared.samples:+,.0f}  {why}" for why, n in row.differences.items())
        ours, theirs = (f"{n / compared.samples:,.0f}" for n in (row.ours, row.sanafe))
        shown.add_row(row.figure, f"{row.pj:g}", ours, differences, theirs)
    energies = "\n".join(f"{pj / 1e6:+.3f} µJ  {why}" for why, pj in compared.differences_pj.items())
    total = sum(compared.reported_pj.values())
    shown.add_row("energy", "", f"{compared.ours_pj / 1e6:.3f} µJ", energies, f"{total / 1e6:.3f} µJ")
    return shown


if __name__ == "__main__":
    try:
        main()
    except StattenError as error:
        sys.exit(f"{error}")
