"""What is written is what is read: graphs, names, order, bytes; and what stands in the file."""

from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from statten_deploy.errors import GraphError, InputError, UnsupportedError
from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.export.nir.compact import COMPACT
from statten_deploy.frontend import build_graph
from statten_deploy.ir import EXTENSION_NODES, SpikeAnd, STAttenAttention, TemporalMean, predecessors
from statten_deploy.simulate import Simulator
from tests.conftest import lively_input, lively_model, small_config
from tests.simulate.builders import affine, chain, conv, eighths, frames, graph, inp, lif, out, pool, residual_network


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.nir"


def contents(node: nir.NIRNode) -> dict[str, Any]:
    return {key: value for key, value in vars(node).items() if key not in ("input_type", "output_type", "input_shape")}


def assert_same_graph(found: nir.NIRGraph, expected: nir.NIRGraph) -> None:
    """Same nodes in the same order, same parameters, same sources of each port in the same order."""
    assert list(found.nodes) == list(expected.nodes)
    for name, node in expected.nodes.items():
        assert type(found.nodes[name]) is type(node), name
        np.testing.assert_equal(contents(found.nodes[name]), contents(node), err_msg=name)
    assert predecessors(found) == predecessors(expected)
    assert found.metadata == expected.metadata


def tree(path: Path) -> dict[str, Any]:
    """Every dataset of a file with its type and value."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (str(item.dtype), item.shape, np.asarray(item[()]).tolist())

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


# round trips


def test_networks_survive(variant: str, path: Path) -> None:
    model = lively_model(small_config(variant))
    network = build_graph(model)
    write_nir(network, path)
    with h5py.File(path) as file:  # no class of ours stands in the file
        kinds = {group["type"][()].decode() for group in file["node/nodes"].values()}
    assert kinds.isdisjoint({kind.__name__ for kind in EXTENSION_NODES})
    found = read_nir(path)
    assert_same_graph(found, network)
    x = lively_input(model.config).numpy()
    a, b = (Simulator(g).run(x, record="spikes") for g in (network, found))
    np.testing.assert_array_equal(a.outputs["logits"], b.outputs["logits"])
    for name, value in a.recorded.items():
        np.testing.assert_array_equal(value, b.recorded[name], err_msg=name)


@pytest.mark.parametrize("variant_name", ["static", "dvs-sdt"])
def test_identical_graphs_give_identical_bytes(variant_name: str, path: Path, tmp_path: Path) -> None:
    config = small_config(variant_name)
    write_nir(build_graph(lively_model(config)), path)
    write_nir(build_graph(lively_model(config)), tmp_path / "again.nir")
    write_nir(read_nir(path), tmp_path / "reread.nir")
    assert (tmp_path / "again.nir").read_bytes() == path.read_bytes()
    assert (tmp_path / "reread.nir").read_bytes() == path.read_bytes()


def test_every_stock_node_survives(path: Path) -> None:
    rng = np.random.default_rng(0)
    ones = np.ones(4, dtype=np.float32)
    nodes: list[tuple[str, nir.NIRNode]] = [
        ("x", inp(2, 8)),
        ("conv1d", nir.Conv1d(None, eighths(rng, 3, 2, 3), 2, 1, 1, 1, eighths(rng, 3))),
        ("flat1", nir.Flatten({"input": np.array([3, 4])}, 0, -1)),
        ("fc", affine(rng, 12, 4)),
        ("lif", lif(4)),
        ("linear", nir.Linear(eighths(rng, 4, 4))),
        ("if", nir.IF(ones / 1e-4, ones, -ones)),
        ("scale", nir.Scale(ones * 2)),
        ("li", nir.LI(ones * 2e-4, ones, ones * 0)),
        ("cubali", nir.CubaLI(ones * 4e-4, ones * 2e-4, ones, ones * 0, ones * 3)),
        ("threshold", nir.Threshold(ones / 8)),
        ("delay", nir.Delay(ones * np.float32(1e-4))),
        ("cubalif", nir.CubaLIF(ones * 4e-4, ones * 2e-4, ones, ones * 0, ones, ones * 0, ones * 3)),
        ("i", nir.I(ones / 1e-4)),
        ("y", out(4)),
    ]
    network = chain(*nodes)
    report = write_nir(network, path)
    assert report.type_checked
    assert_same_graph(read_nir(path), network)
    opened = nir.read(path)
    assert {type(node).__name__ for node in opened.nodes.values()} == {type(node).__name__ for _, node in nodes}
    x = frames(rng, 2, 5, 2, 8)
    values = [Simulator(g).run(x).outputs["y"] for g in (network, read_nir(path))]
    np.testing.assert_array_equal(*values)


def test_two_dimensional_stock_nodes_survive(path: Path) -> None:
    rng = np.random.default_rng(0)
    network = residual_network(rng, pool(nir.SumPool2d, (4, 4), (4, 4), (0, 0)), time_steps=3, name="r")
    report = write_nir(network, path)
    assert report.type_checked
    assert report.warnings == ()
    assert report.counts == {"stock": 13, "circuit": 1}
    assert_same_graph(read_nir(path), network)


def test_recurrent_graphs_survive(path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = {"x": inp(4), "in": affine(rng, 4, 5), "l": lif(5, threshold=0.5), "back": affine(rng, 5, 5), "y": out(5)}
    network = graph(nodes, [("x", "in"), ("in", "l"), ("l", "back"), ("back", "l"), ("l", "y")])
    write_nir(network, path)
    found = read_nir(path)
    assert_same_graph(found, network)
    x = frames(rng, 1, 6, 4)
    np.testing.assert_array_equal(*(Simulator(g).run(x).outputs["y"] for g in (network, found)))


def test_the_graph_is_not_changed(path: Path) -> None:
    network = residual_network(np.random.default_rng(0), time_steps=3)
    before = ({name: dict(vars(node)) for name, node in network.nodes.items()}, list(network.edges))
    write_nir(network, path)
    np.testing.assert_equal(({n: dict(vars(node)) for n, node in network.nodes.items()}, network.edges), before)


def test_metadata_survives(path: Path) -> None:
    network = chain(("x", inp(3)), ("l", lif(3)), ("y", out(3)), time_steps=4, mean=[0.5, 0.25], tags=["a", "b"])
    network.metadata["statten"] |= {"nested": {"flag": True, "nothing": None}}
    network.metadata["author"] = "someone"
    network.nodes["l"].metadata = {"layer": "first"}
    write_nir(network, path)
    found = read_nir(path)
    assert found.metadata["author"] == "someone"
    assert found.nodes["l"].metadata == {"layer": "first"}
    expected = {"format": 1, "dt": 1e-4, "time_steps": 4, "mean": [0.5, 0.25], "tags": ["a", "b"]}
    assert found.metadata["statten"] == {**expected, "nested": {"flag": True}}
    assert type(found.metadata["statten"]["time_steps"]) is int


def test_a_graph_without_hints_stays_without(path: Path) -> None:
    write_nir(chain(("x", inp(3)), ("l", lif(3)), ("y", out(3))), path)
    assert read_nir(path).metadata == {}


# the file


def test_layout_is_that_of_nir_write(path: Path, tmp_path: Path) -> None:
    """Read by nir and written by nir, the file has the same datasets, types and values."""
    write_nir(residual_network(np.random.default_rng(0), time_steps=3), path)
    nir.write(tmp_path / "stock.nir", nir.read(path))
    assert tree(path) == tree(tmp_path / "stock.nir")


def test_uniform_arrays_are_compressed_and_noise_is_not(path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(128, 1024)).astype(np.float32)
    network = chain(("x", inp(1024)), ("l", lif(1024)), ("fc", nir.Linear(noise)), ("k", lif(128)), ("y", out(128)))
    write_nir(network, path)
    with h5py.File(path) as file:
        nodes = file["node/nodes"]
        assert nodes["n0_l/tau"].compression == "gzip"
        assert nodes["n1_fc/weight"].compression is None
        assert nodes["n2_k/tau"].compression is None  # too small to be worth it


def test_names_in_the_file(path: Path) -> None:
    network = chain(("x", inp(3)), ("a.b", lif(3)), ("a_b", lif(3)), ("if", lif(3)), ("u/v w", lif(3)), ("y", out(3)))
    report = write_nir(network, path)
    assert report.names == {
        "x": "x",
        "n0_a_b": "a.b",
        "n1_a_b": "a_b",
        "n2_if": "if",
        "n3_u_v_w": "u/v w",
        "y": "y",
    }
    with h5py.File(path) as file:
        assert sorted(file["node/nodes"]) == sorted(report.names)
    assert list(read_nir(path).nodes) == ["x", "a.b", "a_b", "if", "u/v w", "y"]


@pytest.mark.parametrize("name", ["type", "lambda", "in.put", "n0_x", "3"])
def test_input_names_that_importers_cannot_take_are_numbered(name: str, path: Path) -> None:
    report = write_nir(chain((name, inp(3)), ("l", lif(3)), ("y", out(3))), path)
    written = {original: file_name for file_name, original in report.names.items()}
    assert written[name].startswith("n0_")
    assert list(read_nir(path).nodes) == [name, "l", "y"]


def test_numbering_follows_execution(path: Path) -> None:
    write_nir(build_graph(lively_model(small_config("static"))), path)
    opened = nir.read(path, type_check=False)
    position = {name: i for i, name in enumerate(sorted(opened.nodes, key=lambda n: (n == "logits", n != "image", n)))}
    for source, target in opened.edges:
        assert position[source] < position[target.split(".")[0]], (source, target)


# the compact form


def compact_graph() -> nir.NIRGraph:
    nodes = {
        "x": inp(4, 2, 3),
        "l": lif(4, 2, 3),
        "sum": pool(nir.SumPool2d, (2, 3), (2, 3), (0, 0)),
        "t": lif(4, 1, 1),
        "statten": STAttenAttention(2, 3, "sliding", 1),
        "al": lif(4, 2, 3),
        "and": SpikeAnd(),
        "y": out(4, 2, 3),
    }
    edges = [("x", "l"), *(("l", f"statten.{port}") for port in "qkv"), ("statten", "al")]
    edges += [("l", "sum"), ("sum", "t"), ("al", "and.a"), ("t", "and.b"), ("and", "y")]
    return graph(nodes, edges, time_steps=4)


def test_compact_form_in_the_file(path: Path) -> None:
    report = write_nir(compact_graph(), path)
    assert not report.type_checked
    assert report.forms["statten"] == report.forms["and"] == "compact"
    assert report.counts == {"stock": 6, "compact": 2}
    assert "2 nodes (STAttenAttention, SpikeAnd)" in report.warnings[0]
    opened = nir.read(path, type_check=False)
    written = {original: name for name, original in report.names.items()}
    nested = opened.nodes[written["statten"]]
    assert isinstance(nested, nir.NIRGraph)
    described = nested.metadata["statten"]
    assert {k: described[k] for k in ("format", "op", "num_heads", "window", "mode", "token_groups")} == {
        "format": 1,
        "op": "STAttenAttention",
        "num_heads": 2,
        "window": 3,
        "mode": "sliding",
        "token_groups": 1,
    }
    assert {name: shape.tolist() for name, shape in nested.input_type.items()} == {port: [4, 2, 3] for port in "qkv"}
    assert {name: shape.tolist() for name, shape in nested.output_type.items()} == {"output": [4, 2, 3]}
    assert (written["l"], f"{written['statten']}.q") in opened.edges
    broadcast = opened.nodes[written["and"]]
    assert broadcast.input_type["b"].tolist() == [4, 1, 1]
    assert np.isnan(broadcast.nodes["not_executable"].scale).all()


# the readout


def test_the_mean_is_left_to_the_reader_of_the_file(path: Path) -> None:
    rng = np.random.default_rng(0)
    network = chain(
        ("x", inp(4)), ("l", lif(4)), ("h", affine(rng, 4, 3)), ("head_mean", TemporalMean()), ("y", out(3))
    )
    report = write_nir(network, path)
    assert report.forms["head_mean"] == "readout"
    assert report.warnings == ()
    stock = nir.read(path)
    assert stock.nodes["y"].metadata["statten"]["readout"] == "mean"
    assert not any(isinstance(node, TemporalMean) for node in stock.nodes.values())
    assert_same_graph(read_nir(path), network)
    x = frames(rng, 2, 8, 4)
    mean = Simulator(network).run(x).outputs["y"]
    np.testing.assert_array_equal(Simulator(stock).run(x).outputs["y"].mean(1), mean)


def test_a_mean_inside_the_network_has_no_form(path: Path) -> None:
    rng = np.random.default_rng(0)
    network = chain(("x", inp(4)), ("m", TemporalMean()), ("h", affine(rng, 4, 3)), ("y", out(3)))
    with pytest.raises(UnsupportedError, match=r"'m' \(TemporalMean\): .* only where it alone feeds an Output.*'h'"):
        write_nir(network, path)
    assert not path.exists()


# warnings and refusals


def test_traps_are_reported(path: Path) -> None:
    nodes = {"x": inp(3), "a": lif(3), "b": lif(3), "dead": lif(3), "y": out(3)}
    network = graph(nodes, [("x", "a"), ("x", "b"), ("x", "dead"), ("a", "y"), ("b", "y")])
    warnings = write_nir(network, path).warnings
    assert any("2 edges add up in Output 'y'" in text for text in warnings)
    assert any("'dead' feeds nothing; nir.read makes it an Output" in text for text in warnings)
    assert list(read_nir(path).nodes) == list(nodes)


@pytest.mark.parametrize("kind", ["non-square", "grouped"])
def test_what_the_stock_check_refuses_is_reported(kind: str, path: Path) -> None:
    rng = np.random.default_rng(0)
    node = conv(rng, 2, 4, (3, 1), 1, (1, 0)) if kind == "non-square" else conv(rng, 2, 4, groups=2)
    network = chain(("x", inp(2, 6, 6)), ("c", node), ("l", lif(4, 6, 6)), ("y", out(4, 6, 6)))
    report = write_nir(network, path)
    assert not report.type_checked
    assert "it opens with type_check=False" in report.warnings[0]
    with pytest.raises(ValueError, match="mismatch"):
        nir.read(path)
    assert_same_graph(read_nir(path), network)


def test_missing_biases_and_scalar_parameters_are_written_out(path: Path) -> None:
    rng = np.random.default_rng(0)
    one = np.float32(1)
    bare = conv(rng, 2, 3)
    bare.bias = None
    scalar = nir.LIF(np.float32(2e-4), one, one * 0, one)
    network = chain(("x", inp(2, 4, 4)), ("c", bare), ("l", scalar), ("y", out(3, 4, 4)))
    report = write_nir(network, path)
    assert report.type_checked
    found: Any = read_nir(path).nodes
    assert found["c"].bias.tolist() == [0, 0, 0]
    assert found["l"].tau.shape == found["l"].v_reset.shape == (3, 4, 4)
    x = frames(rng, 1, 3, 2, 4, 4)
    np.testing.assert_array_equal(*(Simulator(g).run(x).outputs["y"] for g in (network, read_nir(path))))


def test_folders_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing/n.nir: cannot be written \(the folder .*missing does not exist\)"):
        write_nir(chain(("x", inp(3)), ("y", out(3))), tmp_path / "missing" / "n.nir")


def test_metadata_that_hdf5_cannot_hold(path: Path) -> None:
    network = chain(("x", inp(3)), ("y", out(3)))
    network.metadata["who"] = object()
    with pytest.raises(GraphError, match=r"metadata.who is object; metadata holds text, numbers, arrays"):
        write_nir(network, path)


def test_invalid_graphs_are_not_written(path: Path) -> None:
    with pytest.raises(GraphError, match="'l'"):
        write_nir(chain(("x", inp(4)), ("l", lif(3)), ("y", out(3))), path)
    assert not path.exists()


def test_the_documentation_names_every_operation_and_parameter() -> None:
    text = (Path(__file__).parents[3] / "docs" / "nir.md").read_text(encoding="utf8")
    for operation, (_, parameters) in COMPACT.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{operation}`"))
        assert all(f"`{parameter}`" in row for parameter in parameters), operation
