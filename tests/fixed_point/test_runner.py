"""The integer runner: micro-batches change nothing, graphs without a sum over time give every step."""

from itertools import pairwise

import nir
import numpy as np
import pytest

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.fixed_point import runner
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.frontend import build_graph
from statten_deploy.ir.integer import InputEncoder, IntegerLIF, IntegerLinear, TemporalSum
from statten_deploy.quantize import quantize
from statten_deploy.simulate.integer import TorchIntegerRunner
from tests.conftest import lively_input, lively_model, small_config


@pytest.mark.parametrize("variant", ["static", "dvs"])
def test_micro_batches_change_nothing(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(small_config(variant, depth=1))
    graph, x = quantize(build_graph(model)), lively_input(model.config, batch=5).numpy()
    whole = IntegerRunner(graph)
    assert whole.at_once > 5
    monkeypatch.setattr(runner, "SIGNAL_BYTES", 1)
    single = IntegerRunner(graph)
    assert single.at_once == 1
    expected, found = (engine.run(x, spikes=True, membranes=True) for engine in (whole, single))
    for kind in ("outputs", "spikes", "membranes", "spike_counts"):
        for name, value in getattr(expected, kind).items():
            np.testing.assert_array_equal(getattr(found, kind)[name], value, err_msg=f"{kind} {name}")


def chain(outputs: str) -> nir.NIRGraph:
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "encoder": InputEncoder(np.ones(2), np.zeros(2)),
        "linear": IntegerLinear([[3, -1], [1, 2]], [1, 0], [0, 0], [4.0, 8.0]),
        "lif": IntegerLIF([5, 5], 2048, [0, 0], [0, 0], (2,)),
        "output": nir.Output({"output": np.array([2])}),
    }
    edges = [("input", "encoder"), ("encoder", "linear"), ("linear", "lif"), (outputs, "output")]
    return nir.NIRGraph(nodes, edges, metadata={"statten": {"time_steps": 3}}, type_check=False)


def test_outputs_of_every_step() -> None:
    x = np.array([[[1, 0], [0, 1], [2, 2]]], np.float32)  # [B = 1, T = 3, 2]
    spikes = IntegerRunner(chain("lif")).run(x, spikes=True, membranes=True)
    # a = (6, 1), (-2, 2), (8, 6); v = 64 a + v / 2; threshold 320
    np.testing.assert_array_equal(spikes.outputs["output"], [[[1, 0], [0, 0], [1, 1]]])
    np.testing.assert_array_equal(spikes.membranes["lif"][:, 0], [[0, 64], [-128, 160], [0, 0]])
    np.testing.assert_array_equal(spikes.spike_counts["lif"], [3])
    graph = chain("linear")
    currents = IntegerRunner(graph).run(x).outputs
    np.testing.assert_array_equal(currents["output"], [[[6, 1], [-2, 2], [8, 6]]])
    np.testing.assert_array_equal(real_outputs(graph, currents)["output"], [[[1.5, 1 / 8], [-0.5, 0.25], [2, 0.75]]])


def test_a_held_input_gives_every_step_too() -> None:
    currents = IntegerRunner(chain("linear")).run(np.array([[1, 0]], np.float32)).outputs["output"]
    np.testing.assert_array_equal(currents, [[[6, 1]] * 3])


def test_a_sum_over_time_of_a_held_signal_counts_every_step() -> None:
    graph = chain("linear")
    graph.nodes["sum"] = TemporalSum(0.5)
    graph.edges[-1:] = [("linear", "sum"), ("sum", "output")]
    for engine in (IntegerRunner, TorchIntegerRunner):
        total = engine(graph).run(np.array([[1, 0]], np.float32)).outputs["output"]
        np.testing.assert_array_equal(total, [[18, 3]])


def test_flatten_takes_the_axes_it_names() -> None:
    nodes = {
        "input": nir.Input({"input": np.array([2, 3, 4])}),
        "encoder": InputEncoder(np.ones(2), np.zeros(2)),
        "flatten": nir.Flatten({"input": np.array([2, 3, 4])}, 1, 2),
        "output": nir.Output({"output": np.array([2, 12])}),
    }
    edges = list(pairwise(nodes))
    graph = nir.NIRGraph(nodes, edges, metadata={"statten": {"time_steps": 2}}, type_check=False)
    x = np.arange(48, dtype=np.float32).reshape(1, 2, 2, 3, 4)
    np.testing.assert_array_equal(IntegerRunner(graph).run(x).outputs["output"], x.reshape(1, 2, 2, 12))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"input of shape \[1, 4, 2\]: expected \[batch, 2\] or \[batch, 3, 2\]"):
        IntegerRunner(chain("lif")).run(np.zeros((1, 4, 2), np.float32))
    with pytest.raises(UnsupportedError, match=r"not a quantised graph: .*conv"):
        IntegerRunner(build_graph(lively_model(small_config("static"))))
