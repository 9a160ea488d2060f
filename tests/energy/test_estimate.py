"""Energy counted beside an evaluation: the same numbers as counting by hand, on samples spread over the data."""

import numpy as np
import pytest
import torch

from statten_deploy.compare.executors import TorchExecutor
from statten_deploy.energy import DEFAULT_PROFILES, EnergyCounter, EnergyEstimator, energy, likely_input, load_profile
from statten_deploy.energy.estimate import COUNTED_SAMPLES
from statten_deploy.frontend import build_graph
from statten_deploy.models.config import ModelConfig
from statten_deploy.models.statten import STAtten
from statten_deploy.train.scoring import evaluate, in_top
from tests.conftest import lively_model

SMALL = {
    "image_size": 8,
    "in_channels": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "depth": 1,
    "time_steps": 2,
    "chunk_size": 1,
    "pooling_stat": "0011",
}


@pytest.fixture(scope="module")
def network() -> STAtten:
    return lively_model(ModelConfig.create(SMALL))


def batches(count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    y = torch.randint(0, 10, (count,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def test_energy_is_that_of_the_recorded_spikes(network: STAtten) -> None:
    graph = build_graph(network)
    data = batches(21, 4)
    found = evaluate(network, data, estimator=EnergyEstimator(graph, 21)).energy
    counter = EnergyCounter(graph)
    counter.update(TorchExecutor(network).run(torch.cat([x for x, _ in data]).numpy()).spikes)
    assert (found.samples, found.note) == (21, "")
    assert set(found.energy_pj) == set(DEFAULT_PROFILES)
    for name, value in found.energy_pj.items():
        assert value == energy(counter.counts(), load_profile(name)).total_pj > 0


def test_many_samples_are_counted_in_batches_spread_evenly(network: STAtten) -> None:
    estimator = EnergyEstimator(build_graph(network), 4 * COUNTED_SAMPLES - 1)
    counted = [index for index in range(12) if estimator.wants(index)]
    assert counted == [0, 4, 8]
    data = batches(12, 1)
    found = evaluate(network, data, estimator=estimator)
    assert (found.samples, found.energy.samples) == (12, 3)
    alone = EnergyEstimator(build_graph(network), 3)
    assert evaluate(network, [data[index] for index in counted], estimator=alone).energy == found.energy


def test_what_cannot_be_counted_is_noted_and_the_evaluation_goes_on(network: STAtten) -> None:
    wrong = build_graph(STAtten(ModelConfig.create({**SMALL, "depth": 2})))
    found = evaluate(network, batches(6, 2), estimator=EnergyEstimator(wrong, 6))
    assert found.samples == 6
    assert "no spikes of block.1." in found.energy.note
    assert found.energy.energy_pj == {}


def test_frames_of_whole_numbers_are_events() -> None:
    graph = build_graph(STAtten(ModelConfig.create({**SMALL, "input": "frames"})))
    assert likely_input(graph, np.full((1, 2, 1, 8, 8), 3.0)) == "events"
    assert likely_input(graph, np.full((1, 2, 1, 8, 8), 0.5)) == "frames"
    assert likely_input(build_graph(STAtten(ModelConfig.create(SMALL))), np.ones((1, 1, 8, 8))) == "image"


def test_top_5_against_torchmetrics(network: STAtten) -> None:
    from torchmetrics.classification import MulticlassAccuracy

    data = batches(64, 10)
    found = evaluate(network, data)
    with torch.no_grad():
        logits = torch.cat([network(x) for x, _ in data])
    for k, correct in ((1, found.correct), (5, found.top5)):
        metric = MulticlassAccuracy(10, top_k=k, average="micro")
        metric.update(logits, torch.cat([y for _, y in data]))
        assert correct == round(float(metric.compute()) * 64)
    assert 0 < found.correct < found.top5 < 64  # type: ignore[operator]


def test_top_k_of_equal_logits_and_few_classes() -> None:
    logits = np.array([[1, 1, 1, 0], [0, 2, 2, 2]])
    assert in_top(logits, np.array([2, 3]), k=2) == 0
    assert in_top(logits, np.array([1, 2]), k=2) == 2
    assert in_top(logits, np.array([0, 0]), k=4) is None
