"""What a user hands to the commands: a checkpoint or a NIR file, loaded once, with its graph and its reference."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nir
import torch

from statten_deploy.compare.circuits import refuse_changed_circuits
from statten_deploy.compare.executors import Executor, GraphExecutor, TorchExecutor, Traceable, graph_input
from statten_deploy.compare.integers import FixedExecutor, TorchIntExecutor
from statten_deploy.errors import ConfigError, InputError, UnsupportedError
from statten_deploy.export.artefact import read_sidecar
from statten_deploy.export.nir import CONVENTIONS, as_written_by, read_nir
from statten_deploy.frontend import build_graph
from statten_deploy.ir import hints, input_names, is_quantised
from statten_deploy.ir.verify import DEFAULT_DT, SPIKING, verify
from statten_deploy.models.checkpoint import build_model, file_sha256, load_checkpoint
from statten_deploy.models.config import ModelConfig
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions, quantize


@dataclass
class Source:
    """A loaded model. `network` and `config` are None for a NIR file, whose reference is the graph itself."""

    name: str
    graph: nir.NIRGraph
    time_steps: int
    network: STAtten | None = None
    config: ModelConfig | None = None
    sha256: str | None = None
    path: Path | None = None
    dt: float = DEFAULT_DT
    """Seconds per step."""
    trained: QuantizeOptions | None = None
    """The quantisation that a checkpoint was trained for."""
    warnings: list[str] = field(default_factory=list)

    @property
    def quantised(self) -> bool:
        """Whether the graph is one of integers (a quantised NIR file)."""
        return is_quantised(self.graph)

    def runnable(self) -> tuple[Executor, nir.NIRGraph]:
        """What ``statten-run`` runs, and its graph: the integer network where the source is or was trained as one."""
        if self.quantised:
            return FixedExecutor(self.graph, name="nir"), self.graph
        if self.trained is not None:
            graph = quantize(self.graph, self.trained)
            return TorchIntExecutor(graph), graph
        return self.reference, self.graph

    @property
    def reference(self) -> Traceable:
        """What every float artefact is compared with."""
        if self.network is not None:
            return TorchExecutor(self.network)
        return GraphExecutor(self.graph, self.time_steps, "nir", self.dt)

    @property
    def yardstick(self) -> Executor | None:
        """The reference in float64: how far rounding alone leads."""
        return TorchExecutor(self.network, torch.float64) if self.network is not None else None

    def outline(self) -> "Source":
        """The same without weights: what it is called, what it takes and what it gives."""
        ends = {name: node for name, node in self.graph.nodes.items() if isinstance(node, nir.Input | nir.Output)}
        graph = nir.NIRGraph(ends, [], metadata=self.graph.metadata, type_check=False)
        return replace(self, graph=graph, network=None)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one input frame."""
        return graph_input(self.graph)[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: [C, H, W], or [T, C, H, W] for frames."""
        shape, held = graph_input(self.graph)
        return shape if held else (self.time_steps, *shape)

    @property
    def dataset(self) -> str:
        """The data set the network was trained on, if it says so."""
        return str(hints(self.graph).get("dataset", ""))

    @property
    def classes(self) -> int | None:
        """How many classes the output tells apart, if it says so."""
        told = hints(self.graph).get("classes")
        return int(told) if told is not None else None


def load_source(
    model: str | Path | STAtten | nir.NIRGraph,
    config: Mapping[str, Any] | None = None,
    time_steps: int | None = None,
    dt: float | None = None,
    written_by: str | None = None,
) -> Source:
    """Load a checkpoint (any format `load_checkpoint` reads), a ``.nir`` file, a network or a graph.

    `time_steps` and `dt` (seconds per step) are for NIR files of other tools, which say neither; `written_by` names the
    tool, where its numbers mean something else than NIR's (`as_written_by`). A network is copied.

    Raises:
        InputError: the file cannot be read; ConfigError: the configuration does not fit, or T is unknown.
    """
    if isinstance(model, STAtten):
        return _from_network(deepcopy(model).eval(), time_steps, dt)
    if isinstance(model, nir.NIRGraph):
        return _from_graph(as_written_by(model, written_by, dt) if written_by else model, "graph", time_steps, dt)
    path = Path(model)
    if path.suffix == ".nir":
        if not path.is_file():
            raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a NIR file")
        if config:
            raise ConfigError(
                f"{path}: --config is for checkpoints; a NIR file describes itself (--time-steps gives T)"
            )
        read_sidecar(path)
        graph = read_nir(path)
        graph = as_written_by(graph, written_by, dt) if written_by else graph
        source = _from_graph(graph, str(path), time_steps, dt)
        source.sha256 = file_sha256(path)
    else:
        if written_by:
            raise ConfigError(f"{path}: --written-by is for NIR files of other tools")
        checkpoint = load_checkpoint(path, config, also=" or a .nir file")
        source = _from_network(build_model(checkpoint), time_steps, dt)
        source.sha256 = checkpoint.sha256
        if checkpoint.quantisation is not None:
            source.trained = QuantizeOptions(**checkpoint.quantisation)
    source.path = path
    return source


def _from_network(network: STAtten, time_steps: int | None, dt: float | None) -> Source:
    config = network.config
    if dt is not None:
        raise ConfigError("--dt is for NIR files of other tools; a checkpoint's steps have no length of their own")
    if time_steps not in (None, config.time_steps):
        raise ConfigError(f"--time-steps {time_steps}: the checkpoint says {config.time_steps}; leave the option out")
    return Source(config.name, build_graph(network), config.time_steps, network, config)


def _from_graph(graph: nir.NIRGraph, where: str, time_steps: int | None, dt: float | None) -> Source:
    if len(input_names(graph)) != 1:
        raise UnsupportedError(f"{where}: has inputs {', '.join(input_names(graph))}; one is supported")
    told = hints(graph)
    refuse_changed_circuits(graph, where)
    if "time_steps" in told and time_steps not in (None, int(told["time_steps"])):
        raise ConfigError(f"--time-steps {time_steps}: {where} says {int(told['time_steps'])}; leave the option out")
    if "dt" in told and dt not in (None, float(told["dt"])):
        raise ConfigError(f"--dt {dt}: {where} says {float(told['dt'])}; leave the option out")
    steps = told.get("time_steps", time_steps)
    if steps is None:
        raise ConfigError(f"{where}: the file does not say how many time steps a sample has; give --time-steps")
    warnings = []
    if "dt" not in told and dt is None:
        warnings.append(f"{where} does not say how long a step is: {DEFAULT_DT} s assumed (--dt)")
    seconds = float(told.get("dt", DEFAULT_DT if dt is None else dt))
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"--dt {seconds}: expected a positive number of seconds")
    verify(graph, dt=seconds)
    assumed = CONVENTIONS[str(told["written_by"])].assumed if told.get("written_by") in CONVENTIONS else ""
    if assumed and any(isinstance(node, SPIKING) for node in graph.nodes.values()):
        warnings.append(f"{where} does not say how its neurons fire: {assumed} assumed (docs/nir.md)")
    name = str(told.get("name", Path(where).stem))
    known = {**graph.metadata, "statten": {**told, "time_steps": int(steps), "dt": seconds}}
    graph = nir.NIRGraph(graph.nodes, graph.edges, metadata=known, type_check=False)
    return Source(name, graph, int(steps), dt=seconds, warnings=warnings)
