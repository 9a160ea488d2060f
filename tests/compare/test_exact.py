"""Exact verification: no tolerance, and the first difference is named."""

from copy import deepcopy

import numpy as np
import pytest

from statten_deploy.compare.exact import verify_exact
from statten_deploy.compare.executors import IntegerExecution
from statten_deploy.compare.integers import FixedExecutor, TorchIntExecutor
from statten_deploy.frontend import build_graph
from statten_deploy.quantize import QuantizeOptions, quantize
from tests.conftest import lively_input, lively_model, small_config


@pytest.fixture(scope="module")
def graph():
    return quantize(build_graph(lively_model(small_config("static"))), QuantizeOptions(8))


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return lively_input(small_config("static"), batch=5).numpy()


def check(graph, changed, samples):
    return verify_exact(FixedExecutor(graph, membranes=True), FixedExecutor(changed, membranes=True), samples)


def test_torch_passes_in_every_number(graph, samples) -> None:
    agreement = verify_exact(FixedExecutor(graph, membranes=True), TorchIntExecutor(graph, membranes=True), samples)
    assert agreement.passed, agreement.problems
    assert (agreement.samples, agreement.prediction_agreement, agreement.max_abs_diff) == (5, 1.0, 0.0)
    assert agreement.membrane_sites == agreement.sites > 100_000
    assert agreement.notes == []


def one_weight(graph) -> None:
    graph.nodes["block.0.mlp.fc2_conv"].weight[3, 5, 0, 0] += 1


def one_threshold(graph) -> None:
    graph.nodes["block.1.attn.q_lif"].threshold[:] += 100


def one_bias(graph) -> None:
    graph.nodes["block.0.attn.k_lif"].bias_mantissa[7] += 1


def one_exponent(graph) -> None:
    graph.nodes["block.1.mlp.fc1_conv"].exponent[4] += 1


def decay(graph) -> None:
    graph.nodes["patch_embed.proj_lif2"].dv += 1


def window(graph) -> None:
    graph.nodes["block.0.attn.statten"].window = 4


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (one_weight, "layer 'block.1.attn.shortcut_lif'"),
        (one_threshold, "layer 'block.1.attn.q_lif'"),
        (one_bias, "layer 'block.0.attn.k_lif'"),
        (one_exponent, "layer 'block.1.mlp.fc2_lif'"),
        (decay, "layer 'patch_embed.proj_lif2'"),
        (window, "layer 'block.0.attn.attn_lif'"),
    ],
)
def test_the_smallest_change_is_found_where_it_is(graph, samples, damage, said) -> None:
    changed = deepcopy(graph)
    damage(changed)
    agreement = check(graph, changed, samples)
    assert not agreement.passed
    assert said in agreement.problems[0]
    assert "first at step" in agreement.problems[0]


def test_the_readout_is_compared_as_integers(graph, samples) -> None:
    changed = deepcopy(graph)
    changed.nodes["head"].bias[2] += 1
    agreement = check(graph, changed, samples)
    assert agreement.problems == [
        "output 'logits': 1 integers differ, first at sample 0, index (2,)",
        "output 'logits': 4 integers differ, first at sample 1, index (2,)",
    ]
    assert agreement.output_mismatches == 5
    assert agreement.spike_mismatches == agreement.membrane_mismatches == 0


def test_the_place_is_the_right_one(graph, samples) -> None:
    class Flipped(FixedExecutor):
        def run(self, x) -> IntegerExecution:
            execution = super().run(x)
            if len(x) == 4:  # the second batch: samples 1 to 4
                execution.spikes["head_lif"][2, 1, 9] ^= True
            return execution

    agreement = verify_exact(FixedExecutor(graph), Flipped(graph), samples)
    assert agreement.problems == ["layer 'head_lif': 1 spikes differ, first at step 2, sample 2, neuron (9,)"]
    assert agreement.samples_with_flips == 1


def test_missing_layers_and_hidden_membranes_are_said(graph, samples) -> None:
    hidden = verify_exact(FixedExecutor(graph, membranes=True), FixedExecutor(graph), samples)
    assert hidden.passed
    assert hidden.membrane_sites == 0
    assert "membranes of" in hidden.notes[0]

    class Lost(FixedExecutor):
        def run(self, x) -> IntegerExecution:
            execution = super().run(x)
            del execution.spikes["head_lif"]
            return execution

    assert verify_exact(FixedExecutor(graph), Lost(graph), samples).problems == [
        "neuron layer 'head_lif' is missing from fixed"
    ]
