"""The simulator as a whole: time, batches, sums, recording, loops, and what it refuses."""

from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import GraphError, InputError
from statten_deploy.ir import STAttenAttention, TemporalMean
from statten_deploy.ir.schedule import Loop, Sum, make_schedule
from statten_deploy.simulate import Simulator, simulator
from tests.conftest import load_golden
from tests.simulate.builders import (
    affine,
    chain,
    conv,
    eighths,
    frames,
    graph,
    inp,
    lif,
    out,
    residual_network,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def attention_chain(window: int = 2) -> nir.NIRGraph:
    nodes = {"x": inp(4, 2, 2), "l": lif(4, 2, 2), "a": STAttenAttention(2, window), "y": out(4, 2, 2)}
    return graph(nodes, [("x", "l"), ("l", "a.q"), ("l", "a.k"), ("l", "a.v"), ("a", "y")])


# time and batch


def test_a_held_frame_equals_its_repetition(rng: np.random.Generator) -> None:
    network = Simulator(residual_network(rng, time_steps=5))
    x = eighths(rng, 3, 2, 16, 16, largest=24)
    held, repeated = (network.run(value, record="spikes") for value in (x, np.repeat(x[:, None], 5, axis=1)))
    assert held.outputs["logits"].shape == (3, 5, 5)
    np.testing.assert_array_equal(held.outputs["logits"], repeated.outputs["logits"])
    for name, value in held.recorded.items():
        np.testing.assert_array_equal(value, repeated.recorded[name])
        assert 0.05 < value.mean() < 0.95, name
    assert held.spike_counts["a.lif"].tolist() == repeated.spike_counts["a.lif"].tolist()


def test_one_step_with_a_time_axis_is_one_step(rng: np.random.Generator) -> None:
    network = Simulator(residual_network(rng, time_steps=5))
    assert network.run(frames(rng, 2, 1, 2, 16, 16)).outputs["logits"].shape == (2, 1, 5)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7])
def test_micro_batches_change_nothing(rng: np.random.Generator, micro_batch: int) -> None:
    network = residual_network(rng)
    x = frames(rng, 7, 4, 2, 16, 16)
    names = ["stem.lif", "a.conv", "logits"]
    whole, parts = (Simulator(network, micro_batch=size).run(x, record=names) for size in (7, micro_batch))
    for name in names:
        assert whole.recorded[name].shape[:2] == (4, 7)
        np.testing.assert_array_equal(whole.recorded[name], parts.recorded[name])
    for name, counts in whole.spike_counts.items():
        np.testing.assert_array_equal(counts, parts.spike_counts[name])


def test_the_automatic_micro_batch_bounds_memory(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Simulator(residual_network(rng))
    x = frames(rng, 5, 4, 2, 16, 16)
    whole = network.run(x)
    monkeypatch.setattr(simulator, "ACTIVATION_BUDGET", 40_000)
    sizes = []
    run_part = network._run_part
    monkeypatch.setattr(network, "_run_part", lambda *a: (sizes.append(a[0]["image"].shape[1]), run_part(*a)))
    np.testing.assert_array_equal(network.run(x).outputs["logits"], whole.outputs["logits"])
    assert len(sizes) > 1
    assert sum(sizes) == 5


def test_a_run_starts_from_the_initial_state(rng: np.random.Generator) -> None:
    network = Simulator(residual_network(rng))
    x = frames(rng, 2, 4, 2, 16, 16)
    np.testing.assert_array_equal(network.run(x).outputs["logits"], network.run(x).outputs["logits"])


def test_stateless_operations_on_a_held_signal_run_once(rng: np.random.Generator) -> None:
    network = Simulator(residual_network(rng, time_steps=6))
    seen: list[torch.Size] = []
    stem = network._operators["stem.conv"]
    network._operators["stem.conv"] = lambda steps, state, x: (seen.append(x.shape), stem(steps, state, x))[1]
    network.run(eighths(rng, 2, 2, 16, 16))
    assert seen == [(1, 2, 2, 16, 16)]


# results


def test_temporal_mean_removes_the_time_axis(rng: np.random.Generator) -> None:
    nodes = [("x", inp(4)), ("l", lif(4, threshold=0.5)), ("head", affine(rng, 4, 3))]
    x = frames(rng, 2, 8, 4)
    steps = Simulator(chain(*nodes, ("y", out(3)))).run(x).outputs["y"]
    mean = Simulator(chain(*nodes, ("m", TemporalMean()), ("y", out(3)))).run(x, record=["m", "head"])
    assert mean.outputs["y"].shape == (2, 3)
    np.testing.assert_array_equal(mean.outputs["y"], steps.mean(1))  # eight steps of eighths: exact
    np.testing.assert_array_equal(mean.recorded["m"], mean.outputs["y"])
    np.testing.assert_array_equal(mean.recorded["head"], steps.swapaxes(0, 1))


def test_mean_and_steps_side_by_side(rng: np.random.Generator) -> None:
    nodes = {"x": inp(4), "l": lif(4), "m": TemporalMean(), "head": affine(rng, 4, 3), "y": out(3), "s": out(4)}
    edges = [("x", "l"), ("l", "m"), ("m", "head"), ("head", "y"), ("l", "s")]
    result = Simulator(graph(nodes, edges)).run(frames(rng, 2, 4, 4))
    head: Any = nodes["head"]
    np.testing.assert_array_equal(result.outputs["y"], result.outputs["s"].mean(1) @ head.weight.T + head.bias)


def test_spike_counts(rng: np.random.Generator) -> None:
    x = frames(rng, 3, 4, 2, 16, 16)
    result = Simulator(residual_network(rng)).run(x, record="spikes")
    assert set(result.spike_counts) == {"stem.lif", "a.lif", "b.lif", "head_lif"}
    for name, counts in result.spike_counts.items():
        assert counts.dtype == np.int64
        recorded = result.recorded[name]
        np.testing.assert_array_equal(counts, recorded.reshape(4, 3, -1).sum((0, 2)))


def test_a_held_spiking_signal_counts_at_every_step() -> None:
    node = nir.Threshold(np.zeros(3, dtype=np.float32))
    result = Simulator(chain(("x", inp(3)), ("t", node), ("y", out(3))), time_steps=5).run([[1.0, -1.0, 2.0]])
    assert result.spike_counts["t"].tolist() == [10]


def test_inputs_are_neither_kept_nor_changed(rng: np.random.Generator) -> None:
    x = frames(rng, 1, 2, 3)
    before = x.copy()
    result = Simulator(chain(("x", inp(3)), ("y", out(3)))).run(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(result.outputs["y"], x)
    assert not np.shares_memory(result.outputs["y"], x)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, np.bool_])
def test_any_number_type_goes_in(dtype: Any) -> None:
    x = np.array([[0, 1, 1]], dtype=dtype)
    y = Simulator(chain(("x", inp(3)), ("y", out(3))), time_steps=1).run(x).outputs["y"]
    assert y.dtype == np.float32
    assert y[0, 0].tolist() == [0, 1, 1]


# sums


def test_sums_run_left_to_right_in_edge_order() -> None:
    """(1e8 + 1) - 1e8 is 0 in float32; any other order gives 1."""
    one = np.ones(1, dtype=np.float32)
    nodes = {"x": inp(1), "a": nir.Scale(one * 1e8), "b": nir.Scale(one), "c": nir.Scale(one * -1e8), "y": out(1)}
    into = [("x", name) for name in "abc"]
    found = {}
    for order in ("abc", "acb"):
        edges = [*into, *((name, "y") for name in order)]
        found[order] = float(Simulator(graph(nodes, edges), time_steps=1).run([[1.0]]).outputs["y"].item())
    assert found == {"abc": 0.0, "acb": 1.0}


def test_consumers_share_their_partial_sums() -> None:
    """A residual stream with L consumers has L(L+1)/2 edges and needs only L - 1 additions."""
    size = 12
    layers = {f"l{i}": lif(3) for i in range(size)}
    nodes = {"x": inp(3), **layers, "y": out(3)}
    edges = [("x", name) for name in layers]
    edges += [(f"l{i}", f"l{j}") for j in range(size) for i in range(j)]
    edges += [(name, "y") for name in layers]
    schedule = make_schedule(graph(nodes, edges))
    sums = [task for task in schedule.tasks if isinstance(task, Sum)]
    assert len(sums) == (size - 1) + (size - 1)  # x + l0 + l1 ... for the layers, l0 + l1 ... for the output
    live, peak = 0, 0
    for index, task in enumerate(schedule.tasks):
        live += 1
        peak = max(peak, live)
        live -= len(schedule.release[index])
        assert not (isinstance(task, Sum) and len(task.result) < 2)
    assert live == 0


def test_a_residual_stream_holds_only_its_running_sum() -> None:
    size = 12
    nodes = {"x": inp(3), **{f"l{i}": lif(3) for i in range(size)}, "y": out(3)}
    edges = [(s, f"l{j}") for j in range(size) for s in ["x", *(f"l{i}" for i in range(j))]]
    edges += [(s, "y") for s in ["x", *(f"l{i}" for i in range(size))]]
    schedule = make_schedule(graph(nodes, edges))
    live, peak = 0, 0
    for release in schedule.release:
        live += 1
        peak = max(peak, live)
        live -= len(release)
    assert peak <= 3


# loops


def recurrent(rng: np.random.Generator) -> nir.NIRGraph:
    nodes = {"x": inp(4), "in": affine(rng, 4, 5), "l": lif(5, threshold=0.5), "back": affine(rng, 5, 5), "y": out(5)}
    edges = [("x", "in"), ("in", "l"), ("l", "back"), ("back", "l"), ("l", "y")]
    return graph(nodes, edges)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_recurrent_network_against_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = recurrent(rng)
    nodes: Any = network.nodes
    x = frames(rng, 2, 6, 4)
    found = Simulator(network).run(x, record="spikes")
    v, back = np.zeros((2, 5)), nodes["back"].bias  # silent neurons leave the bias
    for t in range(6):
        current = x[:, t] @ nodes["in"].weight.T + nodes["in"].bias + back
        v = v + (current - v) / 2
        spike = v >= 0.5
        v[spike] = 0
        back = spike @ nodes["back"].weight.T + nodes["back"].bias
        np.testing.assert_array_equal(found.outputs["y"][:, t], spike)
    np.testing.assert_array_equal(found.recorded["l"].swapaxes(0, 1), found.outputs["y"])


def test_the_loop_is_entered_where_a_signal_enters_it(rng: np.random.Generator) -> None:
    loops = [task for task in make_schedule(recurrent(rng)).tasks if isinstance(task, Loop)]
    assert [loop.names for loop in loops] == [("l", "back")]


def test_node_order_does_not_change_a_recurrent_network(rng: np.random.Generator) -> None:
    network = recurrent(rng)
    other = graph(dict(sorted(network.nodes.items(), reverse=True)), list(reversed(network.edges)))
    x = frames(rng, 2, 6, 4)
    a, b = (Simulator(g).run(x).outputs["y"] for g in (network, other))
    np.testing.assert_array_equal(a, b)
    assert 0.05 < a.mean() < 0.95


def test_a_neuron_that_feeds_itself() -> None:
    one = np.ones(1, dtype=np.float32)
    nodes = {"x": inp(1), "n": nir.LIF(one * 1e-4, one, one * 0, one * np.float32(0.5)), "y": out(1)}
    network = Simulator(graph(nodes, [("x", "n"), ("n", "n"), ("n", "y")]))
    pulse = np.array([[[0.0], [1.0], [0.0], [0.0]]])
    assert network.run(pulse).outputs["y"][0, :, 0].tolist() == [0, 1, 1, 1]


def test_layers_behind_a_loop_see_all_steps(rng: np.random.Generator) -> None:
    network = recurrent(rng)
    nodes = {**network.nodes, "head": affine(rng, 5, 3), "m": TemporalMean(), "y2": out(3)}
    edges = [*network.edges, ("l", "head"), ("head", "m"), ("m", "y2")]
    result = Simulator(graph(nodes, edges)).run(frames(rng, 2, 8, 4))
    head: Any = nodes["head"]
    np.testing.assert_array_equal(result.outputs["y2"], (result.outputs["y"] @ head.weight.T + head.bias).mean(1))


def test_subgraphs_are_inlined(rng: np.random.Generator) -> None:
    inner = chain(("i", inp(4)), ("l", lif(4, threshold=0.5)), ("o", out(4)))
    nodes = {"x": inp(4), "sub": inner, "y": out(4)}
    x = frames(rng, 2, 5, 4)
    flat = Simulator(chain(("x", inp(4)), ("l", lif(4, threshold=0.5)), ("y", out(4)))).run(x)
    nested = Simulator(graph(nodes, [("x", "sub"), ("sub", "y")])).run(x, record="spikes")
    np.testing.assert_array_equal(nested.outputs["y"], flat.outputs["y"])
    assert list(nested.recorded) == ["sub.l"]


# the released network


@pytest.mark.parametrize("name", ["static", "dvs"])
def test_recorded_network_in_micro_batches(name: str) -> None:
    from statten_deploy.frontend import build_graph

    golden = load_golden(name)
    network = build_graph(golden.model())
    x = golden.x.numpy()
    whole, single = (Simulator(network, micro_batch=size).run(x, record="spikes") for size in (None, 1))
    for layer, value in whole.recorded.items():
        np.testing.assert_array_equal(value, single.recorded[layer], err_msg=layer)
    np.testing.assert_array_equal(whole.recorded["head_lif"], golden.spikes["head_lif"])


# what it refuses


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 2, 16), r"input 'image' has shape \(3, 2, 16\), expected \(batch, 2, 16, 16\) for one frame held"),
        ((3, 2, 16, 15), r"expected \(batch, 2, 16, 16\)"),
        ((3, 4, 3, 16, 16), r"or \(batch, steps, 2, 16, 16\) for one frame per step"),
        ((0, 2, 16, 16), r"is empty"),
        ((1, 0, 2, 16, 16), r"is empty"),
    ],
)
def test_wrong_shapes(rng: np.random.Generator, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Simulator(residual_network(rng), time_steps=4).run(np.zeros(shape))


def test_wrong_contents(rng: np.random.Generator) -> None:
    network = Simulator(residual_network(rng), time_steps=2)
    with pytest.raises(InputError, match="holds NaN or infinite values"):
        network.run(np.full((1, 2, 16, 16), np.nan))
    with pytest.raises(InputError, match="holds <U1, expected numbers"):
        network.run(np.full((1, 2, 16, 16), "a"))


def test_wrong_time(rng: np.random.Generator) -> None:
    network = residual_network(rng)
    with pytest.raises(InputError, match="does not say how many time steps to run; give time_steps"):
        Simulator(network).run(np.zeros((1, 2, 16, 16)))
    with pytest.raises(InputError, match="the input has 3 time steps, time_steps says 4"):
        Simulator(network, time_steps=4).run(np.zeros((1, 3, 2, 16, 16)))
    with pytest.raises(InputError, match="time_steps must be positive, got 0"):
        Simulator(network, time_steps=0)
    with pytest.raises(InputError, match="dt must be positive, got -1"):
        Simulator(network, dt=-1.0)


def test_time_must_be_a_multiple_of_the_window() -> None:
    message = "'a' attends over chunks of 2 steps, but there are 3 steps; expected a multiple of 2"
    with pytest.raises(InputError, match=message):
        Simulator(attention_chain()).run(np.zeros((1, 3, 4, 2, 2)))
    assert Simulator(attention_chain()).run(np.zeros((1, 4, 4, 2, 2))).outputs["y"].shape == (1, 4, 4, 2, 2)


def test_several_inputs() -> None:
    nodes = {"a": inp(2), "b": inp(2), "y": out(2)}
    network = Simulator(graph(nodes, [("a", "y"), ("b", "y")]), time_steps=2)
    assert network.run({"a": [[1, 2]], "b": [[3, 4]]}).outputs["y"][0, 1].tolist() == [4, 6]
    with pytest.raises(InputError, match="the graph has the inputs a, b; give a dict"):
        network.run([[1, 2]])
    with pytest.raises(InputError, match="inputs given: a; the graph takes a, b"):
        network.run({"a": [[1, 2]]})
    with pytest.raises(InputError, match="inputs differ in batch size"):
        network.run({"a": [[1, 2]], "b": [[3, 4], [5, 6]]})
    with pytest.raises(InputError, match="inputs differ in the number of steps"):
        network.run({"a": [[[1, 2]] * 3], "b": [[[3, 4]] * 2]})


def test_recording_a_name_that_does_not_exist(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match=r"cannot record 'a_lif'.*did you mean 'a.lif'"):
        Simulator(residual_network(rng), time_steps=2).run(np.zeros((1, 2, 16, 16)), record=["a_lif"])


def test_an_unusable_device(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="device 'quantum' cannot be used here"):
        Simulator(residual_network(rng), device="quantum")


def test_an_invalid_graph(rng: np.random.Generator) -> None:
    with pytest.raises(GraphError, match=r"'c' \(Conv2d\)"):
        Simulator(chain(("x", inp(3, 8, 8)), ("c", conv(rng, 2, 4)), ("y", out(4, 8, 8))))


def test_a_time_step_longer_than_a_time_constant() -> None:
    with pytest.raises(GraphError, match=r"tau 0.0002 s is shorter than the time step 0.001 s; use a smaller dt"):
        Simulator(chain(("x", inp(3)), ("l", lif(3)), ("y", out(3))), dt=1e-3)
