"""One way to run anything: the torch network, a graph, a NIR file, an ONNX file. All take the graph's own input."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import nir
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from statten_deploy.errors import InputError
from statten_deploy.export.nir import read_nir
from statten_deploy.export.onnx import spike_values
from statten_deploy.export.onnx.integer import Probes, with_probes
from statten_deploy.ir import hints, input_names, is_cyclic, predecessors
from statten_deploy.models.neurons import LIF
from statten_deploy.models.statten import STAtten
from statten_deploy.runtime import Interface, OnnxRuntimeEngine, check_structure
from statten_deploy.runtime.engines import Options
from statten_deploy.simulate import Simulator
from statten_deploy.simulate.device import full_float32

Array = NDArray[np.float32]


@dataclass
class Execution:
    """What one run gave: per output [B, ...], and per neuron layer the spikes [T, B, ...] as booleans."""

    outputs: dict[str, NDArray[Any]]
    spikes: dict[str, NDArray[np.bool_]]

    @property
    def spike_counts(self) -> dict[str, NDArray[np.int64]]:
        """Spikes per layer and sample, [B]."""
        return {
            name: np.count_nonzero(spikes.reshape(*spikes.shape[:2], -1), axis=(0, 2)).astype(np.int64)
            for name, spikes in self.spikes.items()
        }


@dataclass
class IntegerExecution(Execution):
    """One run in integers: outputs also as integers, and membranes after the reset [T, B, ...]; `outputs` are real."""

    integers: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    membranes: dict[str, NDArray[Any]] = field(default_factory=dict)


class Executor(Protocol):
    """Runs a batch of inputs [B, C, H, W] or [B, T, C, H, W]."""

    name: str

    def run(self, x: Array) -> Execution:
        """Outputs and spikes for one batch."""


class Traceable(Executor, Protocol):
    """An executor that can also say how near its neurons were to their thresholds."""

    def margins(self, x: Array, layer: str) -> NDArray[np.float64] | None:
        """``|v - threshold| / threshold`` of one layer, [T, B, ...]; None where it cannot be told."""


def neuron_layers(model: nn.Module) -> dict[str, LIF]:
    """The network's neuron layers by module path, in the order in which they run."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LIF)}


class TorchExecutor:
    """The torch network: the reference. `dtype` float64 gives the yardstick for float32's own error."""

    def __init__(self, model: STAtten, dtype: torch.dtype = torch.float32) -> None:
        self.name = "torch" if dtype == torch.float32 else "torch-float64"
        self.model = model.eval()
        self.dtype = dtype

    def run(self, x: Array) -> Execution:
        captured: dict[str, NDArray[np.bool_]] = {}

        def capture(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                captured[name] = output.bool().cpu().numpy()

            return hook

        layers = neuron_layers(self.model)
        handles = [layer.register_forward_hook(capture(name)) for name, layer in layers.items()]
        try:
            logits = self._forward(x)
        finally:
            for handle in handles:
                handle.remove()
        return Execution({"logits": logits.cpu().numpy()}, captured)

    def infer(self, x: Array) -> Array:
        """The outputs alone: nothing is recorded."""
        return self._forward(x).cpu().numpy()

    def margins(self, x: Array, layer: str) -> NDArray[np.float64]:
        """``|v - threshold| / threshold`` of one layer before reset, [T, B, ...]: how near each neuron was to flip."""
        neuron = neuron_layers(self.model)[layer]
        captured: list[Tensor] = []
        handle = neuron.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs[0]))
        try:
            self._forward(x)
        finally:
            handle.remove()
        with torch.no_grad():
            decay, result = neuron.decay(), []
            v = torch.zeros_like(captured[0][0])
            for current in captured[0]:
                v = v + (current - v) * decay
                result.append(((v - neuron.threshold).abs() / neuron.threshold).double().cpu().numpy())
                v = torch.where(v >= neuron.threshold, 0.0, v)
        return np.stack(result)

    @torch.no_grad()
    def _forward(self, x: Array) -> Tensor:
        device = next(self.model.parameters()).device
        batch = torch.from_numpy(np.ascontiguousarray(x)).to(device, self.dtype)
        if self.dtype == torch.float32:
            with full_float32(device):
                logits: Tensor = self.model(batch)
            return logits
        with _converted(self.model, self.dtype):
            logits = self.model(batch)
        return logits


@contextmanager
def _converted(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Every module computes in `dtype`: its tensors are converted while it runs, so a few exist twice at a time."""
    kept: dict[nn.Module, list[dict[str, Any]]] = {}

    def enter(module: nn.Module, _inputs: Any) -> None:
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        kept[module] = [dict(tensors) for tensors in own]
        for tensors in own:
            tensors |= {
                name: value.detach().to(dtype)
                for name, value in tensors.items()
                if value is not None and value.is_floating_point()
            }

    def leave(module: nn.Module, _inputs: Any = None, _output: Any = None) -> None:
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors, before in zip(own, kept.pop(module), strict=True):
            tensors.update(before)

    hooks = [module.register_forward_pre_hook(enter) for module in model.modules()]
    hooks += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(kept):  # an error on the way
            leave(module)


class GraphExecutor:
    """The float simulator on a graph; `dt` in seconds, for graphs that do not say."""

    def __init__(
        self,
        graph: nir.NIRGraph,
        time_steps: int | None = None,
        name: str = "graph",
        dt: float | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        self.name = name
        self.simulator = Simulator(graph, time_steps=time_steps, dt=dt, device=device)

    @classmethod
    def from_file(cls, path: Path, time_steps: int | None = None, dt: float | None = None) -> "GraphExecutor":
        """Read a NIR file and run it."""
        return cls(read_nir(path), time_steps, name="nir", dt=dt)

    def margins(self, x: Array, layer: str) -> NDArray[np.float64] | None:
        """``|v - threshold| / threshold`` of one layer before reset, [T, B, ...]; None inside a recurrent graph."""
        graph = self.simulator.graph
        if is_cyclic(graph):
            return None
        sources = predecessors(graph)[layer]["input"]
        recorded = self.simulator.run(x, record=list(dict.fromkeys(sources))).recorded
        current = recorded[sources[0]]
        for source in sources[1:]:
            current = current + recorded[source]
        return _graph_margins(graph.nodes[layer], current, np.float32(self.simulator.dt))

    def run(self, x: Array) -> Execution:
        result = self.simulator.run(x, record="spikes")
        return Execution(
            dict(result.outputs), {name: np.asarray(spikes, dtype=np.bool_) for name, spikes in result.recorded.items()}
        )


def _graph_margins(node: Any, current: Array, dt: np.float32) -> NDArray[np.float64]:
    """The membranes of a spiking NIR node from its current [T, B, ...], by the equations in NIR's docstrings."""
    if isinstance(node, nir.Threshold):
        return _distance(current, node.threshold)
    cuba = isinstance(node, nir.CubaLIF)
    tau = node.tau_mem if cuba else getattr(node, "tau", None)
    v = np.zeros_like(current[0]) + (getattr(node, "v_leak", 0) if tau is not None else 0)
    i = np.zeros_like(current[0])
    result = []
    for x in current:
        i = i + dt / node.tau_syn * (node.w_in * x - i) if cuba else x
        v = v + (dt / tau * ((node.v_leak - v) + node.r * i) if tau is not None else dt * node.r * i)
        result.append(_distance(v, node.v_threshold))
        v = np.where(v > node.v_threshold, node.v_reset, v)
    return np.stack(result)


def _distance(v: NDArray[Any], threshold: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.abs(v.astype(np.float64) - threshold) / np.maximum(np.abs(threshold), 1e-3))


class OnnxFile:
    """An ONNX file in onnxruntime, called with whole samples: a stream is called again and again, from rest."""

    def __init__(self, path: Path, prepare: Callable[[onnx.ModelProto], onnx.ModelProto] | None) -> None:
        """`prepare` changes the model before it is loaded.

        Raises:
            InputError: not a model that onnxruntime can load, or not one float32 input with a free batch axis.
        """
        check_structure(path)
        try:
            model = prepare(onnx.load(str(path), load_external_data=False)).SerializeToString() if prepare else path
        except Exception as error:  # protobuf has no common exception type
            detail = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: not an ONNX file that onnxruntime can load ({detail})") from None
        self.engine = OnnxRuntimeEngine(model, Options(arena=False), where=path)  # else a run keeps what it took
        self.metadata: Mapping[str, str] = self.engine.session.get_modelmeta().custom_metadata_map
        streams = self.metadata.get("layout") == "stream"
        self.interface = Interface.of(self.metadata, path) if streams else None
        states = {state.input for state in self.interface.states} if self.interface else set()
        inputs = [port for port in self.engine.inputs if port.name not in states]
        if len(inputs) != 1 or inputs[0].dtype != np.float32 or inputs[0].shape[0] is not None:
            kinds = "; ".join(f"{port.name}: {port.dtype} {list(port.shape)}" for port in inputs)
            raise InputError(
                f"{path}: expected one float32 input with a free batch axis, found {kinds}; "
                "write the file with statten-export"
            )
        self.input = inputs[0]
        self.output_names = [port.name for port in self.engine.outputs]
        if self.interface:
            hidden = {state.output for state in self.interface.states}
            self.output_names = [name for name in self.output_names if name not in hidden]

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        """Shape of one sample: an image, or all T frames."""
        shape = self.input.shape[1:]
        return shape if self.interface is None or self.interface.held else (self.interface.time_steps, *shape[1:])

    def run(self, names: list[str], x: Array, time_major: Container[str] = ()) -> dict[str, NDArray[Any]]:
        """The named outputs for whole samples; those in `time_major` are [steps of a call * batch, ...].

        Raises:
            InputError: onnxruntime refuses the batch.
        """
        told = self.interface
        if told is None:
            return self.engine.run({self.input.name: x}, names)
        states, calls = told.zero_states(len(x)), []
        for part in told.parts(x):
            wanted = [*names, *(state.output for state in told.states)]
            values = self.engine.run({self.input.name: np.ascontiguousarray(part), **states}, wanted)
            states = told.next_states(values)
            calls.append(values)
        return {
            name: np.concatenate(parts) if name in time_major else told.join(name, parts)
            for name in names
            if (parts := [values[name] for values in calls])
        }


class OnnxExecutor:
    """onnxruntime on a float ONNX file. With `spikes`, every neuron layer's output is read out too."""

    def __init__(self, path: Path, *, spikes: bool = False) -> None:
        self.name = "onnx"
        self.layers: dict[str, str] = {}
        self.file = OnnxFile(path, self._with_spike_outputs if spikes else None)
        self.metadata = self.file.metadata
        self.output_names = [name for name in self.file.output_names if name not in self.layers]

    def run(self, x: Array) -> Execution:
        values = self.file.run([*self.output_names, *self.layers], x, self.layers)
        spikes = {}
        for value, layer in self.layers.items():
            flat = values[value]  # [T·B, ...]
            spikes[layer] = flat.reshape(-1, len(x), *flat.shape[1:])
        return Execution({name: values[name] for name in self.output_names}, spikes)

    def _with_spike_outputs(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Every neuron layer's spikes as further outputs, one byte each; remembers output name -> layer name."""
        half = onnx.helper.make_tensor("half", onnx.TensorProto.FLOAT, [], [0.5])
        self.layers = {}
        for layer, value in spike_values(model).items():
            limit, fired = f"fired/{layer}/limit", f"fired/{layer}"
            self.layers[fired] = layer
            model.graph.node.append(onnx.helper.make_node("Constant", [], [limit], value=half))
            model.graph.node.append(onnx.helper.make_node("Greater", [value, limit], [fired]))
            model.graph.output.append(onnx.helper.make_tensor_value_info(fired, onnx.TensorProto.BOOL, None))
        return model


class OnnxIntegerExecutor:
    """onnxruntime on an integer ONNX file, with spikes, membranes (if asked for) and integer readouts."""

    def __init__(self, path: Path, *, membranes: bool = False) -> None:
        self.name = "onnx-int8"
        self.membranes = membranes
        self.probes = Probes()
        self.file = OnnxFile(path, self._with_probes)
        self.metadata = self.file.metadata
        shown = {*self.probes.spikes.values(), *self.probes.membranes.values(), *self.probes.integers.values()}
        self.output_names = [name for name in self.file.output_names if name not in shown]

    def run(self, x: Array) -> IntegerExecution:
        spikes, membranes, integers = self.probes.spikes, self.probes.membranes, self.probes.integers
        if not self.membranes:
            membranes = {}
        names = [*self.output_names, *spikes.values(), *membranes.values(), *integers.values()]
        values = self.file.run(names, x, {*spikes.values(), *membranes.values()})
        outputs = {name: values[name] for name in self.output_names}
        whole = {name: values[integers[name]] if name in integers else value for name, value in outputs.items()}
        return IntegerExecution(
            outputs,
            {layer: values[name] for layer, name in spikes.items()},
            {name: value.astype(np.int64) for name, value in whole.items()},
            {layer: values[name] for layer, name in membranes.items()},
        )

    def _with_probes(self, model: onnx.ModelProto) -> onnx.ModelProto:
        probed, self.probes = with_probes(model)
        return probed


def graph_input(graph: nir.NIRGraph) -> tuple[tuple[int, ...], bool]:
    """Shape of one frame, and whether the same frame is held for all steps."""
    name = input_names(graph)[0]
    shape = tuple(int(size) for size in graph.nodes[name].input_type["input"])
    return shape, hints(graph).get("input") == "image"
