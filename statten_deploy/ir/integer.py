"""Nodes of a quantised graph: integer weights, integer thresholds, integer inputs (docs/fixed_point.md).

What needs no weights (pools, attention, AND) is the same node as in a float graph and acts on integers alike.
"""

from dataclasses import dataclass, field

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.ir.nodes import Pair, pair

IntArray = NDArray[np.int64]
RealArray = NDArray[np.float64]


def integers(value: object) -> IntArray:
    """An array of int64; anything that is not a whole number is refused with a ValueError."""
    array = np.asarray(value)
    whole = array.astype(np.int64)
    if not np.array_equal(whole, array):
        raise ValueError("expected whole numbers")
    return whole


@dataclass(eq=False)
class InputEncoder(nir.NIRNode):
    """Real frames to graded integers: ``y = clip(rint(x / scale), 0, 255) - zero_point``.

    Stored and sent as the unsigned byte ``y + zero_point``. `scale` and `zero_point` per channel [C]; rint rounds
    halves to even. Input and output [C, H, W].
    """

    scale: NDArray[np.float64]
    zero_point: IntArray

    def __post_init__(self) -> None:
        self.scale = np.asarray(self.scale, dtype=np.float64)
        self.zero_point = integers(self.zero_point)
        self.input_type = {"input": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class IntegerConv2d(nir.NIRNode):
    """``a[o] = shift(Σ w[o] s, exponent[o]) + bias[o]``, zero padding.

    `weight` [out, in, kh, kw] signed integers of the chosen number of bits, `exponent` [out]. `scale` [out] is what a
    real current x became: ``a = scale · x``. `bias` [out] is 0 but in front of synaptic memories: others have biases of
    their own.
    """

    weight: IntArray
    exponent: IntArray
    scale: RealArray
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        self.weight, self.exponent = integers(self.weight), integers(self.exponent)
        self.bias = integers(self.bias) if np.size(self.bias) else np.zeros(len(self.weight), dtype=np.int64)
        self.scale = np.asarray(self.scale, dtype=np.float64)
        self.stride, self.padding, self.dilation = map(pair, (self.stride, self.padding, self.dilation))
        self.input_type = {"input": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class IntegerLinear(nir.NIRNode):
    """``a[o] = shift(Σ w[o] s, exponent[o]) + bias[o]``; `weight` [out, in], `exponent`, `bias` and `scale` [out].

    `scale` as in `IntegerConv2d`. Only readouts and currents into synaptic memories have a bias: others belong to the
    neurons.
    """

    weight: IntArray
    exponent: IntArray
    bias: IntArray
    scale: RealArray

    def __post_init__(self) -> None:
        self.scale = np.asarray(self.scale, dtype=np.float64)
        self.weight, self.exponent, self.bias = map(integers, (self.weight, self.exponent, self.bias))
        self.input_type = {"input": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class IntegerSumPool2d(nir.NIRNode):
    """``a = shift(sum over the window, exponent)``. What is left of a mean's divisor is in the threshold."""

    kernel_size: Pair
    stride: Pair
    exponent: int

    def __post_init__(self) -> None:
        self.kernel_size, self.stride, self.exponent = pair(self.kernel_size), pair(self.stride), int(self.exponent)
        self.input_type = {"input": None}
        self.output_type = {"output": None}


@dataclass(eq=False)
class IntegerLIF(nir.NIRNode):
    """Fixed-point LIF neurons: the equations of `statten_deploy.fixed_point.synapse_step` and `lif_step`.

    `threshold`, `bias_mantissa`, `bias_exponent`: per channel, shaped [C, 1, 1] or [C]. `dv` and `du` are one number
    per layer: dv = 4096 / (membrane time constant in steps), du = 4096 / (synaptic time constant) - 1, so that 4095
    is a current without memory. `input_exponent` shifts the sum of all inputs. bias = bias_mantissa << bias_exponent,
    in membrane units.
    """

    threshold: IntArray
    dv: int
    bias_mantissa: IntArray
    bias_exponent: IntArray
    shape: tuple[int, ...]
    input_exponent: int = 0
    du: int = 4095

    def __post_init__(self) -> None:
        self.threshold, self.bias_mantissa, self.bias_exponent = map(
            integers, (self.threshold, self.bias_mantissa, self.bias_exponent)
        )
        self.dv, self.du, self.input_exponent = int(self.dv), int(self.du), int(self.input_exponent)
        self.shape = tuple(int(size) for size in self.shape)
        self.input_type = {"input": np.array(self.shape)}
        self.output_type = {"output": np.array(self.shape)}


@dataclass(eq=False)
class IntegerLI(nir.NIRNode):
    """Fixed-point integrators: the membranes of `IntegerLIF` that never fire, put out at every step.

    Real value = integer / `scale`, [C]. The rest is as in `IntegerLIF`.
    """

    dv: int
    bias_mantissa: IntArray
    bias_exponent: IntArray
    scale: RealArray
    shape: tuple[int, ...]
    input_exponent: int = 0
    du: int = 4095

    def __post_init__(self) -> None:
        self.bias_mantissa, self.bias_exponent = integers(self.bias_mantissa), integers(self.bias_exponent)
        self.scale = np.asarray(self.scale, dtype=np.float64)
        self.dv, self.du, self.input_exponent = int(self.dv), int(self.du), int(self.input_exponent)
        self.shape = tuple(int(size) for size in self.shape)
        self.input_type = {"input": np.array(self.shape)}
        self.output_type = {"output": np.array(self.shape)}


@dataclass(eq=False)
class TemporalSum(nir.NIRNode):
    """Sum over all steps, real value = integer · scale: ``y = Σ_t x[t]``. The output has no time axis any more."""

    scale: float

    def __post_init__(self) -> None:
        self.scale = float(self.scale)
        self.input_type = {"input": None}
        self.output_type = {"output": None}


INTEGER_NEURONS = (IntegerLIF, IntegerLI)
"""Nodes with a membrane."""

QUANTISED = (InputEncoder, IntegerConv2d, IntegerLinear, IntegerSumPool2d, *INTEGER_NEURONS, TemporalSum)
"""Nodes that only quantised graphs have."""


def is_quantised(graph: nir.NIRGraph) -> bool:
    """Whether a graph is one of integers."""
    return any(isinstance(node, QUANTISED) for node in graph.nodes.values())
