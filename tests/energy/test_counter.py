from itertools import pairwise

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.compare.executors import GraphExecutor, TorchExecutor
from statten_deploy.energy import EnergyCounter, chip_fit, energy, load_profile
from statten_deploy.energy.fanout import dense, fan_in, fan_out
from statten_deploy.errors import ConfigError, InputError
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import SpikeAnd, SpikeMaxPool2d, STAttenAttention, TokenMaxPool, infer_shapes, predecessors
from statten_deploy.ir.integer import InputEncoder, IntegerConv2d, IntegerSumPool2d
from statten_deploy.passes import spike_maxpool_to_circuit
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate import Simulator
from tests.conftest import lively_input, lively_model, small_config
from tests.energy import brute
from tests.quantize.recurrent_graphs import events, recurrent


def neuron(shape):
    ones = np.ones(shape, dtype=np.float32)
    return nir.LIF(tau=ones * 2e-4, r=ones, v_leak=ones * 0, v_threshold=ones * 0.5, v_reset=ones * 0)


def network(node, shape, *, source=None):
    """Input -> neurons `s` -> node -> neurons `o` -> Output."""
    first = nir.NIRGraph({"i": nir.Input({"input": np.array(shape)}), "node": node}, [("i", "node")], type_check=False)
    out = infer_shapes(first)["node"]
    nodes = {
        "i": nir.Input({"input": np.array(shape)}),
        "s": neuron(shape),
        "node": node,
        "o": neuron(out),
        "y": nir.Output({"output": np.array(out)}),
    }
    edges = [("i", "s"), (source or "s", "node"), ("node", "o"), ("o", "y")]
    return nir.NIRGraph(nodes, edges, type_check=False), out


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2]))
    inputs, outputs = draw(st.integers(1, 2)) * groups, draw(st.integers(1, 2)) * groups
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    size = draw(st.tuples(st.integers(5, 6), st.integers(5, 6)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = generator.normal(size=(outputs, inputs // groups, *kernel)) * (generator.random((1,)) < 0.8)
    weight *= generator.random(weight.shape) < 0.7
    node = nir.Conv2d(size, weight.astype(np.float32), stride, padding, dilation, groups, np.zeros(outputs, np.float32))
    spikes = generator.random((2, 2, inputs, *size)) < draw(st.floats(0, 1))
    return node, (inputs, *size), spikes


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_convolutions_count_as_spike_by_spike(case):
    node, shape, spikes = case
    graph, out = network(node, shape)
    counter = EnergyCounter(graph, input="image")
    counter.update({"s": spikes, "o": np.zeros((2, 2, *out), dtype=bool)})
    layer = counter.counts()["node"]
    assert layer.synops == brute.synops(node, spikes, out)
    assert fan_in(node, shape, out).sum() == fan_out(node, shape, out).sum()
    assert layer.dense_macs == dense(node, shape, out) == np.prod(out) * node.weight[0].size
    assert layer.paper_acs == pytest.approx(np.mean(spikes) * layer.dense_macs * 4)


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        (nir.Conv1d(7, np.ones((3, 2, 3), np.float32), 2, 1, 1, 1, np.zeros(3, np.float32)), (2, 7)),
        (nir.Conv2d((4, 5), np.ones((2, 3, 2, 2), np.float32), 1, "same", 1, 1, np.zeros(2, np.float32)), (3, 4, 5)),
        (nir.Affine(np.eye(4, 6, dtype=np.float32), np.zeros(4, np.float32)), (6,)),
        (nir.Linear(np.ones((4, 6), dtype=np.float32)), (6,)),
        (nir.SumPool2d(np.array([3, 2]), np.array([2, 1]), np.array([1, 0])), (2, 5, 5)),
        (nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), (2, 5, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nir.NIRNode) else "",
)
def test_every_connection_counts_as_spike_by_spike(node, shape):
    graph, out = network(node, shape)
    spikes = np.random.default_rng(0).random((3, 2, *shape)) < 0.4
    counter = EnergyCounter(graph, input="image")
    counter.update({"s": spikes, "o": np.zeros((3, 2, *out), dtype=bool)})
    if isinstance(getattr(node, "padding", None), str):  # torch pads the odd one after
        node = nir.Conv2d((5, 6), node.weight, 1, 0, 1, 1, node.bias)
    assert counter.counts()["node"].synops == brute.synops(node, spikes, out) > 0


def test_behind_delays_the_spikes_count_that_arrive():
    """Neurons that wait for different times, two paths into an AND and a convolution; by the simulator's signals."""
    rng, shape = np.random.default_rng(3), (2, 4, 4)
    weight = rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    zero = np.zeros(2, dtype=np.int64)
    nodes = {
        "i": nir.Input({"input": np.array(shape)}),
        "s": neuron(shape),
        "late": nir.Delay((rng.integers(0, 4, shape) * 1e-4).astype(np.float32)),
        "and": SpikeAnd(),
        "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), zero),
        "conv": nir.Conv2d((4, 4), weight, 1, 1, 1, 1, np.zeros(3, np.float32)),
        "o": neuron((3, 4, 4)),
        "y": nir.Output({"output": np.array([3, 4, 4])}),
    }
    edges = [("i", "s"), ("s", "late"), ("late", "conv"), ("conv", "o"), ("o", "y")]
    edges += [("s", "and.a"), ("late", "and.b"), ("and", "pool"), ("pool", "end")]
    nodes["end"] = nir.Output({"output": np.array([2, 2, 2])})
    hints = {"format": 1, "dt": 1e-4, "time_steps": 5, "input": "frames"}
    graph = nir.NIRGraph(nodes, edges, metadata={"statten": hints}, type_check=False)
    x = rng.integers(0, 3, (3, 5, *shape)).astype(np.float32)
    signals = Simulator(graph).run(x, record=["s", "late", "and", "o"]).recorded
    counter = EnergyCounter(graph)
    counter.update({name: signals[name] for name in "so"}, x)
    counts = counter.counts()
    assert signals["late"].sum() < signals["s"].sum()  # some never arrive
    assert counts["conv"].synops == brute.synops(nodes["conv"], signals["late"], (3, 4, 4)) > 0
    assert counts["and"].spikes == signals["and"].sum() > 0
    assert counts["and"].synops == signals["s"].sum() + signals["late"].sum()
    assert counts["pool"].synops == brute.synops(nodes["pool"], signals["and"], (2, 2, 2))
    assert (counts["conv"].macs, counts["conv"].paper_macs) == (0, 0)


@pytest.mark.parametrize(
    "node",
    [
        nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.SumPool2d(np.array([4, 4]), np.array([4, 4]), np.array([0, 0])),  # over everything, and yet no attention
        nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        IntegerSumPool2d((4, 4), (4, 4), 0),
        SpikeMaxPool2d((2, 2), (2, 2), (0, 0)),
    ],
    ids=["sum", "whole", "mean", "integer", "or"],
)
def test_pools_are_free_in_the_paper_convention_for_spikes_and_for_the_ann(node):
    graph, out = network(node, (2, 4, 4))
    counter = EnergyCounter(graph, input="image")
    counter.update({"s": np.ones((3, 2, 2, 4, 4), dtype=bool), "o": np.zeros((3, 2, *out), dtype=bool)})
    counts = counter.counts()
    assert (counts["node"].synops, counts["node"].paper_acs, counts["node"].dense_macs) == (3 * 2 * 32, 0, 0)
    report = energy(counts, load_profile("45nm-fp32"))
    assert (report.total_pj, report.ann_pj) == (0, 0)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("variant", ["sdt", "dvs-sdt"])
def test_the_token_sum_of_sdt_is_attention(variant, bits):
    """Spikes that are summed; in an ANN one product of k and v per token and channel."""
    config = small_config(variant, depth=1)
    graph, x = build_graph(lively_model(config)), lively_input(config).numpy()
    spikes = GraphExecutor(graph).run(x).spikes
    counter = EnergyCounter(graph if bits is None else quantize(graph, QuantizeOptions(bits)))
    counter.update(spikes, x)
    layer = counter.counts()["block.0.attn.kv_sum"]
    channels, tokens = config.embed_dim, config.token_grid[0] * config.token_grid[1]
    assert layer.paper_acs == layer.synops > 0
    assert layer.dense_macs == channels * tokens


def spiking_names(graph):
    return [name for name, node in graph.nodes.items() if isinstance(node, nir.LIF)]


def recorded(variant, batch=2):
    """(graph, input, the signal of every node [T, B, ...])."""
    config = small_config(variant, depth=1)
    graph = build_graph(lively_model(config))
    x = lively_input(config, batch).numpy()
    names = [name for name, node in graph.nodes.items() if not isinstance(node, nir.Output)]
    return graph, x, Simulator(graph).run(x, record=names).recorded


def test_networks_count_as_spike_by_spike(variant):
    graph, x, signals = recorded(variant, batch=1)
    counter = EnergyCounter(graph)
    counter.update({name: signals[name] for name in spiking_names(graph)}, x)
    counts = counter.counts()
    shapes, into = infer_shapes(graph), predecessors(graph)
    events = {"frames"} | {
        name
        for name, node in graph.nodes.items()
        if isinstance(node, nir.LIF | SpikeMaxPool2d | SpikeAnd | TokenMaxPool)
    }
    checked = found_any = 0
    for name, node in graph.nodes.items():
        sources = [(port, source) for port, found in into[name].items() for source in found]
        if isinstance(node, nir.LIF):
            assert counts[name].spikes == signals[name].sum()
            assert counts[name].spikes_by_step == tuple(signals[name].sum(axis=(1, 2, *range(3, signals[name].ndim))))
            assert counts[name].updates == signals[name].size
        elif isinstance(node, STAttenAttention):
            expected = brute.attention(node, *(signals[source] for _, source in sources))
            layer = counts[name]
            assert (layer.kv_accumulations, layer.kv_removals, layer.q_reads) == expected
            assert layer.q_reads > 0 < layer.kv_accumulations
        elif isinstance(node, nir.Conv2d | nir.Affine | nir.SumPool2d) and {source for _, source in sources} <= events:
            expected = sum(brute.synops(node, signals[source], shapes[name]) for _, source in sources)
            assert counts[name].synops == expected
            found_any += expected
        elif isinstance(node, SpikeMaxPool2d | SpikeAnd | TokenMaxPool):
            found = [brute.gate_ops(node, port, signals[source], shapes[name]) for port, source in sources]
            assert counts[name].synops == sum(found)
            assert counts[name].spikes == np.count_nonzero(signals[name])
        elif isinstance(node, nir.Conv2d):  # currents: every product inside the borders, with or without an event
            everything = np.ones((1, 1, *shapes[into[name]["input"][0]]))
            steps = 1 if graph.metadata["statten"]["input"] == "image" else 4
            assert counts[name].macs == brute.synops(node, everything, shapes[name]) * steps
            assert counts[name].macs_every_step == counts[name].macs * 4 // steps
            assert counts[name].synops == 0
        else:
            continue
        checked += 1
    assert checked > 20
    assert found_any > 10_000


def test_batches_add_up():
    graph, x, signals = recorded("dvs-strided-sliding", batch=5)
    spikes = {name: signals[name] for name in spiking_names(graph)}
    whole, parts = EnergyCounter(graph), EnergyCounter(graph)
    whole.update(spikes, x)
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
        parts.update({name: value[:, part] for name, value in spikes.items()}, x[part])
    assert whole.counts() == parts.counts()
    assert whole.counts().samples == 5


@pytest.mark.parametrize("variant", ["static", "dvs", "dvs-sdt"])
def test_equal_spikes_give_equal_integers_from_any_engine(variant):
    """Torch against the float simulator, and the integer graph's counter on the float network's spikes."""
    config = small_config(variant)
    model = lively_model(config)
    graph, x = build_graph(model), lively_input(config).numpy()
    quantised = quantize(graph, QuantizeOptions(8, "channel"))
    found = []
    simulated = GraphExecutor(graph).run(x).spikes
    for network_graph, spikes in (
        (graph, TorchExecutor(model).run(x).spikes),
        (graph, simulated),
        (quantised, simulated),
    ):
        counter = EnergyCounter(network_graph)
        counter.update(spikes, x)
        found.append({layer.name: layer.event_ops for layer in counter.counts().layers if layer.role != "synapses"})
        found[-1]["spikes"] = counter.counts().spikes
    assert found[0] == found[1] == found[2]


def test_integer_networks_count_their_own_spikes_and_their_own_zeros():
    config = small_config("static", depth=1)
    graph = build_graph(lively_model(config))
    x = lively_input(config).numpy()
    for bits in (8, 2):
        quantised = quantize(graph, QuantizeOptions(bits, "channel"))
        result = IntegerRunner(quantised).run(x, spikes=True)
        counter = EnergyCounter(quantised)
        counter.update(result.spikes)
        counts = counter.counts()
        name = "block.0.mlp.fc1_conv"
        node = quantised.nodes[name]
        node = nir.Conv2d((4, 4), node.weight, node.stride, node.padding, node.dilation, node.groups, np.zeros(64))
        spikes = result.spikes["block.0.mlp.fc1_lif"]
        assert counts[name].synops == brute.synops(node, spikes, (64, 4, 4)) > 0
        zeros = np.count_nonzero(node.weight == 0)
        assert zeros > 0 if bits == 2 else counts[name].paper_acs >= counts[name].synops
        assert counts.spikes == sum(int(n.sum()) for n in result.spike_counts.values())


def test_an_or_circuit_costs_what_the_pool_costs():
    graph, x, signals = recorded("dvs")
    circuit, changed = spike_maxpool_to_circuit(graph)
    assert changed
    spikes = {name: signals[name] for name in spiking_names(graph)}
    pooled = EnergyCounter(graph)
    pooled.update(spikes, x)
    expanded = EnergyCounter(circuit)
    gates = {f"{name}.gate": signals[name] for name, node in graph.nodes.items() if isinstance(node, SpikeMaxPool2d)}
    expanded.update(spikes | gates, x)
    one, other = pooled.counts(), expanded.counts()
    assert one.synops == other.synops
    assert sum(layer.updates for layer in one.layers) == sum(layer.updates for layer in other.layers)
    assert sum(layer.spikes for layer in one.layers) == sum(layer.spikes for layer in other.layers)


def test_the_sum_of_two_spike_trains_is_two_trains():
    """dvs: the projection hears gate + s_pool; a site where both fire is two spikes."""
    graph, x, signals = recorded("dvs")
    counter = EnergyCounter(graph)
    counter.update({name: signals[name] for name in spiking_names(graph)}, x)
    gate, pool = signals["block.0.attn.gate"], signals["block.0.attn.s_pool"]
    assert (gate + pool).max() == 2
    layer = counter.counts()["block.0.attn.proj_conv"]
    assert layer.synops == 32 * (np.count_nonzero(gate) + np.count_nonzero(pool))
    assert layer.paper_acs == layer.synops


def test_graded_events_count_once():
    node = nir.Conv2d((3, 3), np.ones((2, 1, 1, 1), np.float32), 1, 0, 1, 1, np.zeros(2, np.float32))
    graph, out = network(node, (1, 3, 3), source="i")
    x = np.zeros((1, 2, 1, 3, 3))
    x[0, 0, 0, 1, 1], x[0, 1, 0, 0, 0] = 7, -1
    silent = {"s": np.zeros((2, 1, 1, 3, 3), dtype=bool), "o": np.zeros((2, 1, *out), dtype=bool)}
    counter = EnergyCounter(graph, input="events")
    counter.update(silent, x)
    counts = counter.counts()
    assert counts["node"].synops == 4
    assert (counts["i"].spikes, counts["i"].spikes_by_step, counts["node"].macs) == (2, (1, 1), 0)
    frames = EnergyCounter(graph, input="frames")
    frames.update(silent)
    assert (frames.counts()["node"].synops, frames.counts()["node"].macs) == (0, 2 * 9 * 2)


def counted_small(node, shape, x, spikes=None, told="image"):
    """Counts of `node`, fed by the neurons `s` or, without spikes, by the input, and followed by a 1x1 convolution."""
    graph, out = network(node, shape, source="s" if spikes is not None else "i")
    weight, zero = np.ones((1, out[0], 1, 1), dtype=np.int64), np.zeros(1, dtype=np.int64)
    graph.nodes["conv"] = IntegerConv2d(weight, zero, np.ones(1), (1, 1), (0, 0))
    graph.nodes["o"], graph.nodes["y"] = neuron((1, *out[1:])), nir.Output({"output": np.array((1, *out[1:]))})
    edges = [edge for edge in graph.edges if edge != ("node", "o")] + [("node", "conv"), ("conv", "o")]
    counter = EnergyCounter(nir.NIRGraph(graph.nodes, edges, type_check=False), input=told)
    lead = (2, 1)
    spikes = np.zeros((*lead, *shape), dtype=bool) if spikes is None else spikes
    counter.update({"s": spikes, "o": np.zeros((*lead, 1, *out[1:]), dtype=bool)}, x)
    return counter.counts()


def test_a_sum_that_is_shifted_to_zero_is_no_event():
    spikes = np.zeros((2, 1, 1, 4, 4), dtype=bool)
    spikes[0, 0, 0, 0, 0] = True  # alone in its window: 1 >> 1 = 0
    spikes[1, 0, 0, 2, 2:] = True  # 2 >> 1 = 1
    counts = counted_small(IntegerSumPool2d((2, 2), (2, 2), -1), (1, 4, 4), None, spikes)
    assert (counts["node"].synops, counts["conv"].synops) == (3, 1)


def test_events_are_what_the_encoder_makes_of_them():
    x = np.zeros((1, 2, 1, 2, 2))
    x[0, 0, 0, 0] = 1, 3  # at scale 2: rint(0.5) = 0 and rint(1.5) = 2
    counts = counted_small(InputEncoder(np.array([2.0]), np.array([0])), (1, 2, 2), x, told="events")
    assert (counts["conv"].synops, counts["conv"].macs, counts["i"].spikes) == (1, 0, 2)
    offset = counted_small(InputEncoder(np.array([2.0]), np.array([5])), (1, 2, 2), x, told="events")
    assert (offset["conv"].synops, offset["conv"].macs) == (0, 8)  # silence is not zero: products at every step


def test_the_first_layer_of_the_published_networks():
    """224 x 224, 3 to 64 channels, 3 x 3, T = 4: the 0.347 G MACs that the literature states count every step."""
    weight = np.ones((64, 3, 3, 3), np.float32)
    node = nir.Conv2d((224, 224), weight, 1, 1, 1, 1, np.zeros(64, np.float32))
    graph, out = network(node, (3, 224, 224), source="i")
    counter = EnergyCounter(graph, input="image")
    counter.update({"s": np.zeros((4, 1, 3, 224, 224), dtype=bool), "o": np.zeros((4, 1, *out), dtype=bool)})
    layer = counter.counts()["node"]
    assert layer.paper_macs == 346_816_512
    assert layer.macs == 64 * 3 * (3 * 224 - 2) ** 2  # once, without the padding
    assert layer.macs_every_step == 4 * layer.macs


def test_loops_are_counted_from_their_spikes():
    nodes = {
        "i": nir.Input({"input": np.array([3])}),
        "w": nir.Linear(np.ones((4, 3), np.float32)),
        "s": neuron((4,)),
        "back": nir.Linear(np.eye(4, dtype=np.float32)),
        "y": nir.Output({"output": np.array([4])}),
    }
    edges = [("i", "w"), ("w", "s"), ("s", "back"), ("back", "s"), ("s", "y")]
    counter = EnergyCounter(nir.NIRGraph(nodes, edges, type_check=False), input="frames")
    counter.update({"s": np.ones((5, 2, 4), dtype=np.float32)})
    counts = counter.counts()
    assert (counts["back"].synops, counts["w"].macs, counts.spikes) == (40, 12 * 5 * 2, 40)


@pytest.mark.parametrize("neuron", ["lif", "cuba"])
def test_loops_and_integrators_in_integers_are_counted_as_in_floats(neuron):
    rng = np.random.default_rng(0)
    subject = recurrent(rng, neuron, spatial=True)
    x = events(rng, subject)
    quantised = quantize(subject)
    counts = []
    for graph, spikes in (
        (subject, GraphExecutor(subject).run(x).spikes),
        (quantised, IntegerRunner(quantised).run(x, spikes=True).spikes),
    ):
        counter = EnergyCounter(graph, input="events")
        counter.update(spikes, x)
        counts.append(counter.counts())
    floats, integers = counts
    assert floats.synops == integers.synops > 1000
    assert [integers[name].synops for name in ("self", "back")] == [floats[name].synops for name in ("self", "back")]
    assert integers["li"].updates == floats["li"].updates == 3 * 4 * 27
    assert chip_fit(quantised, "loihi2", input="events").neurons == chip_fit(subject, "loihi2", input="events").neurons


def test_readers_of_residual_currents():
    counts = counted("static")
    assert counts["patch_embed.rpe_conv"].readers == 5  # two blocks, two neuron layers each, and the head
    assert counts["block.0.mlp.fc1_conv"].readers == 1
    extra = sum(layer.synops * (layer.readers - 1) for layer in counts.layers)
    assert counts.synops_unshared == counts.synops + extra > counts.synops


def counted(variant):
    config = small_config(variant)
    graph, x = build_graph(lively_model(config)), lively_input(config).numpy()
    counter = EnergyCounter(graph)
    counter.update(GraphExecutor(graph).run(x).spikes, x)
    return counter.counts()


def test_attention_reads_are_those_of_the_paper_and_accumulations_fewer():
    layer = counted("static")["block.0.attn.statten"]
    bound = layer.paper_acs - layer.q_reads  # d · min(active k, active v)
    assert 0 < layer.kv_accumulations < bound


def test_attention_by_the_paper():
    """T · h · N · d · d · (min(fr_k, fr_v) + fr_q), from firing rates over everything."""
    counts = counted("static")
    rate = {part: counts[f"block.1.attn.{part}_lif"].firing_rate for part in "qkv"}
    assert len(set(rate.values())) == 3
    T, heads, tokens, d = 4, 4, 16, 8
    expected = 3 * T * heads * tokens * d * d * (min(rate["k"], rate["v"]) + rate["q"])
    assert float(counts["block.1.attn.statten"].paper_acs) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["spikes", "synops", "macs", "neuron_updates", "paper_macs", "ann_macs"])
def test_the_report_holds_plain_integers(name):
    counts = counted("sliding")
    report = counts.to_dict()
    assert type(report[name]) is int
    assert report[name] > 0
    assert all(type(value) in (int, float, str, list) for layer in report["layers"] for value in layer.values())


class TestRefusals:
    def graph(self):
        node = nir.Conv2d((3, 3), np.ones((2, 1, 1, 1), np.float32), 1, 0, 1, 1, np.zeros(2, np.float32))
        return network(node, (1, 3, 3))[0]

    def spikes(self, steps=2, batch=1):
        return {"s": np.zeros((steps, batch, 1, 3, 3)), "o": np.zeros((steps, batch, 2, 3, 3), dtype=bool)}

    def test_the_input_must_be_told(self):
        with pytest.raises(ConfigError, match="give input='image', 'frames' or 'events'"):
            EnergyCounter(self.graph())
        with pytest.raises(ConfigError, match="expected one of image, frames, events"):
            EnergyCounter(self.graph(), input="spikes")

    def test_nothing_given(self):
        with pytest.raises(InputError, match="no spikes were given"):
            EnergyCounter(self.graph(), input="image").counts()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"s": None}, "no spikes of s;"),
            (
                {"o": np.zeros((2, 1, 2, 3, 4), dtype=bool)},
                r"'o' have shape \[2, 1, 2, 3, 4\], expected \[T, B, 2, 3, 3\]",
            ),
            ({"o": np.zeros((3, 1, 2, 3, 3), dtype=bool)}, "'o' have shape"),
            ({"s": np.full((2, 1, 1, 3, 3), 0.5)}, "other values than 0 and 1"),
        ],
    )
    def test_spikes_that_do_not_fit(self, change, message):
        spikes = {name: value for name, value in (self.spikes() | change).items() if value is not None}
        with pytest.raises(InputError, match=message):
            EnergyCounter(self.graph(), input="image").update(spikes)

    def test_another_number_of_steps(self):
        counter = EnergyCounter(self.graph(), input="image")
        counter.update(self.spikes())
        with pytest.raises(InputError, match="3 steps after others of 2"):
            counter.update(self.spikes(3))

    def test_events(self):
        counter = EnergyCounter(self.graph(), input="events")
        with pytest.raises(InputError, match="give the values of i"):
            counter.update(self.spikes())
        with pytest.raises(InputError, match=r"expected \[1, 2, 1, 3, 3\]"):
            counter.update(self.spikes(), np.zeros((1, 3, 1, 3, 3)))
        with pytest.raises(InputError, match="input='frames'"):
            counter.update(self.spikes(), np.full((1, 2, 1, 3, 3), 0.5))

    def test_names_of_other_tools_are_left_out(self):
        counter = EnergyCounter(self.graph(), input="image")
        counter.update(self.spikes() | {"extra": np.zeros(3)})
        assert counter.counts().spikes == 0


@pytest.mark.parametrize("factor", [1.0, 0.5, -0.25])
def test_scaled_spikes_stay_events_behind_a_pool(factor: float) -> None:
    one = np.ones((1, 4, 4), dtype=np.float32)
    nodes = {
        "input": nir.Input({"input": np.array([1, 4, 4])}),
        "lif": nir.LIF(one * np.float32(2e-4), one, one * 0, one / 2),
        "scale": nir.Scale(one * np.float32(factor)),
        "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "conv": nir.Conv2d((2, 2), np.ones((3, 1, 1, 1), np.float32), 1, 0, 1, 1, np.zeros(3, np.float32)),
        "output": nir.Output({"output": np.array([3, 2, 2])}),
    }
    names = list(nodes)
    counter = EnergyCounter(nir.NIRGraph(nodes, list(pairwise(names))), input="image")
    counter.update({"lif": np.ones((2, 1, 1, 4, 4), dtype=np.bool_)})
    assert counter.counts()["conv"].synops == 2 * 4 * 3
