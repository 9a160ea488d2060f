"""Loops, integrators and biased synapses in Lava's simulator: every spike, every membrane, every output."""

from pathlib import Path
from typing import Any

import nir
import numpy as np

from statten_deploy.compare.exact import verify_exact
from statten_deploy.compare.integers import FixedExecutor, LavaExecutor
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.lava.plan import make_plan
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.ir import STAttenAttention, TemporalMean
from statten_deploy.quantize import QuantizeOptions, quantize
from tests.quantize.recurrent_graphs import events, integrator, recurrent, rough, tangled
from tests.quantize.test_other_graphs import conv, cuba, eighths, graph, inp, lif, out


def without(network: nir.NIRGraph, *names: str) -> nir.NIRGraph:
    nodes = {name: node for name, node in network.nodes.items() if name not in names}
    edges = [edge for edge in network.edges if not set(edge) & set(names)]
    return nir.NIRGraph(nodes, edges, metadata=network.metadata, type_check=False)


def agree(network: nir.NIRGraph, x: np.ndarray, folder: Path, batch: int) -> None:
    write_bundle(network, folder)
    lava = LavaExecutor(folder, membranes=True)
    found = lava.runner.run(x, spikes=True, membranes=True, batch=batch)
    expected = IntegerRunner(network).run(x, spikes=True, membranes=True)
    for kind in ("spikes", "membranes", "outputs"):
        assert getattr(found, kind).keys() == getattr(expected, kind).keys()
        for name, value in getattr(expected, kind).items():
            np.testing.assert_array_equal(getattr(found, kind)[name], value, err_msg=f"{kind} {name}")
    np.testing.assert_array_equal(found.real["logits"], real_outputs(network, expected.outputs)["logits"])
    assert all(0.02 < spikes.mean() < 0.98 for spikes in expected.spikes.values())


def test_a_recurrent_network_sample_after_sample(tmp_path: Path) -> None:
    """Two loops that share a current-based layer; batches follow each other, so every state must be forgotten."""
    rng = np.random.default_rng(4)
    subject = rough(rng, recurrent(rng, "cuba"))
    subject.nodes["in"].weight += np.float32(0.4)
    quantised = quantize(without(subject, "spikes"), QuantizeOptions(6))
    agree(quantised, events(rng, subject, 5), tmp_path / "b", batch=2)


def test_weights_between_two_recurrent_edges(tmp_path: Path) -> None:
    """What they read a step ago was a step old already, and nothing at the first step of each sample."""
    rng = np.random.default_rng(1)
    subject = tangled(rng)
    quantised = quantize(subject, QuantizeOptions(8))
    names = {node["name"] for node in make_plan(quantised).document["nodes"]}
    assert "b/previous/previous" in names
    agree(quantised, events(rng, subject, 4), tmp_path / "b", batch=2)


def test_a_loop_that_starts_late_and_a_mean_of_membranes(tmp_path: Path) -> None:
    """Behind attention over chunks everything begins a step later; the recurrent weights are read outside, too."""
    rng = np.random.default_rng(7)
    shape = (4, 2, 2)
    nodes: dict[str, Any] = {
        "input": inp(2, 2, 2),
        "in": conv(eighths(rng, 4, 2, 3, 3), eighths(rng, 4) + 0.5),
        "s": lif(shape, threshold=0.25),
        "attention": STAttenAttention(2, 2, "block"),
        "m": lif(shape, threshold=1.5),
        "forth": conv(eighths(rng, 4, 4, 3, 3), eighths(rng, 4)),
        "l": cuba(shape, r=2, w_in=2, threshold=0.75),
        "back": conv(eighths(rng, 4, 4, 3, 3, largest=3), eighths(rng, 4)),
        "next": cuba(shape, r=2, w_in=2, threshold=0.5),
        "head": conv(eighths(rng, 3, 4, 1, 1), eighths(rng, 3), padding=0),
        "membrane": integrator("CubaLI", (3, 2, 2)),
        "mean": TemporalMean(),
        "logits": out(3, 2, 2),
    }
    edges = [("input", "in"), ("in", "s"), *(("s", f"attention.{port}") for port in "qkv"), ("attention", "m")]
    edges += [("m", "forth"), ("forth", "l"), ("l", "back"), ("back", "l"), ("back", "next"), ("next", "head")]
    edges += [("head", "membrane"), ("membrane", "mean"), ("mean", "logits")]
    subject = graph(nodes, edges)
    quantised = quantize(subject, QuantizeOptions(8))
    plan = make_plan(quantised)
    assert plan.latency_steps == 1
    names = {node["name"]: node for node in plan.document["nodes"]}
    assert {"l/previous", "back", "back/again"} <= names.keys()
    assert names["l/previous"]["start"] == names["membrane"]["start"] == 1
    agree(quantised, events(rng, subject, 4), tmp_path / "b", batch=2)


def test_a_wrong_integrator_is_found(tmp_path: Path) -> None:
    """Integrators do not fire; their membranes are compared all the same."""
    rng = np.random.default_rng(4)
    subject = recurrent(rng, "lif")
    right, wrong = (quantize(without(subject, "spikes"), QuantizeOptions(8)) for _ in range(2))
    wrong.nodes["li"].bias_mantissa[1] += 1
    x = events(rng, subject, 2)
    agreement = verify_exact(FixedExecutor(right, membranes=True), FixedExecutor(wrong, membranes=True), x)
    assert agreement.spike_mismatches == 0
    assert agreement.membrane_mismatches > 0
    assert any("layer 'li'" in problem and "neuron (1,)" in problem for problem in agreement.problems)
