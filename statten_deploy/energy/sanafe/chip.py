"""Runs a network in SANA-FE (PyPI `sanafe`, GPL-3.0), which is imported here and nowhere else, when a run is asked for.

The chip is the Loihi description of the installed package, with as many columns of tiles and as many input units as the
run needs: the others do nothing, cost nothing and take long to build. Nothing else of it is changed.
"""

import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from statten_deploy.energy.sanafe.injection import Injection
from statten_deploy.energy.sanafe.network import UNIT, Population, SpikingNetwork
from statten_deploy.energy.sanafe.placement import PACKED, Mesh, Placement, place
from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.fixed_point import STATE_MAX
from statten_deploy.ir.graph import input_names, output_names, predecessors
from statten_deploy.ir.integer import TemporalSum

INSTALL = "pip install 'statten-deploy[sanafe]'"
SYNAPSES = {
    "synop_conv": "loihi_conv_synapse",
    "synop_dense": "loihi_dense_synapse",
    "synop_sparse": "loihi_sparse_synapse",
}
SOMA, DENDRITE, INPUT = "loihi_lif", "loihi_dendrites", "loihi_inputs"
MEMBRANES = ("neurons", "readout")
"""Populations whose potentials may be recorded."""
PARTS = ("synapse", "dendrite", "soma", "network")


@dataclass
class SanafeRun:
    """What SANA-FE says, added up over all samples; `energy_pj` and `seconds` too.

    frames: what was run, [B, 1 or T, *shape].
    spikes, membranes: per layer of the graph (gates and readout too) [T, B, *shape]; membranes after reset, in the
        integers of the graph, and for readouts their sums so far. Inputs and relays are not layers.
    fired: per population, inputs and relays too, how often each neuron fired, flattened.
    counters: SANA-FE's own counts of synaptic events, messages, soma updates, spikes and hops.
    """

    network: SpikingNetwork
    placement: Placement
    mesh: Mesh
    samples: int
    frames: NDArray[Any]
    spikes: dict[str, NDArray[np.bool_]]
    membranes: dict[str, NDArray[np.int64]]
    fired: dict[str, NDArray[np.int64]]
    energy_pj: dict[str, float]
    counters: dict[str, int]
    seconds: float
    outputs: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def total_pj(self) -> float:
        """Energy of all samples."""
        return sum(self.energy_pj.values())


def simulate(network: SpikingNetwork, x: NDArray[Any], *, membranes: bool = False) -> SanafeRun:
    """Run x [B, C, H, W] (the same frame at every step) or [B, T, C, H, W], sample by sample.

    Raises:
        InputError: SANA-FE is not installed, x has another shape, or x holds other values than 0 and 1 where it is
            sent as spikes. UnsupportedError: the network does not fit, or an injected current is beyond 24 bits.
    """
    sanafe = _sanafe()
    description = loihi_description()
    mesh = mesh_of(description)
    frames = _frames(network, np.asarray(x))
    placement = place(network, mesh)
    chip = _Chip(sanafe, description, network, placement, membranes)
    for sample in frames:
        chip.run(sample)
    return chip.result(mesh, frames)


def loihi_description() -> dict[str, Any]:
    """SANA-FE's own description of Loihi, from the installed package.

    Raises:
        InputError: SANA-FE is not installed.
    """
    _sanafe()
    return dict(yaml.safe_load(files("sanafe.examples").joinpath("loihi.yaml").read_text(encoding="utf-8")))


def mesh_of(description: Mapping[str, Any]) -> Mesh:
    """The cores of a description: `width` x `height` tiles, ``core[0..n]`` in each."""
    told = description["architecture"]
    (tile,) = told["tile"]
    (core,) = tile["core"]
    each = int(core["name"].rstrip("]").rpartition("..")[2]) + 1
    size = told["attributes"]
    most = int(core["attributes"]["max_neurons_supported"])
    return Mesh(int(size["width"]), int(size["height"]), each, most)


def shortened(description: Mapping[str, Any], cores: int, inputs: int) -> dict[str, Any]:
    """As many columns of tiles as hold the cores, and per core as many input units; two at least keep their numbers."""
    mesh, result = mesh_of(description), deepcopy(dict(description))
    columns = max(1, -(-cores // (mesh.height * mesh.cores_per_tile)))
    told = result["architecture"]
    told["attributes"]["width"] = columns
    (tile,) = told["tile"]
    tile["name"] = f"{tile['name'].partition('[')[0]}[0..{columns * mesh.height - 1}]"
    for unit in tile["core"][0]["soma"]:
        if unit["name"].startswith(INPUT):
            unit["name"] = f"{INPUT}[0..{max(inputs - 1, 1)}]"
    return result


def load_architecture(sanafe: Any, description: Mapping[str, Any]) -> Any:
    """SANA-FE reads descriptions from files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "architecture.yaml"
        path.write_text(yaml.safe_dump(dict(description), sort_keys=False), encoding="utf-8")
        return sanafe.load_arch(path)


def _sanafe() -> Any:
    try:
        return import_module("sanafe")
    except ImportError:
        raise InputError(f"SANA-FE is not installed (it is GPL-3.0, so an extra): {INSTALL}") from None


def _frames(network: SpikingNetwork, x: NDArray[Any]) -> NDArray[Any]:
    """[B, 1 or T, *shape]."""
    (name,) = input_names(network.graph)
    shape = tuple(int(n) for n in network.graph.nodes[name].input_type["input"])
    if x.shape[1:] == shape:
        x = x[:, None]
    elif x.shape[1:] != (network.time_steps, *shape):
        expected = ", ".join(map(str, shape))
        raise InputError(
            f"input has shape {list(x.shape)}, expected [batch, {expected}] or "
            f"[batch, {network.time_steps}, {expected}]"
        )
    if network.inputs == "spikes" and not np.isin(x, (0, 1)).all():
        raise InputError("inputs that are sent as spikes must be 0 or 1; take inputs='currents'")
    return x


class _Chip:
    """One network on one chip; samples run one after the other, from rest."""

    def __init__(
        self,
        sanafe: Any,
        description: dict[str, Any],
        network: SpikingNetwork,
        placement: Placement,
        membranes: bool,
    ) -> None:
        self.network, self.placement = network, placement
        self.watched = [p.name for p in network.populations.values() if p.role in _watched(membranes)]
        architecture = self._architecture(sanafe, description)
        self.chip = sanafe.SpikingChip(architecture)
        self.chip.load(self._emitted(sanafe, architecture.cores()))
        self.groups = self.chip.mapped_neuron_groups
        self.injections = {p.name: Injection(network, p) for p in network.populations.values() if p.outside}
        self.recorded: list[dict[str, NDArray[np.bool_]]] = []
        self.potentials: list[dict[str, NDArray[np.int64]]] = []
        self.fired = {p.name: np.zeros(p.size, dtype=np.int64) for p in network.populations.values()}
        self.energy = dict.fromkeys(PARTS, 0.0)
        self.counters = dict.fromkeys(("synaptic_events", "messages", "updates", "spikes", "hops"), 0)
        self.seconds = 0.0

    # before the first step

    def _architecture(self, sanafe: Any, description: dict[str, Any]) -> Any:
        cores = [self.placement.cores[p.name] for p in self.network.populations.values() if p.role == "input"]
        inputs = int(np.bincount(np.concatenate(cores)).max()) if cores else 1
        return load_architecture(sanafe, shortened(description, self.placement.used, inputs))

    def _emitted(self, sanafe: Any, cores: list[Any]) -> Any:
        net = sanafe.Network()
        groups = {p.name: self._group(net, p) for p in self.network.populations.values()}
        taken: dict[int, int] = {}
        for population in self.network.populations.values():
            placed = self.placement.cores[population.name].tolist()
            for index, (neuron, core) in enumerate(zip(groups[population.name], placed, strict=True)):
                neuron.map_to_core(cores[core])
                if population.role == "input":
                    unit = taken[core] = taken.get(core, -1) + 1
                    neuron.set_attributes(soma_hw_name=f"{INPUT}[{unit}]")
                else:
                    neuron.set_attributes(model_attributes={"threshold": _number(population.threshold[index])})
            for connection in population.connections:
                entries = connection.weights.tocoo()
                pairs = list(zip(entries.row.tolist(), entries.col.tolist(), strict=True))
                weights = [_number(value) for value in entries.data.tolist()]
                source = groups[connection.source]
                source.connect_neurons_sparse(groups[population.name], {"weight": weights}, pairs)
        return net

    def _group(self, net: Any, population: Population) -> Any:
        if population.role == "input":
            return net.create_neuron_group(population.name, population.size, log_spikes=True)
        attributes: dict[str, Any] = {"leak_decay": population.leak, "reset_mode": "hard"}
        if population.role == "neurons":  # the state saturates
            attributes |= {"reverse_threshold": -STATE_MAX / UNIT, "reverse_reset_mode": "saturate"}
        return net.create_neuron_group(
            population.name,
            population.size,
            attributes,
            default_synapse_hw_name=SYNAPSES[population.synapses],
            default_dendrite_hw_name=DENDRITE,
            soma_hw_name=SOMA,
            log_spikes=True,
            log_potential=population.name in self.watched,
        )

    # one sample

    def run(self, frames: NDArray[Any]) -> None:
        """`frames` [1 or T, *shape]."""
        network = self.network
        sizes = network.populations
        spikes = {name: np.zeros((p.steps, p.size), dtype=np.bool_) for name, p in sizes.items()}
        potentials = {name: np.zeros((sizes[name].steps, sizes[name].size), dtype=np.int64) for name in self.watched}
        self.chip.reset()
        for name, population in sizes.items():
            if population.role == "input":
                trains = np.broadcast_to(frames, (network.time_steps, *population.shape)).reshape(len(spikes[name]), -1)
                for neuron, train in zip(self.groups[name], trains.T.astype(int).tolist(), strict=True):
                    neuron.set_attributes(model_attributes={"spikes": train})
        for step in range(network.steps):
            self._drive(step, frames, spikes)
            with redirect_stdout(io.StringIO()):  # it prints its progress
                found = self.chip.sim(
                    1, processing_threads=1, spike_trace=True, potential_trace=bool(self.watched), perf_trace=True
                )
            self._count(found)
            for address in found["spike_trace"][0]:
                population = sizes[address.group_name]
                self.fired[population.name][address.neuron_offset] += 1
                if 0 <= step - population.first < population.steps:
                    spikes[population.name][step - population.first, address.neuron_offset] = True
            if self.watched:
                self._watch(step, found["potential_trace"][0], potentials)
        self._drive(network.steps, frames, spikes)
        self.recorded.append(spikes)
        self.potentials.append(potentials)

    def _drive(self, step: int, frames: NDArray[Any], spikes: dict[str, NDArray[np.bool_]]) -> None:
        """Biases and injected currents: on from a population's first step to its last, as the host would write them."""
        for population in self.network.populations.values():
            at = step - population.first
            if population.name in self.injections and 0 <= at < population.steps:
                injected = self.injections[population.name].current(frames, spikes, at)
                self._set_bias(population, population.bias + injected)
            elif at == 0 and population.bias.any():
                self._set_bias(population, population.bias)
            elif at == population.steps and (population.bias.any() or population.outside):
                self._set_bias(population, np.zeros(population.size))

    def _set_bias(self, population: Population, bias: NDArray[np.float64]) -> None:
        # as `soma_attributes`, SANA-FE 2.2.9 hands them to the dendrite: the two arguments are swapped
        for neuron, value in zip(self.groups[population.name], bias.tolist(), strict=True):
            neuron.set_attributes(model_attributes={"bias": _number(value)})

    def _count(self, found: Mapping[str, Any]) -> None:
        for part in PARTS:
            self.energy[part] += 1e12 * found["energy"][part]
        told = {"spikes": "neurons_fired", "synaptic_events": "spikes", "messages": "packets_sent"}
        for counter, key in {**told, "updates": "neurons_updated"}.items():
            self.counters[counter] += int(found[key])
        self.counters["hops"] += int(found["perf_trace"]["hops"][0])
        self.seconds += float(found["sim_time"])

    def _watch(self, step: int, values: list[float], potentials: dict[str, NDArray[np.int64]]) -> None:
        """One list for all watched groups, in the order of their names."""
        start = 0
        for name in sorted(self.watched):
            population = self.network.populations[name]
            at, stop = step - population.first, start + population.size
            if 0 <= at < population.steps:
                unit = 1 if population.role == "readout" else UNIT
                potentials[name][at] = np.rint(np.array(values[start:stop]) * unit)
            start = stop

    # after the last

    def result(self, mesh: Mesh, frames: NDArray[Any]) -> SanafeRun:
        """All samples."""
        populations, samples = [p for p in self.network.populations.values() if p.role not in PACKED], len(frames)

        def joined(parts: list[dict[str, NDArray[Any]]], p: Population) -> NDArray[Any]:
            return np.stack([part[p.name] for part in parts], axis=1).reshape(p.steps, samples, *p.shape)

        result = SanafeRun(
            network=self.network,
            placement=self.placement,
            mesh=mesh,
            samples=samples,
            frames=frames,
            spikes={p.name: joined(self.recorded, p) for p in populations if p.role != "readout"},
            membranes={p.name: joined(self.potentials, p) for p in populations if p.name in self.watched},
            fired=self.fired,
            energy_pj=self.energy,
            counters=self.counters,
            seconds=self.seconds,
        )
        into = predecessors(self.network.graph)
        readouts = {name: into[name]["input"][0] for name in output_names(self.network.graph)}
        result.outputs = {
            name: result.membranes[source][-1]
            for name, source in readouts.items()
            if isinstance(self.network.graph.nodes[source], TemporalSum)
        }
        return result


def _watched(membranes: bool) -> tuple[str, ...]:
    return MEMBRANES if membranes else ("readout",)


def _number(value: float) -> int | float:
    """SANA-FE keeps integers of 32 bits and rounds other numbers to float32; neither may lose anything here."""
    if value == int(value) and abs(value) < 2**31:
        return int(value)
    if float(np.float32(value)) != value:
        raise UnsupportedError(f"{value!r} is not exact in float32, which is what SANA-FE reads")
    return value
