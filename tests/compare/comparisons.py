"""Comparisons to show: one by hand, every number chosen, and large ones."""

from dataclasses import replace
from typing import Any

import numpy as np

from statten_deploy.compare.comparison import (
    BackendResult,
    Comparison,
    EnergyResult,
    Latency,
    LayerResult,
    ProfileInfo,
    Raster,
)

EVENTS = ProfileInfo(
    "loihi1",
    "Intel Loihi 1 (14 nm, 0.75 V)",
    "events",
    ("pre-silicon",),
    ("static power", "hops between tiles: they need a placement"),
    ("synop 23.6 pJ (pre-silicon): Davies et al. 2018, Table 2",),
    ("Every neuron update is charged as active.",),
)
PAPER = ProfileInfo(
    "45nm-fp32",
    "Paper convention, 32-bit floating point, 45 nm",
    "paper",
    ("estimated",),
    ("static power", "neurons, pools and gates, memory and data movement"),
    ("mac 4.6 pJ (estimated): Horowitz, ISSCC 2014", "ac 0.9 pJ (estimated): Horowitz, ISSCC 2014"),
)


def small() -> Comparison:
    """Two float backends that differ, two integer ones that do not, one that is not installed."""
    layers = [
        LayerResult("stem.conv", "synapses", 0, 0, (), 0.0, 4_321, None, 0.0, 1_728, 9_216),
        LayerResult("stem.lif", "neurons", 8, 61, (10, 21, 30), 61 / 240, 0, 0.0, None),
        LayerResult("head", "synapses", 0, 0, (), 0.0, 610, None, 0.0, paper_acs=732.25),
    ]
    moved = [
        replace(layers[0], synops=4_320, relative_synops=-1 / 4_321),
        replace(layers[1], spikes=60, spikes_by_step=(10, 20, 30), firing_rate=60 / 240, relative_spikes=-1 / 61),
        replace(layers[2], synops=600, relative_synops=-10 / 610),
    ]
    reference = BackendResult(
        name="torch",
        arithmetic="float32",
        reference="torch",
        samples=10,
        predictions=[0, 1, 2, 0, 1, 2, 0, 1, 2, 0],
        correct=9,
        accuracy=0.9,
        accuracy_interval=(0.5958, 0.9821),
        agreement=1.0,
        spike_sites=240,
        spikes=61,
        synops=4_931,
        macs=1_728,
        neuron_updates=240,
        relative_spikes=0.0,
        relative_synops=0.0,
        energy={
            "loihi1": EnergyResult(
                13_580.25, {"stem.conv": 10_197.56, "stem.lif": 1_943.1, "head": 1_439.59}, None, 0.0
            ),
            "45nm-fp32": EnergyResult(1_234_567.0, {"stem.conv": 1_234_018.0, "head": 549.0}, 4_567_890.0, 0.0),
        },
        latency=Latency(1, 1.625, 2.375, 7),
        batch_latency=Latency(5, 4.75, 6.25, 3),
        layers=layers,
        confusion=[[4, 0, 0], [0, 2, 1], [0, 0, 3]],
    )
    other = replace(
        reference,
        name="nir",
        agreement=0.9,
        correct=8,
        accuracy=0.8,
        accuracy_interval=(0.4902, 0.9433),
        spike_mismatches=1,
        spikes=60,
        synops=4_920,
        relative_spikes=-1 / 61,
        relative_synops=-11 / 4_931,
        energy={
            "loihi1": EnergyResult(
                13_552.5, {"stem.conv": 10_195.2, "stem.lif": 1_941.3, "head": 1_416.0}, None, -0.002
            ),
            "45nm-fp32": EnergyResult(1_234_560.0, {"stem.conv": 1_234_020.0, "head": 540.0}, 4_567_890.0, -5.7e-6),
        },
        layers=moved,
        confusion=[[4, 0, 0], [0, 1, 2], [0, 0, 3]],
        latency=Latency(1, 1.625, 2.375, 9),
        batch_latency=None,
        notes=["one neuron fires a step later"],
    )
    whole = replace(reference, name="torch-int", arithmetic="integer", reference="torch-int", macs=1_700)
    comparison = Comparison(
        model="tiny",
        dataset="made-up",
        samples=10,
        classes=3,
        time_steps=3,
        seed=7,
        bits=8,
        references={"float32": "torch", "integer": "torch-int"},
        tool_version="0.1.0",
        profiles=[EVENTS, PAPER],
        backends=[
            reference,
            other,
            whole,
            replace(whole, name="fixed"),
            BackendResult("lava", "integer", "torch-int", "not installed: pip install 'statten-deploy[lava]'"),
        ],
        raster=Raster(3, 1, 2, {"stem.lif": np.eye(3, 8, dtype=np.bool_)}),
        machine="a machine, 2 threads",
        warnings=["the images were scaled"],
    )
    return comparison


def quantised() -> Comparison:
    """`small` as the runner fills it: the integer reference is compared with the float one, others with it."""
    comparison = small()
    whole, fixed = comparison.backends[2:4]
    layers = [
        replace(whole.layers[0], synops=4_000, relative_synops=-321 / 4_321),
        whole.layers[1],
        replace(whole.layers[2], synops=600, relative_synops=-10 / 610),
    ]
    values: dict[str, Any] = {"spikes": 61, "synops": 4_600}
    comparison.backends[2] = replace(
        whole,
        **values,
        layers=layers,
        energy={name: replace(found, relative=-0.01) for name, found in whole.energy.items()},
        reference="torch",
        agreement=0.8,
        spike_mismatches=23,
        relative_spikes=0.0,
        relative_synops=-331 / 4_931,
    )
    same = [replace(layer, relative_synops=0.0 if layer.synops else None) for layer in layers]
    comparison.backends[3] = replace(fixed, **values, layers=same)
    return comparison


def large(
    *,
    backends: int = 12,
    layers: int = 61,
    steps: int = 4,
    classes: int | None = 1000,
    samples: int = 50_000,
    profiles: int = 3,
    long_names: bool = False,
    seed: int = 0,
) -> Comparison:
    """As many of everything as somebody may have; numbers random but of plausible size."""
    rng = np.random.default_rng(seed)
    stem = "a_network_exported_by_some_other_tool.with.very.long.module.paths." if long_names else ""
    names = [
        *[f"{stem}block.{number // 6}.{number % 6}.{part}" for number in range(layers) for part in ("conv", "lif")],
    ]
    infos = [replace((EVENTS, PAPER)[n % 2], name=f"{stem}{('events', 'paper')[n % 2]}-{n}") for n in range(profiles)]
    rows = []
    for number in range(backends):
        kind: Any = "float32" if number % 2 == 0 else "integer"
        rows.append(_row(rng, f"{stem}backend-{number}", kind, number, names, steps, classes, samples, infos))
    for row in rows:
        row.reference = rows[0 if row.arithmetic == "float32" else min(1, len(rows) - 1)].name
    references = {row.arithmetic: row.reference for row in rows}
    neurons = {name: 768 * 49 for name in names if name.endswith("lif")}
    raster = Raster(0, None, 3, {name: rng.random((steps, n)) < 0.15 for name, n in neurons.items()})
    return Comparison(
        model=f"{stem}model",
        dataset="a data set",
        samples=samples,
        classes=classes,
        time_steps=steps,
        seed=seed,
        bits=4,
        references=references,
        tool_version="0.1.0",
        profiles=infos,
        backends=rows,
        raster=raster,
        machine="",
        problems=["fixed: 3 spikes differ from torch-int, first in block.2.lif, step 1"],
    )


def _row(
    rng: np.random.Generator,
    name: str,
    kind: Any,
    number: int,
    names: list[str],
    steps: int,
    classes: int | None,
    samples: int,
    infos: list[ProfileInfo],
) -> BackendResult:
    found = []
    for layer in names:
        change = float(rng.normal(0, 2e-4)) if number > 1 and rng.random() < 0.7 else 0.0
        if layer.endswith("lif"):
            by_step = tuple(int(n) for n in rng.integers(0, 768 * 49 * samples // 3 + 1, size=steps))
            rate = sum(by_step) / (768 * 49 * samples * steps)
            found.append(LayerResult(layer, "neurons", 768 * 49, sum(by_step), by_step, rate, 0, change, None))
        else:
            synops = int(rng.integers(0, 10**9)) * samples
            found.append(LayerResult(layer, "synapses", 0, 0, (), 0.0, synops, None, change))
    energy = {}
    for info in infos:
        parts = {layer.name: float(rng.random() * 1e8) for layer in found}
        energy[info.name] = EnergyResult(
            sum(parts.values()), parts, 3e10 if info.family == "paper" else None, 1e-4 * number
        )
    accuracy = None if classes is None else 0.7 + 0.01 * number
    confusion = None
    if classes is not None:
        counts = rng.integers(0, 3, size=(classes, classes))
        counts[np.arange(classes), np.arange(classes)] += 30
        confusion = counts.tolist()
    return BackendResult(
        name,
        kind,
        "",
        samples=samples,
        correct=None if accuracy is None else int(accuracy * samples),
        accuracy=accuracy,
        accuracy_interval=None if accuracy is None else (accuracy - 0.004, accuracy + 0.004),
        agreement=1 - 1e-5 * number,
        spike_mismatches=number,
        spike_sites=10**12,
        spikes=sum(layer.spikes for layer in found),
        synops=sum(layer.synops for layer in found),
        relative_spikes=1e-6 * number,
        relative_synops=-3e-7 * number,
        energy=energy,
        latency=Latency(32, 1234.5, 1600.25, 5),
        layers=found,
        confusion=confusion,
    )
