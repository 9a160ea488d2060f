"""Stock nodes in the one spelling that every reader takes: full parameter arrays, explicit shapes, no None."""

from collections.abc import Callable
from typing import Any

import nir
import numpy as np

from statten_deploy.ir.shapes import NEURON_PARAMETERS, Shape, sizes


def normalised(node: nir.NIRNode, given: Shape, gives: Shape) -> nir.NIRNode:
    """A copy of a stock node as it is written; `given` and `gives` are the shapes of its input and output.

    `nir` cannot write None (a missing bias, a Flatten without input shape), SpikingJelly and snnTorch want kernel
    sizes as pairs, and every importer wants neuron parameters in the shape of the signal.
    """
    return _SPELL[type(node)](node, given, gives)


def _conv(node: Any, given: Shape, gives: Shape) -> nir.NIRNode:
    axes = len(given) - 1
    padding = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    numbers = [sizes(node.stride, axes, "stride"), sizes(node.dilation, axes, "dilation")]
    if not isinstance(padding, str):
        numbers.append(sizes(padding, axes, "padding"))
    values: list[Any] = [v[0] for v in numbers] if axes == 1 else [*numbers]
    bias = np.zeros(len(node.weight), dtype=np.asarray(node.weight).dtype) if node.bias is None else node.bias
    return type(node)(
        input_shape=given[1] if axes == 1 else given[1:],
        weight=np.asarray(node.weight),
        stride=values[0],
        padding=padding if isinstance(padding, str) else values[2],
        dilation=values[1],
        groups=int(node.groups),
        bias=np.asarray(bias),
    )


def _pool(node: Any, given: Shape, gives: Shape) -> nir.NIRNode:
    return type(node)(
        **{f: np.array(sizes(getattr(node, f), 2, f)) for f in ("kernel_size", "stride", "padding")},
    )


def _flatten(node: Any, given: Shape, gives: Shape) -> nir.NIRNode:
    start, end = int(node.start_dim), int(node.end_dim)
    start = start + len(given) if start < 0 else start  # nir's own inference reads negative numbers wrongly,
    end = end + len(given) if end < -1 else end  # except for an end of -1
    return nir.Flatten({"input": np.array(given)}, start, end)


def _affine(node: Any, given: Shape, gives: Shape) -> nir.NIRNode:
    weight = np.asarray(node.weight)
    return nir.Affine(weight, np.zeros(gives, dtype=weight.dtype) if node.bias is None else np.asarray(node.bias))


def _linear(node: Any, given: Shape, gives: Shape) -> nir.NIRNode:
    return nir.Linear(np.asarray(node.weight))


def _elementwise(node: Any, given: Shape, gives: Shape) -> nir.NIRNode:
    values = {field: np.asarray(getattr(node, field)) for field in NEURON_PARAMETERS[type(node)]}
    full = {f: v if v.shape == gives else np.full(gives, v.reshape(-1)[0], v.dtype) for f, v in values.items()}
    return type(node)(**full)


def _input(node: Any, given: Shape, gives: Shape) -> nir.NIRNode:
    return nir.Input({"input": np.array(gives, dtype=np.int64)})


def _output(node: Any, given: Shape, gives: Shape) -> nir.NIRNode:
    return nir.Output({"output": np.array(gives, dtype=np.int64)})


_SPELL: dict[type[nir.NIRNode], Callable[[Any, Shape, Shape], nir.NIRNode]] = {
    nir.Input: _input,
    nir.Output: _output,
    nir.Affine: _affine,
    nir.Linear: _linear,
    nir.Conv1d: _conv,
    nir.Conv2d: _conv,
    nir.AvgPool2d: _pool,
    nir.SumPool2d: _pool,
    nir.Flatten: _flatten,
    **dict.fromkeys(NEURON_PARAMETERS, _elementwise),
}
"""Every stock node type and how it is spelt."""

STOCK_NODES = tuple(_SPELL)
