"""A comparison of a small network's real spikes: what was run is given beside it."""

from typing import Any

from statten_deploy.compare.comparison import BackendResult, Comparison, EnergyResult, LayerResult, ProfileInfo, Raster
from statten_deploy.compare.executors import Execution, TorchExecutor
from statten_deploy.compare.integers import FixedExecutor
from statten_deploy.energy import Counts, EnergyCounter, energy, load_profile
from statten_deploy.frontend import build_graph
from statten_deploy.quantize import quantize
from tests.conftest import lively_input, lively_model, small_config


def real(samples: int = 6) -> tuple[Comparison, dict[str, Execution]]:
    """A small network in float and in integers, run, counted and priced; and what the runs gave."""
    config = small_config("static")
    model = lively_model(config)
    float_graph = build_graph(model)
    whole = quantize(float_graph)
    x = lively_input(config, samples).numpy()
    executors = {"torch": (TorchExecutor(model), float_graph), "fixed": (FixedExecutor(whole), whole)}
    profiles = [load_profile(name) for name in ("45nm-fp32", "loihi1")]
    rows, runs, infos = [], {}, {}
    for name, (executor, graph) in executors.items():
        run = runs[name] = executor.run(x)
        counter = EnergyCounter(graph)
        counter.update(run.spikes)
        counts = counter.counts()
        priced = {profile.name: energy(counts, profile) for profile in profiles}
        for profile in profiles:
            found = priced[profile.name]
            sources = tuple(f"{key}: {figure.source}" for key, figure in profile.figures.items())
            info = ProfileInfo(profile.name, profile.title, profile.family, found.statuses, found.not_included, sources)
            infos.setdefault(profile.name, info)
        energies = {
            key: EnergyResult(found.total_pj, {layer.name: layer.total_pj for layer in found.layers}, found.ann_pj)
            for key, found in priced.items()
        }
        rows.append(_counted(name, "float32" if name == "torch" else "integer", counts, energies))
    spikes = {name: value[:, 0].reshape(len(value), -1) for name, value in runs["torch"].spikes.items()}
    references = {"float32": "torch", "integer": "fixed"}
    comparison = Comparison(
        *("small", "random images", samples, config.num_classes, config.time_steps, 0, 8, references, "0.1.0"),
        profiles=list(infos.values()),
        backends=rows,
        raster=Raster(0, None, None, spikes),
    )
    return comparison, runs


def _counted(name: str, kind: Any, counts: Counts, energies: dict[str, EnergyResult]) -> BackendResult:
    found = [
        LayerResult(
            *(layer.name, layer.role, layer.neurons, layer.spikes, layer.spikes_by_step, layer.firing_rate),
            layer.event_ops,
            macs=layer.macs,
            paper_macs=layer.paper_macs,
            paper_acs=float(layer.paper_acs),
        )
        for layer in counts.layers
    ]
    return BackendResult(
        name,
        kind,
        name,
        samples=counts.samples,
        spikes=counts.spikes,
        synops=counts.synops,
        macs=counts.macs,
        neuron_updates=counts.updates,
        energy=energies,
        layers=found,
    )
