"""Batch by batch: who is compared with whom, what stays in memory, who is out after a failure."""

import weakref
from copy import copy

import nir
import numpy as np
import pytest

from statten_deploy.compare import lockstep
from statten_deploy.compare.executors import Execution, GraphExecutor
from statten_deploy.compare.lockstep import Runner, run_batch
from statten_deploy.compare.results import backend_results
from statten_deploy.compare.tally import Tally
from statten_deploy.errors import StattenError
from statten_deploy.frontend import build_graph
from tests.conftest import lively_input, lively_model, small_config


@pytest.fixture(scope="module")
def network():
    config = small_config("static", depth=1)
    graph = build_graph(lively_model(config))
    return graph, lively_input(config, 2).numpy(), GraphExecutor(graph)


class Fake:
    """What another executor gives, changed; `alive` are the results that somebody still holds, `most` at one time."""

    def __init__(self, inner, change=lambda execution, call: execution, alive=None) -> None:
        self.name, self.inner, self.change = "fake", inner, change
        self.calls = 0
        self.alive: weakref.WeakSet[Execution] = weakref.WeakSet() if alive is None else alive
        self.most = 0

    def run(self, x):
        found = Given(self.inner.run(x))
        self.change(found, self.calls)
        self.calls += 1
        self.alive.add(found)
        self.most = max(self.most, len(self.alive))
        return found

    def margins(self, x, layer):
        return self.inner.margins(x, layer)


class Given(Execution):
    """An Execution that can be referred to weakly and counted by identity."""

    __hash__ = object.__hash__

    def __init__(self, other: Execution) -> None:
        super().__init__(dict(other.outputs), {name: value.copy() for name, value in other.spikes.items()})


def runner(graph, name: str, executor, reference: str = "torch") -> Runner:
    return Runner(name, "float32", executor, executor.run, reference, name != reference, Tally(graph, "image"), [])


def pair(batch: int) -> range:
    """The numbers of the two samples of a batch."""
    return range(2 * batch, 2 * batch + 2)


def test_no_spikes_outlive_their_use(network) -> None:
    """Whatever the number of backends and batches: those of the reference, and those of one backend."""
    graph, x, real = network
    alive: weakref.WeakSet[Execution] = weakref.WeakSet()
    fakes = [Fake(real, alive=alive) for _ in range(5)]
    runners = {name: runner(graph, name, fake) for name, fake in zip(("torch", *"abcd"), fakes, strict=True)}
    for batch in range(4):
        run_batch(runners, x, None, pair(batch))
    assert [fake.calls for fake in fakes] == [4] * 5
    assert [fake.most for fake in fakes] == [1, 2, 2, 2, 2]
    assert len(alive) == 0
    assert runners["d"].tally.samples == 8


def flip_head(execution: Execution, call: int) -> None:
    if call == 1:
        execution.spikes["head_lif"][0, 1, 0] ^= True


def test_the_yardstick_runs_only_where_spikes_differ(network) -> None:
    graph, x, real = network
    yardstick = Fake(real)
    runners = {
        "torch": runner(graph, "torch", Fake(real)),
        "a": runner(graph, "a", Fake(real, flip_head)),
        "b": runner(graph, "b", Fake(real, flip_head)),
    }
    for batch in range(3):
        run_batch(runners, x, None, pair(batch), yardstick)
    assert yardstick.calls == 1  # of three batches the second, once for both
    assert runners["a"].agreement.spike_mismatches == runners["a"].tally.mismatches == 1


def test_a_flip_far_from_the_threshold_is_a_problem(network) -> None:
    graph, x, real = network
    runners = {"torch": runner(graph, "torch", Fake(real)), "a": runner(graph, "a", Fake(real, flip_head))}
    for batch in range(4):
        run_batch(runners, x, None, pair(batch))
    runners["a"].finish(runners["torch"])
    (problem,) = runners["a"].problems
    assert problem.startswith("layer 'head_lif', step 0, neuron (0,): the spike differs although the membrane is")
    (note,) = runners["a"].notes
    assert note.startswith("1 of ")
    assert note.endswith(" spikes differ from torch, in 1 of 8 samples")  # how many, and no excuse


class Recurrent(Fake):
    """A reference in which everything is upstream of everything: no first flip can be traced."""

    def margins(self, x, layer):
        return None


@pytest.mark.parametrize(
    ("kind", "first"),
    [(Recurrent, "first flips: not traced: recurrent"), (Fake, "first flips: at most 1.0e-07 of the threshold away")],
)
def test_what_is_said_of_flips_within_the_tolerances(network, monkeypatch, kind, first) -> None:
    graph, x, real = network
    monkeypatch.setattr(real, "margins", lambda x, layer: np.full((4, len(x), 32), 1e-7), raising=False)
    runners = {"torch": runner(graph, "torch", kind(real)), "a": runner(graph, "a", Fake(real, flip_head))}
    for batch in range(4):
        run_batch(runners, x, None, pair(batch))
    runners["a"].finish(runners["torch"])
    assert runners["a"].problems == []
    (note,) = runners["a"].notes
    assert f"({first}" in note
    assert "sums in another order move a membrane" in note


def fail(execution: Execution, call: int) -> None:
    if call == 1:
        raise StattenError("the simulator fell over")


def forget(execution: Execution, call: int) -> None:
    del execution.spikes["head_lif"]


def test_a_backend_that_fails_is_out_and_the_others_go_on(network) -> None:
    graph, x, real = network
    runners = {
        "torch": runner(graph, "torch", Fake(real)),
        "a": runner(graph, "a", Fake(real, fail)),
        "b": runner(graph, "b", Fake(real, forget)),
        "c": runner(graph, "c", Fake(real)),
    }
    for batch in range(3):
        run_batch(runners, x, None, pair(batch))
    for one in runners.values():
        one.finish(runners["torch"])
    assert runners["a"].executor.calls == 1
    assert runners["a"].problems == ["failed on samples 2 to 3: the simulator fell over"]
    assert runners["b"].problems == [
        "gives other layers or outputs than torch",
        "neuron layer 'head_lif' is missing from b",
    ]
    assert (runners["c"].problems, runners["c"].tally.samples) == ([], 6)


def run_out(execution: Execution, call: int) -> None:
    if call == 1:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL :\n  no memory")


def test_whatever_an_engine_raises_it_alone_is_out(network) -> None:
    graph, x, real = network
    runners = {
        "torch": runner(graph, "torch", Fake(real)),
        "a": runner(graph, "a", Fake(real, run_out)),
        "b": runner(graph, "b", Fake(real, lambda execution, call: execution.spikes.update(head_lif=np.zeros(3)))),
        "c": runner(graph, "c", Fake(real)),
    }
    for _ in range(3):
        assert run_batch(runners, x, None, [10, 17]).keys() == {"torch"}
    assert runners["a"].problems == [
        "failed on samples 10 to 17: RuntimeError: [ONNXRuntimeError] : 1 : FAIL : no memory"
    ]
    assert runners["a"].failed == runners["a"].problems[0]
    assert "in run_out" in runners["a"].traces[0]
    assert runners["b"].failed
    assert (runners["c"].problems, runners["c"].tally.samples) == ([], 6)


def test_nobody_is_held_to_a_reference_that_failed(network) -> None:
    graph, x, real = network
    runners = {
        "torch": runner(graph, "torch", Fake(real, run_out)),
        "a": runner(graph, "a", Fake(real)),
        "other": runner(graph, "other", Fake(real), "other"),
        "b": runner(graph, "b", Fake(real), "other"),
    }
    for batch in range(3):
        kept = run_batch(runners, x, None, pair(batch))
    assert kept.keys() == {"other"}
    for one in runners.values():
        one.finish(runners[one.reference])
    assert runners["a"].failed == "torch, which it is held to, failed"
    assert [len(one.problems) for one in runners.values()] == [1, 0, 0, 0]
    assert (runners["a"].executor.calls, runners["b"].tally.samples) == (1, 6)


def test_the_longest_batch_is_remembered(network, monkeypatch) -> None:
    """The last one can be a single sample: it says nothing about how long a whole batch takes."""
    graph, x, real = network
    now = iter([0.0, 1.0, 10.0, 15.0, 20.0, 22.0])
    monkeypatch.setattr(lockstep, "perf_counter", lambda: next(now))
    runners = {"torch": runner(graph, "torch", Fake(real))}
    for batch in range(3):
        run_batch(runners, x, None, pair(batch))
    assert runners["torch"].seconds == 5.0


def test_problems_do_not_grow_with_the_batches(network) -> None:
    graph, x, real = network

    def wrong(execution: Execution, call: int) -> None:
        execution.spikes["patch_embed.proj_lif"][:] ^= True

    runners = {"torch": runner(graph, "torch", Fake(real)), "a": runner(graph, "a", Fake(real, wrong))}
    for batch in range(5):
        run_batch(runners, x, None, pair(batch))
    runners["a"].finish(runners["torch"])
    assert len(runners["a"].problems) == 3
    assert runners["a"].tally.mismatches == runners["a"].agreement.spike_mismatches > 0


def turn_round(execution: Execution, call: int) -> None:
    """Another class for one sample of eight, and by the way the same spikes."""
    if call == 1:
        execution.outputs["logits"] = execution.outputs["logits"].copy()
        execution.outputs["logits"][1] = np.roll(execution.outputs["logits"][1], 1)


def test_agreement_is_the_share_of_samples_with_the_class_of_the_reference(network) -> None:
    graph, x, real = network
    runners = {
        "torch": runner(graph, "torch", Fake(real)),
        "a": runner(graph, "a", Fake(real, turn_round)),
        "b": runner(graph, "b", Fake(real)),
    }
    for batch in range(4):
        run_batch(runners, x, None, pair(batch))
    rows = {row.name: row for row in backend_results(runners, [])}
    assert (rows["torch"].agreement, rows["a"].agreement, rows["b"].agreement) == (None, 7 / 8, 1.0)
    assert [a != b for a, b in zip(rows["a"].predictions, rows["b"].predictions, strict=True)].index(True) == 3


def test_integer_backends_are_held_to_the_counts(network) -> None:
    """Spikes may be equal where a written graph has other weights that are zero."""
    graph, x, real = network
    other = nir.NIRGraph({**graph.nodes}, graph.edges, metadata=graph.metadata, type_check=False)
    name = "block.0.mlp.fc1_conv"
    other.nodes[name] = copy(graph.nodes[name])
    other.nodes[name].weight = (
        graph.nodes[name].weight * (np.arange(graph.nodes[name].weight.shape[1]) != 0)[:, None, None]
    )
    runners = {}
    for one, counted in (("torch-int", graph), ("a", other), ("b", graph)):
        executor = Fake(real)
        tally = Tally(counted, "image")
        runners[one] = Runner(one, "integer", executor, executor.run, "torch-int", one != "torch-int", tally, [])
        tally.update(x, real.run(x), None, None)
    for one in runners.values():
        one.finish(runners["torch-int"])
    assert runners["a"].problems == ["its counts differ from those of torch-int, although no spike does"]
    assert runners["b"].problems == []
