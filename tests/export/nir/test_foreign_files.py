"""Files from the exporters of Norse, snnTorch, SpikingJelly and Sinabs, to every target: equal to their writers.

The networks and their files are in `foreign`; every comparison is with what the tool's own network computes.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

pytest.importorskip("sinabs")
pytest.importorskip("norse.torch")
pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly.activation_based")

import onnxruntime as ort

from statten_deploy.compare.exact import verify_exact
from statten_deploy.compare.integers import FixedExecutor, LavaExecutor
from statten_deploy.errors import ConfigError, UnsupportedError
from statten_deploy.export.lava import write_bundle
from statten_deploy.export.nir import CONVENTIONS, as_written_by, read_nir, write_nir
from statten_deploy.export.onnx import build_onnx
from statten_deploy.export.onnx.integer import FLAVOURS
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.ir import hints, is_cyclic
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.simulate import Simulator
from statten_deploy.simulate.integer import TorchIntegerRunner
from statten_deploy.source import Source, load_source
from tests.export.nir import foreign
from tests.export.nir.foreign import NETWORKS, STEPS, Foreign
from tests.export.onnx.integer_harness import agree

pytestmark = [
    pytest.mark.filterwarnings("ignore:nirtorch.* is being deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """snnTorch prints while it exports."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def load(made: Foreign) -> Source:
    return load_source(made.path, None, STEPS, made.dt, made.tool)


def assert_outputs(made: Foreign, found: dict[str, np.ndarray]) -> None:
    (value,) = found.values()
    np.testing.assert_allclose(value.reshape(made.expected.shape), made.expected, rtol=0, atol=made.atol)


@pytest.fixture(params=NETWORKS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Foreign:
    return NETWORKS[request.param](tmp_path / "foreign.nir")


def test_floats_and_integers(made: Foreign) -> None:
    """The float simulator, ONNX in onnxruntime, and 8-bit integers in numpy, torch and ONNX."""
    source = load(made)
    result = Simulator(source.graph).run(made.x, record="spikes")
    assert all(0.05 < spikes.mean() < 0.97 for spikes in result.recorded.values())
    assert len(np.unique(made.expected, axis=1)) > 1
    assert_outputs(made, result.outputs)

    model = build_onnx(source.graph, time_steps=STEPS)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: made.x})
    assert_outputs(made, dict(zip([output.name for output in session.get_outputs()], outputs, strict=True)))

    quantised = quantize(source.graph, QuantizeOptions(8))
    expected = IntegerRunner(quantised).run(made.x, spikes=True, membranes=True)
    assert_outputs(made, real_outputs(quantised, expected.outputs))
    for name, spikes in result.recorded.items():
        np.testing.assert_array_equal(expected.spikes[name], spikes > 0, err_msg=name)
    torch_result = TorchIntegerRunner(quantised).run(made.x, membranes=True)
    for name, membranes in expected.membranes.items():
        np.testing.assert_array_equal(torch_result.membranes[name], membranes, err_msg=name)
    # Every spike, membrane and output of the integer ONNX files; qdq has no loops.
    agree(quantised, made.x, flavours=("integer",) if is_cyclic(quantised) else FLAVOURS)


@pytest.mark.parametrize("name", ["spikingjelly_residual", "snntorch_recurrent", "norse_cuba", "sinabs_leaky"])
def test_lava(name: str, tmp_path: Path) -> None:
    made = NETWORKS[name](tmp_path / "foreign.nir")
    quantised = quantize(load(made).graph, QuantizeOptions(8))
    write_bundle(quantised, tmp_path / "lava")
    lava = LavaExecutor(tmp_path / "lava", membranes=True)
    agreement = verify_exact(FixedExecutor(quantised, membranes=True), lava, made.x)
    assert agreement.passed, agreement.problems
    assert agreement.membrane_sites > 0
    assert_outputs(made, lava.run(made.x).outputs)


def test_current_based_neurons_keep_their_decay_constants() -> None:
    """CubaLIF becomes Lava's LIF with du and dv: 4096 dt / tau, du one less."""
    graph = as_written_by(cuba(), "snntorch")
    graph.metadata["statten"]["time_steps"] = STEPS
    neuron = quantize(graph).nodes["n"]
    assert (neuron.du, neuron.dv) == (4096 // 8 - 1, 4096 // 4)


def cuba() -> nir.NIRGraph:
    one = np.ones(2, dtype=np.float32)
    node = nir.CubaLIF(one * 8e-4, one * 4e-4, one * 4, one * 0, one, one * 0, one * 8)
    nodes = {"x": nir.Input({"input": np.array([2])}), "w": nir.Linear(np.eye(2, dtype=np.float32)), "n": node}
    return nir.NIRGraph({**nodes, "y": nir.Output({"output": np.array([2])})}, [("x", "w"), ("w", "n"), ("n", "y")])


# conventions


@pytest.mark.parametrize("name", ["spikingjelly_residual", "norse_cuba", "sinabs_conv", "sinabs_leaky"])
def test_without_the_tool_a_file_means_something_else(name: str, tmp_path: Path) -> None:
    made = NETWORKS[name](tmp_path / "foreign.nir")
    dt = made.dt or CONVENTIONS[made.tool].dt
    (plain,) = Simulator(read_nir(made.path), dt=dt).run(made.x).outputs.values()
    assert np.abs(plain.reshape(made.expected.shape) - made.expected).max() > 0.1


def test_a_repaired_file_says_what_it_means(tmp_path: Path) -> None:
    """What we write of it needs no telling any more, here or elsewhere."""
    made = foreign.sinabs_leaky(tmp_path / "foreign.nir")
    report = write_nir(load(made).graph, tmp_path / "ours.nir")
    assert report.type_checked  # nir.read took the original only without its type check
    with pytest.raises(ValueError, match="type mismatch"):
        nir.read(made.path)
    nir.read(tmp_path / "ours.nir")
    again = load_source(tmp_path / "ours.nir")
    assert (again.dt, hints(again.graph)["written_by"]) == (1.0, "sinabs")
    assert_outputs(made, Simulator(again.graph).run(made.x).outputs)
    with pytest.raises(ConfigError, match="the graph says itself what its numbers mean"):
        load_source(tmp_path / "ours.nir", written_by="sinabs")


def test_a_graph_in_memory_is_as_good_as_a_file(tmp_path: Path) -> None:
    """Exporters leave torch tensors in it."""
    made = foreign.norse_conv(tmp_path / "foreign.nir")
    exported = read_nir(made.path)
    for node in exported.nodes.values():
        for field in ("tau", "r", "v_leak", "v_threshold", "weight", "bias"):
            if hasattr(node, field):
                setattr(node, field, foreign.torch.from_numpy(np.asarray(getattr(node, field))))
    source = load_source(exported, None, STEPS, made.dt, "norse")
    assert_outputs(made, Simulator(source.graph).run(made.x).outputs)


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="written by 'brian': known are norse, sinabs, snntorch, spikingjelly"):
        as_written_by(cuba(), "brian")
    for dt in (0.0, float("nan")):
        with pytest.raises(ConfigError, match="dt must be a positive number"):
            as_written_by(cuba(), "norse", dt)
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ConfigError, match="--written-by is for NIR files of other tools"):
        load_source(tmp_path / "model.ckpt", written_by="norse")


def test_recurrent_layers_are_loops_in_the_file(tmp_path: Path) -> None:
    """Nested graphs in the exporter, one flat graph in the file."""
    graph = load(foreign.snntorch_recurrent(tmp_path / "foreign.nir")).graph
    assert is_cyclic(graph)
    kinds: dict[str, Any] = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert (kinds["1.w_rec"], kinds["3.w_rec"]) == ("Affine", "Linear")


@pytest.mark.parametrize("tool", foreign.TOOLS)
def test_realistic_networks(tool: str, tmp_path: Path) -> None:
    """Floats differ by roundings and integers by their grid; how much is printed with -rP (docs/nir.md has a table)."""
    made = foreign.realistic(tool, tmp_path / "foreign.nir")
    source = load_source(made.path, None, 20, made.dt, tool)
    (floats,) = Simulator(source.graph).run(made.x).outputs.values()
    (eight,) = IntegerRunner(quantize(source.graph, QuantizeOptions(8), made.x)).run(made.x).outputs.values()
    rate, off, rounded = made.expected.mean(), (floats != made.expected).mean(), (eight != made.expected).mean()
    told = f"{tool}: rate {rate:.3f}, {off:.2%} of {floats.size} spikes differ in floats, {rounded:.2%} in 8 bits"
    print(told, file=sys.stderr)
    assert 0.02 < rate < 0.5
    assert off <= 0.001
    assert rounded <= 0.03
    for tool in ("sinabs", "snntorch"):
        with pytest.raises(ConfigError, match=rf"dt 0.001 with written by '{tool}': its files mean"):
            as_written_by(cuba(), tool, 1e-3)


def test_membranes_that_start_elsewhere_are_refused() -> None:
    graph = cuba()
    graph.nodes["n"].v_reset = np.full(2, -0.25, dtype=np.float32)
    with pytest.raises(UnsupportedError, match=r"'n' \(CubaLIF\): membranes of spikingjelly start at v_reset"):
        as_written_by(graph, "spikingjelly")
    assert as_written_by(graph, "snntorch").nodes["n"].v_reset[0] == -0.25


def test_a_threshold_of_zero_stays_a_normal_number() -> None:
    graph = cuba()
    graph.nodes["n"].v_threshold = np.array([0.0, 1.0], dtype=np.float32)
    below = as_written_by(graph, "spikingjelly").nodes["n"].v_threshold
    assert below.tolist() == [-np.finfo(np.float32).tiny, np.nextafter(np.float32(1), np.float32(0))]


@pytest.mark.parametrize(
    ("tool", "assumed"), [("sinabs", "SingleSpike"), ("snntorch", "zero"), ("norse", "reset to 0")]
)
def test_what_a_file_does_not_say_is_told(tool: str, assumed: str) -> None:
    warnings = load_source(cuba(), time_steps=STEPS, written_by=tool).warnings
    assert any("does not say how its neurons fire" in one and assumed in one for one in warnings)
    assert not load_source(cuba(), time_steps=STEPS, written_by="spikingjelly").warnings
