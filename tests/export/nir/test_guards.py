"""Files nobody vouches for: every one is refused in one line of ours, before anything large is allocated."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from statten_deploy.errors import GraphError, InputError, StattenError
from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.ir import STAttenAttention
from statten_deploy.untrusted import hdf5
from tests.simulate.builders import chain, graph, inp, lif, out


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the child that reads a file first: what it refuses is tested in tests/untrusted."""
    monkeypatch.setattr(hdf5, "read_in_child", lambda *arguments: "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.nir"


def stock_file(path: Path) -> Path:
    write_nir(chain(("x", inp(3)), ("l", lif(3)), ("y", out(3))), path)
    return path


def compact_file(path: Path) -> Path:
    nodes = {"x": inp(4, 2, 2), "l": lif(4, 2, 2), "a": STAttenAttention(2, 2), "y": out(4, 2, 2)}
    write_nir(graph(nodes, [("x", "l"), *(("l", f"a.{p}") for p in "qkv"), ("a", "y")], time_steps=4), path)
    return path


def refused(path: Path, match: str, error: type[StattenError] = InputError, **options: Any) -> str:
    with pytest.raises(error, match=match) as caught:
        read_nir(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert caught.value.exit_status == 2
    return message


# not a NIR file


def test_no_file(path: Path, tmp_path: Path) -> None:
    refused(path, "no such file; expected a NIR file")
    refused(tmp_path, "no such file")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF", b"PK\x03\x04" + bytes(100)])
def test_not_hdf5(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "not an HDF5 file, so not a NIR file")


def test_another_hdf5_file(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    refused(path, "without the group 'node', so not a NIR file")
    with h5py.File(path, "w") as file:
        file["node"] = np.zeros(3)
    refused(path, "'node' is not a group")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_cut_short(path: Path, share: float) -> None:
    whole = stock_file(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "damaged HDF5 file")


# what a file may not hold


def test_declared_size(path: Path) -> None:
    """Less than 40 kB on disk, 4 TB declared: refused without allocating any of it."""
    stock_file(path)
    with h5py.File(path, "r+") as file:
        group = file["node/nodes/n0_l"]
        del group["tau"]
        group.create_dataset("tau", shape=(2**20, 2**20), dtype="f4", chunks=(1024, 1024), compression="gzip")
    assert path.stat().st_size < 40_000
    tracemalloc.start()
    refused(
        path, r"/node/nodes/n0_l/tau brings the declared size to 4.1e\+03 GiB, above the limit of 8 GiB; if you trust"
    )
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_the_limit_is_the_callers(path: Path) -> None:
    stock_file(path)
    refused(path, "above the limit of 100 bytes", max_bytes=100)
    read_nir(path, max_bytes=1000)


def test_a_bomb_of_many_arrays(path: Path) -> None:
    stock_file(path)
    with h5py.File(path, "r+") as file:
        for i in range(20):
            file["node/nodes/n0_l"].create_dataset(f"a{i}", shape=(2**28,), dtype="f8", chunks=(2**16,))
    refused(path, r"declared size to 8 GiB|declared size to 1\d GiB")


def soft(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"], file["node/nodes/n0_l/q"] = h5py.SoftLink("/node"), np.zeros(1)


def other_file(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"] = h5py.ExternalLink("/etc/hostname", "/")


def cycle(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"] = file["node"]


def shared(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"] = file["node/nodes/n0_l/tau"]


def external_data(file: h5py.File) -> None:
    file["node/nodes/n0_l"].create_dataset("r", (3,), "f4", external=[("/etc/hostname", 0, 12)])


def virtual_data(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (3,))
    file["node/nodes/n0_l"].create_virtual_dataset("r", layout)


def compound(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"] = np.zeros(3, dtype=[("a", "f4"), ("b", "i4")])


def complex_numbers(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"] = np.zeros(3, dtype=np.complex64)


def named_type(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"] = np.dtype("f4")


def null(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"] = h5py.Empty("f4")


def references(file: h5py.File) -> None:
    file["node/nodes/n0_l/r"] = np.array([file["node"].ref], dtype=h5py.ref_dtype)


def chunked_text(file: h5py.File) -> None:
    values = np.array(["abc"] * 3, dtype=object)
    file["node/nodes/n0_l"].create_dataset("r", data=values, dtype=h5py.string_dtype(), compression="gzip")


def deep(file: h5py.File) -> None:
    group = file["node/nodes/n0_l"].create_group("r")
    for _ in range(40):
        group = group.create_group("g")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (soft, r"/node/nodes/n0_l/r is a link; a NIR file holds its data itself"),
        (other_file, r"/node/nodes/n0_l/r is a link"),
        (cycle, r"is a second link to an object of this file; a NIR file is a tree"),
        (shared, r"is a second link to an object of this file"),
        (external_data, r"takes its data from another file"),
        (virtual_data, r"takes its data from another file"),
        (compound, r"expected numbers or text"),
        (complex_numbers, r"holds complex64; expected numbers or text"),
        (named_type, r"is a Datatype; expected groups and datasets"),
        (null, r"is empty \(a null dataset\)"),
        (references, r"expected numbers or text"),
        (chunked_text, r"holds text in a layout that cannot be measured; store it contiguously"),
        (deep, r"is nested more than 32 levels deep"),
    ],
)
def test_forbidden_contents(edit: Callable[[h5py.File], None], message: str, path: Path) -> None:
    stock_file(path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/n0_l/r"]
        edit(file)
    refused(path, message)


def test_text_is_measured_before_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock_file(path)
    with h5py.File(path, "r+") as file:
        file["node"].create_dataset("metadata/t", data=["x" * 1000] * 50, dtype=h5py.string_dtype())
    read_nir(path)
    monkeypatch.setattr(hdf5, "MAX_TEXT_BYTES", 2**15)
    refused(path, "/node/metadata/t brings the text in the file above 0 MiB")


def test_number_of_objects(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock_file(path)
    monkeypatch.setattr(hdf5, "MAX_OBJECTS", 10)
    refused(path, "is past the first 10 objects")


# what the nodes may not be


def set_text(group: Any, key: str, value: str) -> None:
    del group[key]
    group[key] = value


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda n: set_text(n["n0_l"], "type", "Sigmoid"),
            r"node 'n0_l' has the unknown type 'Sigmoid'; known are Affine",
        ),
        (lambda n: n["n0_l"].__delitem__("type"), r"node 'n0_l' has no type"),
        (lambda n: n["n0_l"].__delitem__("tau"), r"node 'n0_l' \(LIF\) lacks the field 'tau'"),
        (lambda n: n["n0_l"].__setitem__("mode", 3), r"node 'n0_l' \(LIF\) has the unknown field 'mode'"),
        (lambda n: n.__setitem__("z", 3), r"node 'z' has no type"),
        (lambda n: n["x"].__delitem__("shape"), r"node 'x' \(Input\) lacks the field 'shape'"),
        (lambda n: set_text(n.parent, "type", "Graph"), r"the graph has the type 'Graph', expected 'NIRGraph'"),
        (lambda n: n.parent.__delitem__("edges"), r"the graph lacks the field 'edges'"),
        (
            lambda n: set_text(n.parent, "edges", "x"),
            r"the graph: 'edges' has shape \(\), expected pairs of node names",
        ),
    ],
)
def test_nodes_that_are_not_nir(edit: Callable[[Any], None], message: str, path: Path) -> None:
    stock_file(path)
    with h5py.File(path, "r+") as file:
        edit(file["node/nodes"])
    refused(path, message)


def test_parameters_that_do_not_fit(path: Path) -> None:
    stock_file(path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/n0_l/tau"]
        file["node/nodes/n0_l/tau"] = np.ones(4, dtype=np.float32)
    refused(path, r"node 'n0_l' \(LIF\): All parameters must have the same shape", GraphError)


def test_invalid_graphs(path: Path) -> None:
    nodes = {"x": inp(3), "l": lif(3), "y": out(3)}
    nir.write(path, nir.NIRGraph(nodes, [("x", "l"), ("l", "nowhere")], type_check=False))
    refused(path, r"edge into 'nowhere': the graph has no such node", GraphError)
    nir.write(path, nir.NIRGraph(nodes, [], type_check=False))
    refused(path, r"no edge leads into its port 'input'", GraphError)


def described(file: h5py.File) -> Any:
    """The metadata of the compact node."""
    (group,) = (node["metadata/statten"] for node in file["node/nodes"].values() if "op" in node["metadata/statten"])
    return group


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: set_text(d, "op", "Softmax"), r"is the operation 'Softmax', which this version does not know"),
        (lambda d: d["format"].write_direct(np.array(2)), r"node 'n1_a' was written in format 2; .* upgrade"),
        (lambda d: set_text(d, "format", "new"), r"format 'new' is not a version number"),
        (lambda d: d.__delitem__("window"), r"node 'n1_a' \(STAttenAttention\): the metadata lacks window"),
        (lambda d: set_text(d, "num_heads", "two"), r"cannot use the parameters num_heads = 'two'"),
        (lambda d: d["num_heads"].write_direct(np.array(3)), r"num_heads 3 does not divide the 4 channels"),
        (lambda d: d["num_heads"].write_direct(np.array(0)), r"num_heads 0 does not divide the 4 channels"),
        (lambda d: set_text(d, "mode", "spiral"), r"mode 'spiral' is neither 'block' nor 'sliding'"),
    ],
)
def test_compact_forms_that_mean_nothing(edit: Callable[[Any], None], message: str, path: Path) -> None:
    compact_file(path)
    with h5py.File(path, "r+") as file:
        edit(described(file))
    refused(path, message, StattenError)


def test_compact_form_with_other_ports(path: Path) -> None:
    compact_file(path)
    with h5py.File(path, "r+") as file:
        inner = file["node/nodes/n1_a/nodes"]
        inner.move("q", "w")
    refused(path, r"\(STAttenAttention\) has the ports \['k', 'v', 'w'\], expected \['k', 'q', 'v'\]")


def test_a_newer_file(path: Path) -> None:
    stock_file(path)
    with h5py.File(path, "r+") as file:
        file["node/metadata/statten/format"].write_direct(np.array(7))
    refused(path, r"the file was written in format 7; this version reads up to 1: upgrade statten-deploy")


def test_an_unknown_readout(path: Path) -> None:
    stock_file(path)
    with h5py.File(path, "r+") as file:
        file["node/nodes/y/metadata/statten/readout"] = "median"
    refused(path, r"Output 'y': unknown readout 'median'; this version knows 'mean'")


def test_copied_nodes_keep_their_file_names(path: Path) -> None:
    """A tool that copies nodes with their metadata makes two that claim one name: then the file's names count."""
    write_nir(chain(("x", inp(3)), ("a.l", lif(3)), ("y", out(3))), path)
    with h5py.File(path, "r+") as file:
        nodes = file["node/nodes"]
        nodes.copy(nodes["n0_a_l"], "copy")
        edges = [("x", "n0_a_l"), ("n0_a_l", "copy"), ("copy", "y")]
        del file["node/edges"]
        file["node/edges"] = edges
    assert set(read_nir(path).nodes) == {"x", "n0_a_l", "copy", "y"}
