"""Quantised nodes as stock nodes that compute the same equation, and back.

The integers stand in the arrays, so that any tool can open and run the file; what a stock node cannot say (exponents,
mantissas, decays of 4096ths, the scale of the currents) stands in the node's metadata under ``statten``. A stock reader
keeps the fractions that the integers cut off; everything else is the same (docs/nir.md).

Membranes are written in units in which the input weight of every neuron is 1, the form that all importers take:
``v · dv / (4096 · 64 · 2^input_exponent)`` for LIF, ``v / (64 · 2^input_exponent)`` for CubaLIF. Those of integrators
are their output, so they are written as they are: ``r`` brings the input to their units.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.export.nir.biases import Biases, written_biases
from statten_deploy.export.nir.compact import FORMAT, check_format
from statten_deploy.ir.graph import predecessors
from statten_deploy.ir.integer import (
    InputEncoder,
    IntegerConv2d,
    IntegerLI,
    IntegerLIF,
    IntegerLinear,
    IntegerSumPool2d,
)
from statten_deploy.ir.limits import MAX_SHIFT
from statten_deploy.ir.nodes import pair
from statten_deploy.ir.shapes import Shape, infer_shapes
from statten_deploy.ir.verify import time_step

Real = NDArray[np.float64]
Described = dict[str, Any]

ENDLESS = 2.0**-30
"""Stands for dv = 0, a membrane without leak: a time constant of 2^30 steps."""


@dataclass(frozen=True)
class _Context:
    name: str
    given: Shape
    gives: Shape
    dt: float
    biases: Biases


def lower_integers(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, dict[str, Described]]:
    """The graph with a stock node in place of every integer node, and what each of those loses by it.

    Names and edges stay. The second result is the metadata under ``statten`` from which `raise_integers` restores the
    node. A graph without integer nodes is returned as it is.

    Raises:
        UnsupportedError: an input that is neither [C, H, W] nor flat.
    """
    nodes, described = dict(graph.nodes), {}
    for name, lowered in _lowered(graph):
        node, operation = graph.nodes[name], type(graph.nodes[name]).__name__
        nodes[name] = lowered
        nodes[name].metadata = node.metadata
        values = {field: _written(getattr(node, field)) for field in OPERATIONS[operation][2]}
        described[name] = {"format": FORMAT, "op": operation, **values}
    if not described:
        return graph, {}
    return nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False), described


def _lowered(graph: nir.NIRGraph) -> Iterator[tuple[str, nir.NIRNode]]:
    """The stock node of every integer node, one after the other: each holds its weights in float32."""
    integers = [name for name, node in graph.nodes.items() if type(node) in INTEGER_NODES]
    if not integers:
        return
    shapes, into, biases, dt = infer_shapes(graph), predecessors(graph), written_biases(graph), time_step(graph)
    for name in integers:
        node, (source, *_) = graph.nodes[name], into[name]["input"]
        lower = OPERATIONS[type(node).__name__][0]
        yield name, lower(node, _Context(name, shapes[source], shapes[name], dt, biases))


def raise_integers(graph: nir.NIRGraph, described: Mapping[str, Mapping[str, Any]]) -> nir.NIRGraph:
    """Put back the integer nodes that the metadata (`described`, by node) speaks of.

    The result is not yet held against the arrays: `check_integers` does that once the graph is known to be valid.

    Raises:
        InputError: an operation or format this version does not know, fields that are missing or mean nothing, arrays
            that are not the integers the metadata speaks of.
    """
    nodes = dict(graph.nodes)
    for name, text in described.items():
        node = nodes.get(name)
        if node is None or "op" not in text or "readout" in text or isinstance(node, nir.NIRGraph):
            continue
        if type(node) in STOCK_FORMS:
            nodes[name] = _raised(name, node, text)
    return nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False)


def check_integers(found: nir.NIRGraph, raised: nir.NIRGraph) -> None:
    """Refuse a file whose arrays are not those that the raised integers give.

    Raises:
        InputError: the first node and field that differ.
    """
    changed = ""
    for name, expected in _lowered(raised):
        where, theirs = f"node {name!r} ({type(raised.nodes[name]).__name__})", found.nodes[name]
        if type(expected) is not type(theirs):
            raise InputError(
                f"{where} stands on a node {type(theirs).__name__}, its integers give a node "
                f"{type(expected).__name__}; export it again"
            )
        for field in _array_fields(expected):
            if not changed and not _same(getattr(expected, field), getattr(theirs, field)):
                changed = f"{where}: its {field}"
    if changed:  # where a node is of another kind, its neighbours have other numbers
        raise InputError(
            f"{changed} is not what the integers in its metadata give; the file was changed after it was written: "
            "export it again, or remove its metadata to read it as a float network"
        )


def _array_fields(node: Any) -> list[str]:
    return [field for field in vars(node) if field not in ("input_type", "output_type", "input_shape", "metadata")]


def _same(a: Any, b: Any) -> bool:
    first, second = np.asarray(a), np.asarray(b)
    if first.dtype.kind not in "iuf" or second.dtype.kind not in "iuf" or first.shape != second.shape:
        return False
    rows = zip(first, second, strict=True) if first.ndim > 1 else [(first, second)]  # one by one: weights can be large
    return all(np.array_equal(x, y) for x, y in rows)


def _written(value: Any) -> Any:
    """Arrays per channel without the axes that broadcast; pairs as arrays."""
    if isinstance(value, np.ndarray):
        return value.reshape(-1)
    return np.array(value, dtype=np.int64) if isinstance(value, tuple) else value


# integers to stock


def _f32(value: Any, shape: Shape | None = None) -> NDArray[np.float32]:
    array = np.asarray(value, dtype=np.float32)
    return array if shape is None else np.ascontiguousarray(np.broadcast_to(array, shape))


def _per_channel(value: Any, shape: Shape) -> Real:
    return np.asarray(value, dtype=np.float64).reshape(-1, *(1,) * (len(shape) - 1))


def _encoder(node: InputEncoder, at: _Context) -> nir.NIRNode:
    """``x / scale - zero_point`` as a diagonal 1x1 convolution (Affine for a flat signal).

    A Scale would be smaller, but importers drop or refuse it.
    """
    channels = at.given[0]
    matrix = np.diag(np.broadcast_to(1 / node.scale, channels))
    zero = np.broadcast_to(node.zero_point, channels).astype(np.float64)
    if len(at.given) == 3:
        return nir.Conv2d(at.given[1:], _f32(matrix[:, :, None, None]), (1, 1), (0, 0), (1, 1), 1, _f32(-zero))
    if len(at.given) == 1:
        return nir.Affine(_f32(matrix), _f32(-zero))
    raise UnsupportedError(f"input encoder {at.name!r}: takes {at.given}, expected a signal [C, H, W] or [N]")


def _conv(node: IntegerConv2d, at: _Context) -> nir.NIRNode:
    weight = np.ldexp(node.weight.astype(np.float64), node.exponent.reshape(-1, 1, 1, 1))
    bias = node.bias + at.biases.currents[at.name]
    return nir.Conv2d(
        at.given[1:], _f32(weight), node.stride, node.padding, node.dilation, node.groups, _f32(bias, weight.shape[:1])
    )


def _linear(node: IntegerLinear, at: _Context) -> nir.NIRNode:
    weight = np.ldexp(node.weight.astype(np.float64), node.exponent.reshape(-1, 1))
    return nir.Affine(_f32(weight), _f32(node.bias + at.biases.currents[at.name], weight.shape[:1]))


def _sum_pool(node: IntegerSumPool2d, at: _Context) -> nir.NIRNode:
    """SumPool2d; AvgPool2d where the shift is the mean; else a diagonal convolution with the factor as its weight."""
    (height, width), factor = node.kernel_size, 2.0**node.exponent
    kernel, stride, none = np.array(node.kernel_size), np.array(node.stride), np.zeros(2, dtype=np.int64)
    if factor == 1:
        return nir.SumPool2d(kernel, stride, none)
    if factor * height * width == 1:
        return nir.AvgPool2d(kernel, stride, none)
    channels = at.given[0]
    weight = np.zeros((channels, channels, height, width), dtype=np.float32)
    weight[np.arange(channels), np.arange(channels)] = factor  # a power of two
    return nir.Conv2d(at.given[1:], weight, node.stride, (0, 0), (1, 1), 1, _f32(np.zeros(channels)))


def _lif(node: IntegerLIF, at: _Context) -> nir.NIRNode:
    """``tau = dt · 4096 / dv``, ``v_leak = bias / (64 · 2^input_exponent)`` for what no convolution could take."""
    shape, decay = at.gives, node.dv / 4096 or ENDLESS
    gain = 2.0**-node.input_exponent
    leak = _per_channel(at.biases.membranes[at.name], shape) * gain / 64
    threshold = _per_channel(node.threshold, shape) * gain
    tau, zeros = _f32(at.dt / decay, shape), _f32(0.0, shape)
    if node.du == 4095:
        return nir.LIF(tau, _f32(1.0, shape), _f32(leak, shape), _f32(threshold * decay, shape), zeros)
    synapse = (node.du + 1) / 4096
    return nir.CubaLIF(
        tau_syn=_f32(at.dt / synapse, shape),
        tau_mem=tau,
        r=_f32(1 / decay, shape),
        v_leak=_f32(leak / decay, shape),
        v_threshold=_f32(threshold, shape),
        v_reset=zeros,
        w_in=_f32(1 / synapse, shape),
    )


def _li(node: IntegerLI, at: _Context) -> nir.NIRNode:
    """``tau = dt · 4096 / dv``; the membrane is the integer, so r is 64 · 2^input_exponent times what the decay takes.

    A bias that no convolution could take goes to v_leak, as for LIF.
    """
    shape, decay = at.gives, node.dv / 4096 or ENDLESS
    leak = _f32(_per_channel(at.biases.membranes[at.name], shape) / decay, shape)
    tau, r = _f32(at.dt / decay, shape), _f32(64 * 2.0**node.input_exponent / decay, shape)
    if node.du == 4095:
        return nir.LI(tau, r, leak)
    synapse = (node.du + 1) / 4096
    return nir.CubaLI(_f32(at.dt / synapse, shape), tau, r, leak, _f32(1 / synapse, shape))


# stock to integers


def _raised(name: str, node: nir.NIRNode, text: Mapping[str, Any]) -> nir.NIRNode:
    where = f"node {name!r}"
    check_format(text, where)
    operation = str(text["op"])
    if operation not in OPERATIONS:
        raise InputError(
            f"{where} is the operation {operation!r}, which this version does not know (it knows "
            f"{', '.join(OPERATIONS)}); a newer statten-deploy may"
        )
    _, restore, fields = OPERATIONS[operation]
    missing = [field for field in fields if field not in text and field not in OPTIONAL.get(operation, ())]
    if missing:
        raise InputError(f"{where} ({operation}): the metadata lacks {', '.join(missing)}")
    try:
        values = {field: convert(text[field]) for field, convert in fields.items() if field in text}
        raised = restore(node, values)
    except (TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{where} ({operation}): cannot restore the integers ({reason})") from None
    raised.metadata = node.metadata
    return raised


def _whole(value: Any) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.size == 0 or np.any(array.astype(np.int64) != array):
        raise ValueError("expected whole numbers")
    return array.astype(np.int64).reshape(-1)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, found {value!r:.40}")
    return value


def _reals(value: Any) -> Real:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.size == 0 or not np.all(np.isfinite(array)):
        raise ValueError("expected finite numbers")
    return array.astype(np.float64).reshape(-1)


def _pair(value: Any) -> tuple[int, int]:
    array = _whole(value)
    if array.size != 2:
        raise ValueError("expected a height and a width")
    return pair(array)


def _weights(node: Any, exponent: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers of a weight array that holds ``w · 2^exponent``."""
    weight = np.asarray(node.weight, dtype=np.float64)
    if weight.ndim < 2 or exponent.size != len(weight) or exponent.min() < -MAX_SHIFT or exponent.max() > MAX_SHIFT:
        raise ValueError("the exponents do not fit the weights")
    whole = np.ldexp(weight, -exponent.reshape(-1, *(1,) * (weight.ndim - 1)))
    if not np.all(np.abs(whole) < 2**40) or np.any(whole != np.rint(whole)):  # NaN fails the first test
        raise ValueError("its weights are not integers times powers of two")
    return whole.astype(np.int64)


def _to_encoder(node: Any, values: Described) -> nir.NIRNode:
    return InputEncoder(values["scale"], values["zero_point"])


def _to_conv(node: Any, values: Described) -> nir.NIRNode:
    numbers = [_pair(np.array(getattr(node, field))) for field in ("stride", "padding", "dilation")]
    weight = _weights(node, values["exponent"])
    if weight.ndim != 4:
        raise ValueError("its weights are not those of a convolution")
    bias = values.get("bias", np.zeros(len(weight), dtype=np.int64))
    return IntegerConv2d(weight, values["exponent"], values["scale"], *numbers, groups=int(node.groups), bias=bias)


def _to_linear(node: Any, values: Described) -> nir.NIRNode:
    return IntegerLinear(_weights(node, values["exponent"]), values["exponent"], values["bias"], values["scale"])


def _to_sum_pool(node: Any, values: Described) -> nir.NIRNode:
    return IntegerSumPool2d(values["kernel_size"], values["stride"], values["exponent"])


def _to_lif(node: Any, values: Described) -> nir.NIRNode:
    shape = np.shape(node.v_threshold)
    channels = {f: values[f].reshape(-1, *(1,) * (len(shape) - 1)) for f in _CHANNELS}
    rest = {f: values[f] for f in ("dv", "du", "input_exponent")}
    return IntegerLIF(shape=shape, **channels, **rest)


def _to_li(node: Any, values: Described) -> nir.NIRNode:
    shape = np.shape(node.r)
    channels = {f: values[f].reshape(-1, *(1,) * (len(shape) - 1)) for f in _CHANNELS[1:]}
    rest = {f: values[f] for f in ("dv", "du", "input_exponent", "scale")}
    return IntegerLI(shape=shape, **channels, **rest)


_CHANNELS = ("threshold", "bias_mantissa", "bias_exponent")
_DECAYS: dict[str, Callable[[Any], Any]] = {"dv": _integer, "du": _integer, "input_exponent": _integer}
_EXPONENT_AND_SCALE: dict[str, Callable[[Any], Any]] = {"exponent": _whole, "scale": _reals}

OPERATIONS: dict[
    str, tuple[Callable[..., nir.NIRNode], Callable[..., nir.NIRNode], dict[str, Callable[[Any], Any]]]
] = {
    "InputEncoder": (_encoder, _to_encoder, {"scale": _reals, "zero_point": _whole}),
    "IntegerConv2d": (_conv, _to_conv, {**_EXPONENT_AND_SCALE, "bias": _whole}),
    "IntegerLinear": (_linear, _to_linear, {**_EXPONENT_AND_SCALE, "bias": _whole}),
    "IntegerSumPool2d": (_sum_pool, _to_sum_pool, {"kernel_size": _pair, "stride": _pair, "exponent": _integer}),
    "IntegerLIF": (
        _lif,
        _to_lif,
        {**dict.fromkeys(_CHANNELS, _whole), **_DECAYS},
    ),
    "IntegerLI": (_li, _to_li, {**dict.fromkeys(_CHANNELS[1:], _whole), **_DECAYS, "scale": _reals}),
}
"""Operation in the file -> how to write it, how to restore it, and the metadata it takes."""

OPTIONAL = {"IntegerConv2d": ("bias",)}
"""Metadata that files of earlier versions lack."""
INTEGER_NODES = (InputEncoder, IntegerConv2d, IntegerLinear, IntegerSumPool2d, IntegerLIF, IntegerLI)
STOCK_FORMS = (nir.Conv2d, nir.Affine, nir.SumPool2d, nir.AvgPool2d, nir.LIF, nir.CubaLIF, nir.LI, nir.CubaLI)
