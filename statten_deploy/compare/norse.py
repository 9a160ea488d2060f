"""Norse as a backend: its own importer, untouched, runs a NIR file; spikes are read off its modules by forward hooks.

Norse 1.1.0 leaves out what it does not know and ignores some parameters, without an error. So the file is looked
through first, everything that Norse would compute otherwise is named, and the order in which Norse will run the nodes
is checked. docs/circuits.md says what was measured.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from statten_deploy.compare.circuits import Alignment, refuse_changed_circuits
from statten_deploy.compare.executors import Array, Execution, graph_input
from statten_deploy.errors import ConfigError, InputError, UnsupportedError
from statten_deploy.export.nir import original_names, read_nir, write_nir
from statten_deploy.ir import TemporalMean, hints, input_names, is_cyclic, is_quantised, output_names
from statten_deploy.ir.verify import time_step, verify
from statten_deploy.passes import lower_to_circuits, raise_circuits

INSTALL = "pip install norse==1.1.0"
Importer = Callable[..., nn.Module]


class NorseExecutor:
    """A NIR file in Norse, on the CPU.

    Where the file has a Flatten, which in Norse counts the batch axis, samples run one at a time and without that axis,
    so that every node sees the shapes of NIR; else the batch runs at once.

    Args:
        path: a file in the portable profile (``--nir-profile portable``), or any file of nodes that Norse runs as NIR
            defines them.
        network: the graph that the file was made from, whose neuron layers are shown; read back from the file if None.
        time_steps: T, and dt: seconds per step, for files that do not say.

    Raises:
        UnsupportedError: Norse is not installed, or would compute something else: all nodes concerned are named.
        ConfigError: T is unknown. InputError: the file cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        network: nir.NIRGraph | None = None,
        time_steps: int | None = None,
        dt: float | None = None,
    ) -> None:
        self.name = "norse"
        self.path = Path(path)
        from_nir = norse_importer()
        circuits = read_nir(path, keep_circuits=True)
        self.dt = time_step(circuits) if dt is None else dt
        verify(circuits, dt=self.dt)
        refuse_what_norse_changes(circuits, self.path, self.dt)
        steps = hints(circuits).get("time_steps") if time_steps is None else time_steps
        if steps is None:
            raise ConfigError(f"{path}: the file does not say how many time steps a sample has; give --time-steps")
        if network is None:
            network, _ = raise_circuits(circuits)
            refuse_changed_circuits(network, path)
        self.alignment = Alignment(circuits, network, int(steps))
        self.frame_shape, self.held = graph_input(circuits)
        self.outputs = output_names(circuits)
        self.batched = not any(isinstance(node, nir.Flatten) for node in circuits.nodes.values())
        self.module, self.parts = self._load(from_nir)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: [C, H, W], or [T, C, H, W] for frames."""
        return self.frame_shape if self.held else (self.alignment.time_steps, *self.frame_shape)

    def _load(self, from_nir: Importer) -> tuple[nn.Module, dict[str, nn.Module]]:
        """The module that Norse makes of the file, and its parts by their names in the graph."""
        opened = nir.read(self.path, type_check=False)  # our reader has checked it
        nested = [repr(name) for name, node in opened.nodes.items() if isinstance(node, nir.NIRGraph)]
        if nested:
            raise UnsupportedError(f"{self.path}: Norse cannot run it: nested graphs ({', '.join(nested)}); {_REMEDY}")
        names = original_names({name: node.metadata.get("statten", {}) for name, node in opened.nodes.items()})
        try:
            with _quiet(), _recursion(len(opened.nodes)):
                module: Any = from_nir(opened, dt=self.dt)
        except Exception as error:  # an importer raises nearly anything
            reason = " ".join(str(error).split())[:200]
            raise UnsupportedError(f"{self.path}: Norse's importer fails ({reason}); {_REMEDY}") from None
        position = {node.name: index for index, node in enumerate(module.execution_order)}
        inside = {name: name.replace(".", "_") for name in names}  # as nirtorch calls its modules
        if len(set(inside.values())) != len(inside):
            raise UnsupportedError(f"{self.path}: names of nodes differ only in '.' and '_', which Norse takes for one")
        early = [f"{names[b]!r} before {names[a]!r}" for a, b in opened.edges if not _runs(position, inside, a, b)]
        if early:
            raise UnsupportedError(
                f"{self.path}: Norse would run {', '.join(early)}, and read what was there a step ago; {_REMEDY}"
            )
        return module, {names[name]: module.get_submodule(inside[name]) for name in opened.nodes}

    def run(self, x: Array) -> Execution:
        if x.shape[1:] != self.input_shape:
            raise InputError(f"{self.path}: takes samples of shape {self.input_shape}, found {x.shape[1:]}")
        watched = list(dict.fromkeys([*self.outputs, *self.alignment.layers]))
        frames = torch.from_numpy(np.ascontiguousarray(self.alignment.longer(x), dtype=np.float32))
        if self.batched:
            seen = self._simulate(frames, watched)
        else:
            samples = [self._simulate(sample, watched) for sample in frames]
            seen = {name: np.stack([sample[name] for sample in samples], axis=1) for name in watched}
        outputs = {name: seen[name].swapaxes(0, 1) for name in self.outputs}
        return self.alignment.execution(outputs, {name: seen[name] for name in self.alignment.layers})

    @torch.no_grad()
    def _simulate(self, x: Tensor, watched: list[str]) -> dict[str, NDArray[Any]]:
        """What the watched nodes give, [steps, ...], from rest, for one sample or a batch."""
        seen: dict[str, list[NDArray[Any]]] = {name: [] for name in watched}

        def reader(name: str) -> Callable[..., None]:
            def read(_module: nn.Module, _inputs: Any, result: Any) -> None:
                seen[name].append((result[0] if isinstance(result, tuple) else result).numpy())

            return read

        handles = [self.parts[name].register_forward_hook(reader(name)) for name in watched]
        time_axis = x.ndim - len(self.frame_shape) - 1
        state = None
        try:
            for t in range(self.alignment.steps):
                _, state = self.module(x if self.held else x.select(time_axis, t), state)
        finally:
            for handle in handles:
                handle.remove()
        return {name: np.stack(values) for name, values in seen.items()}


def norse_executor(graph: nir.NIRGraph, folder: str | Path) -> NorseExecutor:
    """Write `graph` (a source's: it says T and dt) in the portable profile to ``<folder>/portable.nir``; Norse runs it.

    Raises:
        UnsupportedError: Norse is not installed, or the graph has no portable form: all nodes concerned are named.
    """
    norse_importer()
    lowered, _ = lower_to_circuits(graph, "portable")
    path = Path(folder) / "portable.nir"
    write_nir(lowered, path)
    return NorseExecutor(path, graph)


def norse_importer() -> Importer:
    """``norse.torch.from_nir``.

    Raises:
        UnsupportedError: Norse is not installed.
    """
    try:
        with _quiet():
            from norse.torch import from_nir
    except ImportError as error:
        raise UnsupportedError(f"Norse is not installed ({error}); {INSTALL}") from None
    found: Importer = from_nir
    return found


_REMEDY = "statten-export MODEL --target nir --nir-profile portable writes files that Norse runs"


def refuse_what_norse_changes(graph: nir.NIRGraph, where: str | Path, dt: float) -> None:
    """Everything in a graph that Norse would leave out or compute otherwise, in one line.

    Raises:
        UnsupportedError: there is something.
    """
    if is_quantised(graph):
        raise UnsupportedError(
            f"{where}: holds integers, and Norse neither rounds its input nor cuts membranes to whole numbers as they "
            "do; run it in the integer engine, which statten-run takes unless told otherwise"
        )
    reasons: dict[str, list[str]] = {}
    for name, node in graph.nodes.items():
        reason = _why_not(node, dt)
        if reason:
            reasons.setdefault(reason, []).append(f"{name!r} ({type(node).__name__})")
    found = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    if len(input_names(graph)) != 1:
        found.append(f"{len(input_names(graph))} inputs, Norse takes one")
    if is_cyclic(graph):
        found.append("the graph is recurrent, and Norse runs nodes in an order of its own")
    if found:
        raise UnsupportedError(f"{where}: Norse cannot run it: {'; '.join(found)}; {_REMEDY}")


def _why_not(node: Any, dt: float) -> str | None:
    """What Norse 1.1.0 makes of a node, where that is not what NIR says."""
    check = _CHECKS.get(type(node))
    return "Norse leaves such nodes out" if check is None else check(node, dt)


def _as_it_is(node: Any, dt: float) -> str | None:
    return None


def _conv(node: Any, dt: float) -> str | None:
    return "Norse refuses most grouped convolutions" if int(node.groups) != 1 else None


def _sum_pool(node: Any, dt: float) -> str | None:
    return "Norse ignores the padding" if np.any(node.padding) else None


def _lif(node: Any, dt: float) -> str | None:
    if np.any(np.asarray(node.r) != 1):
        return "Norse ignores r, which is not 1"
    return "Norse ignores v_reset, which is not 0" if np.any(node.v_reset) else None


def _integrate_and_fire(node: Any, dt: float) -> str | None:
    if np.any(np.asarray(node.r, dtype=np.float32) * np.float32(dt) != 1):
        return "Norse ignores r and dt, whose product is not 1"
    return "Norse ignores v_reset, which is not 0" if np.any(node.v_reset) else None


def _cuba(node: Any, dt: float) -> str | None:
    if np.any(node.v_leak):
        return "Norse lets the current leak to v_leak, which is not 0"
    return "Norse ignores v_reset, which is not 0" if np.any(node.v_reset) else None


_CHECKS: Mapping[type[nir.NIRNode], Callable[[Any, float], str | None]] = {
    nir.Input: _as_it_is,
    nir.Output: _as_it_is,
    TemporalMean: _as_it_is,  # the readout, which is not in the file
    nir.Affine: _as_it_is,
    nir.Linear: _as_it_is,
    nir.Flatten: _as_it_is,
    nir.Conv2d: _conv,
    nir.SumPool2d: _sum_pool,
    nir.LIF: _lif,
    nir.IF: _integrate_and_fire,
    nir.CubaLIF: _cuba,
}
"""The nodes that Norse's importer knows, each with what it ignores."""


def _runs(position: Mapping[str, int], inside: Mapping[str, str], source: str, target: str) -> bool:
    """Whether the source of an edge runs before its target."""
    first, then = position.get(inside[source]), position.get(inside[target])
    return first is not None and then is not None and first < then


@contextmanager
def _quiet() -> Iterator[None]:
    """Norse uses parts of torch and nirtorch that warn of their end."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


@contextmanager
def _recursion(nodes: int) -> Iterator[None]:
    """nirtorch follows a graph by one call per node, so Python's limit would refuse long ones."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 4 * nodes)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
