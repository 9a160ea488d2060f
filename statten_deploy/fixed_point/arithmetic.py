"""The arithmetic of a fixed-point LIF neuron, as pure functions on integer arrays.

    a  = (Σ w s) << exponent            >> with floor for negative exponents
    u  = wrap24(a << 6)                 no synaptic memory
    v' = saturate24(truncate(v · (4096 - dv)) + u + bias)
    s  = v' > (threshold << 6)          strict
    v  = 0 where s, else v'             hard reset

These are the operations of Lava's bit-accurate LIF (`PyLifModelBitAcc` with du = 4095). int64 holds every intermediate
value without overflow.
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
CURRENT_SHIFT = 6
"""Fractional bits that a current and a threshold gain on their way to the membrane."""
THRESHOLD_BITS = 17
BIAS_MANTISSA_BITS = 13
"""Sign included."""


def shift(a: Int, exponent: int | Int) -> Int:
    """``a · 2^exponent``; a negative exponent is an arithmetic right shift and rounds towards minus infinity."""
    e = np.asarray(exponent, dtype=np.int64)
    return np.asarray(np.where(e >= 0, np.left_shift(a, np.maximum(e, 0)), np.right_shift(a, np.maximum(-e, 0))))


def truncate(product: Int) -> Int:
    """``product / 4096`` rounded towards zero: ``sign(x) · (|x| >> 12)``."""
    return np.asarray(np.sign(product) * np.right_shift(np.abs(product), DECAY_BITS))


def wrap(x: Int, bits: int = STATE_BITS) -> Int:
    """The low `bits` of x as a two's-complement number: what a register that overflows keeps."""
    half, full = 1 << (bits - 1), 1 << bits
    return np.asarray(np.mod(x + half, full) - half, dtype=np.int64)


def saturate(v: Int) -> Int:
    """Clip to ±(2^23 - 1)."""
    return np.clip(v, -STATE_MAX, STATE_MAX)


def lif_step(v: Int, a: Int, *, dv: int, bias: Int, threshold: Int) -> tuple[Int, Int, Int]:
    """One step: (spikes, membrane after reset, membrane before reset) from membrane v and input sum a.

    `dv` of 4096ths, `bias` in membrane units, `threshold` in units of 64 membrane units; all broadcast over v.
    """
    u = wrap(np.left_shift(a, CURRENT_SHIFT))
    before = saturate(truncate(v * ((1 << DECAY_BITS) - dv)) + u + bias)
    spikes = before > np.left_shift(threshold, CURRENT_SHIFT)
    return spikes.astype(np.int64), np.where(spikes, 0, before), before
