"""Lava 0.10 on Python 3.11 and later, which refuses dataclass defaults that cannot be hashed.

`lava.magma.compiler.var_model` has such defaults (``x: ByteEncoder = ByteEncoder()``). Its dataclasses get a hash while
that module is imported; nothing else of Lava or Python changes. On Python 3.10 it makes no difference.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

MODULE = "lava.magma.compiler.var_model"


def prepare_lava() -> None:
    """Import Lava's module of the mutable defaults; to be called before anything else of Lava is imported."""
    original: Callable[..., Any] = dataclasses.dataclass

    def hashable(cls: type | None = None, **options: Any) -> Any:
        if cls is not None and cls.__module__ == MODULE:
            return original(cls, **options, unsafe_hash=True)
        return original(cls, **options)

    dataclasses.dataclass = hashable
    try:
        importlib.import_module(MODULE)
    finally:
        dataclasses.dataclass = original
