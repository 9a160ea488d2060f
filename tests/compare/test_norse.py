"""Norse as a backend: networks equal the torch network, and what Norse would run wrongly is refused by name."""

import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from statten_deploy.api import ExportOptions, export_nir
from statten_deploy.compare.executors import GraphExecutor, TorchExecutor
from statten_deploy.compare.norse import NorseExecutor, norse_executor
from statten_deploy.errors import ConfigError, InputError, UnsupportedError
from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.ir import MaxPool2d, STAttenAttention
from statten_deploy.models.checkpoint import load_model
from statten_deploy.models.statten import STAtten
from statten_deploy.source import load_source
from tests.conftest import lively_input, lively_model, small_config
from tests.export.nir.integer_graphs import untruncated
from tests.simulate.builders import affine, chain, conv, frames, graph, inp, lif, out, pool, spikes

pytest.importorskip("norse.torch")

IMAGES = 16
ZOO = Path(__file__).parents[2] / "models" / "zoo"


def digits() -> np.ndarray:
    images = load_digits().images[:: 1797 // IMAGES][:IMAGES] / 16
    return np.kron(images, np.ones((2, 2)))[:, None].astype(np.float32)


def assert_runs_like_the_network(executor: NorseExecutor, network: STAtten, x: np.ndarray) -> None:
    """Every spike; outputs to the last bit of the head, a sum whose order depends on how many rows it computes."""
    found, expected = executor.run(x), TorchExecutor(network).run(x)
    assert list(found.spikes) == list(expected.spikes)
    for name, layer in expected.spikes.items():
        assert 0.005 < layer.mean() < 0.95, name
        assert found.spikes[name].dtype == np.bool_
        np.testing.assert_array_equal(found.spikes[name], layer, err_msg=name)
    np.testing.assert_allclose(found.outputs["logits"], expected.outputs["logits"], rtol=0, atol=2e-6)
    head = torch.from_numpy(found.spikes["head_lif"].astype(np.float32))  # [T, B, C]
    with torch.no_grad():
        rows = torch.stack(
            [nn.functional.linear(row, network.head.weight, network.head.bias) for row in head.flatten(0, 1)]
        )
    steps = rows.reshape(*head.shape[:2], -1).numpy().swapaxes(0, 1)
    np.testing.assert_array_equal(found.outputs["logits"], steps.mean(1, dtype=np.float32))


def test_the_exported_checkpoint(tmp_path: Path) -> None:
    """The file that `export_nir` writes from the shipped checkpoint."""
    export_nir(ZOO / "digits-stream.ckpt", tmp_path / "n.nir", profile="portable", options=ExportOptions(samples=2))
    executor = NorseExecutor(tmp_path / "n.nir")
    assert executor.input_shape == (1, 16, 16)
    assert_runs_like_the_network(executor, load_model(ZOO / "digits-stream.ckpt"), digits())


NETWORKS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "SDT": ("sdt", IMAGES, 0, {"num_heads": 2}),
    "block window": ("static", IMAGES, 1, {"embed_dim": 24, "depth": 1}),
    "event frames, two block windows": ("dvs", 2, 2, {"embed_dim": 24}),
    "learned time constants": ("plif", 2, 1, {"embed_dim": 24, "depth": 1}),
}
"""Variant, images, steps late, changes."""


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_a_source_in_norse(kind: str, tmp_path: Path) -> None:
    variant, images, late, changes = NETWORKS[kind]
    config = small_config(variant, pooling="strided", **changes)
    network, x = lively_model(config), lively_input(config, images).numpy()
    executor = norse_executor(load_source(network).graph, tmp_path)
    assert executor.alignment.extra == late
    assert executor.input_shape == x.shape[1:]
    assert_runs_like_the_network(executor, network, x)


def test_samples_do_not_see_each_other(tmp_path: Path) -> None:
    config = small_config("sdt", pooling="strided")
    executor = norse_executor(load_source(lively_model(config)).graph, tmp_path)
    x = lively_input(config, 4).numpy()
    together = executor.run(x)
    alone = executor.run(x[2:3])  # after others: no state is left either
    np.testing.assert_array_equal(alone.outputs["logits"], together.outputs["logits"][2:3])
    for name, layer in alone.spikes.items():
        np.testing.assert_array_equal(layer, together.spikes[name][:, 2:3])


def small_chain(rng: np.random.Generator, *, flat: bool) -> nir.NIRGraph:
    """Convolutions, neurons, a residual sum and all pools and neurons that Norse runs as NIR says."""
    one = np.ones((3, 2, 2), dtype=np.float32)
    nodes: dict[str, nir.NIRNode] = {
        "x": inp(2, 8, 8),
        "a.conv": conv(rng, 2, 4, 3, 2),
        "a": lif(4, 4, 4, tau_steps=4),
        "b.conv": conv(rng, 4, 4),
        "c": lif(4, 4, 4),
        "sum": pool(nir.SumPool2d, (2, 2), (2, 2), (0, 0)),
        "d.conv": conv(rng, 4, 3, 1, padding=0),
        "d": nir.CubaLIF(one * 2e-4, one * 2e-4, one * 2, one * 0, one * np.float32(0.51), one * 0, one * 2),
        "e.conv": conv(rng, 3, 3, 1, padding=0),
        "e": nir.IF(one * 1e4, one * np.float32(1.0625)),
    }
    edges = [("x", "a.conv"), ("a.conv", "a"), ("a", "b.conv"), ("a.conv", "c"), ("b.conv", "c"), ("c", "sum")]
    edges += [("sum", "d.conv"), ("d.conv", "d"), ("d", "e.conv"), ("e.conv", "e")]
    tail: list[tuple[str, nir.NIRNode]] = [("y", out(3, 2, 2))]
    if flat:
        flatten = nir.Flatten({"input": np.array([3, 2, 2])}, 0, -1)
        tail = [("flat", flatten), ("head", affine(rng, 12, 5)), ("y", out(5))]
    nodes |= dict(tail)
    edges += list(zip(["e", *dict(tail)], dict(tail), strict=False))
    return graph(nodes, edges, time_steps=6)


@pytest.mark.parametrize("flat", [False, True])
def test_batches(flat: bool, tmp_path: Path) -> None:
    """A file without a Flatten runs the whole batch at once, one with it sample by sample; both are right."""
    rng = np.random.default_rng(4)
    network, x = small_chain(rng, flat=flat), frames(rng, 5, 6, 2, 8, 8)
    write_nir(network, tmp_path / "n.nir")
    executor = NorseExecutor(tmp_path / "n.nir")
    assert executor.batched is not flat
    calls: list[tuple[int, ...]] = []
    executor.parts["x"].register_forward_hook(lambda _, __, y: calls.append(tuple(y.shape)))
    found, expected = executor.run(x), GraphExecutor(network).run(x)
    assert calls == ([(2, 8, 8)] * 30 if flat else [(5, 2, 8, 8)] * 6)
    assert list(found.spikes) == ["a", "c", "d", "e"]
    for name, layer in expected.spikes.items():
        assert 0.05 < layer.mean() < 0.95, name
        np.testing.assert_array_equal(found.spikes[name], layer, err_msg=name)
    np.testing.assert_array_equal(found.outputs["y"], expected.outputs["y"])


def spelt(network: nir.NIRGraph, folder: Path) -> nir.NIRGraph:
    """The graph with every array that `nir.write` wants, in the order of execution, and nothing in the metadata."""
    names = write_nir(network, folder / "spelt.nir").names
    opened = nir.read(folder / "spelt.nir", type_check=False)
    for node in opened.nodes.values():
        node.metadata = {}
    nodes = {names[name]: node for name, node in opened.nodes.items()}
    return nir.NIRGraph(nodes, [(names[a], names[b]) for a, b in opened.edges], type_check=False)


def test_files_of_other_tools(tmp_path: Path) -> None:
    """No hints: T and dt come from the caller; dots in names; a residual sum in the order that Norse keeps."""
    rng = np.random.default_rng(1)
    network = small_chain(rng, flat=True)
    network = spelt(network, tmp_path)
    nir.write(tmp_path / "n.nir", network)
    with pytest.raises(ConfigError, match="--time-steps"):
        NorseExecutor(tmp_path / "n.nir")
    x = frames(rng, 2, 6, 2, 8, 8)
    found = NorseExecutor(tmp_path / "n.nir", time_steps=6).run(x)
    expected = GraphExecutor(network).run(x)
    np.testing.assert_array_equal(found.spikes["a"], expected.spikes["a"])
    np.testing.assert_array_equal(found.outputs["y"], expected.outputs["y"])
    with pytest.raises(InputError, match=r"takes samples of shape \(6, 2, 8, 8\), found \(5, 2, 8, 8\)"):
        NorseExecutor(tmp_path / "n.nir", time_steps=6).run(x[:, :5])
    names = {"a.conv": "a_c", "a": "a.c"}
    clash = nir.NIRGraph(
        {names.get(name, name): node for name, node in network.nodes.items()},
        [(names.get(a, a), names.get(b, b)) for a, b in network.edges],
        type_check=False,
    )
    nir.write(tmp_path / "clash.nir", clash)
    with pytest.raises(UnsupportedError, match=r"differ only in '\.' and '_'"):
        NorseExecutor(tmp_path / "clash.nir", time_steps=6)


def test_a_long_graph(tmp_path: Path) -> None:
    """nirtorch calls itself once per node; Python's limit would end that."""
    rng, names = np.random.default_rng(0), [f"n{i}" for i in range(300)]
    one, zero = np.ones((1, 1), dtype=np.float32), np.zeros(1, dtype=np.float32)
    nodes: list[tuple[str, nir.NIRNode]] = [(name, nir.Affine(one, zero)) for name in names]
    write_nir(chain(("x", inp(1)), *nodes, ("y", out(1)), time_steps=2), tmp_path / "n.nir")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(350)
    try:
        with pytest.raises(RecursionError):
            import_quietly(nir.read(tmp_path / "n.nir"))
        executor = NorseExecutor(tmp_path / "n.nir")
    finally:
        sys.setrecursionlimit(limit)
    x = frames(rng, 2, 2, 1)
    np.testing.assert_array_equal(executor.run(x).outputs["y"], x)


def import_quietly(network: nir.NIRGraph) -> Any:
    from norse.torch import from_nir

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_nir(network, dt=1e-4)


# refusals


def refusal(network: nir.NIRGraph, path: Path) -> str:
    write_nir(network, path)
    with pytest.raises(UnsupportedError) as caught:
        NorseExecutor(path, time_steps=4)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


ONE = np.ones((4, 4, 4), dtype=np.float32)
ALTERED: dict[str, tuple[nir.NIRNode, str]] = {
    "avg": (pool(nir.AvgPool2d, (3, 3), (1, 1), (1, 1)), "leaves such nodes out"),
    "scale": (nir.Scale(ONE * 2), "leaves such nodes out"),
    "delay": (nir.Delay(ONE * 1e-4), "leaves such nodes out"),
    "leaky": (nir.LI(ONE * 2e-4, ONE, ONE * 0), "leaves such nodes out"),
    "step": (nir.Threshold(ONE), "leaves such nodes out"),
    "sum": (pool(nir.SumPool2d, (3, 3), (1, 1), (1, 1)), "ignores the padding"),
    "groups": (conv(np.random.default_rng(0), 4, 4, groups=2), "refuses most grouped convolutions"),
    "r": (nir.LIF(ONE * 2e-4, ONE * 2, ONE * 0, ONE, ONE * 0), "ignores r, which is not 1"),
    "reset": (nir.LIF(ONE * 2e-4, ONE, ONE * 0, ONE, ONE * -2), "ignores v_reset"),
    "if": (nir.IF(ONE * 2e4, ONE), "ignores r and dt"),
    "if_reset": (nir.IF(ONE * 1e4, ONE, ONE * -2), "ignores v_reset"),
    "cuba": (nir.CubaLIF(ONE * 2e-4, ONE * 2e-4, ONE, ONE * 0.25, ONE, ONE * 0, ONE), "leak to v_leak"),
    "cuba_reset": (nir.CubaLIF(ONE * 2e-4, ONE * 2e-4, ONE, ONE * 0, ONE, ONE * -2, ONE), "ignores v_reset"),
}


def test_all_that_norse_would_change_is_named_at_once(tmp_path: Path) -> None:
    told = refusal(
        chain(("x", inp(4, 4, 4)), *((n, node) for n, (node, _) in ALTERED.items()), ("y", out(4, 4, 4))),
        tmp_path / "n.nir",
    )
    for name, (node, reason) in ALTERED.items():
        listed = next(part for part in told.split("; ") if f"'{name}' ({type(node).__name__})" in part)
        assert reason in listed
    assert "'x'" not in told
    assert "'y'" not in told
    assert "--nir-profile portable" in told


@pytest.mark.parametrize("name", [name for name in ALTERED if name != "groups"])
def test_norse_does_change_them(name: str, tmp_path: Path) -> None:
    """Every refusal is deserved: imported all the same, the node gives something else, or nothing and no error."""
    node, reason = ALTERED[name]
    left_out = "leaves" in reason  # another edge keeps the path whole
    tail = [("n", "m"), ("x", "m"), ("m", "y")] if left_out else [("n", "y")]
    nodes: dict[str, nir.NIRNode] = {"x": inp(4, 4, 4), "n": node, "y": out(4, 4, 4)}
    network = graph(nodes | ({"m": lif(4, 4, 4)} if left_out else {}), [("x", "n"), *tail], time_steps=6)
    write_nir(network, tmp_path / "n.nir")
    x = frames(np.random.default_rng(2), 1, 6, 4, 4, 4)
    expected = GraphExecutor(network).run(x).outputs["y"][0]
    module, state, found = import_quietly(nir.read(tmp_path / "n.nir")), None, []
    with torch.no_grad():
        for frame in torch.from_numpy(x[0]):
            y, state = module(frame[None], state)
            found.append(y[0].numpy())
    assert np.stack(found).shape != expected.shape or not np.array_equal(np.stack(found), expected)


def test_compact_forms_and_core_files(tmp_path: Path) -> None:
    config = small_config("static", num_heads=2, embed_dim=16, depth=1)
    graph_ = load_source(lively_model(config)).graph
    told = refusal(graph_, tmp_path / "compact.nir")
    for name, node in graph_.nodes.items():
        assert (repr(name) in told) is isinstance(node, MaxPool2d | STAttenAttention | nir.AvgPool2d), name
    strided = lively_model(small_config("strided", num_heads=2, embed_dim=16, depth=1))
    export_nir(strided, tmp_path / "core.nir", profile="core")
    with pytest.raises(UnsupportedError, match=r"'block.0.attn.statten.q.was1' \(Delay\).*--nir-profile portable"):
        NorseExecutor(tmp_path / "core.nir")
    with pytest.raises(UnsupportedError, match="pooling: strided"):
        norse_executor(graph_, tmp_path)


def test_integers_are_refused(tmp_path: Path) -> None:
    told = refusal(untruncated(np.random.default_rng(1), 4095), tmp_path / "n.nir")
    assert "holds integers" in told


def test_an_order_that_reads_a_step_late(tmp_path: Path) -> None:
    """The file is sound, but of its two branches Norse runs the second after the sum."""
    rng = np.random.default_rng(0)
    nodes: dict[str, nir.NIRNode] = {"x": inp(1, 2, 2), "y": out(1, 2, 2)}
    nodes |= {name: conv(rng, 1, 1, 1, padding=0) for name in "abc"}
    edges = [("x", "a"), ("x", "b"), ("a", "c"), ("b", "c"), ("c", "y")]
    told = refusal(graph(nodes, edges), tmp_path / "n.nir")
    assert "would run" in told
    assert told.count(" before ") == 1
    loop = graph(nodes, [("x", "a"), ("a", "b"), ("b", "a"), ("b", "c"), ("c", "y")])
    assert "recurrent" in refusal(loop, tmp_path / "loop.nir")


def test_late_circuits_that_were_changed(tmp_path: Path) -> None:
    config = small_config("strided", embed_dim=8, depth=1)
    executor = norse_executor(load_source(lively_model(config)).graph, tmp_path)
    opened = nir.read(executor.path)
    next(node for name, node in opened.nodes.items() if "digit" in name and isinstance(node, nir.LIF)).v_threshold += 1
    nir.write(tmp_path / "changed.nir", opened)
    with pytest.raises(UnsupportedError, match="circuits were changed after the export"):
        NorseExecutor(tmp_path / "changed.nir")


def test_norse_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nir(chain(("x", inp(4)), ("l", lif(4)), ("y", out(4)), time_steps=3), tmp_path / "n.nir")
    network = read_nir(tmp_path / "n.nir")
    monkeypatch.setitem(sys.modules, "norse.torch", None)
    for start in (lambda: NorseExecutor(tmp_path / "n.nir"), lambda: norse_executor(network, tmp_path)):
        with pytest.raises(UnsupportedError, match=r"Norse is not installed .*pip install norse==1\.1\.0"):
            start()


def test_what_the_file_does_not_say_is_all_it_takes(tmp_path: Path) -> None:
    """Spikes in, spikes out, other time constants and another dt."""
    ones = np.ones(6, dtype=np.float32)
    neuron = nir.LIF(ones * 4e-3, ones, ones * 0, ones * np.float32(0.3), ones * 0)
    nir.write(tmp_path / "n.nir", nir.NIRGraph({"x": inp(6), "l": neuron, "y": out(6)}, [("x", "l"), ("l", "y")]))
    x = spikes(np.random.default_rng(3), 2, 9, 6)
    found = NorseExecutor(tmp_path / "n.nir", time_steps=9, dt=1e-3).run(x)
    np.testing.assert_array_equal(
        found.outputs["y"], GraphExecutor(read_nir(tmp_path / "n.nir"), 9, dt=1e-3).run(x).outputs["y"]
    )
    assert 0.05 < found.outputs["y"].mean() < 0.95


def stranger(path: Path, **nodes: nir.NIRNode) -> Path:
    """A chain of nodes, as another tool writes it."""
    made = {"input": inp(3), **nodes, "output": out(3)}
    nir.write(path, nir.NIRGraph(made, list(pairwise(made)), type_check=False))
    return path


def test_what_norse_cannot_import_is_one_line(tmp_path: Path) -> None:
    taken = stranger(tmp_path / "taken.nir", type=lif(3))  # torch's modules have an attribute of that name
    with pytest.raises(UnsupportedError, match=r"Norse's importer fails \(.*type.*--nir-profile portable"):
        NorseExecutor(taken, time_steps=2)
    inner = nir.NIRGraph({"input": inp(3), "n": lif(3), "output": out(3)}, [("input", "n"), ("n", "output")])
    nested = stranger(tmp_path / "nested.nir", sub=inner)
    with pytest.raises(UnsupportedError, match=r"nested graphs \('sub'\)"):
        NorseExecutor(nested, time_steps=2)


@pytest.mark.parametrize("dt", [float("nan"), -1.0, 1.0])
def test_a_step_that_makes_no_sense(dt: float, tmp_path: Path) -> None:
    """Time constants of 2e-4 s are shorter than a step of 1 s."""
    path = stranger(tmp_path / "n.nir", n=lif(3))
    with pytest.raises(InputError, match=r"--dt|shorter than"):
        load_source(path, None, 2, dt)
