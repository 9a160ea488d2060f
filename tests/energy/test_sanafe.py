"""SANA-FE, which nobody here wrote, runs our integers: the same spikes, and an energy that is explained to the last."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.energy import chip_fit, energy, load_profile
from statten_deploy.energy.sanafe import Mesh, emit, loihi_description, mesh_of, place, simulate
from statten_deploy.energy.sanafe.linear import matrix
from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.runner import IntegerRunner
from tests.energy import brute
from tests.energy.spiking_networks import by_hand, case, neurons, one_layer
from tests.energy.test_counter import convolutions, network

NETWORKS = [
    *("strided", "plif", "dvs", "dvs-sdt"),
    *("sliding/circuit", "token/circuit", "dvs/circuit"),
    "dvs-strided-sliding/spikes",
]
"""Variants; what follows is how attention is computed, or that the input is sent as spikes."""


@pytest.mark.parametrize("name", NETWORKS)
def test_every_spike_membrane_and_logit(name):
    found = case(name)
    assert found.run.network.time_steps == 4
    for layer, spikes in found.reference.spikes.items():
        assert np.array_equal(found.run.spikes[layer], spikes), layer
        assert np.array_equal(found.run.membranes[layer], found.reference.membranes[layer]), layer
    assert sum(spikes.any() for spikes in found.reference.spikes.values()) >= len(found.reference.spikes) - 1
    assert np.array_equal(found.run.outputs["logits"], found.reference.outputs["logits"])
    assert np.ptp(found.run.outputs["logits"], axis=0).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_energy_taken_apart(name):
    """Our total is that of `energy`, SANA-FE's are its own; between them stand whole numbers of operations."""
    compared, run = case(name).compared, case(name).run
    assert compared.ours_pj == pytest.approx(energy(compared.counts, load_profile("loihi1-sanafe")).total_pj, rel=1e-12)
    assert all(row.explained for row in compared.rows)
    for part, value in compared.sanafe_pj.items():
        assert value == pytest.approx(run.energy_pj[part] / 2, rel=1e-9) == pytest.approx(compared.reported_pj[part])
    assert run.energy_pj["dendrite"] == 0
    by_figure = {row.figure: row.sanafe for row in compared.rows}
    inputs = sum(run.fired[p.name].sum() for p in run.network.populations.values() if p.role == "input")
    assert run.counters == {
        "synaptic_events": sum(by_figure[f"synop_{kind}"] for kind in ("conv", "dense", "sparse")),
        "messages": by_figure["axon_out"],
        "updates": by_figure["neuron_update"] + inputs,
        "spikes": by_figure["spike_out"] + inputs,
        "hops": by_figure["hop_east_west"] + by_figure["hop_north_south"],
    }
    told = compared.to_dict()
    total = told["ours_pj"] + sum(told["differences_pj"].values())
    assert total == pytest.approx(sum(told["sanafe_pj"].values()), rel=1e-12)


def test_what_is_computed_outside():
    """Attention, what rounds down or takes maxima, the first layer; as a circuit attention is spikes and synapses."""
    outside = {name: case(name).run.network.outside for name in ("plif", "token/circuit", "dvs-strided-sliding/spikes")}
    assert set(outside["plif"]) == {
        *("patch_embed.proj_conv", "patch_embed.maxpool3", "block.0.attn.statten", "head_pool")
    }
    assert set(outside["token/circuit"]) == {"patch_embed.proj_conv", "patch_embed.maxpool3", "head_pool"}
    assert set(outside["dvs-strided-sliding/spikes"]) == {"block.0.attn.statten", "head_pool"}
    roles = [p.role for p in case("token/circuit").run.network.populations.values()]
    assert roles.count("gates") > 10
    assert case("token/circuit").run.network.late == 3


# by hand


@st.composite
def layers(draw):
    """Two inputs, three neurons; membranes from small, where truncation shows, to saturated."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponent = draw(st.sampled_from([0, 0, 3, 9]))
    weight = generator.integers(-127, 128, (3, 2))
    threshold = generator.integers(0, 200, 3) << (0 if draw(st.booleans()) else exponent)
    dv = draw(st.sampled_from([0, 1, 700, 1365, 2048, 4095, 4096]))
    bias = generator.integers(-300, 301, 3) << draw(st.sampled_from([0, 3]))
    graph = one_layer(weight, np.full(3, exponent), neurons((3,), threshold, dv, bias), 40)
    return graph, (generator.random((2, 40, 2)) < draw(st.sampled_from([0.2, 0.9]))).astype(float)


@settings(max_examples=25, deadline=None)
@given(layers())
def test_any_neuron_without_synaptic_memory(drawn):
    graph, x = drawn
    run = simulate(emit(graph, inputs="spikes"), x, membranes=True)
    reference = IntegerRunner(graph).run(x, spikes=True, membranes=True)
    assert np.array_equal(run.spikes["lif"], reference.spikes["lif"])
    assert np.array_equal(run.membranes["lif"], reference.membranes["lif"])


def test_a_membrane_saturates():
    graph = one_layer([[-127], [127]], [9, 9], neurons((2,), (1 << 17) - 1, 0), 200)
    run = simulate(emit(graph, inputs="spikes"), np.ones((1, 200, 1)), membranes=True)
    reference = IntegerRunner(graph).run(np.ones((1, 200, 1)), membranes=True).membranes["lif"]
    assert np.array_equal(run.membranes["lif"], reference)
    assert reference.min() == -(2**23) + 1
    assert run.fired["lif"].tolist() == [0, 66]


def test_injected_currents_wrap_as_the_reference_does():
    """255 · 127 · 8 = 259,080 is beyond 2^17: the state overflows once."""
    graph = one_layer([[127], [-127], [10]], [3, 3, 3], neurons((3,), 900, 2048, (5, -5, 77)), 5)
    x = np.array([[255.0], [3.0]])
    run = simulate(emit(graph), x, membranes=True)
    reference = IntegerRunner(graph).run(x, spikes=True, membranes=True)
    assert (reference.membranes["lif"] < 0)[:, 0, 0].all()
    assert np.array_equal(run.membranes["lif"], reference.membranes["lif"])
    assert np.array_equal(run.spikes["lif"], reference.spikes["lif"])


def test_a_network_without_anything_outside():
    _, run, reference = by_hand()
    assert run.network.outside == {}
    assert [p.level for p in run.network.populations.values() if p.role != "relay"] == [0, 1, 2, 3, 4, 5]
    assert all(0.05 < spikes.mean() < 0.6 for spikes in reference.spikes.values())
    for layer in ("a", "b", "c"):
        assert np.array_equal(run.spikes[layer], reference.spikes[layer])
        assert np.array_equal(run.membranes[layer], reference.membranes[layer])
    assert np.array_equal(run.spikes["both"], reference.spikes["a"] & reference.spikes["b"])
    assert np.array_equal(run.outputs["y"], reference.outputs["y"])


def test_the_counts_spike_by_spike():
    """Messages, hops and synaptic events of every single spike of the reference, and updates from its membranes."""
    _, run, reference = by_hand()
    network, cores = run.network, run.placement.cores
    spikes = {name: s.reshape(5, 2, -1) for name, s in run.spikes.items()}
    spikes |= {name: reference.spikes[name].reshape(5, 2, -1) for name in ("a", "b", "c")}
    spikes["sum"] = np.zeros((5, 2, 4), dtype=bool)
    spikes["x"] = run.frames.reshape(2, 5, -1).swapaxes(0, 1).astype(bool)
    for name, population in network.populations.items():
        if population.role == "relay":
            spikes[name] = spikes[name.partition(".relay")[0]]
    events = messages = hops = 0
    listeners = {name: [] for name in network.populations}
    for name, population in network.populations.items():
        for connection in population.connections:
            entries = connection.weights.tocoo()
            for i, j in zip(entries.row.tolist(), entries.col.tolist(), strict=True):
                listeners[connection.source].append((i, int(cores[name][j])))
    for name, reached in listeners.items():
        fired = spikes[name].sum((0, 1))
        events += sum(int(fired[i]) for i, _ in reached)
        for i, core in set(reached):
            here, there = divmod(int(cores[name][i]) // 4, 4), divmod(core // 4, 4)
            messages += int(fired[i])
            hops += int(fired[i]) * (abs(here[0] - there[0]) + abs(here[1] - there[1]))
    assert run.counters["synaptic_events"] == events
    assert run.counters["messages"] == messages
    assert run.counters["hops"] == hops > 0
    assert run.counters["spikes"] == sum(int(s.sum()) for s in spikes.values())
    updates = spikes["x"].sum() + sum(_updates(run, reference, spikes, p) for p in network.populations.values())
    assert run.counters["updates"] == updates


def _updates(run, reference, spikes, population):
    """Steps in which a neuron is not at rest: it has a bias, hears a spike, or its membrane is not 0."""
    if population.role == "input":
        return 0
    membranes = {name: m.reshape(5, 2, -1) for name, m in reference.membranes.items()}
    if population.role == "gates":  # one of two spikes is left on an AND, until the next step
        membranes["both"] = spikes["a"] ^ spikes["b"]
    if population.role == "readout":
        membranes[population.name] = run.membranes[population.name].reshape(5, 2, -1)
    membrane = membranes.get(population.name)
    total, last = 0, np.zeros((2, population.size))
    for step in range(run.network.steps):
        at = step - population.level
        active = last != 0
        if 0 <= at < 5:
            active |= population.bias != 0
            for connection in population.connections:
                active |= (spikes[connection.source][at].astype(int) @ (connection.weights != 0).astype(int)) > 0
            last = membrane[at] if membrane is not None else np.zeros_like(last)
        elif at >= 5:  # nothing comes any more: what is left decays
            last = np.trunc(last * population.leak)
        total += int(active.sum())
    return total


def test_two_samples_are_two_runs():
    run, x = case("strided").run, case("strided").x
    alone = [simulate(run.network, x[i : i + 1]) for i in range(2)]
    assert sum(one.total_pj for one in alone) == pytest.approx(run.total_pj, rel=1e-9)
    assert all(
        np.array_equal(one.spikes["head_lif"][:, 0], run.spikes["head_lif"][:, i]) for i, one in enumerate(alone)
    )


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_synapses_of_convolutions_one_by_one(drawn):
    """Any stride, padding, dilation and number of groups, against plain loops; zero weights are no synapses."""
    node, shape, _ = drawn
    out = network(node, shape)[1]
    found = matrix(node, shape, out).toarray().reshape(*shape, *out)
    expected = np.zeros_like(found)
    for site in np.ndindex(*shape):
        for target, weight in brute.reached(node, site, out):
            expected[(*site, *target)] += weight
    assert np.array_equal(found, expected)
    assert matrix(node, shape, out).nnz == np.count_nonzero(expected)


# where things lie


def test_layers_lie_where_chip_fit_puts_them():
    """As many cores, no limit broken, as many synapses: the fit counts receptive fields, the emitter single weights."""
    found = case("strided")
    network, placed = found.run.network, found.run.placement
    fitted = {layer.name: layer for layer in chip_fit(found.graph, "loihi1").layers}
    checked = 0
    for name, layer in fitted.items():
        population = network.populations[name]
        cores = placed.cores[name]
        assert len(set(cores.tolist())) == layer.cores
        assert np.bincount(cores - cores.min()).max() == layer.needs["neurons"] <= 1024
        if not population.outside and all(len(c.via) == 1 for c in population.connections):
            assert sum(c.weights.nnz for c in population.connections) == layer.synapses
            checked += 1
    assert checked >= 8
    shared = [placed.cores[p.name] for p in network.populations.values() if p.role == "relay"]
    assert not set(np.concatenate(shared).tolist()) & {c for name in fitted for c in placed.cores[name].tolist()}


def test_a_layer_beyond_a_core_is_cut():
    graph, run, _ = by_hand()
    assert [len(set(run.placement.cores[name].tolist())) for name in ("a", "b", "c", "sum")] == [2, 2, 2, 1]
    (layer,) = (layer for layer in chip_fit(graph, "loihi1", input="events").layers if layer.name == "c")
    assert layer.tile == (6, 8, 16)  # row bands, where neurons alone would take channels
    bands = run.placement.cores["c"].reshape(6, 2, 8, 16)
    assert np.ptp(bands, axis=(0, 2, 3)).tolist() == [0, 0]
    with pytest.raises(UnsupportedError, match=r"takes 13 cores \(3,072 of its neurons are relays\) and .* has 4;"):
        place(run.network, Mesh(1, 1, 4, 1024))


def test_a_layer_that_fits_nowhere_is_told():
    """Loihi's 4,096 input axons are no limit of SANA-FE."""
    network = emit(one_layer(np.ones((2, 5000)), [0, 0], neurons((2,), 100), 3), inputs="spikes")
    placed = place(network, Mesh(8, 4, 4, 1024))
    (note,) = placed.notes
    assert note.startswith("lif: does not fit: a single neuron needs 5000 input_axons, a core has 4096")
    assert placed.cores["lif"].tolist() == [0, 0]
    assert np.bincount(placed.cores["x"])[1:].tolist() == [1024] * 4 + [904]


def test_the_mesh_and_the_figures_are_those_of_the_installed_description():
    description = loihi_description()
    assert mesh_of(description) == Mesh(8, 4, 4, 1024)
    tile = description["architecture"]["tile"][0]
    core = tile["core"][0]
    units = {unit["name"]: unit["attributes"] for part in core.values() if isinstance(part, list) for unit in part}
    soma = units["loihi_lif"]
    told = {
        "synop_conv": units["loihi_conv_synapse"]["energy_process_spike"],
        "synop_dense": units["loihi_dense_synapse"]["energy_process_spike"],
        "synop_sparse": units["loihi_sparse_synapse"]["energy_process_spike"],
        "neuron_access": soma["energy_access_neuron"],
        "neuron_update": soma["energy_update_neuron"],
        "spike_out": soma["energy_spike_out"],
        "axon_out": units["loihi_out"]["energy_message_out"],
        "hop_east_west": tile["attributes"]["energy_east_hop"],
        "hop_north_south": tile["attributes"]["energy_north_hop"],
    }
    figures = {name: figure.pj for name, figure in load_profile("loihi1-sanafe").figures.items()}
    assert {name: value * 1e12 for name, value in told.items()} == pytest.approx(figures)


# the page


def test_the_first_column_of_the_page():
    """docs/energy.md, by the example that it names."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "energy.md").read_text(encoding="utf-8")
    command = re.search(r"^python (examples/sanafe_energy.py) (.*--until \S+)$", text, re.MULTILINE)
    spec = spec_from_file_location("sanafe_energy", root / command[1])
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    compared = example.main([str(root / word) if word.endswith(".ckpt") else word for word in command[2].split()])
    rows = {
        row[0]: row[1] for row in re.findall(r"^\| (.*?) \| (.*?) \|", text.partition("## SANA-FE")[2], re.MULTILINE)
    }
    assert rows["**ours**, profile `loihi1-sanafe`"] == f"**{compared.ours_pj / 1e6:.3f}**"
    assert rows["**SANA-FE**"] == f"**{sum(compared.reported_pj.values()) / 1e6:.3f}**"
    parts = " / ".join(f"{pj / 1e6:.3f}" for pj in compared.reported_pj.values())
    assert rows["of this synapses / neurons / network"] == parts
    told = {f"{pj / 1e6:+.3f}" for pj in compared.differences_pj.values()}
    assert told == {value for value in rows.values() if re.fullmatch(r"[+-]\d\.\d{3}", value)}
