"""What a user hands to the commands: a checkpoint or a NIR file, loaded once, with its graph and its reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import torch

from statten_deploy.compare.executors import Executor, GraphExecutor, TorchExecutor, graph_input
from statten_deploy.errors import ConfigError, InputError
from statten_deploy.export.artefact import read_sidecar
from statten_deploy.export.nir import read_nir
from statten_deploy.frontend import build_graph
from statten_deploy.ir import hints
from statten_deploy.models.checkpoint import build_model, file_sha256, load_checkpoint
from statten_deploy.models.config import ModelConfig
from statten_deploy.models.statten import STAtten


@dataclass
class Source:
    """A loaded model. `network` and `config` are None for a NIR file, whose reference is the graph itself."""

    name: str
    graph: nir.NIRGraph
    time_steps: int
    network: STAtten | None = None
    config: ModelConfig | None = None
    sha256: str | None = None

    @property
    def reference(self) -> Executor:
        """What every artefact is compared with."""
        if self.network is not None:
            return TorchExecutor(self.network)
        return GraphExecutor(self.graph, self.time_steps, name="nir")

    @property
    def yardstick(self) -> Executor | None:
        """The reference in float64: how far rounding alone leads."""
        return TorchExecutor(self.network, torch.float64) if self.network is not None else None

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
        return self.config.dataset if self.config else ""


def load_source(
    model: str | Path | STAtten | nir.NIRGraph,
    config: Mapping[str, Any] | None = None,
    time_steps: int | None = None,
) -> Source:
    """Load a checkpoint (any format `load_checkpoint` reads), a ``.nir`` file, a network or a graph.

    `time_steps` is for NIR files of other tools, which do not say how many steps a sample has.

    Raises:
        InputError: the file cannot be read; ConfigError: the configuration does not fit, or T is unknown.
    """
    if isinstance(model, STAtten):
        return _from_network(model.eval(), time_steps)
    if isinstance(model, nir.NIRGraph):
        return _from_graph(model, "graph", None, time_steps)
    path = Path(model)
    if path.suffix == ".nir":
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a NIR file")
        if config:
            raise ConfigError(
                f"{path}: --config is for checkpoints; a NIR file describes itself (--time-steps gives T)"
            )
        read_sidecar(path)
        return _from_graph(read_nir(path), path.stem, file_sha256(path), time_steps)
    checkpoint = load_checkpoint(path, config)
    source = _from_network(build_model(checkpoint), time_steps)
    source.sha256 = checkpoint.sha256
    return source


def _from_network(network: STAtten, time_steps: int | None) -> Source:
    config = network.config
    if time_steps not in (None, config.time_steps):
        raise ConfigError(f"--time-steps {time_steps}: the checkpoint says {config.time_steps}; leave the option out")
    return Source(config.name, build_graph(network), config.time_steps, network, config)


def _from_graph(graph: nir.NIRGraph, name: str, sha256: str | None, time_steps: int | None) -> Source:
    told = hints(graph).get("time_steps")
    if told is not None and time_steps not in (None, int(told)):
        raise ConfigError(f"--time-steps {time_steps}: {name} says {int(told)}; leave the option out")
    steps = time_steps if told is None else int(told)
    if steps is None:
        raise ConfigError(f"{name}: the file does not say how many time steps a sample has; give --time-steps")
    return Source(str(hints(graph).get("name", name)), graph, steps, sha256=sha256)
