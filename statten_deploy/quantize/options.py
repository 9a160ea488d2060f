"""What can be chosen when quantising."""

from dataclasses import dataclass
from typing import Literal, get_args

from statten_deploy.errors import InputError

Granularity = Literal["channel", "tensor"]

BITS = (2, 8)
"""Fewest and most bits of a weight, sign included."""


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantise: weight bits 2..8, one scale per output channel or one per tensor.

    `shifts=False` keeps every exponent at 0, for formats that know none: all branches of a sum then share one grid, and
    thresholds are as coarse as the weights make them.
    """

    bits: int = 8
    granularity: Granularity = "channel"
    shifts: bool = True

    def __post_init__(self) -> None:
        least, most = BITS
        if not least <= self.bits <= most:
            raise InputError(f"--bits {self.bits}: expected {least} to {most}")
        if self.granularity not in get_args(Granularity):
            raise InputError(f"--granularity {self.granularity}: expected channel or tensor")
