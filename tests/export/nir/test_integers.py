"""Quantised graphs in NIR files: the same integers come back, and stock readers compute nearly the same spikes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from statten_deploy.errors import InputError, StattenError, UnsupportedError
from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.export.nir.biases import written_biases
from statten_deploy.export.nir.integers import OPERATIONS, _same, lower_integers
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import TemporalMean, hints, predecessors
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerLIF,
    IntegerSumPool2d,
    TemporalSum,
)
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate import Simulator
from tests.conftest import lively_input, lively_model, small_config
from tests.export.nir.integer_graphs import conv, counts, everything, neurons, untruncated
from tests.quantize.recurrent_graphs import events, readout, recurrent, rough
from tests.simulate.builders import inp, out


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.nir"


def assert_same_integers(found: nir.NIRGraph, expected: nir.NIRGraph) -> None:
    """Same nodes in the same order, every field with its type, same sources in the same order, same hints."""
    assert list(found.nodes) == list(expected.nodes)
    for name, node in expected.nodes.items():
        assert type(found.nodes[name]) is type(node), name
        for field, value in vars(node).items():
            if field not in ("input_type", "output_type", "input_shape"):
                other = getattr(found.nodes[name], field)
                assert type(other) is type(value), (name, field)
                assert getattr(other, "dtype", None) == getattr(value, "dtype", None), (name, field)
                np.testing.assert_equal(other, value, err_msg=f"{name}.{field}")
    assert predecessors(found) == predecessors(expected)
    assert found.metadata == expected.metadata


def byte_input(network: nir.NIRGraph, variant: str) -> np.ndarray:
    """What an 8-bit camera gives, or counts."""
    model = lively_model(small_config(variant))
    x = lively_input(model.config).numpy()
    if model.config.input == "image":
        x = np.rint(np.clip(x, 0, 1) * 255) / 255
    return x.astype(np.float32)


def quantised(variant: str, bits: int, granularity: Any) -> nir.NIRGraph:
    return quantize(build_graph(lively_model(small_config(variant))), QuantizeOptions(bits, granularity))


# round trips


def test_quantised_networks_survive(variant: str, path: Path) -> None:
    network = quantised(variant, 8, "channel")
    report = write_nir(network, path)
    assert not any("v_leak" in warning for warning in report.warnings)
    assert_same_integers(read_nir(path), network)


@pytest.mark.parametrize(("bits", "granularity"), [(2, "tensor"), (4, "channel")])
def test_identical_graphs_give_identical_bytes(bits: int, granularity: Any, path: Path, tmp_path: Path) -> None:
    network = quantised("dvs", bits, granularity)
    write_nir(network, path)
    found = read_nir(path)
    assert_same_integers(found, network)
    write_nir(found, tmp_path / "again.nir")
    assert (tmp_path / "again.nir").read_bytes() == path.read_bytes()


def test_the_file_is_run_bit_for_bit(path: Path) -> None:
    network = quantised("dvs", 8, "channel")
    write_nir(network, path)
    x = byte_input(network, "dvs")
    a, b = (IntegerRunner(g).run(x, spikes=True, membranes=True) for g in (network, read_nir(path)))
    np.testing.assert_equal((b.outputs, b.spikes, b.membranes), (a.outputs, a.spikes, a.membranes))


def test_every_integer_node_survives_as_a_stock_node(path: Path) -> None:
    network = everything(np.random.default_rng(0))
    report = write_nir(network, path)
    assert report.counts == {"stock": 4, "integer": 17, "readout": 1}
    assert_same_integers(read_nir(path), network)
    kinds = {report.names[name]: type(node).__name__ for name, node in nir.read(path, type_check=False).nodes.items()}
    assert {name: kinds[name] for name in ("encoder", "a.conv", "b.lif", "c.lif", "mean", "sum", "third", "e.fc")} == {
        "encoder": "Conv2d",
        "a.conv": "Conv2d",
        "b.lif": "LIF",
        "c.lif": "CubaLIF",
        "mean": "AvgPool2d",
        "sum": "SumPool2d",
        "third": "Conv2d",
        "e.fc": "Affine",
    }


def test_files_of_stock_forms_open_with_plain_nir(path: Path) -> None:
    network = quantised("strided", 8, "channel")
    names = list(network.nodes)
    kept = names[: names.index("patch_embed.proj_lif3") + 1]
    nodes = {**{name: network.nodes[name] for name in kept}, "y": out(*network.nodes[kept[-1]].shape)}
    edges = [(a, b) for a, b in network.edges if b in kept] + [(kept[-1], "y")]
    report = write_nir(nir.NIRGraph(nodes, edges, metadata=network.metadata, type_check=False), path)
    assert report.type_checked
    assert report.warnings == ()
    opened = nir.read(path)
    (weight,) = (
        opened.nodes[name].weight for name, original in report.names.items() if original.endswith("proj_conv1")
    )
    conv1: Any = network.nodes["patch_embed.proj_conv1"]
    np.testing.assert_array_equal(weight, conv1.weight * 2.0 ** conv1.exponent.reshape(-1, 1, 1, 1))


def test_integers_are_compressed(path: Path) -> None:
    """Eight bits, written as 32, take less than half of their place."""
    write_nir(quantised("static", 8, "channel"), path)
    with h5py.File(path) as file:
        (weight,) = (
            node["weight"] for name, node in file["node/nodes"].items() if name.endswith("block_0_mlp_fc2_conv")
        )
        assert (weight.compression, weight.shuffle) == ("gzip", True)
        assert weight.id.get_storage_size() < 0.45 * weight.size * 4


# what a stock reader computes


def stock_reading(network: nir.NIRGraph) -> nir.NIRGraph:
    """The graph as a tool sees it that knows nothing of our metadata; its logits are means of integers."""
    stock = lower_integers(network)[0]
    nodes = {name: TemporalMean() if isinstance(node, TemporalSum) else node for name, node in stock.nodes.items()}
    return nir.NIRGraph(nodes, stock.edges, metadata=stock.metadata, type_check=False)


def different_spikes(network: nir.NIRGraph, x: np.ndarray) -> float:
    """The share of spikes in which the stock reading is unlike the integers; every layer must fire."""
    expected = IntegerRunner(network).run(x, spikes=True).spikes
    found = Simulator(stock_reading(network)).run(x, record="spikes").recorded
    sizes = sum(spikes.size for spikes in expected.values())
    assert all(0.001 < spikes.mean() < 0.999 for spikes in expected.values())
    return sum(np.count_nonzero(found[name] != spikes) for name, spikes in expected.items()) / sizes


def test_stock_readers_give_nearly_the_same_spikes(variant: str) -> None:
    """Only what truncation and shifts cut off differs: nothing at all in most of these networks."""
    network = quantised(variant, 8, "channel")
    assert different_spikes(network, byte_input(network, variant)) < 0.02


@pytest.mark.parametrize("du", [4095, 2047])
def test_where_nothing_is_cut_off_a_stock_reader_is_exact(du: int) -> None:
    rng = np.random.default_rng(1)
    network, x = untruncated(rng, du), counts(rng, 8)
    assert different_spikes(network, x) == 0
    expected = IntegerRunner(network).run(x).outputs["logits"]
    np.testing.assert_array_equal(Simulator(stock_reading(network)).run(x).outputs["logits"] * 4, expected)


# biases


def test_biases_go_into_the_convolutions() -> None:
    """Two neuron layers see one branch, the second another as well: both biases are carried exactly."""
    rng = np.random.default_rng(0)
    nodes: dict[str, nir.NIRNode] = {
        "x": inp(2, 4, 4),
        "one": conv(rng, (3, 2, 3, 3), [0, 0, 0]),
        "two": conv(rng, (3, 2, 3, 3), [0, 0, 0]),
        "a": IntegerLIF(np.ones((3, 1, 1)), 2048, np.full((3, 1, 1), 5), np.full((3, 1, 1), 6), (3, 4, 4)),
        "pool": IntegerSumPool2d((2, 2), (2, 2), -1),
        "b": IntegerLIF(np.ones((3, 1, 1)), 2048, np.full((3, 1, 1), 16), np.full((3, 1, 1), 6), (3, 2, 2), 1),
        "y": out(3, 4, 4),
        "z": out(3, 2, 2),
    }
    edges = [("x", "one"), ("x", "two"), ("one", "a"), ("one", "pool"), ("two", "pool"), ("pool", "b"), ("a", "y")]
    network = nir.NIRGraph(nodes, [*edges, ("b", "z")], type_check=False)
    biases = written_biases(network)
    assert biases.currents["one"].tolist() == [5, 5, 5]
    assert biases.currents["two"].tolist() == [-1, -1, -1]  # (5 - 1) · 4 / 2 · 2 = 16
    assert not biases.membranes["a"].any()
    assert not biases.membranes["b"].any()


def test_a_branch_into_a_synaptic_memory_carries_no_bias() -> None:
    """One current reaches a plain layer and one with a memory: a constant in it would change the second."""
    rng = np.random.default_rng(0)
    nodes: dict[str, nir.NIRNode] = {
        "x": inp(2, 4, 4),
        "conv": conv(rng, (3, 2, 3, 3), [0, 0, 0]),
        "a": neurons(rng, (3, 4, 4), 100),
        "b": neurons(rng, (3, 4, 4), 100, du=1000),
        "y": out(3, 4, 4),
    }
    edges = [("x", "conv"), ("conv", "a"), ("conv", "b"), ("a", "y"), ("b", "y")]
    biases = written_biases(nir.NIRGraph(nodes, edges, type_check=False))
    assert not biases.currents["conv"].any()
    for name in ("a", "b"):
        node: Any = nodes[name]
        bias = (node.bias_mantissa << node.bias_exponent).reshape(-1)
        assert bias.any()
        np.testing.assert_array_equal(biases.membranes[name], bias)


def test_biases_that_no_convolution_can_carry_are_reported(path: Path) -> None:
    """A synaptic memory would smooth a constant current, so those stand in v_leak."""
    network = everything(np.random.default_rng(0))
    warnings = write_nir(network, path).warnings
    assert any("the biases of 1 neuron layers ('c.lif') had to go to v_leak" in warning for warning in warnings)
    stock = lower_integers(network)[0].nodes["c.lif"]
    lif: Any = network.nodes["c.lif"]
    bias = (lif.bias_mantissa << lif.bias_exponent)[:, 0, 0]
    np.testing.assert_allclose(stock.v_leak[:, 0, 0], bias / 64 * 4096 / 700, rtol=1e-6)


# refusals


@pytest.mark.parametrize("neuron", ["lif", "if", "cuba"])
def test_loops_and_integrators_survive(neuron: str, path: Path) -> None:
    """Also as a float network of stock nodes: where weights fit, it computes the very integers."""
    for spatial in (False, True):
        rng = np.random.default_rng(3)
        subject = recurrent(rng, neuron, spatial=spatial)
        quantised, x = quantize(subject, QuantizeOptions(8)), events(rng, subject)
        write_nir(quantised, path)
        expected = IntegerRunner(quantised).run(x, spikes=True, membranes=True)
        found = IntegerRunner(read_nir(path)).run(x, spikes=True, membranes=True)
        assert found.membranes.keys() == expected.membranes.keys() == {"a", "b", "li"}
        for name, value in expected.membranes.items():
            np.testing.assert_array_equal(found.membranes[name], value)
        np.testing.assert_array_equal(found.outputs["logits"], expected.outputs["logits"])
        stock = Simulator(lower_integers(quantised)[0]).run(x)
        for name, value in expected.outputs.items():
            np.testing.assert_array_equal(stock.outputs[name], value, err_msg=name)
        assert expected.spikes["a"].any()


@pytest.mark.parametrize("kind", ["LI", "I", "CubaLI"])
@pytest.mark.parametrize("mean", [False, True])
def test_integrators_survive(kind: str, mean: bool, path: Path) -> None:
    rng = np.random.default_rng(3)
    subject = readout(rng, kind, mean=mean, flat=False)
    quantised, x = quantize(rough(rng, subject), QuantizeOptions(4)), events(rng, subject)
    report = write_nir(quantised, path)
    assert report.forms["membrane"] == "integer"
    found, expected = (IntegerRunner(graph).run(x).outputs["logits"] for graph in (read_nir(path), quantised))
    np.testing.assert_array_equal(found, expected)
    assert read_nir(path).nodes["membrane"].scale.tolist() == quantised.nodes["membrane"].scale.tolist()


def test_files_without_the_bias_of_a_convolution_are_read(path: Path) -> None:
    """Earlier versions did not write it: it was 0."""
    rng = np.random.default_rng(3)
    quantised = quantize(readout(rng, "LI", mean=False, flat=False), QuantizeOptions(8))
    write_nir(quantised, path)
    with h5py.File(path, "r+") as file:
        for node in file["node/nodes"].values():
            if node["type"][()] == b"Conv2d" and "metadata" in node and "bias" in node["metadata/statten"]:
                assert not node["metadata/statten/bias"][()].any()
                del node["metadata/statten/bias"]
    assert not read_nir(path).nodes["conv"].bias.any()


def test_encoders_of_odd_signals_are_refused(path: Path) -> None:
    nodes = {"x": inp(3, 4), "e": InputEncoder(np.ones(3), np.zeros(3)), "y": out(3, 4)}
    network = nir.NIRGraph(nodes, [("x", "e"), ("e", "y")], metadata={"statten": {"time_steps": 3}}, type_check=False)
    with pytest.raises(UnsupportedError, match=r"input encoder 'e': takes \(3, 4\), expected .* \[C, H, W\] or \[N\]"):
        write_nir(network, path)


def test_flat_encoders_survive(path: Path) -> None:
    nodes = {"x": inp(3), "e": InputEncoder(np.array([0.5, 1, 2]), np.array([0, 1, 2])), "y": out(3)}
    network = nir.NIRGraph(nodes, [("x", "e"), ("e", "y")], metadata={"statten": {"time_steps": 3}}, type_check=False)
    write_nir(network, path)
    found = read_nir(path)
    assert found.nodes["e"].scale.tolist() == [0.5, 1, 2]
    x = np.array([[1, 3, 8]], dtype=np.float32)
    np.testing.assert_array_equal(Simulator(stock_reading(found)).run(x).outputs["y"][0, 0], [2, 2, 2])


# files nobody vouches for


def text(values: Any, key: str, value: Any) -> None:
    del values[key]
    values[key] = value


def metadata_of(node: str, key: str, value: Any) -> Callable[[Any], None]:
    return lambda nodes: text(found(nodes, node)["metadata/statten"], key, value)


def without(node: str, key: str) -> Callable[[Any], None]:
    return lambda nodes: found(nodes, node)["metadata/statten"].__delitem__(key)


def entry(node: str, field: str, value: float) -> Callable[[Any], None]:
    """Change the first number of an array."""

    def edit(nodes: Any) -> None:
        array = found(nodes, node)[field][()]
        array.reshape(-1)[0] = value
        text(found(nodes, node), field, array)

    return edit


def retyped(node: str, kind: str) -> Callable[[Any], None]:
    return lambda nodes: text(found(nodes, node), "type", kind)


def found(nodes: Any, name: str) -> Any:
    (group,) = (g for key, g in nodes.items() if key == name or key.split("_", 1)[-1] == name.replace(".", "_"))
    return group


EDITS: dict[str, tuple[Callable[[Any], None], str]] = {
    "operation": (
        metadata_of("a.lif", "op", "Magic"),
        r"node 'a.lif' is the operation 'Magic', which this version does",
    ),
    "format": (metadata_of("a.lif", "format", 9), r"node 'a.lif' was written in format 9; .* upgrade"),
    "missing": (without("a.lif", "dv"), r"node 'a.lif' \(IntegerLIF\): the metadata lacks dv"),
    "missing scale": (without("a.conv", "scale"), r"\(IntegerConv2d\): the metadata lacks scale"),
    "text": (
        metadata_of("a.lif", "dv", "fast"),
        r"cannot restore the integers \(expected a whole number, found 'fast'\)",
    ),
    "real": (metadata_of("a.lif", "dv", 2048.0), r"cannot restore the integers \(expected a whole number"),
    "huge": (metadata_of("a.lif", "du", 2**62), r"'a.lif' \(IntegerLIF\): du holds 4611686018427387904"),
    "dv": (metadata_of("a.lif", "dv", 5000), r"'a.lif' \(IntegerLIF\): dv holds 5000, expected .* from 0 to 4096"),
    "du": (metadata_of("a.lif", "du", -1), r"du holds -1"),
    "threshold": (metadata_of("a.lif", "threshold", np.full(4, 2**17)), r"threshold holds 131072"),
    "thresholds": (metadata_of("a.lif", "threshold", np.ones(5, int)), r"threshold has shape \(5, 1, 1\)"),
    "mantissa": (metadata_of("a.lif", "bias_mantissa", np.full(4, 5000)), r"bias_mantissa holds 5000"),
    "bias exponent": (metadata_of("a.lif", "bias_exponent", np.full(4, 70)), r"bias_exponent holds 70"),
    "no numbers": (metadata_of("a.lif", "threshold", np.zeros((0,), int)), r"expected whole numbers"),
    "half": (
        metadata_of("a.lif", "threshold", np.full(4, 0.5)),
        r"cannot restore the integers \(expected whole numbers",
    ),
    "infinite scale": (metadata_of("a.conv", "scale", np.full(4, np.inf)), r"expected finite numbers"),
    "negative scale": (
        metadata_of("a.conv", "scale", -np.ones(4)),
        r"'a.conv' \(IntegerConv2d\): scale must be positive",
    ),
    "scales": (metadata_of("a.conv", "scale", np.ones(3)), r"scale has shape \(3,\), expected \(4,\)"),
    "exponents": (metadata_of("a.conv", "exponent", np.zeros(3, int)), r"the exponents do not fit the weights"),
    "exponent": (metadata_of("a.conv", "exponent", np.full(4, 99)), r"the exponents do not fit the weights"),
    "least exponent": (metadata_of("a.conv", "exponent", np.full(4, -(2**63))), r"exponents do not fit"),
    "unsigned": (metadata_of("a.conv", "exponent", np.full(4, 2**64 - 1, np.uint64)), r"expected whole numbers"),
    "coarse": (metadata_of("a.conv", "exponent", np.full(4, 3)), r"its weights are not integers times powers of two"),
    "wide": (metadata_of("a.conv", "exponent", np.full(4, -3)), r"'a.conv' \(IntegerConv2d\): weight holds"),
    "weight": (entry("a.conv", "weight", 0.25), r"its weights are not integers times powers of two"),
    "NaN weight": (entry("a.conv", "weight", np.nan), r"its weights are not integers times powers of two"),
    "zero point": (metadata_of("encoder", "zero_point", np.array([0, 300])), r"zero_point holds 300"),
    "encoder": (
        entry("encoder", "weight", 7.0),
        r"node 'encoder' \(InputEncoder\): its weight is not what the integers",
    ),
    "bias": (
        entry("a.conv", "bias", 7.0),
        r"node 'a.conv' \(IntegerConv2d\): its bias is not what the integers in its",
    ),
    "tau": (entry("b.lif", "tau", 3e-4), r"node 'b.lif' \(IntegerLIF\): its tau is not what .* export it again"),
    "another threshold": (entry("b.lif", "v_threshold", 3.0), r"its v_threshold is not what"),
    "another integer": (metadata_of("b.lif", "dv", 1024), r"node 'b.lif' \(IntegerLIF\): its tau is not what"),
    "synapse": (entry("c.lif", "w_in", 3.0), r"node 'c.lif' \(IntegerLIF\): its w_in is not what"),
    "another neuron": (
        metadata_of("c.lif", "du", 4095),
        r"'c.lif' \(IntegerLIF\) stands on a node CubaLIF, its integers give a node LIF",
    ),
    "pool": (
        metadata_of("mean", "exponent", -3),
        r"\(IntegerSumPool2d\) stands on a node AvgPool2d, its integers give a node Conv2d",
    ),
    "pool size": (metadata_of("mean", "kernel_size", np.array([2, 2, 2])), r"expected a height and a width"),
    "swapped": (metadata_of("a.lif", "op", "IntegerConv2d"), r"node 'a.lif' \(IntegerConv2d\): the metadata lacks"),
    "wrong kind": (
        retyped("mean", "SumPool2d"),
        r"node 'mean' \(IntegerSumPool2d\) stands on a node SumPool2d, its integers",
    ),
    "readout": (metadata_of("logits", "readout", "max"), r"unknown readout 'max'; this version knows 'mean' and 'sum'"),
    "no readout scale": (without("logits", "readout_scale"), r"readout_scale is None, expected a positive number"),
    "readout scale": (
        metadata_of("logits", "readout_scale", -1.0),
        r"readout_scale is -1.0, expected a positive number",
    ),
    "bits": (lambda nodes: text(nodes.parent["metadata/statten"], "bits", 40), r"metadata 'bits' is 40"),
    "few bits": (
        lambda nodes: text(nodes.parent["metadata/statten"], "bits", 2),
        r"weight holds -?\d+, .* from -1 to 1",
    ),
    "steps": (lambda nodes: nodes.parent["metadata/statten"].__delitem__("time_steps"), r"needs 'time_steps'"),
}


@pytest.mark.parametrize("kind", list(EDITS))
def test_integers_that_mean_nothing_are_refused_in_one_line(kind: str, path: Path) -> None:
    edit, message = EDITS[kind]
    write_nir(everything(np.random.default_rng(0)), path)
    with h5py.File(path, "r+") as file:
        edit(file["node/nodes"])
    with pytest.raises(InputError, match=message) as caught:
        read_nir(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def outcome(path: Path) -> str | None:
    """None for a graph, else the message; any other exception passes through and fails the test."""
    try:
        read_nir(path)
    except StattenError as error:
        return str(error)
    return None


def test_random_metadata_ends_in_a_graph_or_in_one_line(path: Path) -> None:
    """Every value under `statten` of every integer node replaced by each of a set of oddities."""
    values: list[Any] = [
        -1,
        0,
        7,
        2**40 + 1,
        2**63 - 1,
        0.5,
        np.nan,
        "x",
        True,
        np.zeros(0),
        np.zeros((2, 2)),
        ["a", "b"],
    ]
    write_nir(untruncated(np.random.default_rng(0)), path)
    sound = path.read_bytes()
    with h5py.File(path) as file:
        nodes = file["node/nodes"]
        places = [(name, key) for name in nodes for key in nodes[name].get("metadata/statten", [])]
    rng = np.random.default_rng(0)
    messages = []
    for name, key in places:
        path.write_bytes(sound)
        with h5py.File(path, "r+") as file:
            text(file["node/nodes"][name]["metadata/statten"], key, values[rng.integers(len(values))])
        messages.append(outcome(path))
    refusals = [message for message in messages if message is not None]
    assert all("\n" not in message for message in refusals)
    assert len(refusals) > len(places) / 2


def test_files_of_a_stock_tool_lose_the_integers_only(path: Path) -> None:
    """Without our metadata the file is an ordinary float network."""
    network = untruncated(np.random.default_rng(1))
    write_nir(network, path)
    with h5py.File(path, "r+") as file:
        for node in file["node/nodes"].values():
            del node["metadata"]
        told = file["node/metadata/statten"]
        for key in set(told) - {"dt", "time_steps"}:
            del told[key]
    stripped = read_nir(path)
    assert not any(type(node).__name__ in OPERATIONS for node in stripped.nodes.values())
    x = counts(np.random.default_rng(2), 4)
    expected = IntegerRunner(network).run(x).outputs["logits"]
    np.testing.assert_array_equal(Simulator(stripped).run(x).outputs["logits"].sum(1), expected)


def test_damaged_hints_of_dt(path: Path) -> None:
    """Time constants are held against the file's own step."""
    network = untruncated(np.random.default_rng(1))
    write_nir(network, path)
    with h5py.File(path, "r+") as file:
        text(file["node/metadata/statten"], "dt", 2e-4)
    with pytest.raises(InputError, match=r"its tau is not what the integers in its metadata give"):
        read_nir(path)
    assert hints(network)["dt"] == 1e-4


def test_marks_on_other_nodes_are_ignored(path: Path) -> None:
    """A marker counts on nodes that can hold integers; the rest of a stranger's metadata stays theirs."""
    network = untruncated(np.random.default_rng(1))
    network.nodes["a.lif"] = replace(network.nodes["a.lif"])
    network.nodes["a.lif"].metadata = {"author": "someone"}
    write_nir(network, path)
    assert read_nir(path).nodes["a.lif"].metadata == {"author": "someone"}


def test_arrays_of_other_shapes_are_not_the_same() -> None:
    """Compared row by row, of which one may have more."""
    weight = np.zeros((2, 3))
    assert _same(weight, weight.astype(np.float32))
    for other in (np.zeros((3, 3)), np.zeros((2, 4)), np.zeros(6), np.ones((2, 3)), np.zeros((2, 3), dtype=bool)):
        assert not _same(weight, other)
        assert not _same(other, weight)
