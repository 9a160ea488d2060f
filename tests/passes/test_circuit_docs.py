"""The truth tables of docs/circuits.md, built and run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from statten_deploy.passes.circuit_parts import Parts, Profile, digits_of
from statten_deploy.simulate import Simulator
from tests.passes.circuits import PROFILES
from tests.simulate.builders import DT, inp, out

TEXT = (Path(__file__).parents[2] / "docs" / "circuits.md").read_text(encoding="utf-8")
profiles = pytest.mark.parametrize("profile", PROFILES)


def table(header: str) -> list[list[str]]:
    """The rows of the table whose header starts with `header`."""
    (found,) = re.findall(rf"^\| {re.escape(header)}.*\|\n\|[-|]*\|\n((?:\|.*\|\n)+)", TEXT, re.MULTILINE)
    return [re.split(r" *\| *", line.strip("| ")) for line in found.splitlines()]


def run(profile: Profile, given: np.ndarray, build: Callable[[Parts, list[str]], dict[str, str]]) -> dict[str, Any]:
    """What parts give, [T] each, for signals [T, n]; `build` takes the nodes of the n signals."""
    n = given.shape[1]
    parts = Parts(profile, DT, ("x", (n, 1, 1)))
    parts.nodes["x"] = inp(n, 1, 1)
    signals = [parts.conv(f"x{i}", np.eye(n, dtype=np.float32)[[i]], 0, "x") for i in range(n)]
    results = build(parts, signals)
    nodes: dict[str, nir.NIRNode] = {**parts.nodes, **{f"y {name}": out(1, 1, 1) for name in results}}
    edges = [*parts.edges, *((node, f"y {name}") for name, node in results.items())]
    x = given.astype(np.float32)[None, :, :, None, None]
    found = Simulator(nir.NIRGraph(nodes, edges, type_check=False)).run(x).outputs
    return {name: found[f"y {name}"].reshape(-1).astype(int).tolist() for name in results}


@profiles
def test_gates(profile: Any) -> None:
    rows = np.array(table("a | b | a + b"), dtype=int)
    assert {tuple(row[:2]) for row in rows} == {(0, 0), (0, 1), (1, 0), (1, 1)}

    def build(parts: Parts, signals: list[str]) -> dict[str, str]:
        a, b = signals
        minus = parts.times("minus", -1.0, b)
        return {
            "and": parts.gate("and", 1.5, a, b),
            "or": parts.gate("or", 0.5, a, b),
            "not": parts.gate("not", 0.5, a, minus),
        }

    for order in (rows, rows[::-1], rows[[3, 0, 2, 1]]):  # a gate remembers nothing
        found = run(profile, order[:, :2], build)
        assert [found["and"], found["or"], found["not"]] == order[:, [3, 4, 6]].T.tolist()
    np.testing.assert_array_equal(rows[:, 2], rows[:, 0] + rows[:, 1])
    np.testing.assert_array_equal(rows[:, 5], rows[:, 0] - rows[:, 1])


@profiles
def test_digits(profile: Any) -> None:
    rows = np.array(table("W | digit 2"), dtype=int)
    assert rows[:, 0].tolist() == list(range(8))

    def build(parts: Parts, signals: list[str]) -> dict[str, str]:
        return {str(b): digit for b, digit in enumerate(digits_of(parts, "w", 3, signals))}

    found = run(profile, rows[:, :1], build)
    assert [found["2"], found["1"], found["0"]] == rows[:, [1, 3, 5]].T.tolist()
    np.testing.assert_array_equal(rows[:, 2], rows[:, 0] - 4 * rows[:, 1])
    np.testing.assert_array_equal(rows[:, 4], rows[:, 2] - 2 * rows[:, 3])


def memory(parts: Parts, signals: list[str]) -> dict[str, str]:
    """The rows of the table in time, by the parts that portable circuits are made of."""
    (x,) = signals
    was = parts.delayed(x, x, 2)
    quiet = parts.nor("quiet2", parts.nor("quiet1", x), inverted=True)
    return {
        "constant 1, threshold 0.625": parts.beat(2),
        "start pulse": parts.start(),
        "clock, S = 3": parts.clock(3, 0),
        "NOR(x[t], x[t-1])": f"{x}.was1.nor",
        "AND(x[t], x[t-1])": f"{x}.was1.and",
        "x[t-1]": f"{x}.was1",
        "x[t-2]": was,
        "x, held for 3 steps": parts.times("held", -1.0, quiet, bias=1.0),
    }


def test_memory_in_time() -> None:
    rows = {name: [int(cell) for cell in cells] for name, *cells in table("step | 0")}
    found = run("portable", np.array(rows["x"])[:, None], memory)
    assert found == {name: cells for name, cells in rows.items() if name != "x"}


def test_memory_as_a_truth_table() -> None:
    """All sequences of six steps, from rest: NOR, AND and the step before are what the table says."""
    rows = {(int(a), int(b)): [int(cell) for cell in cells] for a, b, *cells in table("x[t-1] | x[t]")}
    assert len(rows) == 4
    names = ["NOR(x[t], x[t-1])", "AND(x[t], x[t-1])", "x[t-1]"]
    for code in range(64):
        x = [code >> i & 1 for i in range(6)]
        found = run("portable", np.array(x)[:, None], memory)
        for t, pair in enumerate(zip([0, *x], x, strict=False)):
            assert [found[name][t] for name in names] == rows[pair], (x, t)
