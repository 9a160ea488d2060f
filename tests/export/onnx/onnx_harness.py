"""Building, checking and running exported models, and small graphs to export."""

import itertools
import json
from typing import Any

import nir
import numpy as np
import onnx
import onnxruntime as ort

from statten_deploy.export.onnx import build_onnx
from statten_deploy.ir import (
    MaxPool2d,
    SpikeAnd,
    SpikeMaxPool2d,
    STAttenAttention,
    TemporalMean,
    TokenMaxPool,
)
from tests.export.onnx.numpy_steps import run_steps

F32 = np.float32
DT = 1e-4


def graph_of(nodes: dict[str, Any], edges: list[tuple[str, str]], **hints: Any) -> nir.NIRGraph:
    """A graph with our hints (time_steps, input, ...) if there are any."""
    metadata = {"statten": {"format": 1, "dt": DT, **hints}} if hints else {}
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)


def chain(shape: tuple[int, ...], *nodes: Any, out: tuple[int, ...] | None = None, **hints: Any) -> nir.NIRGraph:
    """Input "x" [shape] -> n0 -> n1 ... -> Output "y"."""
    names = ["x", *(f"n{i}" for i in range(len(nodes))), "y"]
    ends = nir.Input({"input": np.array(shape)}), nir.Output({"output": None if out is None else np.array(out)})
    return graph_of(dict(zip(names, (ends[0], *nodes, ends[1]), strict=True)), list(itertools.pairwise(names)), **hints)


def checked(graph: nir.NIRGraph, **options: Any) -> onnx.ModelProto:
    """Export, then what ONNX itself has to say: the full checker and strict shape inference."""
    model = build_onnx(graph, **options)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model


def session(model: onnx.ModelProto, optimise: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], optimise: bool = True) -> dict[str, np.ndarray]:
    ready = session(model, optimise)
    return dict(zip([o.name for o in ready.get_outputs()], ready.run(None, feeds), strict=True))


def agree(graph: nir.NIRGraph, feeds: dict[str, np.ndarray], time_steps: int, **options: Any) -> dict[str, np.ndarray]:
    """Export and run; every output must equal the numpy run bit for bit (or to `rtol`). Returns the outputs."""
    rtol = options.pop("rtol", 0.0)
    expected = run_steps(graph, feeds, time_steps, options.get("dt", DT))
    found = run(checked(graph, time_steps=time_steps, **options), feeds)
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Output):
            assert found[name].dtype == np.float32
            assert found[name].shape == expected[name].shape
            np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=rtol, err_msg=name)
    return found


def eighths(rng: np.random.Generator, *shape: int, low: int = -8, high: int = 9) -> np.ndarray:
    """Random multiples of 1/8: sums and products of a few of them are exact in float32, in any order."""
    return (rng.integers(low, high, size=shape) / 8).astype(F32)


def spikes(rng: np.random.Generator, *shape: int, rate: float = 0.4) -> np.ndarray:
    return (rng.random(shape) < rate).astype(F32)


def lif(shape: tuple[int, ...], theta: float = 1.0, tau_steps: float = 2.0) -> nir.LIF:
    """The network's neuron: fires at v >= theta, hard reset to 0."""
    full = np.ones(shape, dtype=F32)
    return nir.LIF(
        tau=full * F32(tau_steps * DT),
        r=full,
        v_leak=0 * full,
        v_threshold=full * np.nextafter(F32(theta), F32(-np.inf)),
        v_reset=0 * full,
    )


def conv(
    rng: np.random.Generator, out: int, into: int, kernel: int = 1, exact: bool = True, **options: Any
) -> nir.Conv2d:
    """A convolution with non-zero bias; `exact` weights are multiples of 1/8."""
    if exact:
        weight, bias = eighths(rng, out, into, kernel, kernel), eighths(rng, out, low=1)
    else:
        weight = (rng.normal(0.15, 1, (out, into, kernel, kernel)) / np.sqrt(into * kernel)).astype(F32)
        bias = rng.normal(0.3, 0.2, out).astype(F32)
    settings = {"stride": 1, "padding": kernel // 2, "dilation": 1, "groups": 1, **options}
    return nir.Conv2d(input_shape=None, weight=weight, bias=bias, **settings)


def small_network(
    seed: int = 0,
    *,
    depth: int = 2,
    dim: int = 16,
    heads: int = 2,
    size: int = 8,
    in_channels: int = 3,
    classes: int = 5,
    time_steps: int = 4,
    attention: dict[str, Any] | None = None,
    dvs: bool = False,
    sdt: bool = False,
    exact: bool = True,
) -> nir.NIRGraph:
    """The released network's graph, small: two patch-embedding stages, `depth` blocks, the head.

    Static image -> "image"; with `dvs` events -> "frames", the max-pools on spikes and the gated residual of that mode.
    """
    rng = np.random.default_rng(seed)
    image = "frames" if dvs else "image"
    nodes: dict[str, Any] = {image: nir.Input({"input": np.array([in_channels, size, size])})}
    edges: list[tuple[str, str]] = []

    def add(name: str, node: Any, *sources: list[str] | str, ports: str = "") -> str:
        nodes[name] = node
        for index, group in enumerate(sources):
            for source in [group] if isinstance(group, str) else group:
                edges.append((source, f"{name}.{ports[index]}" if ports else name))
        return name

    half, grid = (dim // 2, size, size), (dim, size // 2, size // 2)
    x = add("patch_embed.proj_conv", conv(rng, dim // 2, in_channels, 3, exact), image)
    x = add("patch_embed.proj_lif", lif(half), x)
    x = add("patch_embed.proj_conv1", conv(rng, dim, dim // 2, 3, exact), x)
    features = add("patch_embed.maxpool1", MaxPool2d(3, 2, 1), x)
    x = add("patch_embed.proj_lif1", lif(grid), features)
    stream = [features, add("patch_embed.rpe_conv", conv(rng, dim, dim, 3, exact), x)]
    for i in range(depth):
        attn, mlp = f"block.{i}.attn", f"block.{i}.mlp"
        s = add(f"{attn}.shortcut_lif", lif(grid), stream)
        ports = {}
        for p in "qkv":
            projected = add(f"{attn}.{p}_conv", conv(rng, dim, dim, 1, exact), s)
            ports[p] = add(f"{attn}.{p}_lif", lif(grid), projected)
        if dvs:
            ports = {p: add(f"{attn}.{p}_pool", SpikeMaxPool2d(3, 1, 1), name) for p, name in ports.items()}
            s = add(f"{attn}.s_pool", SpikeMaxPool2d(3, 1, 1), s)
        if sdt:
            kv = add(f"{attn}.kv", SpikeAnd(), ports["k"], ports["v"], ports="ab")
            if dvs:
                kv = add(f"{attn}.kv_pool", TokenMaxPool(heads), kv)
            plane = np.array(grid[1:])
            total = add(f"{attn}.kv_sum", nir.SumPool2d(plane, plane, np.array([0, 0])), kv)
            talking = add(f"{attn}.talking_heads_lif", lif((dim, 1, 1), 0.5), total)
            a = add(f"{attn}.qkv", SpikeAnd(), ports["q"], talking, ports="ab")
        else:
            options = {"window": 2, **(attention or {})}
            product = add(f"{attn}.statten", STAttenAttention(heads, **options), *ports.values(), ports="qkv")
            theta = 2 * options["window"] if dvs else grid[1] / 2
            a = add(f"{attn}.attn_lif", lif(grid, theta), product)
        merged: list[str] | str = a
        if dvs:
            merged = [add(f"{attn}.gate", SpikeAnd(), a, s, ports="ab"), s]
        stream = [*stream, add(f"{attn}.proj_conv", conv(rng, dim, dim, 1, exact), merged)]
        h = add(f"{mlp}.fc1_lif", lif(grid), stream)
        h = add(f"{mlp}.fc1_conv", conv(rng, 2 * dim, dim, 1, exact), h)
        h = add(f"{mlp}.fc2_lif", lif((2 * dim, *grid[1:])), h)
        stream = [*stream, add(f"{mlp}.fc2_conv", conv(rng, dim, 2 * dim, 1, exact), h)]
    plane = np.array(grid[1:])
    x = add("head_pool", nir.AvgPool2d(plane, plane, np.array([0, 0])), stream)
    x = add("head_flatten", nir.Flatten({"input": np.array([dim, 1, 1])}, 0, -1), x)
    x = add("head_lif", lif((dim,)), x)
    x = add("head", nir.Affine(eighths(rng, classes, dim), eighths(rng, classes, low=1)), x)
    x = add("head_mean", TemporalMean(), x)
    add("logits", nir.Output({"output": np.array([classes])}), x)
    return graph_of(nodes, edges, name="small", time_steps=time_steps, input=image)


def network_input(graph: nir.NIRGraph, batch: int, seed: int = 1, exact: bool = True) -> dict[str, np.ndarray]:
    """Input of `small_network`: pixels in [0, 1], or event counts."""
    rng = np.random.default_rng(seed)
    name = next(name for name, node in graph.nodes.items() if isinstance(node, nir.Input))
    shape = tuple(graph.nodes[name].input_type["input"])
    if name == "frames":
        return {name: rng.poisson(0.7, (batch, graph.metadata["statten"]["time_steps"], *shape)).astype(F32)}
    return {name: eighths(rng, batch, *shape, low=0) if exact else rng.random((batch, *shape), dtype=F32)}


def chained(
    model: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    time_steps: int,
    call: Any = None,
) -> list[dict[str, np.ndarray]]:
    """A model in the stream layout, call after call over `time_steps` steps; what each call gave, states included.

    Written without the runtime. `call`: (feeds of one call) -> outputs; onnxruntime by default.
    """
    told = {entry.key: entry.value for entry in model.metadata_props}
    steps, states = int(told["steps_per_call"]), json.loads(told["states"])
    if call is None:
        ready = session(model)
        names = [output.name for output in ready.get_outputs()]

        def call(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return dict(zip(names, ready.run(names, given), strict=True))

    batch = len(next(iter(feeds.values())))
    carried = {s["input"]: np.zeros((batch, *s["shape"][1:]), s["dtype"]) for s in states}
    held = told["input"] == "image"
    results = []
    for start in range(0, time_steps, steps):
        part = {name: x if held else np.ascontiguousarray(x[:, start : start + steps]) for name, x in feeds.items()}
        results.append(call({**part, **carried}))
        carried = {s["input"]: results[-1][s["output"]] for s in states}
    return results
