"""Numbers that the integers cannot hold: refused by the user's own node, without a NumPy warning, or reported."""

import json
from typing import Any

import nir
import numpy as np
import pytest

from statten_deploy.errors import UnsupportedError
from statten_deploy.fixed_point.runner import IntegerRunner
from statten_deploy.quantize import QuantizeOptions, quantisation_report, quantize
from statten_deploy.simulate import Simulator
from tests.fixed_point.slow_network import run_slowly
from tests.quantize.test_limits import dense
from tests.quantize.test_other_graphs import conv, cuba, graph, inp, lif, out, refused


def counting(neuron: nir.NIRNode, window: int = 18) -> dict[str, nir.NIRNode]:
    """Neurons that compare the sum of a window with a threshold."""
    size = np.array([window, window])
    pool = nir.SumPool2d(size, size, 0 * size)
    return {"input": inp(1, window, window), "sum": pool, "neuron": neuron, "logits": out(1, 1, 1)}


def test_large_counts_are_shifted_right() -> None:
    """A threshold of 10^5 (1000 · 100 steps) needs 17 bits, one more than there are; 70 000 a step fire every other."""
    subject = graph(counting(lif((1, 1, 1), tau=100, threshold=1000)))
    quantised = quantize(subject)
    neuron = quantised.nodes["neuron"]
    assert neuron.input_exponent == -1
    assert abs(int(neuron.threshold.item()) - 50_000) <= 1
    x = np.concatenate([np.full((1, 4, 1, 18, 18), value, dtype=np.float32) for value in (0, 50, 80, 160, 216)])
    result = IntegerRunner(quantised).run(x, spikes=True, membranes=True)
    expected = Simulator(subject).run(x, record="spikes").recorded["neuron"] > 0
    np.testing.assert_array_equal(result.spikes["neuron"], expected)
    assert expected.reshape(4, 5).sum(0).tolist() == [0, 0, 1, 2, 2]
    spikes, membranes, _ = run_slowly(quantised, x[-1:])
    np.testing.assert_array_equal(result.spikes["neuron"][:, -1:], spikes["neuron"])
    np.testing.assert_array_equal(result.membranes["neuron"][:, -1:], membranes["neuron"])


@pytest.mark.parametrize(
    "neuron",
    [
        lif((1, 1, 1), tau=100, threshold=1e30),
        cuba((1, 1, 1), synapse=4000, membrane=4000, threshold=1.0),
        lif((2, 1, 1), tau=100, threshold=[1.0, 1e6]),  # the small one would become coarse
    ],
)
def test_counts_that_a_shift_would_change_are_refused(neuron: Any) -> None:
    nodes = counting(neuron)
    channels = neuron.v_threshold.shape[0]
    if channels == 2:
        nodes["input"], nodes["logits"] = inp(2, 18, 18), out(2, 1, 1)
    subject = graph(nodes)
    subject.metadata["statten"]["time_steps"] = 4000
    with pytest.raises(UnsupportedError, match=r"neuron \(it fires at counts of .*, expected at most 65535: lower"):
        quantize(subject)


def test_a_shift_does_not_hide_counts_of_more_than_24_bits() -> None:
    message = refused(counting(lif((1, 1, 1), tau=100, threshold=1e4), window=270))
    assert "neuron (its counts can exceed 24 bits)" in message


def normalised(mean: float) -> nir.NIRGraph:
    rng = np.random.default_rng(0)
    nodes: dict[str, nir.NIRNode] = {
        "input": inp(2, 4, 4),
        "norm": nir.Conv2d(
            None, (2 * np.eye(2)).reshape(2, 2, 1, 1).astype(np.float32), 1, 0, 1, 1, np.float32([-1, -2 * mean])
        ),
        "conv": conv(rng.normal(size=(3, 2, 3, 3))),
        "neuron": lif((3, 4, 4), threshold=0.3),
        "spikes": out(3, 4, 4),
    }
    subject = graph(nodes)
    subject.metadata["statten"]["input"] = "image"
    return subject


@pytest.mark.parametrize("mean", [-0.3, 1.2, 1e30])
def test_a_normalisation_with_a_mean_outside_the_pixels_is_refused(mean: float) -> None:
    with pytest.raises(UnsupportedError, match=r"norm \(it normalises with mean .* in channel 1, expected 0 to 1: "):
        quantize(normalised(mean))
    assert quantize(normalised(1.0)).nodes["input.encoder"].zero_point.tolist() == [128, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    weight = np.ones((2, 3))
    weight[1, 1] = bad
    for subject, where in (
        (dense(weight, np.zeros(2)), r"dense \(weight holds"),
        (dense(np.ones((2, 3)), np.array([0, bad])), r"dense \(bias holds"),
        (dense(np.ones((2, 3)), np.zeros(2), threshold=bad), r"neuron \(v_threshold holds"),
        (dense(np.ones((2, 3)), np.zeros(2), tau=bad), r"neuron \(tau holds"),
    ):
        with pytest.raises(UnsupportedError, match=where):
            quantize(subject)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize(("weight", "threshold"), [(1e-30, 1), (1e30, 1), (1, 1e-30), (1, 1e30)])
def test_weights_far_from_thresholds_are_refused(bits: int, granularity: Any, weight: float, threshold: float) -> None:
    with pytest.raises(UnsupportedError, match=r"dense \(channel 0 has weights of at most .*rescale them"):
        quantize(dense(np.full((2, 3), weight), np.zeros(2), threshold=threshold), QuantizeOptions(bits, granularity))


def test_a_current_that_nothing_bounds_is_refused_as_well() -> None:
    """Channel 1 has no weights, so no range ever lowers its scale."""
    subject = dense(np.array([[1.0, 1], [0, 0]]), np.zeros(2), threshold=[1, 1e-9])
    with pytest.raises(UnsupportedError, match=r"dense \(channel 1 has weights of at most 0"):
        quantize(subject)


def test_readouts_out_of_range_are_refused() -> None:
    def readout(weight: Any, bias: Any) -> dict[str, nir.NIRNode]:
        return {"input": inp(1), "head": nir.Affine(np.float32(weight), np.float32(bias)), "logits": out(2)}

    assert "head (channel 0 has weights of at most 1" in refused(readout([[1.0], [1e-12]], [0, 0]))
    assert "head (its bias is beyond 2^23 steps of its weights" in refused(readout([[1e-9], [1e-9]], [0, 1]))
    quantize(graph(readout([[1e-30], [1e-30]], [0, 0])))  # a readout has no threshold to be far from


def test_inputs_that_the_encoder_changes_are_counted() -> None:
    subject = dense(np.ones((2, 4)), np.zeros(2))
    quantised = quantize(subject)
    whole = quantisation_report(subject, quantised, np.array([[0.0, 1, 7, 255]]))
    assert whole.input_error == 0
    assert not any("input" in line for line in whole.warnings())
    analog = quantisation_report(subject, quantised, np.array([[[0.3, -1, 256, 3]]] * 4).reshape(1, 4, 4))
    assert analog.input_error == 0.75
    assert analog.warnings()[0].startswith("75 % of the input values are lost: ")
    assert json.loads(json.dumps(analog.to_dict())) == analog.to_dict()


def test_pixels_are_lost_only_outside_their_range() -> None:
    subject = normalised(0.5)
    x = np.linspace(0, 1, 32, dtype=np.float32).reshape(1, 2, 4, 4)
    assert quantisation_report(subject, quantize(subject), x).input_error == 0
    x[0, 0, 0, :2] = -0.01, 1.5
    assert quantisation_report(subject, quantize(subject), x).input_error == 2 / 32


def test_warnings_name_layers() -> None:
    """Clipped biases, ranges without a proof, wraps, and silence; a quiet network gives none."""
    two = np.full((2, 300), 0.5)
    calm = dense(np.full((2, 1), 3.0), np.zeros(2))
    one = np.ones((1, 1))
    assert quantisation_report(calm, quantize(calm, calibration=one), one).warnings() == []
    clipped = dense(np.full((3, 2), 0.5), np.array([0.25, -100.0, 5000.0]))
    report = quantisation_report(clipped, quantize(clipped), np.ones((1, 2)))
    assert report.neurons[0].clipped_biases == 1
    (line,) = report.warnings()
    assert line.startswith("neuron: biases of 1 of 3 channels are clipped, off by up to ")
    loud = dense(two, np.zeros(2))
    lines = quantisation_report(loud, quantize(loud), np.full((1, 300), 20.0)).warnings()
    assert lines[0].startswith("neuron: currents may wrap at 2^17")
    assert "wraps and" in lines[1]
    assert all("\n" not in line for line in lines)
