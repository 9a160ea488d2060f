"""`.net` files: lava-dl gives the spikes and membranes of the integer runner; the rest is refused by name."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from statten_deploy.errors import GraphError, InputError, StattenError, UnsupportedError
from statten_deploy.export.netx import NetxRunner, round_biases, sequential_part, write_netx
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import verify
from statten_deploy.ir.integer import IntegerLIF, IntegerLinear
from statten_deploy.models.checkpoint import load_model
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train.data import InputSpec, open_source
from tests.conftest import lively_model, small_config
from tests.export.netx.chains import STEPS, convolutional_chain, dense_chain

ZOO = Path(__file__).parents[3] / "models" / "zoo"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chain.net"


@pytest.fixture
def chain() -> nir.NIRGraph:
    return convolutional_chain(np.random.default_rng(0))


def assert_same(network: nir.NIRGraph, path: Path, x: np.ndarray) -> None:
    """Every spike, membrane and output, and layers that are neither silent nor always on."""
    found = NetxRunner(path, limit_s=300).run(x, spikes=True, membranes=True)
    expected = IntegerRunner(network).run(x, spikes=True, membranes=True)
    assert list(found.spikes) == list(expected.spikes)
    for name, spikes in expected.spikes.items():
        assert 0.02 < spikes.mean() < 0.98, name
        np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
        np.testing.assert_array_equal(found.membranes[name], expected.membranes[name], err_msg=name)
        np.testing.assert_array_equal(found.spike_counts[name], expected.spike_counts[name], err_msg=name)
    assert found.outputs.keys() == expected.outputs.keys()
    for name, output in expected.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], output, err_msg=name)


# lava-dl runs the file


def test_convolutions_dense_layers_and_synaptic_memory(chain: nir.NIRGraph, path: Path) -> None:
    """Several samples in a row, each from rest, biases quiet until the first frame arrives."""
    verify(chain)
    report = write_netx(chain, path)
    assert report.layers == ("a", "b", "c", "d")
    assert report.latency_steps == 4
    assert_same(chain, path, np.random.default_rng(1).uniform(-0.1, 1.0, (3, STEPS, 2, 7, 9)))


def test_a_flat_input_that_is_held(path: Path) -> None:
    network = dense_chain(np.random.default_rng(0))
    write_netx(network, path)
    assert_same(network, path, np.random.default_rng(1).uniform(-0.1, 1.0, (3, 2, 3, 4)))


def test_digits_through_the_patch_embedding(path: Path) -> None:
    model = load_model(ZOO / "digits-stream.ckpt")
    part = sequential_part(build_graph(model), "patch_embed.proj_lif3")
    network = round_biases(quantize(part, QuantizeOptions(8, "tensor", shifts=False)))
    write_netx(network, path)
    digits = open_source("digits", InputSpec((1, 16, 16), 10)).test
    assert_same(network, path, digits.sample(0)[None])


# the file


def test_identical_graphs_give_identical_bytes(chain: nir.NIRGraph, path: Path, tmp_path: Path) -> None:
    write_netx(chain, path)
    write_netx(convolutional_chain(np.random.default_rng(0)), tmp_path / "again.net")
    assert (tmp_path / "again.net").read_bytes() == path.read_bytes()


def test_layout(chain: nir.NIRGraph, path: Path) -> None:
    write_netx(chain, path)
    a: Any = chain.nodes["a"]
    with h5py.File(path) as file:
        kinds = [file[f"layer/{i}/type"][0].decode() for i in range(len(file["layer"]))]
        assert kinds == ["input", "conv", "conv", "flatten", "dense", "dense"]
        first = file["layer/1"]
        np.testing.assert_array_equal(first["weight"][()], chain.nodes["a.conv"].weight)
        assert first["weight"].dtype == np.int8
        np.testing.assert_array_equal(first["bias"][()] << 6, (a.bias_mantissa << a.bias_exponent).reshape(-1))
        assert first["shape"][()].tolist() == [4, 4, 7]
        assert first["stride"][()].tolist() == [2, 1]
        assert {k: first[f"neuron/{k}"][()] for k in ("iDecay", "vDecay", "vThMant")} == {
            "iDecay": 4096,
            "vDecay": 2048,
            "vThMant": 12000,
        }
        assert file["layer/2/neuron/iDecay"][()] == 1001


def test_biases_beyond_the_chip_are_reported(path: Path) -> None:
    warnings = write_netx(dense_chain(np.random.default_rng(0)), path).warnings
    assert len(warnings) == 1
    assert "biases of 'a' reach" in warnings[0]
    assert "the chip keeps 4095" in warnings[0]


# what netx cannot hold


def with_node(network: nir.NIRGraph, name: str, **fields: Any) -> nir.NIRGraph:
    nodes = {**network.nodes, name: replace(network.nodes[name], **fields)}
    return nir.NIRGraph(nodes, network.edges, metadata=network.metadata, type_check=False)


RANK = (4, 1, 1)
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "thresholds": ("a", {"threshold": np.arange(4).reshape(RANK)}, "'a' has a threshold per channel"),
    "input exponent": ("a", {"input_exponent": 2}, "the weights of 'a' have exponents"),
    "exponents": ("b.conv", {"exponent": np.full(6, 1)}, "the weights of 'b' have exponents"),
    "fine biases": (
        "a",
        {"bias_mantissa": np.full(RANK, 96), "bias_exponent": np.zeros(RANK)},
        "biases of 'a' are not multiples of 64",
    ),
    "large biases": (
        "a",
        {"bias_mantissa": np.full(RANK, 4095), "bias_exponent": np.full(RANK, 10)},
        "biases of 'a' reach 65520 times 64, the most is 32767",
    ),
    "a bias of the weights": ("d.fc", {"bias": np.ones(3)}, "the weights of 'd' have a bias of their own"),
    "no weights": ("d.fc", {"weight": np.zeros((3, 5))}, "lava-dl fails on the weights of 'd'"),
    "weights that lava-dl clips": ("d.fc", {"weight": np.full((3, 5), -64)}, "lava-dl clips the weights of 'd'"),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_numbers_that_would_change_are_refused(kind: str, chain: nir.NIRGraph, path: Path) -> None:
    name, fields, message = REFUSED[kind]
    with pytest.raises(UnsupportedError, match=f"netx cannot hold this: {message}; quantise with one scale per layer"):
        write_netx(with_node(chain, name, **fields), path)
    assert not path.exists()


def test_sums_beyond_24_bits_are_refused(path: Path) -> None:
    network = dense_chain(np.random.default_rng(0))
    size = 24
    wide = IntegerLinear(np.full((8, size), 127), np.zeros(8), np.zeros(8), np.ones(8))
    nodes = {**network.nodes, "a.fc": wide}
    write_netx(nir.NIRGraph(nodes, network.edges, metadata=network.metadata, type_check=False), path)
    many = 300
    nodes["image"] = nir.Input({"input": np.array([2, 12, many // 2])})
    nodes["a.fc"] = IntegerLinear(np.full((8, 12 * many), 127), np.zeros(8), np.zeros(8), np.ones(8))
    with pytest.raises(UnsupportedError, match=r"the input of 'a' can reach \d+, beyond the 24 bits of Lava's Conv"):
        write_netx(nir.NIRGraph(nodes, network.edges, metadata=network.metadata, type_check=False), path)


def test_every_refused_number_is_named(chain: nir.NIRGraph, path: Path) -> None:
    damaged = with_node(with_node(chain, "a", input_exponent=2), "d.fc", bias=np.ones(3))
    with pytest.raises(UnsupportedError, match="'a' have exponents; the weights of 'd' have a bias"):
        write_netx(damaged, path)


def test_networks_are_refused_by_name_with_what_to_use_instead(path: Path) -> None:
    network = quantize(build_graph(lively_model(small_config("strided"))), QuantizeOptions(8, "tensor"))
    message = (
        r"not IntegerSumPool2d \(head_pool\); STAttenAttention \(block.0.attn.statten, block.1.attn.statten\); "
        r"TemporalSum \(head_mean\); sum of branches \(.*head_pool\); branching \(patch_embed.proj_conv3, .*\); "
        r"use --target lava, or --until patch_embed.proj_lif3 for the layers up to there$"
    )
    with pytest.raises(UnsupportedError, match=message):
        write_netx(network, path)
    with pytest.raises(UnsupportedError, match=message):
        sequential_part(network)


def test_layers_that_do_not_pair_up(chain: nir.NIRGraph, path: Path) -> None:
    edges = [edge for edge in chain.edges if "d" not in edge] + [("d.fc", "spikes")]
    nodes = {name: node for name, node in chain.nodes.items() if name != "d"}
    open_end = nir.NIRGraph(nodes, edges, metadata=chain.metadata, type_check=False)
    with pytest.raises(UnsupportedError, match=r"'d.fc' has no neurons right behind it"):
        write_netx(open_end, path)


def test_float_graphs_and_broken_ones_are_refused(path: Path) -> None:
    part = sequential_part(build_graph(lively_model(small_config("strided"))), "patch_embed.proj_lif1")
    with pytest.raises(UnsupportedError, match=r"not Conv2d \(.*\); LIF \(.*\)"):
        write_netx(part, path)
    broken = with_node(dense_chain(np.random.default_rng(0)), "a", dv=5000)
    with pytest.raises(GraphError, match="dv holds 5000"):
        write_netx(broken, path)


def test_folders_that_do_not_exist(chain: nir.NIRGraph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"chain.net: cannot be written"):
        write_netx(chain, tmp_path / "missing" / "chain.net")


# cutting


@pytest.mark.parametrize("quantised", [False, True])
def test_the_part_up_to_a_layer_gives_its_spikes(quantised: bool) -> None:
    model = lively_model(small_config("strided"))
    network = build_graph(model)
    if quantised:
        network = quantize(network, QuantizeOptions(8, "tensor"))
    part = sequential_part(network, "patch_embed.proj_lif2")
    verify(part)
    assert sequential_part(part) is part
    if quantised:
        x = np.random.default_rng(0).random((2, 3, 16, 16))
        whole = IntegerRunner(network).run(x, spikes=True).spikes["patch_embed.proj_lif2"]
        np.testing.assert_array_equal(IntegerRunner(part).run(x).outputs["spikes"].swapaxes(0, 1), whole)


def test_parts_that_are_no_chain_or_no_layer() -> None:
    network = build_graph(lively_model(small_config("static")))
    with pytest.raises(InputError, match=r"--until head: is not a neuron layer .* patch_embed.proj_lif, .*_lif2$"):
        sequential_part(network, "head")
    message = r"not MaxPool2d \(.*maxpool3\); SpikeMaxPool2d \(.*maxpool2\); use .* --until patch_embed.proj_lif2 for"
    with pytest.raises(UnsupportedError, match=message):
        sequential_part(network, "patch_embed.proj_lif3")


def test_rounded_biases() -> None:
    mantissa = np.array([33, -96, 4095, -4095, 0, 95])
    neurons = IntegerLIF(np.ones(6), 2048, mantissa, np.array([0, 0, 0, 7, 9, 0]), (6,))
    rounded: Any = round_biases(nir.NIRGraph({"l": neurons}, [], type_check=False)).nodes["l"]
    bias = (rounded.bias_mantissa << rounded.bias_exponent).tolist()
    assert bias == [64, -128, 4096, -8190 * 64, 0, 64]
    assert np.abs(rounded.bias_mantissa).max() <= 4095


# the runner


def test_inputs_that_do_not_fit(chain: nir.NIRGraph, path: Path) -> None:
    write_netx(chain, path)
    with pytest.raises(InputError, match=r"input of shape \[1, 3, 3\]: expected \[batch, 2, 7, 9\] or \[batch, 5, 2"):
        NetxRunner(path).run(np.zeros((1, 3, 3)))


def test_files_that_are_none(path: Path, chain: nir.NIRGraph) -> None:
    with pytest.raises(InputError, match=r"no such file; expected a .net file"):
        NetxRunner(path)
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"not an HDF5 file, so not a .net file"):
        NetxRunner(path)
    write_netx(chain, path)
    with h5py.File(path, "r+") as file:
        del file["statten/scale"]
    with pytest.raises(InputError, match=r"not a .net file of this tool"):
        NetxRunner(path)


def test_the_shape_of_a_sample(path: Path, chain: nir.NIRGraph) -> None:
    write_netx(chain, path)
    assert NetxRunner(path).input_shape == (STEPS, 2, 7, 9)
    chain.metadata["statten"]["input"] = "image"
    write_netx(chain, path)
    assert NetxRunner(path).input_shape == (2, 7, 9)


def test_newer_files(path: Path, chain: nir.NIRGraph) -> None:
    write_netx(chain, path)
    with h5py.File(path, "r+") as file:
        file["statten/format"][()] = 2
    with pytest.raises(InputError, match="written in format 2; this version reads up to 1"):
        NetxRunner(path)


DAMAGED: dict[str, tuple[str, Any, str]] = {
    "format of text": ("statten/format", np.array([b"x"]), "statten/format: expected a whole number"),
    "format of two": ("statten/format", np.array([1, 1]), "statten/format: expected one whole number from 1"),
    "steps of text": ("statten/time_steps", np.array([b"four"]), "statten/time_steps: expected a whole number"),
    "negative steps": ("statten/time_steps", -3, "statten/time_steps: expected one whole number from 1 to 65536"),
    "layers of numbers": ("statten/layers", np.arange(4), "statten/layers: expected text"),
    "too few layers": ("statten/layers", np.array([b"a"]), "statten/layers names 1 layers, the file has 6"),
    "layers of one name": ("statten/layers", np.array([b"a"] * 4), "statten/layers: expected a list of different"),
    "three scales": ("statten/scale", np.ones(3), "statten/scale: expected 2 positive numbers"),
    "a scale that is none": ("statten/scale", np.array([1.0, np.nan]), "statten/scale: expected 2 positive numbers"),
    "half a zero point": ("statten/zero_point", np.full(2, 0.5), "statten/zero_point: expected whole numbers"),
    "three zero points": ("statten/zero_point", np.zeros(3, dtype=int), "statten/zero_point: expected 2 bytes"),
    "large zero points": ("statten/zero_point", np.full(2, 256), "statten/zero_point: expected .* from 0 to 255"),
    "output in Latin 1": ("statten/output", np.array([b"\xe4"]), "statten/output: is not UTF-8"),
    "two outputs": ("statten/output", np.array([b"a", b"b"]), "statten/output: expected one value"),
    "a number for image": ("statten/image", 3, "statten/image: expected a truth value"),
    "no shape": ("statten/shape", np.zeros(0, dtype=int), r"statten/shape is \(\), expected 1 to 4 sizes"),
    "a huge shape": ("statten/shape", np.full(3, 1 << 15), "statten/shape is .* at most 67108864 values"),
    "a huge list": ("statten/layers", np.full(1 << 18, b"abcde"), "statten/layers has shape .* 1048576 bytes"),
    "another shape": ("statten/shape", np.array([2, 7, 8]), r"layer/0/shape is \(2, 7, 9\)"),
    "a type of numbers": ("layer/1/type", 7, "layer/1/type: expected text"),
}


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_damaged_values_are_named_in_one_line(kind: str, path: Path, chain: nir.NIRGraph) -> None:
    name, value, message = DAMAGED[kind]
    write_netx(chain, path)
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = value
    with pytest.raises(InputError, match=rf"not a .net file of this tool \({message}.*; export again$") as caught:
        NetxRunner(path)
    assert "\n" not in str(caught.value)


def test_groups_where_values_belong(path: Path, chain: nir.NIRGraph) -> None:
    write_netx(chain, path)
    with h5py.File(path, "r+") as file:
        del file["statten/scale"]
        file.create_group("statten/scale")
    with pytest.raises(InputError, match="statten/scale: expected real numbers"):
        NetxRunner(path)
    with h5py.File(path, "r+") as file:
        del file["statten"]
        file["statten"] = 1
    with pytest.raises(InputError, match=r"not a .net file of this tool"):
        NetxRunner(path)


def session_of(path: Path) -> dict[int, int]:
    """pid -> process group, of every live process whose command line names `path`."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.fsencode(path) in (entry / "cmdline").read_bytes() and "child.py" in (entry / "cmdline").read_text():
                found[int(entry.name)] = os.getpgid(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


CALLER = """
import sys, numpy as np
from statten_deploy.export.netx import NetxRunner
NetxRunner(sys.argv[1]).run(np.zeros((3000, 2, 7, 9)), membranes=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_calling_process(
    number: int, chain: nir.NIRGraph, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Lava's own processes run; its shared memory goes as well."""
    write_netx(chain, path)
    with tempfile.TemporaryDirectory(prefix="t-") as scratch:
        monkeypatch.setenv("TMPDIR", scratch)
        caller = subprocess.Popen([sys.executable, "-c", CALLER, str(path)], cwd=ZOO.parents[1])
        wait_for(lambda: len(session_of(path)) > 8, 60)
        time.sleep(0.5)
        shared = {
            word
            for pid in session_of(path)
            for word in Path(f"/proc/{pid}/maps").read_text().split()
            if word.startswith("/dev/shm/")
        }
        assert shared
        assert list(Path(scratch).glob("statten-netx-*"))
        caller.send_signal(number)
        assert caller.wait(120) == -number
        wait_for(lambda: session_of(path) == {})
        assert list(Path(scratch).iterdir()) == []
        assert not any(Path(name).exists() for name in shared)


def test_the_time_limit(chain: nir.NIRGraph, path: Path) -> None:
    write_netx(chain, path)
    with pytest.raises(StattenError, match=r"took longer than 0.2 s and was stopped"):
        NetxRunner(path, limit_s=0.2).run(np.zeros((1, 2, 7, 9)))


def test_a_python_without_lava(chain: nir.NIRGraph, path: Path) -> None:
    write_netx(chain, path)
    bare = Path(sys.base_prefix) / "bin" / "python3"
    with pytest.raises(InputError, match=r"cannot import lava-dl \(No module named 'lava'\)"):
        NetxRunner(path, python=str(bare)).run(np.zeros((1, 2, 7, 9)))
    with pytest.raises(InputError, match="cannot be started"):
        NetxRunner(path, python="/no/such/python").run(np.zeros((1, 2, 7, 9)))


def test_a_failing_simulation_says_why(chain: nir.NIRGraph, path: Path) -> None:
    write_netx(chain, path)
    with h5py.File(path, "r+") as file:
        file["layer/2/type"][0] = b"pool"
    with pytest.raises(StattenError, match="the simulation failed: NotImplementedError: pool is not") as caught:
        NetxRunner(path, limit_s=120).run(np.zeros((1, 2, 7, 9)))
    assert any("Traceback" in note for note in caught.value.__notes__)
