"""The table of docs/circuits.md that says what each importer supports: every cell is measured here.

A case is a graph of a few nodes, written by `write_nir`, opened by `nir.read` and run by the importer. Weights, inputs
and thresholds are such that no rounding can excuse a difference. yes: the values that NIR defines, bit for bit.
refused: an error while importing. fails: an error while running. left out: the values of the graph without the node.
wrong: other values, and no error.
"""

import re
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from statten_deploy.export.nir import write_nir
from statten_deploy.passes import topological_chain
from statten_deploy.simulate import Simulator
from tests.passes.strangers import IMPORTERS, import_with, reset
from tests.simulate.builders import affine, conv, eighths, frames, graph, inp, lif, out, pool

for package in ("spikingjelly", "norse", "snntorch"):
    pytest.importorskip(package)

TEXT = (Path(__file__).parents[2] / "docs" / "circuits.md").read_text(encoding="utf-8")
SHAPE = (4, 4, 4)
ONE = np.ones(SHAPE, dtype=np.float32)
MIXED = np.where(np.arange(64).reshape(SHAPE) % 2, np.float32(1), np.float32(2))
STEPS = 8
RNG = np.random.default_rng(0)
NO_TIE = 1.03125 + 2.0**-13
"""A threshold that no membrane of eighths, halved eight times, can meet."""


def leaky(tau: Any = 2e-4, r: float = 1, leak: float = 0, threshold: Any = NO_TIE, reset: float = 0) -> nir.LIF:
    return nir.LIF(*((ONE * value).astype(np.float32) for value in (tau, r, leak, threshold, reset)))


def synaptic(**changes: Any) -> nir.CubaLIF:
    """As SpikingJelly and snnTorch want it: r = tau_mem / dt, w_in = tau_syn / dt."""
    usual = {"tau_syn": 2e-4, "tau_mem": 2e-4, "r": 2, "v_leak": 0, "v_threshold": NO_TIE, "v_reset": 0, "w_in": 2}
    return nir.CubaLIF(**{key: (ONE * value).astype(np.float32) for key, value in {**usual, **changes}.items()})


def alone(node: nir.NIRNode) -> nir.NIRGraph:
    return graph({"x": inp(*SHAPE), "n": node, "y": out(*SHAPE)}, [("x", "n"), ("n", "y")])


def behind(node: nir.NIRNode, *grid: int, kernel: int = 1, stride: int = 1) -> nir.NIRGraph:
    """A node between neurons and a convolution, with a second path beside it: without the node, the rest still runs."""
    shape = (4, *(grid or SHAPE[1:]))
    nodes = {"x": inp(*SHAPE), "l": leaky(), "n": node, "m": conv(RNG, 4, 4), "y": out(*shape)}
    if not grid:
        return graph(nodes, [("x", "l"), ("l", "n"), ("n", "m"), ("l", "m"), ("m", "y")])
    nodes = {**nodes, "s": pool(nir.SumPool2d, (kernel, kernel), (stride, stride), (0, 0))}
    edges = [("x", "l"), ("l", "s"), ("l", "n"), ("s", "m"), ("n", "m"), ("m", "y")]
    return topological_chain(graph(nodes, edges))[0]


def flat() -> nir.NIRGraph:
    flatten = nir.Flatten({"input": np.array(SHAPE)}, 0, -1)
    nodes = {"x": inp(*SHAPE), "f": flatten, "a": affine(RNG, 64, 6), "k": lif(6), "z": nir.Linear(eighths(RNG, 3, 6))}
    return graph({**nodes, "y": out(3)}, [("x", "f"), ("f", "a"), ("a", "k"), ("k", "z"), ("z", "y")])


def fork(*edges: tuple[str, str]) -> nir.NIRGraph:
    nodes = {"x": inp(*SHAPE), "l": leaky(), "c": conv(RNG, 4, 4), "y": out(*SHAPE)}
    more = {"m": leaky()} if any("m" in edge for edge in edges) else {}
    return graph({**nodes, **more}, [("x", "l"), ("l", "c"), *edges])


def unordered() -> nir.NIRGraph:
    """Two branches whose sum a depth-first walk reaches after the first of them."""
    nodes = {"x": inp(*SHAPE), "y": out(*SHAPE)} | {name: conv(RNG, 4, 4) for name in "abc"}
    return graph(nodes, [("x", "a"), ("x", "b"), ("a", "c"), ("b", "c"), ("c", "y")])


CASES: dict[str, nir.NIRGraph] = {
    "Conv2d": behind(conv(RNG, 4, 4)),
    "Conv2d with dilation": behind(conv(RNG, 4, 4, padding=2, dilation=2)),
    "Conv2d with two groups": behind(conv(RNG, 4, 4, groups=2)),
    "Conv2d, depthwise": behind(conv(RNG, 4, 4, groups=4)),
    "Flatten, Affine, Linear": flat(),
    "the same, two samples at once": flat(),
    "LIF": alone(leaky()),
    "LIF, tau = dt": alone(leaky(tau=1e-4)),
    "LIF, tau = dt (1 + 1e-5)": alone(leaky(tau=1e-4 * (1 + 1e-5))),
    "LIF, r = tau / dt": alone(leaky(r=2)),
    "LIF, another r": alone(leaky(r=3)),
    "LIF, v_reset = v_leak ≠ 0": alone(leaky(leak=0.25, reset=0.25)),
    "LIF, v_reset ≠ v_leak": alone(leaky(reset=-1)),
    "LIF, thresholds that differ": alone(leaky(threshold=MIXED * NO_TIE)),
    "LIF, tau that differs": alone(leaky(tau=MIXED * 2e-4)),
    "LIF, v meets the threshold": alone(leaky(threshold=1.03125)),
    "IF, r = 1 / dt": alone(nir.IF(ONE * 1e4, ONE * np.float32(NO_TIE))),
    "IF, r = 1": alone(nir.IF(ONE, ONE * np.float32(2e-4))),
    "CubaLIF, r = tau_mem / dt, w_in = tau_syn / dt": alone(synaptic()),
    "CubaLIF, other r or w_in": alone(synaptic(r=1, w_in=1)),
    "CubaLIF, v_leak ≠ 0": alone(synaptic(v_leak=0.25)),
    "CubaLIF, v_reset ≠ 0": alone(synaptic(v_reset=-1)),
    "SumPool2d": behind(pool(nir.SumPool2d, (2, 2), (2, 2), (0, 0)), 2, 2, kernel=2, stride=2),
    "SumPool2d with padding": behind(pool(nir.SumPool2d, (2, 2), (2, 2), (1, 1)), 3, 3, kernel=2),
    "AvgPool2d": behind(pool(nir.AvgPool2d, (2, 2), (2, 2), (0, 0)), 2, 2, kernel=2, stride=2),
    "Scale": behind(nir.Scale(ONE * 2)),
    "Delay": behind(nir.Delay(ONE * np.float32(1e-4))),
    "Threshold": behind(nir.Threshold(ONE * np.float32(0.5))),
    "LI": behind(nir.LI(ONE * np.float32(2e-4), ONE, ONE * 0)),
    "CubaLI": behind(nir.CubaLI(ONE * np.float32(2e-4), ONE * np.float32(2e-4), ONE, ONE * 0, ONE)),
    "I": behind(nir.I(ONE * 1e4)),
    "two edges into a node": fork(("l", "m"), ("c", "m"), ("m", "y")),
    "two edges into an Output": fork(("l", "y"), ("c", "y")),
    "two branches, one path through all nodes": topological_chain(unordered())[0],
    "two branches": unordered(),
}


def run(tool: str, network: nir.NIRGraph, x: np.ndarray) -> Any:
    """Outputs [B, T, ...], or what else came out."""
    module, state, outputs = import_with(tool, network), None, []
    reset(module)
    with torch.no_grad():
        for t in range(x.shape[1]):
            result = module(torch.from_numpy(x[:, t]), state)
            if len(result) != 2 or not isinstance(result[0], torch.Tensor):
                return result
            y, state = result
            outputs.append(y.reshape(len(x), -1).numpy() if y.shape[0] == len(x) else y.reshape(1, -1).numpy())
    return np.stack(outputs, axis=1)


def without(network: nir.NIRGraph) -> nir.NIRGraph:
    """The graph without the node ``n`` and the links that lead there."""
    nodes = {name: node for name, node in network.nodes.items() if name != "n" and not name.startswith("link")}
    return graph(nodes, [(a, b) for a, b in network.edges if a in nodes and b in nodes])


def values(network: nir.NIRGraph, x: np.ndarray) -> np.ndarray:
    return next(iter(Simulator(network).run(x).outputs.values())).reshape(*x.shape[:2], -1)


def outcome(tool: str, what: str, path: Path) -> str:
    network = CASES[what]
    x = frames(np.random.default_rng(1), 2 if "two samples" in what else 1, STEPS, *SHAPE)
    expected = values(network, x)
    assert len(np.unique(expected)) > 1
    opened = read(network, path)
    try:
        import_with(tool, opened)
    except (ValueError, AssertionError, KeyError, RuntimeError):
        return "refused"
    try:
        found = run(tool, opened, x)
    except (RuntimeError, ValueError):
        return "fails"
    if not isinstance(found, np.ndarray):
        return "a tuple"
    if np.array_equal(found, expected):
        return "yes"
    beside = "m" in network.nodes and "n" in network.nodes
    return "left out" if beside and np.array_equal(found, values(without(network), x)) else "wrong"


def read(network: nir.NIRGraph, path: Path) -> nir.NIRGraph:
    """As in a file; with type check, unless it is the check that is in the way."""
    report = write_nir(network, path)
    return nir.read(path, type_check=report.type_checked)


(TABLE,) = re.findall(r"^\| \| Norse.*?\| SpikingJelly.*?\| snnTorch.*?\|\n\|[-| ]*\|\n((?:\|.*\|\n)+)", TEXT, re.M)
ROWS = {cells[0]: cells[1:] for cells in (re.split(r" *\| *", line.strip("| ")) for line in TABLE.splitlines())}


def test_the_table_has_every_case() -> None:
    assert list(ROWS) == list(CASES)
    assert all(len(cells) == 3 for cells in ROWS.values())


@pytest.mark.parametrize("tool", IMPORTERS)
def test_every_cell(tool: str, tmp_path: Path) -> None:
    column = ("Norse", "SpikingJelly", "snnTorch").index(tool)
    told = {what: cells[column].replace("*", "").partition(":")[0] for what, cells in ROWS.items()}
    assert {what: outcome(tool, what, tmp_path / "n.nir") for what in CASES} == told
