"""Shares and their intervals, against scipy and by hand; totals of batches are those of everything at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from statten_deploy.compare.executors import Execution, GraphExecutor
from statten_deploy.compare.tally import CONFUSION_CLASSES, Tally, relative, wilson_interval
from statten_deploy.frontend import build_graph
from tests.conftest import lively_input, lively_model, small_config


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_that_of_scipy(case) -> None:
    correct, samples = case
    expected = binomtest(correct, samples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, samples) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_differences_to_the_reference() -> None:
    assert relative(90, 100) == pytest.approx(-0.1)
    assert relative(7, 7) == 0.0
    assert relative(7, 0) is None
    assert relative(0, 0) == 0.0  # nothing and nothing is equal


@pytest.fixture(scope="module")
def network():
    config = small_config("static", depth=1)
    graph = build_graph(lively_model(config))
    x = lively_input(config, 5).numpy()
    return graph, x, GraphExecutor(graph).run(x)


def part(execution: Execution, start: int, stop: int) -> Execution:
    return Execution(
        {name: value[start:stop] for name, value in execution.outputs.items()},
        {name: value[:, start:stop] for name, value in execution.spikes.items()},
    )


def scored(execution: Execution, predicted: list[int]) -> Execution:
    return Execution({"logits": np.eye(5, dtype=np.float32)[predicted]}, execution.spikes)


def test_batches_add_up(network) -> None:
    graph, x, execution = network
    found, expected = scored(execution, [0, 1, 2, 3, 3]), scored(execution, [0, 1, 2, 3, 4])
    labels = np.array([0, 1, 1, 3, 4])
    changed = {name: spikes.copy() for name, spikes in found.spikes.items()}
    changed["head_lif"][2, 4, :3] ^= True
    found = Execution(found.outputs, changed)
    whole, parts = Tally(graph, "image"), Tally(graph, "image")
    whole.update(x, found, expected, labels)
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        parts.update(x[start:stop], part(found, start, stop), part(expected, start, stop), labels[start:stop])
    assert parts.counter.counts() == whole.counter.counts()
    assert (parts.samples, parts.correct, parts.same, parts.mismatches) == (5, 3, 4, 3)
    assert parts.sites == sum(spikes.size for spikes in execution.spikes.values())
    assert parts.predictions == [0, 1, 2, 3, 3]
    assert parts.confusion.tolist() == whole.confusion.tolist()
    assert [(int(t), int(p)) for t, p in np.argwhere(parts.confusion)] == [(0, 0), (1, 1), (1, 2), (3, 3), (4, 3)]


def test_without_labels_or_classes(network) -> None:
    graph, x, execution = network
    tally = Tally(graph, "image")
    tally.update(x, execution, None, None)
    assert (tally.labelled, tally.confusion, tally.sites) == (False, None, 0)
    features = Execution({"logits": np.zeros((5, 4, 8, 8), dtype=np.float32)}, execution.spikes)
    tally = Tally(graph, "image")
    tally.update(x, features, execution, np.zeros(5, dtype=np.int64))
    assert (tally.labelled, tally.predictions, tally.mismatches) == (False, [], 0)


def test_labels_beyond_the_outputs_and_very_many_classes(network) -> None:
    graph, x, execution = network
    tally = Tally(graph, "image")
    tally.update(x[:2], part(scored(execution, [0, 1, 2, 3, 4]), 0, 2), None, np.array([0, 1]))
    tally.update(x[2:], part(scored(execution, [0, 1, 2, 3, 4]), 2, 5), None, np.array([2, 7, 4]))
    assert tally.confusion.shape == (8, 8)
    assert tally.confusion[7, 3] == 1
    assert tally.confusion.sum() == 5
    many = Execution({"logits": np.zeros((5, CONFUSION_CLASSES + 1), dtype=np.float32)}, execution.spikes)
    tally = Tally(graph, "image")
    tally.update(x, many, None, np.zeros(5, dtype=np.int64))
    assert (tally.confusion, tally.correct) == (None, 5)
