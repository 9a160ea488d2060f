"""The integer arithmetic of deployed networks; docs/fixed_point.md is its specification."""

from statten_deploy.fixed_point.arithmetic import (
    BIAS_EXPONENT_MAX,
    BIAS_MANTISSA_BITS,
    CURRENT_SHIFT,
    DECAY_BITS,
    NO_SYNAPTIC_MEMORY,
    STATE_BITS,
    STATE_MAX,
    THRESHOLD_BITS,
    li_step,
    lif_step,
    saturate,
    shift,
    synapse_step,
    truncate,
    wrap,
)

__all__ = [
    "BIAS_EXPONENT_MAX",
    "BIAS_MANTISSA_BITS",
    "CURRENT_SHIFT",
    "DECAY_BITS",
    "NO_SYNAPTIC_MEMORY",
    "STATE_BITS",
    "STATE_MAX",
    "THRESHOLD_BITS",
    "li_step",
    "lif_step",
    "saturate",
    "shift",
    "synapse_step",
    "truncate",
    "wrap",
]
