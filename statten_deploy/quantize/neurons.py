"""NIR's neurons as fixed-point neurons: decays of 4096ths, and how a threshold scales with the currents."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from statten_deploy.fixed_point.arithmetic import DECAY_BITS, NO_SYNAPTIC_MEMORY
from statten_deploy.ir.shapes import Shape
from statten_deploy.quantize.rounding import Real

FIRING = (nir.LIF, nir.CubaLIF, nir.IF)
INTEGRATORS = (nir.LI, nir.CubaLI, nir.I)
"""Neurons that put out their membrane: readouts."""
NEURONS = (*FIRING, *INTEGRATORS)
"""Neurons with a fixed-point form."""

PARAMETERS = {
    nir.LIF: ("tau", "r", "v_threshold"),
    nir.CubaLIF: ("tau_syn", "tau_mem", "r", "w_in", "v_threshold"),
    nir.IF: ("r", "v_threshold"),
    nir.LI: ("tau", "r"),
    nir.CubaLI: ("tau_syn", "tau_mem", "r", "w_in"),
    nir.I: ("r",),
}
"""What must be positive and agree inside a channel."""


@dataclass(frozen=True)
class NeuronForm:
    """A layer of neurons that takes ``a = K x`` for real currents x.

    Its membrane V stands for the real ``v = gain V / (64 K)``, so it fires at ``threshold K / gain``: gain is ``c r``
    for LIF, ``c_mem r c_syn w_in`` for CubaLIF and ``dt r`` for IF, with c = dt / tau. `gain` and `threshold` (the
    least real membrane that fires; None for integrators) per element of the leading axis.
    """

    dv: int
    du: int
    gain: Real
    threshold: Real | None

    @property
    def unit(self) -> Real:
        """The integer threshold per unit of K, of neurons that fire."""
        assert self.threshold is not None
        return self.threshold / self.gain

    @property
    def remembers(self) -> bool:
        """Whether it has a synaptic memory."""
        return self.du != NO_SYNAPTIC_MEMORY

    def halvings(self, steps: float) -> float:
        """By which power of two a drive is divided until the last step, as far as the decay is one."""
        kept = (1 << DECAY_BITS) - self.dv
        if kept == 0 or kept & (kept - 1):
            return 0
        return (steps - 1) * (DECAY_BITS - kept.bit_length() + 1)


def neuron_form(node: Any, shape: Shape, dt: float) -> NeuronForm:
    """The fixed-point form of a neuron that `neuron_problems` finds nothing wrong with."""
    step, decays, cuba = np.float32(dt), 1 << DECAY_BITS, isinstance(node, nir.CubaLIF | nir.CubaLI)
    gain = _leading(node.r, shape)
    if isinstance(node, nir.IF | nir.I):
        # multiplied in float32, as the simulator does: 1e-4 times 1e4 is 1
        gain, dv, du = (gain.astype(np.float32) * step).astype(np.float64), 0, NO_SYNAPTIC_MEMORY
    else:
        # divided in float32, as the simulator does
        membrane = float(step / np.float32(_first(node.tau_mem if cuba else node.tau)))
        gain, dv, du = gain * membrane, round(membrane * decays), NO_SYNAPTIC_MEMORY
    if cuba:
        synapse = float(step / np.float32(_first(node.tau_syn)))
        gain, du = gain * synapse * _leading(node.w_in, shape), round(synapse * decays) - 1
    if isinstance(node, INTEGRATORS):
        return NeuronForm(dv, du, gain, None)
    # written thresholds are fired above, so the next float32 is the least membrane that fires
    written = _leading(np.asarray(node.v_threshold, dtype=np.float32), shape).astype(np.float32)
    return NeuronForm(dv, du, gain, np.nextafter(written, np.float32(np.inf)).astype(np.float64))


def neuron_problems(node: Any, shape: Shape, dt: float) -> Iterator[str]:
    """Everything that keeps a neuron of `NEURONS` from having a fixed-point form."""
    reset = getattr(node, "v_reset", None)
    if np.any(getattr(node, "v_leak", 0)) or (reset is not None and np.any(reset)):
        yield "v_leak and v_reset must be 0"
    constants = [field for field in PARAMETERS[type(node)] if field.startswith("tau")]
    for field in constants:
        values = np.asarray(getattr(node, field), dtype=np.float32)
        if np.ptp(values) > 0:
            yield f"one {field} per layer"
        elif not 0 < np.float32(dt) / values.flat[0] <= 1:
            yield f"{field} must be at least one step, {dt:g} s"
        elif round(float(np.float32(dt) / values.flat[0]) * (1 << DECAY_BITS)) == 0:
            yield f"{field} must be less than {2 << DECAY_BITS} steps"
    for field in PARAMETERS[type(node)]:
        if field in constants:
            continue
        values = np.broadcast_to(np.asarray(getattr(node, field)), shape).reshape(shape[0], -1)
        if np.any(values <= 0):
            yield "thresholds must be positive" if field == "v_threshold" else f"{field} must be positive"
        elif np.ptp(values, axis=1).max() > 0:
            yield f"one {field} per channel"


def _first(values: Any) -> float:
    return float(np.asarray(values, dtype=np.float32).flat[0])


def _leading(values: Any, shape: Shape) -> Real:
    """A parameter per element of the leading axis."""
    full = np.broadcast_to(np.asarray(values, dtype=np.float64), shape)
    return np.array(full.reshape(shape[0], -1)[:, 0])
