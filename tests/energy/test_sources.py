"""The same integers from every source of spikes: torch, NIR, ONNX and its spike counts; torch, numpy, ONNX and Lava."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from statten_deploy.compare.circuits import CircuitExecutor
from statten_deploy.compare.executors import (
    Executor,
    GraphExecutor,
    OnnxExecutor,
    OnnxIntegerExecutor,
    TorchExecutor,
)
from statten_deploy.compare.integers import FixedExecutor, LavaExecutor, TorchIntExecutor
from statten_deploy.energy import Counts, EnergyCounter, synops_bounds
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.nir import read_nir, write_nir
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.frontend import build_graph
from statten_deploy.models.statten import STAtten
from statten_deploy.passes import lower_to_circuits
from statten_deploy.quantize import QuantizeOptions, quantize
from tests.conftest import lively_input, lively_model, small_config

SAMPLES, STEPS = 4, 4


class Case:
    """A network, its graph and its integers, with every count of the torch engines."""

    def __init__(self, variant: str, **changes: Any) -> None:
        self.model: STAtten = lively_model(small_config(variant, depth=1, **changes), seed=2)
        self.x = lively_input(self.model.config, SAMPLES).numpy() / 2
        if self.x.ndim == 5:  # events stay whole numbers
            self.x = np.rint(self.x * 2)
        self.graph = build_graph(self.model)
        self.integers = quantize(self.graph, QuantizeOptions(), self.x)
        self.float_counts = self.counts(self.graph, TorchExecutor(self.model))
        self.integer_counts = self.counts(self.integers, TorchIntExecutor(self.integers))
        assert self.float_counts.spikes > 0 < self.integer_counts.spikes
        assert self.integer_counts != self.float_counts

    def counts(self, graph: nir.NIRGraph, executor: Executor) -> Counts:
        """In two batches, as a comparison would."""
        counter = EnergyCounter(graph)
        for start in (0, 3):
            batch = self.x[start : start + 3]
            counter.update(executor.run(batch).spikes, batch)
        return counter.counts()


CASES: dict[str, dict[str, Any]] = {
    "strided": {"embed_dim": 16, "num_heads": 2},
    "dvs": {},
}
"""Images and attention whose circuits are small; event frames, pools and max-pools of currents."""


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param, **CASES[request.param])


def test_float_engines(case: Case, tmp_path: Path) -> None:
    write_nir(case.graph, tmp_path / "n.nir")
    save_onnx(build_onnx(case.graph), tmp_path / "n.onnx")
    engines: list[Executor] = [
        GraphExecutor(case.graph),
        GraphExecutor.from_file(tmp_path / "n.nir"),
        OnnxExecutor(tmp_path / "n.onnx", spikes=True),
    ]
    if case.model.config.pooling == "strided":
        engines.append(CircuitExecutor(lower_to_circuits(case.graph)[0], case.graph, STEPS, 1e-4))
    for engine in engines:
        assert case.counts(case.graph, engine) == case.float_counts, engine.name


def test_integer_engines(case: Case, tmp_path: Path) -> None:
    write_nir(case.integers, tmp_path / "n.nir")
    save_onnx(build_integer_onnx(case.integers), tmp_path / "n.onnx")
    write_bundle(case.integers, tmp_path / "n.lava")
    engines: list[Executor] = [
        FixedExecutor(case.integers),
        FixedExecutor(read_nir(tmp_path / "n.nir"), name="nir"),
        OnnxIntegerExecutor(tmp_path / "n.onnx"),
        LavaExecutor(tmp_path / "n.lava"),
    ]
    for engine in engines:
        assert case.counts(case.integers, engine) == case.integer_counts, engine.name
    assert case.counts(read_nir(tmp_path / "n.nir"), engines[1]) == case.integer_counts  # and on the graph of the file


def test_the_spike_counts_of_onnx_files(case: Case, tmp_path: Path) -> None:
    """What a file with ``--spike-counts`` tells: every layer's spikes exactly, SynOps within bounds that hold."""
    float_model = build_onnx(case.graph, spike_counts=True)
    integer_model = build_integer_onnx(case.integers, spike_counts=True)
    for model, graph, counts in (
        (float_model, case.graph, case.float_counts),
        (integer_model, case.integers, case.integer_counts),
    ):
        save_onnx(model, tmp_path / "n.onnx")
        outputs = OnnxExecutor(tmp_path / "n.onnx").run(case.x).outputs
        found = {name: value for name, value in outputs.items() if name.startswith("spike_counts/")}
        totals = {name.removeprefix("spike_counts/"): int(value.sum()) for name, value in found.items()}
        layers = {layer.name: layer for layer in counts.layers}
        assert totals == {name: layer.spikes for name, layer in layers.items() if layer.role == "neurons"}
        bounds = synops_bounds(graph, totals, samples=SAMPLES, steps=STEPS)
        known = {name: bound for name, bound in bounds.items() if bound is not None}
        assert len(known) > 6
        for name, bound in known.items():
            assert bound.lowest <= layers[name].synops <= bound.highest
        whole = [name for name, node in graph.nodes.items() if np.all(getattr(node, "weight", 0))]
        single = [name for name in whole if name in known and np.shape(graph.nodes[name].weight)[2:] in ((1, 1), ())]
        assert single or graph is case.integers  # where some weights became zero
        assert all(known[name].exact for name in single)
        assert any(not bound.exact for bound in known.values())


def test_one_spike_more_is_another_count(case: Case) -> None:
    """The counts above could not be equal by accident: any single spike shows."""

    class Changed(TorchExecutor):
        layer = ""

        def run(self, x: Any) -> Any:
            found = super().run(x)
            found.spikes[self.layer].reshape(-1)[0] ^= True
            return found

    for layer in ("patch_embed.proj_lif1", "block.0.attn.k_lif", "head_lif"):
        executor = Changed(case.model)
        executor.layer = layer
        assert case.counts(case.graph, executor) != case.float_counts
