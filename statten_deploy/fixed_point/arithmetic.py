"""The arithmetic of a fixed-point LIF neuron, as pure functions on integer arrays.

    a  = (Σ w s) << exponent            >> with floor for negative exponents
    u' = wrap(truncate(u · (4095 - du)) + (a << 6))          du = 4095: no synaptic memory
    v' = saturate(truncate(v · (4096 - dv)) + u' + bias)
    s  = v' > (threshold << 6)          strict
    v  = 0 where s, else v'             hard reset

These are the operations of Lava's bit-accurate LIF (`PyLifModelBitAcc`), whose du is one less than the decay it means.
int64 holds every intermediate value without overflow.
"""

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

STATE_BITS = 24
"""Bits of current and membrane, sign included."""
STATE_MAX = (1 << (STATE_BITS - 1)) - 1
"""Largest magnitude of a membrane: saturation is symmetric, ±(2^23 - 1)."""
DECAY_BITS = 12
"""dv is a fraction of 4096: tau = 4096 / dv steps."""
NO_SYNAPTIC_MEMORY = (1 << DECAY_BITS) - 1
"""The du with which a current lasts one step."""
CURRENT_SHIFT = 6
"""Fractional bits that a current and a threshold gain on their way to the membrane."""
THRESHOLD_BITS = 17
BIAS_MANTISSA_BITS = 13
"""Sign included."""
BIAS_EXPONENT_MAX = 7
"""Three bits, unsigned."""


def shift(a: Int, exponent: int | Int) -> Int:
    """``a · 2^exponent``; a negative exponent is an arithmetic right shift and rounds towards minus infinity."""
    e = np.asarray(exponent, dtype=np.int64)
    if not e.any():
        return np.asarray(a)
    left = np.left_shift(a, np.maximum(e, 0))
    return np.asarray(left if (e >= 0).all() else np.right_shift(left, np.maximum(-e, 0)))


def truncate(product: Int) -> Int:
    """``product / 4096`` rounded towards zero: ``sign(x) · (|x| >> 12)``."""
    return np.asarray(np.sign(product) * np.right_shift(np.abs(product), DECAY_BITS))


def wrap(x: Int) -> Int:
    """One turn of an overflowing register: ``x - 2^24`` above 2^23, ``x + 2^24`` at -2^23 and below, else x.

    As Lava does it: once, and into (-2^23, 2^23].
    """
    half, full = 1 << (STATE_BITS - 1), 1 << STATE_BITS
    return np.asarray(np.where(x > half, x - full, np.where(x <= -half, x + full, x)), dtype=np.int64)


def saturate(v: Int) -> Int:
    """Clip to ±(2^23 - 1)."""
    return np.clip(v, -STATE_MAX, STATE_MAX)


def synapse_step(u: Int | int, a: Int, du: int) -> Int:
    """The synaptic current after one step with input sum `a`; `du` of 4096ths, less one."""
    remembered = truncate(np.asarray(u * (NO_SYNAPTIC_MEMORY - du))) if du < NO_SYNAPTIC_MEMORY else 0
    return wrap(remembered + np.left_shift(a, CURRENT_SHIFT))


def li_step(v: Int, u: Int, *, dv: int, bias: Int) -> Int:
    """The membrane after one step without firing, from membrane v and synaptic current u; the rest as in `lif_step`."""
    return saturate(truncate(v * ((1 << DECAY_BITS) - dv)) + u + bias)


def lif_step(v: Int, u: Int, *, dv: int, bias: Int, threshold: Int) -> tuple[Int, Int, Int]:
    """One step: (spikes, membrane after reset, membrane before reset) from membrane v and synaptic current u.

    `dv` of 4096ths, `bias` in membrane units, `threshold` in units of 64 membrane units; all broadcast over v.
    """
    before = li_step(v, u, dv=dv, bias=bias)
    spikes = before > np.left_shift(threshold, CURRENT_SHIFT)
    return spikes.astype(np.int64), np.where(spikes, 0, before), before
