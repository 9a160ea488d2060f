"""The integer network in torch against the numpy reference: every spike, membrane, count and output, no tolerance."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.fixed_point.arithmetic import lif_step, synapse_step
from statten_deploy.fixed_point.ranges import Interval
from statten_deploy.fixed_point.runner import IntegerResult, IntegerRunner
from statten_deploy.frontend import build_graph
from statten_deploy.ir import STAttenAttention
from statten_deploy.ir.integer import InputEncoder, IntegerConv2d, IntegerLIF, IntegerLinear
from statten_deploy.models.checkpoint import load_model
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate import Simulator, integer
from statten_deploy.simulate.integer import TorchIntegerRunner, conv2d_by_patches, exact_floats
from statten_deploy.simulate.integer_neurons import IntegerNeurons
from statten_deploy.train.data import load_arrays
from tests.conftest import lively_input, lively_model, small_config
from tests.quantize.recurrent_graphs import events, recurrent, rough
from tests.simulate.builders import chain, inp, out

ZOO = Path(__file__).resolve().parents[2] / "models/zoo"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def assert_equal(found: IntegerResult, expected: IntegerResult) -> None:
    for store in ("outputs", "spikes", "membranes", "spike_counts"):
        a, b = getattr(found, store), getattr(expected, store)
        assert a.keys() == b.keys()
        for name in b:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{store} of {name}")


def both(graph: nir.NIRGraph, x: np.ndarray, device: str = "cpu") -> TorchIntegerRunner:
    runner = TorchIntegerRunner(graph, device)
    expected = IntegerRunner(graph).run(x, spikes=True, membranes=True)
    assert_equal(runner.run(x, spikes=True, membranes=True), expected)
    return runner


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("bits", "granularity"), [(2, "channel"), (4, "tensor"), (8, "channel"), (8, "tensor")])
def test_equals_the_reference(variant: str, bits: int, granularity: Any, device: str) -> None:
    model = lively_model(small_config(variant))
    graph = quantize(build_graph(model), QuantizeOptions(bits, granularity))
    both(graph, lively_input(model.config).numpy(), device)


@pytest.mark.parametrize("name", ["digits", "digits-stream"])
def test_equals_the_reference_on_digits(name: str) -> None:
    model = load_model(ZOO / f"{name}.ckpt")
    x, _ = load_arrays("digits", "test", model.config)
    both(quantize(build_graph(model)), x[:24])


def layer_graph(rng: np.random.Generator, exponent: int, **changes: Any) -> nir.NIRGraph:
    """Bytes -> one linear layer -> neurons whose every parameter differs between channels."""
    weight = rng.integers(-127, 128, (6, 4))
    values: dict[str, Any] = {
        "threshold": rng.integers(0, 1 << 16, 6),
        "dv": 2048,
        "bias_mantissa": rng.integers(-4095, 4096, 6),
        "bias_exponent": rng.integers(0, 8, 6),
        "shape": (6,),
        **changes,
    }
    return chain(
        ("frames", inp(4)),
        ("encoder", encoder()),
        ("fc", IntegerLinear(weight, np.full(6, exponent), np.zeros(6), np.ones(6))),
        ("lif", IntegerLIF(**values)),
        ("spikes", out(6)),
        time_steps=12,
    )


def conv_options(node: IntegerConv2d) -> tuple[Any, ...]:
    return node.stride, node.padding, node.dilation, node.groups


def encoder() -> InputEncoder:
    return InputEncoder(np.array([0.5, 0.25, 1, 0.5]), np.array([100, 0, 128, 255]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("exponent", "changes", "neurons", "wraps", "signals"),
    [
        (-4, {}, torch.int32, False, torch.float32),
        (0, {"dv": 4096}, torch.int32, False, torch.float32),
        (0, {"dv": 0}, torch.int32, False, torch.float32),
        (2, {"dv": 1234}, torch.int64, True, torch.float32),
        (2, {"dv": 1024, "input_exponent": -3}, torch.int32, False, torch.float32),
        (0, {"dv": 3000, "du": 1000}, torch.int64, True, torch.float32),
        (3, {"dv": 100, "du": 4000, "input_exponent": 1}, torch.int64, True, torch.float32),
        (2, {"input_exponent": 2}, torch.int32, True, torch.float32),
        (-4, {"bias_exponent": np.full(6, 30)}, torch.int64, False, torch.float32),
        (9, {"dv": 512}, torch.int64, True, torch.float64),
        (14, {"dv": 7}, torch.int64, True, torch.float64),
    ],
)
def test_every_register_wraps_and_saturates_alike(
    seed: int, exponent: int, changes: dict[str, Any], neurons: torch.dtype, wraps: bool, signals: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    graph = layer_graph(rng, exponent, **changes)
    x = rng.integers(-50, 80, (5, 12, 4)) / 2
    runner = both(graph, x)
    layer = runner.network.neurons["lif"]
    assert (layer.dtype, layer.wraps, runner.network.types["fc"]) == (neurons, wraps, signals)
    membranes = runner.run(x, membranes=True).membranes["lif"]
    assert np.unique(membranes).size > (40 if exponent < 9 and "bias_exponent" not in changes else 1)
    if exponent >= 9:
        assert np.abs(membranes).max() == 2**23 - 1


@pytest.mark.parametrize("du", [4095, 4000])
def test_the_edges_of_the_registers(du: int) -> None:
    """Currents at and around ±2^17, where the 24 bits wrap, against the functions of the specification."""
    edges = np.array([sign * (2**17 + d) for sign in (1, -1) for d in (-1, 0, 1)] + [2**18, -(2**18), 2**20, 0])
    size = len(edges)
    node = IntegerLIF(np.full(size, 2**16 - 1), 1024, np.full(size, -3), np.zeros(size), (size,), du=du)
    reach = Interval(edges, edges)
    layer = IntegerNeurons(node, reach, reach, 3, torch.device("cpu"))
    found = layer(torch.from_numpy(edges).float().expand(1, 1, size)).numpy()
    u = v = np.zeros(size, dtype=np.int64)
    for before in found:
        u = synapse_step(u, edges, du)
        _, v, expected = lif_step(v, u, dv=1024, bias=node.bias_mantissa, threshold=node.threshold)
        np.testing.assert_array_equal(before[0], expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_of_every_form(groups: int, device: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-90, 140, (2, 3, 4, 9, 11)) / 2
    for stride, padding, dilation, exponent in ((1, 1, 1, 0), ((2, 3), (0, 2), (1, 2), -5), (2, 0, (3, 1), 1)):
        node = IntegerConv2d(
            rng.integers(-127, 128, (6, 4 // groups, 3, 2)),
            rng.integers(exponent - 1, exponent + 2, 6),
            np.ones(6),
            stride,
            padding,
            dilation,
            groups,
        )
        shape = F.conv2d(torch.zeros(1, 4, 9, 11), torch.zeros(node.weight.shape), None, *conv_options(node)).shape[1:]
        graph = chain(("x", inp(4, 9, 11)), ("e", encoder()), ("c", node), ("y", out(*shape)), time_steps=3)
        both(graph, x, device)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [((1, 1), (0, 0), (1, 1)), ((2, 1), (1, 2), (1, 3))])
def test_patches_convolve(groups: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
    """The form that GPUs run."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (3, 4, 9, 8), generator=generator).float()
    weight = torch.randint(-127, 128, (6, 4 // groups, *kernel), generator=generator).float()
    bias = torch.randint(-9, 9, (6,), generator=generator).float()
    for b in (None, bias):
        options = (stride, padding, dilation, groups)
        assert torch.equal(conv2d_by_patches(x, weight, b, *options), F.conv2d(x, weight, b, *options))


def test_micro_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(small_config("dvs"))
    graph = quantize(build_graph(model))
    x = lively_input(model.config, batch=5).numpy()
    runner = TorchIntegerRunner(graph)
    whole = runner.run(x, spikes=True, membranes=True)
    sizes = []
    run = runner.network.run
    monkeypatch.setattr(runner.network, "run", lambda x, **rest: (sizes.append(len(x)), run(x, **rest))[1])
    monkeypatch.setattr(integer, "ACTIVATION_BUDGET", 2 * integer.ACTIVATION_BUDGET // runner._micro_batch())
    parts = runner.run(x, spikes=True, membranes=True)
    assert sizes == [2, 2, 1]
    assert_equal(parts, whole)


def test_a_large_batch_is_divided() -> None:
    runner = TorchIntegerRunner(quantize(build_graph(lively_model(small_config("static")))))
    assert 16 < runner._micro_batch() < 10_000


def test_nobody_else_decides_how_floats_are_multiplied() -> None:
    """bfloat16, TF32, autocast and NNPACK are off inside and as they were outside."""
    model = lively_model(small_config("static"))
    graph = quantize(build_graph(model))
    x = lively_input(model.config).numpy()
    expected = IntegerRunner(graph).run(x, spikes=True, membranes=True)
    switches = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch, loose in zip(switches, ("bf16", "bf16", "tf32"), strict=True):
            switch.fp32_precision = loose
        with exact_floats(torch.device("cpu")):
            assert [switch.fp32_precision for switch in switches] == ["ieee"] * 3
            assert not torch._C._get_nnpack_enabled()
        assert [switch.fp32_precision for switch in switches] == ["bf16", "bf16", "tf32"]
        assert torch._C._get_nnpack_enabled()
        with torch.autocast("cpu", torch.bfloat16):
            found = TorchIntegerRunner(graph).run(x, spikes=True, membranes=True)
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
    assert_equal(found, expected)


def test_refusals() -> None:
    model = lively_model(small_config("static"))
    with pytest.raises(UnsupportedError, match=r"not a quantised graph: .*patch_embed\.proj_conv \(Conv2d\).*\(LIF\)"):
        TorchIntegerRunner(build_graph(model))
    graph = quantize(build_graph(model))
    with pytest.raises(InputError, match="device 'abacus' cannot be used here"):
        TorchIntegerRunner(graph, "abacus")
    with pytest.raises(
        InputError, match=r"input of shape \[2, 3, 8, 8\]: expected \[batch, 3, 16, 16\] or \[batch, 4,"
    ):
        TorchIntegerRunner(graph).run(np.zeros((2, 3, 8, 8)))
    with pytest.raises(UnsupportedError, match=r"node 'fc': sums of up to .* do not fit the 53 bits of float64"):
        TorchIntegerRunner(layer_graph(np.random.default_rng(0), 45))


def test_the_float_simulator_refuses_integers() -> None:
    graph = quantize(build_graph(lively_model(small_config("static", depth=1))))
    with pytest.raises(UnsupportedError, match="does not run quantised graphs"):
        Simulator(graph)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("neuron", ["lif", "if", "cuba"])
def test_loops_and_integrators_equal_the_reference(neuron: str, bits: int, device: str) -> None:
    for spatial in (False, True):
        rng = np.random.default_rng(bits)
        subject = rough(rng, recurrent(rng, neuron, spatial=spatial))
        both(quantize(subject, QuantizeOptions(bits)), events(rng, subject), device)


def test_loops_fed_by_a_held_image() -> None:
    rng = np.random.default_rng(4)
    subject = recurrent(rng, "lif", spatial=True)
    subject.metadata["statten"]["input"] = "image"
    both(quantize(subject), rng.random((3, 2, 3, 3)).astype(np.float32))


def test_attention_over_steps_in_a_loop_is_refused() -> None:
    nodes = {
        "x": inp(4, 2, 2),
        "encoder": encoder(),
        "l": IntegerLIF(*(np.ones((4, 1, 1), int), 2048), *(np.zeros((4, 1, 1), int),) * 2, (4, 2, 2)),
        "a": STAttenAttention(2, 3, "sliding"),
        "y": out(4, 2, 2),
    }
    edges = [("x", "encoder"), ("encoder", "l"), *(("l", f"a.{port}") for port in "qkv"), ("a", "l"), ("l", "y")]
    network = nir.NIRGraph(nodes, edges, metadata={"statten": {"time_steps": 4}}, type_check=False)
    for runner in (IntegerRunner, TorchIntegerRunner):
        with pytest.raises(
            UnsupportedError, match=r"a \(STAttenAttention: a window of 3 steps in a loop; use one of 1"
        ):
            runner(network)
