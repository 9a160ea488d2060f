"""What an exported file takes and gives, by its metadata (docs/onnx.md)."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError

Array = NDArray[Any]
Layout = Literal["sequence", "stream"]

COUNTS = "spike_counts/"
"""How outputs that count a layer's spikes begin."""
MOST_STEPS = 65536
"""Steps of a sample; so many as a graph may have."""
STATE_TYPES = ("float32", "float64", "int64", "int32", "uint8")
"""What a state may be made of."""


@dataclass(frozen=True)
class State:
    """What one call leaves for the next: input `input` [batch, *shape], output `output`; zeros at the start."""

    input: str
    output: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Interface:
    """How a file is called.

    A call takes `steps_per_call` of the `time_steps` steps of a sample: all of them in the sequence layout. `held`: the
    input is an image [batch, C, H, W], the same at every step of a call; else frames [batch, steps, C, H, W].
    """

    layout: Layout
    flavour: str
    time_steps: int
    steps_per_call: int
    held: bool
    states: tuple[State, ...] = ()
    step_outputs: frozenset[str] = frozenset()
    """Outputs of a stream that have a time axis; the others are those after the last step."""
    low: float = -math.inf
    high: float = math.inf
    """Values the network was made for."""

    @classmethod
    def of(cls, metadata: Mapping[str, str], where: object) -> "Interface":
        """Read it from a file's metadata; `where` names the file in messages.

        Raises:
            InputError: there is none, or it contradicts itself.
        """
        layout = metadata.get("layout", "")
        if layout not in ("sequence", "stream"):
            found = f"layout {layout!r}" if layout else "no layout in its metadata"
            raise InputError(f"{where}: {found}; expected a file that statten-export wrote, sequence or stream")
        try:
            steps = int(metadata["time_steps"])
            per_call = int(metadata["steps_per_call"]) if layout == "stream" else steps
            states = tuple(_state(entry) for entry in json.loads(metadata.get("states", "[]")))
            stepped = frozenset(str(name) for name in json.loads(metadata.get("step_outputs", "[]")))
            low, high = json.loads(metadata.get("input_range", "[null, null]"))
            if not 1 <= per_call <= steps <= MOST_STEPS or steps % per_call:
                raise ValueError
            return cls(
                cast(Layout, layout),
                metadata.get("flavour", "float32"),
                steps,
                per_call,
                metadata["input"] == "image",
                states,
                stepped,
                -math.inf if low is None else float(low),
                math.inf if high is None else float(high),
            )
        except (KeyError, ValueError, TypeError, RecursionError):
            raise InputError(f"{where}: its metadata contradict themselves; export it again") from None

    @property
    def calls(self) -> int:
        """Calls that a sample of T steps takes."""
        return self.time_steps // self.steps_per_call

    def zero_states(self, batch: int) -> dict[str, Array]:
        """The states before the first step, by input name."""
        return {state.input: np.zeros((batch, *state.shape), state.dtype) for state in self.states}

    def next_states(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """What a call left, by the names under which the next one takes it."""
        return {state.input: values[state.output] for state in self.states}

    def parts(self, x: Array) -> Iterator[Array]:
        """The inputs of the calls for whole samples: the image again and again, or parts of the frames [N, T, ...]."""
        for call in range(self.calls):
            start = call * self.steps_per_call
            yield x if self.held or self.calls == 1 else x[:, start : start + self.steps_per_call]

    def outputs(self, calls: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """What several calls in a row gave together, without the states."""
        hidden = {state.output for state in self.states}
        return {name: self.join(name, [call[name] for call in calls]) for name in calls[0] if name not in hidden}

    def join(self, output: str, parts: Sequence[Array]) -> Array:
        """One output over several calls: counts add up, steps line up, and of a running mean the last counts."""
        if len(parts) == 1:
            return parts[0]
        if output.startswith(COUNTS):
            return np.asarray(sum(parts[1:], start=parts[0]))
        return np.concatenate(parts, axis=1) if output in self.step_outputs else parts[-1]


def _state(entry: Mapping[str, Any]) -> State:
    batch, *shape = entry["shape"]
    if batch != "batch" or entry["dtype"] not in STATE_TYPES:
        raise ValueError
    return State(
        str(entry["input"]), str(entry["output"]), np.dtype(entry["dtype"]), tuple(int(size) for size in shape)
    )
