"""A loaded file: predictions of whole samples, and streams."""

import threading
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import InputError
from statten_deploy.runtime.checks import check_array, check_count, check_values
from statten_deploy.runtime.engines import ENGINES, Engine, Options, Port, choose_engine
from statten_deploy.runtime.interface import Array, Interface
from statten_deploy.runtime.metadata import read_facts
from statten_deploy.runtime.stream import Result, Stream, make_result
from statten_deploy.runtime.structure import check_structure
from statten_deploy.sidecar import file_facts, read_sidecar
from statten_deploy.untrusted.limits import check_bytes

MOST_THREADS = 1024
"""No engine is asked for more: it would start them all at once."""


def load(
    path: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    provider: str | None = None,
    arena: bool | None = None,
    check_values: bool = True,
) -> "Session":
    """Load an ONNX file that ``statten-export`` wrote.

    Args:
        path: the file; where its sidecar lies beside it, its SHA-256 must be the one recorded there.
        engine: ``onnxruntime`` or ``openvino``; None: what is installed and fits the file's flavour.
        threads: threads of one call; None: as many as the engine takes (all cores).
        provider: execution provider of onnxruntime (default ``CPUExecutionProvider``), or device of OpenVINO (``CPU``).
        arena: whether onnxruntime keeps freed memory for the next call (its default); without, memory is returned.
        check_values: look for NaN, infinite values and values outside the range the network was made for.

    Raises:
        InputError: no such file, not one of ours, changed since its export, or an option that does not exist here.
    """
    if threads is not None:
        threads = check_count("threads", threads, MOST_THREADS)
    if arena not in (None, True, False):
        raise InputError(f"arena must be True or False, got {arena!r}")
    path = Path(path)
    facts = read_facts(path)
    interface = Interface.of(facts.metadata, path)
    sidecar = read_sidecar(path)
    sha256 = str(sidecar["sha256"] if sidecar else file_facts(path)["sha256"])
    check_structure(path)
    chosen = choose_engine(interface.flavour, engine)
    ready = ENGINES[chosen](path, Options(threads, provider, arena))
    return Session(path, interface, facts.metadata, sha256, chosen, ready, check_values=check_values)


class Session:
    """A loaded file. May be used from several threads: what is remembered belongs to streams, each with its own lock.

    `engine` is the name of what runs it, `input` the input's name, type and shape, `metadata` what the file says.
    """

    def __init__(
        self,
        path: Path,
        interface: Interface,
        metadata: Mapping[str, str],
        sha256: str,
        engine: str,
        ready: Engine,
        *,
        check_values: bool = True,
    ) -> None:
        self.path, self.interface, self.metadata, self.sha256 = path, interface, metadata, sha256
        self.engine, self.check_values = engine, check_values
        self._ready = ready
        self.input = _data_input(path, interface, ready)
        held = sum(prod(state.shape) * state.dtype.itemsize for state in interface.states)
        check_bytes(path, held, "its state")
        self._own: Stream | None = None
        self._lock = threading.Lock()

    @property
    def time_steps(self) -> int:
        """T: the steps of a sample."""
        return self.interface.time_steps

    @property
    def steps_per_call(self) -> int:
        """Steps that one call takes: T in the sequence layout."""
        return self.interface.steps_per_call

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """One frame or image, [C, H, W]."""
        return tuple(size for size in self.input.shape[1 if self.interface.held else 2 :] if size is not None)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """One sample of `predict`: an image [C, H, W], or T frames [T, C, H, W]."""
        return self.frame_shape if self.interface.held else (self.time_steps, *self.frame_shape)

    def call(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One call of the engine as it is, unchecked: the input and, in the stream layout, the states."""
        return self._ready.run(feeds)

    def predict(self, x: NDArray[np.float32]) -> Result:
        """Whole samples [N, C, H, W] or [N, T, C, H, W], each from rest; logits [N, classes]. Touches no stream.

        Raises:
            InputError: not such an array.
        """
        name, interface = self.input.name, self.interface
        checked = check_array(name, x, [("N", *self.sample_shape)])
        if self.check_values:
            check_values(name, checked, interface.low, interface.high)
        states, parts = interface.zero_states(len(checked)), []
        for part in interface.parts(checked):
            values = self.call({name: np.ascontiguousarray(part), **states})
            states = interface.next_states(values)
            parts.append(values)
        return make_result(interface.outputs(parts), self.time_steps, self.time_steps)

    def stream(self, batch: int | None = None) -> Stream:
        """A new stream, at rest; `batch`: so many side by side.

        Raises:
            InputError: the file is in the sequence layout.
        """
        if self.interface.layout != "stream":
            raise InputError(
                f"{self.path}: takes all {self.time_steps} steps in one call (predict); export it with --layout stream "
                "to push frames"
            )
        return Stream(self, batch)

    # the session's own stream, for programs that have one

    @property
    def own_stream(self) -> Stream:
        """The stream that `push` pushes to."""
        with self._lock:
            if self._own is None:
                self._own = self.stream()
            return self._own

    def push(self, frames: NDArray[np.float32]) -> Result | None:
        """`Stream.push` of the session's own stream."""
        return self.own_stream.push(frames)

    def reset(self) -> None:
        """`Stream.reset` of the session's own stream."""
        self.own_stream.reset()

    def state(self) -> dict[str, Array]:
        """`Stream.state` of the session's own stream."""
        return self.own_stream.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """`Stream.restore` of the session's own stream."""
        self.own_stream.restore(state)


def _data_input(path: Path, interface: Interface, engine: Engine) -> Port:
    """The one input that is not a state, held against what the metadata say.

    Raises:
        InputError: they do not describe this file.
    """
    inputs, outputs = ({port.name: port for port in ports} for ports in (engine.inputs, engine.outputs))
    problems = []
    for state in interface.states:
        for name, ports in ((state.input, inputs), (state.output, outputs)):
            port = ports.get(name)
            if port is None or port.dtype != state.dtype or port.shape[1:] != state.shape:
                problems.append(f"no {name} {state.dtype} {['batch', *state.shape]}")
    data = [port for name, port in inputs.items() if name not in {state.input for state in interface.states}]
    axes = 1 if interface.held else 2
    if len(data) != 1:
        problems.append(f"{len(data)} inputs beside the states, expected 1")
    elif data[0].dtype != np.float32 or len(data[0].shape) <= axes or None in data[0].shape[1:]:
        problems.append(f"input {data[0].name} {data[0].dtype} {list(data[0].shape)}, expected float32 of fixed sizes")
    elif not interface.held and data[0].shape[1] != interface.steps_per_call:
        problems.append(f"input {data[0].name} of {data[0].shape[1]} steps, expected {interface.steps_per_call}")
    if problems:
        raise InputError(f"{path}: its metadata do not describe it: {'; '.join(problems[:4])}; export it again")
    return data[0]
