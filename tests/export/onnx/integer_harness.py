"""Integer models against the integer runner, and quantised graphs to export."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import nir
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from statten_deploy.errors import UnsupportedError
from statten_deploy.export.onnx.integer import FLAVOURS, Flavour, Probes, build_integer_onnx, with_probes
from statten_deploy.fixed_point.runner import IntegerResult, IntegerRunner, real_outputs
from statten_deploy.frontend import build_graph
from statten_deploy.ir import input_names
from statten_deploy.ir.integer import InputEncoder, IntegerConv2d, IntegerLIF, IntegerLinear
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.runtime.engines import EXACT
from tests.conftest import lively_input, lively_model, small_config

Run = Callable[[onnx.ModelProto, dict[str, np.ndarray]], dict[str, np.ndarray]]
INTEGER: tuple[Flavour, ...] = ("integer",)
"""For graphs with loops, which qdq does not have."""
ALL, OFF = ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def in_onnxruntime(level: ort.GraphOptimizationLevel = ALL, threads: int = 1) -> Run:
    def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.graph_optimization_level = threads, level
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))

    return run


def in_openvino(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenVINO on the CPU, as the runtime sets it up."""
    import openvino

    core = openvino.Core()
    settings = {**EXACT, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    found = compiled(feeds)
    return {output.name: found[output.name] for output in model.graph.output}


def in_reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        # It pads the bytes of a MaxPool with NaN, which becomes 0.
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        found = ReferenceEvaluator(model).run(None, feeds)
    return dict(zip([output.name for output in model.graph.output], found, strict=True))


def agree(graph: nir.NIRGraph, x: np.ndarray, *runs: Run, flavours: Sequence[Flavour] = FLAVOURS) -> IntegerResult:
    """Every spike, membrane, integer output and real output must be the runner's, bit for bit. Returns the runner's.

    qdq refuses a graph for which the other flavour takes float64, and no other.
    """
    expected = IntegerRunner(graph).run(x, spikes=True, membranes=True)
    for flavour in flavours:
        if flavour == "qdq" and takes_float64(build_integer_onnx(graph)):
            with pytest.raises(UnsupportedError, match="--flavour qdq has only float32"):
                build_integer_onnx(graph, flavour=flavour)
            continue
        model = build_integer_onnx(graph, flavour=flavour)
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        probed, probes = with_probes(model)
        onnx.checker.check_model(probed, full_check=True)
        for run in runs or (in_onnxruntime(),):
            exact = run is not in_openvino or not casts_to_float64(model)
            compare(graph, expected, run(probed, {input_names(graph)[0]: x}), probes, exact=exact)
    return expected


def takes_float64(model: onnx.ModelProto) -> bool:
    """Whether something else than the units of the outputs is computed in float64."""
    return not casts_to_float64(model) <= {
        f"{output.name}/{what}" for output in model.graph.output for what in ("number", "steps")
    }


def casts_to_float64(model: onnx.ModelProto) -> set[str]:
    return {
        node.output[0]
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.DOUBLE
    }


def compare(
    graph: nir.NIRGraph, expected: IntegerResult, found: dict[str, np.ndarray], probes: Probes, *, exact: bool = True
) -> None:
    """`exact`: outputs in real units too; where a file takes float64 for them, OpenVINO computes in float32."""
    assert probes.spikes.keys() == expected.spikes.keys()
    assert probes.membranes.keys() == expected.membranes.keys()
    assert probes.integers.keys() == expected.outputs.keys()
    for shown, reference in (
        (probes.spikes, expected.spikes),
        (probes.membranes, expected.membranes),
        (probes.integers, expected.outputs),
    ):
        for name, values in reference.items():
            output = found[shown[name]]
            assert output.dtype == values.dtype
            np.testing.assert_array_equal(output, values, err_msg=shown[name])
    for name, values in real_outputs(graph, expected.outputs).items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=0 if exact else 3e-7, atol=0, err_msg=name)


def quantised(variant: str, bits: int = 8, granularity: str = "channel", **changes: Any) -> tuple[nir.NIRGraph, Any]:
    """A small random network in integers, and an input of two samples."""
    model = lively_model(small_config(variant, **{"depth": 1, **changes}))
    graph = quantize(build_graph(model), QuantizeOptions(bits, granularity))
    return graph, lively_input(model.config, batch=2).numpy()


# graphs by hand


def integer_graph(
    shape: tuple[int, ...], *nodes: Any, time_steps: int = 4, held: bool = False, **encoder: Any
) -> nir.NIRGraph:
    """Input "x" [shape] -> encoder -> n0 -> n1 ... -> Output "y"; inputs are counts of 0 .. 255 unless told."""
    channels = shape[0]
    encoder = {"scale": np.ones(channels), "zero_point": np.zeros(channels), **encoder}
    ends = nir.Input({"input": np.array(shape)}), nir.Output({"output": None})
    names = ["x", "encoder", *(f"n{i}" for i in range(len(nodes))), "y"]
    chain = dict(zip(names, (ends[0], InputEncoder(**encoder), *nodes, ends[1]), strict=True))
    return with_hints(chain, list(itertools.pairwise(names)), time_steps, held=held)


def with_hints(
    nodes: dict[str, Any], edges: Sequence[tuple[str, str]], time_steps: int = 4, *, held: bool = False
) -> nir.NIRGraph:
    hints = {"time_steps": time_steps, "input": "image" if held else "frames", "bits": 8, "granularity": "channel"}
    return nir.NIRGraph(nodes, list(edges), metadata={"statten": hints}, type_check=False)


def conv(
    rng: np.random.Generator, out: int, into: int, kernel: int | tuple[int, int] = 3, largest: int = 127, **options: Any
) -> IntegerConv2d:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    groups = options.get("groups", 1)
    weight = rng.integers(-largest, largest + 1, (out, into // groups, *size))
    padding = (size[0] // 2, size[1] // 2)
    settings = {"exponent": np.zeros(out), "stride": (1, 1), "padding": padding, **options}
    return IntegerConv2d(weight=weight, scale=np.ones(out), **settings)


def linear(rng: np.random.Generator, out: int, into: int, **options: Any) -> IntegerLinear:
    weight = rng.integers(-127, 128, (out, into))
    scale = rng.uniform(1, 3, out)
    return IntegerLinear(weight, **{"exponent": np.zeros(out), "bias": np.zeros(out), "scale": scale, **options})


def lif(rng: np.random.Generator, shape: tuple[int, ...], threshold: int = 2000, **options: Any) -> IntegerLIF:
    column = (shape[0], *(1,) * (len(shape) - 1))
    settings = {
        "threshold": rng.integers(threshold // 2, threshold + 1, column),
        "bias_mantissa": rng.integers(-4095, 4096, column),
        "bias_exponent": rng.integers(0, 5, column),
        "dv": 2048,
        **options,
    }
    return IntegerLIF(shape=shape, **settings)


def counts(rng: np.random.Generator, graph: nir.NIRGraph, batch: int = 3, high: int = 256) -> np.ndarray:
    """Frames of whole numbers for a graph by hand."""
    shape = tuple(int(size) for size in graph.nodes["x"].input_type["input"])
    hints = graph.metadata["statten"]
    steps = () if hints["input"] == "image" else (hints["time_steps"],)
    return rng.integers(0, high, (batch, *steps, *shape)).astype(np.float32)
