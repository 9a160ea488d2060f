"""One stream of frames through a file in the stream layout, with its own state."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError
from statten_deploy.runtime.checks import check_array, check_count, check_values
from statten_deploy.runtime.interface import COUNTS, Array

if TYPE_CHECKING:
    from statten_deploy.runtime.session import Session

STATE, PENDING, STEPS, ARTEFACT = "state/", "pending", "steps", "artefact"
"""Entries of a saved state: those of the file's states begin with the first."""


@dataclass(frozen=True)
class Result:
    """What a call gave. Arrays have a batch axis where the input had one.

    `outputs`: by name, the first of them the logits. After `steps` steps since the start they are means over these
    steps, the network's own answer once `complete`: it was trained on `time_steps` of them.
    """

    outputs: dict[str, Array]
    spike_counts: dict[str, Array] = field(default_factory=dict)
    """Spikes of each neuron layer in this call, in files written with --spike-counts."""
    steps: int = 0
    time_steps: int = 0

    @property
    def logits(self) -> Array:
        """The first output: [classes], or [N, classes]."""
        return next(iter(self.outputs.values()))

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class with the largest logit: [], or [N]."""
        return np.asarray(self.logits.argmax(-1), dtype=np.int64)

    @property
    def label(self) -> int:
        """The class of a single sample.

        Raises:
            ValueError: there are several.
        """
        return int(self.labels.item())

    @property
    def complete(self) -> bool:
        """Whether as many steps have passed as a sample had in training."""
        return self.steps >= self.time_steps


def make_result(values: Mapping[str, Array], steps: int, time_steps: int) -> Result:
    """Spike counts and other outputs apart."""
    counts = {name.removeprefix(COUNTS): value for name, value in values.items() if name.startswith(COUNTS)}
    outputs = {name: value for name, value in values.items() if not name.startswith(COUNTS)}
    return Result(outputs, counts, steps, time_steps)


class Stream:
    """A sequence of frames and what the network remembers of it. Made by `Session.stream`.

    Calls from several threads are done one after the other. Different streams of one session run at the same time.
    """

    def __init__(self, session: "Session", batch: int | None = None) -> None:
        """`batch`: so many streams side by side, step by step together; None: one, whose frames have no batch axis."""
        self.batch = None if batch is None else check_count("batch", batch)
        self._session = session
        self._lock = threading.Lock()
        self._frame = session.frame_shape
        self.reset()

    @property
    def steps(self) -> int:
        """Steps computed since the start; frames that wait for their chunk to fill are not among them."""
        return self._steps

    @property
    def pending(self) -> int:
        """Frames that wait for their chunk to fill."""
        return int(self._pending.shape[1])

    def reset(self) -> None:
        """Forget everything: as before the first frame."""
        with self._lock:
            rows = self.batch or 1
            self._states = self._session.interface.zero_states(rows)
            self._pending = np.zeros((rows, 0, *self._frame), np.float32)
            self._steps = 0

    def push(self, frames: NDArray[np.float32]) -> Result | None:
        """The next frame [C, H, W] or k of them [k, C, H, W], with a batch axis in front where the stream has one.

        A file with a block window of S steps computes S frames at a time: None until the chunk is full. An image
        network is shown each image for the steps of one call, so every image gives a result.

        Raises:
            InputError: not such frames; the stream is as it was before.
        """
        interface, name = self._session.interface, self._session.input.name
        lead: tuple[int | str, ...] = () if self.batch is None else (self.batch,)
        checked = check_array(name, frames, [(*lead, *self._frame), (*lead, "steps", *self._frame)])
        if self._session.check_values:
            check_values(name, checked, interface.low, interface.high)
        fresh = checked.reshape(self.batch or 1, -1, *self._frame)
        taken = 1 if interface.held else interface.steps_per_call
        with self._lock:
            waiting = np.concatenate([self._pending, fresh], axis=1) if self.pending else fresh
            states, parts = self._states, []
            full = waiting.shape[1] // taken * taken
            for start in range(0, full, taken):
                part = waiting[:, start] if interface.held else waiting[:, start : start + taken]
                values = self._session.call({name: np.ascontiguousarray(part), **states})
                states = interface.next_states(values)
                parts.append(values)
            self._pending, self._states = waiting[:, full:].copy(), states
            self._steps += len(parts) * interface.steps_per_call
            steps = self._steps
        if not parts:
            return None
        joined = interface.outputs(parts)
        if self.batch is None:
            joined = {key: value[0] for key, value in joined.items()}
        return make_result(joined, steps, interface.time_steps)

    def state(self) -> dict[str, Array]:
        """Everything `restore` needs to go on from here, as arrays: ``np.savez(file, **stream.state())`` keeps it."""
        with self._lock:
            return {
                **{STATE + name.removeprefix(STATE): value.copy() for name, value in self._states.items()},
                PENDING: self._pending.copy(),
                STEPS: np.asarray(self._steps),
                ARTEFACT: np.asarray(self._session.sha256),
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, of this stream or of another one of the same file, in any engine.

        Raises:
            InputError: of another file, of another batch size, or damaged; the stream is as it was before.
        """
        try:
            given = {key: np.asarray(state[key]) for key in state}
        except Exception as error:  # a file is read only now: zip, zlib and numpy raise their own
            told = " ".join(str(error).split())[:160]
            raise InputError(f"the state cannot be read ({told}); save it with state()") from None
        rows, interface = self.batch or 1, self._session.interface
        if str(given.get(ARTEFACT, "")) != self._session.sha256:
            raise InputError(f"the state is not one of {self._session.path}; restore what its own streams saved")
        zeros = {STATE + name.removeprefix(STATE): (name, like) for name, like in interface.zero_states(rows).items()}
        if given.keys() != {*zeros, PENDING, STEPS, ARTEFACT}:
            raise InputError("the state is damaged: entries are missing or unknown; save it with state()")
        states = {name: _restored(key, given[key], like) for key, (name, like) in zeros.items()}
        steps, pending = given[STEPS], given[PENDING]
        if steps.shape != () or steps.dtype.kind != "i" or steps < 0:
            raise InputError(f"the state's {STEPS!r} is {steps}, expected a whole number")
        waiting = pending.shape[1] if pending.ndim > 1 else 0
        pending = _restored(PENDING, pending, np.zeros((rows, waiting, *self._frame), np.float32))
        if waiting and (interface.held or waiting >= interface.steps_per_call):
            raise InputError(f"the state's {PENDING!r} holds {waiting} frames, more than can wait")
        with self._lock:
            self._states, self._pending, self._steps = states, pending, int(steps)


def _restored(key: str, found: Array, like: Array) -> Array:
    if found.dtype != like.dtype or found.shape != like.shape:
        raise InputError(
            f"the state's {key!r} is {found.dtype} {list(found.shape)}, expected {like.dtype} {list(like.shape)}"
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise InputError(f"the state's {key!r} holds NaN or infinite values")
    return found.copy()
