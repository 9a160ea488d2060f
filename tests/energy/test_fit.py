from itertools import pairwise, product

import nir
import numpy as np
import pytest
from hypothesis import given, settings

from statten_deploy.energy import Chip, chip_fit, chip_names, load_chip
from statten_deploy.energy.chips import LIMITS, Limit
from statten_deploy.energy.fields import paths, whole
from statten_deploy.energy.needs import Layer
from statten_deploy.energy.signals import Kind, kinds
from statten_deploy.errors import ConfigError
from statten_deploy.frontend import build_graph
from statten_deploy.ir import TokenMaxPool, infer_shapes, predecessors
from statten_deploy.quantize import QuantizeOptions, quantize
from tests.conftest import lively_model, small_config
from tests.energy import brute
from tests.energy.test_counter import convolutions, network, neuron


def chip(cores=4, neuron_bytes=0, shares_kernels=True, **limits):
    found = {name: Limit(limits[name], "made up") for name in LIMITS if name in limits}
    return Chip("small", "A small chip", cores, neuron_bytes, shares_kernels, found, ())


def small():
    """Image [1, 4, 4] -> a [2, 4, 4] -> 3x3 -> b [4, 4, 4] -> 64 to 10 -> c [10], summed over time."""
    nodes = {
        "image": nir.Input({"input": np.array([1, 4, 4])}),
        "first": nir.Conv2d((4, 4), np.ones((2, 1, 1, 1), np.float32), 1, 0, 1, 1, np.zeros(2, np.float32)),
        "a": neuron((2, 4, 4)),
        "conv": nir.Conv2d((4, 4), np.ones((4, 2, 3, 3), np.float32), 1, 1, 1, 1, np.zeros(4, np.float32)),
        "b": neuron((4, 4, 4)),
        "flat": nir.Flatten({"input": np.array([4, 4, 4])}, 0, -1),
        "fc": nir.Affine(np.ones((10, 64), np.float32), np.zeros(10, np.float32)),
        "c": neuron((10,)),
        "y": nir.Output({"output": np.array([10])}),
    }
    names = list(nodes)
    return nir.NIRGraph(nodes, list(pairwise(names)), type_check=False)


def fit(**limits):
    found = chip_fit(small(), chip(**limits), input="image")
    return found, {layer.name: layer for layer in found.layers}


def test_what_a_network_holds():
    found, layers = fit(neurons=1000)
    assert [layer.name for layer in found.layers] == ["a", "b", "c"]
    assert found.neurons == 32 + 64 + 10
    # an axis of 4 with 3 taps and padding 1 has 10 pairs: 10 · 10 · 2 · 4 synapses, 4 · 2 · 9 weights
    assert (layers["b"].synapses, layers["b"].weights) == (800, 72)
    assert (layers["c"].synapses, layers["c"].weights) == (640, 640)
    assert (layers["a"].synapses, layers["a"].weights) == (0, 0)  # the image arrives as bias currents
    assert (found.synapses, found.weights, found.cores, found.chips, found.fits) == (1440, 712, 3, 1, True)
    assert "arrives as bias currents" in " ".join(found.notes)
    needs = layers["b"].needs
    assert needs == {"neurons": 64, "output_axons": 64, "input_axons": 32, "memory_bytes": 72}


def test_neurons_decide():
    found, layers = fit(neurons=16)
    assert [layer.cores for layer in found.layers] == [2, 4, 1]
    assert layers["b"].decides == "neurons"
    assert layers["b"].tile == (4, 1, 4)  # row bands, not channel groups, which would all listen to everything
    assert layers["b"].advice == "split into 4 row bands: 4 x 1 x 4 neurons a core (neurons decides)"
    assert (found.cores, found.chips) == (7, 2)  # of 4 cores each
    assert found.decides == "b: neurons"


def test_input_axons_decide():
    """A part of 1 x 2 sites hears 3 rows x 3 columns x 2 channels; a whole row hears 3 x 4 x 2 = 24."""
    _, layers = fit(input_axons=18, neurons=1000)
    layer = layers["b"]
    assert (layer.cores, layer.tile, layer.decides) == (8, (4, 1, 2), "input_axons")
    assert layer.cores_by_limit == {"neurons": 1, "input_axons": 8}
    assert layer.needs["input_axons"] == 18
    assert layer.advice.startswith("split into 4 row bands x 2 column bands")


def test_a_neuron_that_hears_too_much():
    found, layers = fit(input_axons=17)
    assert not found.fits
    assert (layers["b"].cores, layers["b"].tile) == (0, ())
    assert layers["b"].advice.startswith("does not fit: a single neuron needs 18 input_axons, a core has 17")
    assert found.decides == "b: input_axons"


def test_memory_decides_with_and_without_shared_kernels():
    """One channel of b shares 18 weights; unshared, two rows of a channel have (2 + 3) · 10 · 2 = 100 synapses."""
    _, layers = fit(memory_bytes=100)
    assert (layers["b"].cores, layers["b"].cores_unshared) == (1, 8)
    _, layers = fit(memory_bytes=36)
    assert (layers["b"].cores, layers["b"].tile, layers["b"].decides) == (2, (2, 4, 4), "memory_bytes")
    _, layers = fit(memory_bytes=100, shares_kernels=False)
    assert (layers["b"].cores, layers["b"].tile) == (8, (1, 2, 4))
    assert layers["c"].cores == 10  # 64 weights each: one neuron a core


def test_a_kernel_larger_than_its_use():
    """On a grid of one site only the middle of a 3 x 3 kernel is ever used: 2 · 3 weights, not 2 · 3 · 9."""
    node = nir.Conv2d((1, 1), np.ones((3, 2, 3, 3), np.float32), 1, 1, 1, 1, np.zeros(3, np.float32))
    graph, _ = network(node, (2, 1, 1))
    (_, layer) = chip_fit(graph, chip(neurons=100), input="image").layers
    assert (layer.synapses, layer.weights) == (6, 6)


def test_bits_and_state_take_memory():
    needs = {bits: chip_fit(small(), chip(memory_bytes=10**6), bits=bits, input="image") for bits in (1, 4, 8, 9)}
    found = {
        bits: next(layer.needs["memory_bytes"] for layer in f.layers if layer.name == "b") for bits, f in needs.items()
    }
    assert found == {1: 9, 4: 36, 8: 72, 9: 81}
    state = chip_fit(small(), chip(memory_bytes=10**6, neuron_bytes=6), input="image")
    assert next(layer.needs["memory_bytes"] for layer in state.layers if layer.name == "b") == 72 + 64 * 6


def test_output_axons_decide():
    """b lies in 4 row bands. A row of a reaches 2, 3, 3, 2 of them: (2 + 3 + 3 + 2) · 4 · 2 = 80 axons in all."""
    _, layers = fit(neurons=16, output_axons=10**6)
    assert layers["a"].cores == 2
    assert layers["a"].needs["output_axons"] == (2 + 3) * 4 * 2
    _, layers = fit(neurons=16, output_axons=39)
    assert layers["a"].cores_by_limit == {"neurons": 2, "output_axons": 4}
    assert (layers["a"].cores, layers["a"].decides) == (4, "output_axons")
    assert layers["b"].needs["output_axons"] == 16  # the one core of c


def test_weights_that_are_zero_take_no_memory():
    graph = small()
    graph.nodes["conv"].weight[:, 1] = 0
    (_, b, _) = chip_fit(graph, chip(neurons=1000), input="image").layers
    assert (b.synapses, b.weights) == (400, 36)


def test_events_take_axons():
    (a, _, _) = chip_fit(small(), chip(neurons=1000), input="events").layers
    assert (a.needs["input_axons"], a.synapses, a.weights) == (16, 32, 2)


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_fields_and_needs_site_by_site(case):
    """Receptive fields against plain loops, and the numbers of all parts at once against those of each part."""
    node, shape, _ = case
    node.weight = np.ones_like(node.weight)
    graph, out = network(node, shape)
    shapes, into = infer_shapes(graph), predecessors(graph)
    (path,) = paths("o", graph, into, shapes, kinds(graph, into, Kind.HELD))
    hears = {site: set() for site in np.ndindex(*out)}
    for source in np.ndindex(*shape):
        for site, _ in brute.reached(node, source, out):
            hears[site].add(source)
    layer = Layer(out, [path], shapes)
    tile = tuple(max(1, size // 2) for size in out)
    axons, entries = layer.input_axons(tile), layer.entries(tile, shared=False)
    listeners = np.zeros(shape, dtype=int)
    for index in np.ndindex(*axons.shape):
        ranges = [range(i * size, min((i + 1) * size, n)) for i, size, n in zip(index, tile, out, strict=True)]
        heard = set().union(*(hears[site] for site in product(*ranges)))
        pairs = sum(len(hears[site]) for site in product(*ranges))
        assert axons[index] == len(heard)
        assert entries[index] == pairs
        part = tuple(np.isin(np.arange(n), list(r)) for n, r in zip(out, ranges, strict=True))
        listeners += np.einsum("i,j,k->ijk", *(axis.astype(int) for axis in path.field(part)))
    (terms,) = layer.heard_by(0, tile)
    assert np.array_equal(np.einsum("i,j,k->ijk", *terms), listeners)
    assert path.fan_in.shape == out


def test_a_network_with_attention_and_residuals(variant):
    graph = build_graph(lively_model(small_config(variant)))
    for name in chip_names():
        found = chip_fit(graph, name)
        told = found.to_dict()
        assert told["neurons"] == sum(layer["neurons"] for layer in told["layers"]) > 0
        assert found.chips == -(-found.cores // found.chip.cores)
        attention = [name for name in graph.nodes if name.endswith("statten")]
        assert set(attention) <= set(found.elsewhere)
        for layer in found.layers:
            if layer.cores:
                over = {
                    limit: layer.needs[limit]
                    for limit, found_limit in found.chip.limits.items()
                    if layer.needs[limit] > found_limit.value
                }
                assert not over
                assert layer.cores >= max(layer.cores_by_limit.values()) > 0
                assert layer.cores_unshared >= layer.cores
                assert layer.weights <= layer.synapses


def test_attention_listens_from_outside():
    graph = build_graph(lively_model(small_config("strided", depth=1)))
    layers = {layer.name: layer for layer in chip_fit(graph, "loihi1").layers}
    assert layers["block.0.attn.q_lif"].needs["output_axons"] == 32 * 16  # one axon per neuron, to attention
    assert layers["block.0.attn.attn_lif"].needs["input_axons"] == 32 * 16  # and its results back


def field(node, shape, site):
    """What one neuron behind a node listens to, per axis."""
    graph, out = network(node, shape)
    shapes, into = infer_shapes(graph), predecessors(graph)
    name = "node" if isinstance(node, TokenMaxPool) else "o"
    (path,) = paths(name, graph, into, shapes, kinds(graph, into, Kind.HELD))
    part = tuple(np.arange(n) == i for n, i in zip(out, site, strict=True))
    return [np.flatnonzero(axis).tolist() for axis in path.field(part)]


def test_fields_through_flattening_and_token_pools():
    flat = nir.Flatten({"input": np.array([2, 2, 3])}, 0, -1)
    assert field(flat, (2, 2, 3), (10,)) == [[1], [1], [1]]  # 10 = 1 · 6 + 1 · 3 + 1
    pool = TokenMaxPool(2)  # two heads of 3 channels, 4 x 4 tokens: token 5 has the neighbours 4 and 6 in its row
    assert field(pool, (6, 4, 4), (2, 1, 1)) == [[1, 2], [1], [0, 1, 2]]
    assert field(pool, (6, 4, 4), (4, 1, 0)) == [[3, 4, 5], [0, 1], [0, 1, 3]]  # token 4: 3 ends the row above


def test_gates_have_as_many_synapses_as_their_windows_have_sites():
    """AND: one from each port. Token pool: windows of 3 over 3 channels (7 pairs) and 16 tokens (46), in two heads."""
    graph = build_graph(lively_model(small_config("dvs-sdt", depth=1)))
    layers = {layer.name: layer for layer in chip_fit(graph, "loihi1").layers}
    assert (layers["block.0.attn.qkv"].operation, layers["block.0.attn.qkv"].synapses) == ("SpikeAnd", 2 * 32 * 16)
    assert layers["block.0.attn.qkv"].weights == 2
    nodes = {"i": nir.Input({"input": np.array([6, 4, 4])}), "s": neuron((6, 4, 4)), "pool": TokenMaxPool(2)}
    nodes |= {"o": neuron((6, 4, 4)), "y": nir.Output({"output": np.array([6, 4, 4])})}
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)
    _, pool, _ = chip_fit(graph, chip(neurons=1000), input="image").layers
    assert (pool.operation, pool.synapses, pool.weights) == ("TokenMaxPool", 2 * 7 * 46, 9)


def test_residual_contributions_each_need_synapses():
    graph = build_graph(lively_model(small_config("strided", depth=1)))
    layers = {layer.name: layer for layer in chip_fit(graph, "loihi2").layers}
    # the MLP of 32 channels hears rpe_conv (9 · 32), its residual proj_conv3 (9 · 16) and the attention's projection
    assert layers["block.0.mlp.fc1_lif"].weights == 32 * (9 * 32 + 9 * 16 + 32)


def test_a_quantised_graph_brings_its_bits():
    graph = build_graph(lively_model(small_config("strided", depth=1)))
    found = chip_fit(quantize(graph, QuantizeOptions(4, "channel")), "loihi2")
    assert found.bits == 4
    assert found.neurons == chip_fit(graph, "loihi2").neurons
    with pytest.raises(ConfigError, match="bits 0: expected 1 to 32"):
        chip_fit(graph, "loihi1", bits=0)


def test_the_shipped_chips():
    assert chip_names() == ("loihi1", "loihi2")
    limits = {name: {key: limit.value for key, limit in load_chip(name).limits.items()} for name in chip_names()}
    axons = {"output_axons": 4096, "input_axons": 4096}
    assert limits["loihi1"] == {"neurons": 1024, **axons, "memory_bytes": 128 * 1024}
    assert limits["loihi2"] == {"neurons": 8192, "memory_bytes": 192 * 1024}
    assert all(limit.source for name in chip_names() for limit in load_chip(name).limits.values())


def test_a_chip_of_ones_own(tmp_path):
    path = tmp_path / "my.toml"
    text = (
        'name = "mine"\ntitle = "Mine"\ncores = 2\nneuron_bytes = 0\nshares_kernels = false\n'
        '[limits.neurons]\nvalue = 16\nsource = "me"\n'
    )
    path.write_text(text)
    assert chip_fit(small(), path, input="image").chips == 4
    for old, new, message in (
        ("cores = 2", "cores = 0", "cores is 0, expected a whole number from 1 on"),
        ("shares_kernels = false", "shares_kernels = 1", "shares_kernels is 1, expected true or false"),
        ("limits.neurons", "limits.axons", "unknown limits axons; known are neurons"),
        ("neuron_bytes = 0\n", "", "neuron_bytes is missing"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=message):
            load_chip(path)
    with pytest.raises(ConfigError, match="chip 'truenorth': unknown; give one of loihi1, loihi2"):
        load_chip("truenorth")


def test_whole_is_everything():
    assert [axis.all() and len(axis) for axis in whole((2, 3))] == [2, 3]
