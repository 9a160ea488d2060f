"""How fast exported files run, against PyTorch, SpikingJelly and what the machine can do: medians of interleaved runs.

    python benchmarks/speed.py [NETWORK ...] [--batches 1 16] [--seconds S] [--threads 2] [--engines TEXT] [--profile]

NETWORK: a name of models/configs; by default CIFAR 2-256 and 2-512, DVS 2-256 and ImageNet 8-768. All contenders get
the same two cores (--threads), run in turns, and are compared before they are timed:

- eager     the released architecture in PyTorch, float32, with a loop over the steps in its neurons (eager_statten.py)
- sdt       SpikingJelly's SpikeDrivenTransformer of the same size, also eager. It is another network: attention without
            products of matrices, neurons of its own, biases in convolutions; so its results are not compared
- float32   `--target onnx` in onnxruntime and in OpenVINO: the same classes as eager. Logits differ where other sums
            flip a spike, which takes others with it: most in deep networks
- integer   `--target onnx-int8` in onnxruntime, qdq: `--flavour qdq` in OpenVINO: logits equal to the integer runner's

Weights are random, such that every layer fires; spikes do not change how long a run takes. "of peak": operations of
the network (2 per multiplication, what a held image saves counted off) per second, of those that onnxruntime reaches
in a large product of matrices, float32 or int8. --profile prints where the time goes, by kind of operation, instead.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import onnxruntime as ort
import torch
from eager_statten import EagerSTAtten
from kinds import print_kinds
from onnx import TensorProto, helper, numpy_helper

from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.frontend import build_graph
from statten_deploy.ir import STAttenAttention
from statten_deploy.ir.shapes import infer_shapes
from statten_deploy.models.checkpoint import load_model
from statten_deploy.models.config import load_config
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.runtime import load

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("cifar10-2-256", "cifar10-2-512", "cifar10dvs-2-256-t16", "imagenet-8-768")
FILES = {
    "float32, onnxruntime": ("float32", "onnxruntime"),
    "float32, OpenVINO": ("float32", "openvino"),
    "integer, onnxruntime": ("integer", "onnxruntime"),
    "qdq, OpenVINO": ("qdq", "openvino"),
}
"""Contender -> flavour of the file, engine."""
EAGER, SDT = "eager", "sdt, SpikingJelly"


def network(name: str) -> STAtten:
    """A shipped checkpoint, or random weights with which every layer fires."""
    shipped = ROOT / f"models/zoo/{name}.ckpt"
    if shipped.exists():
        return load_model(shipped)
    torch.manual_seed(0)
    model = STAtten(load_config(ROOT / f"models/configs/{name}.yaml"))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=1.8 * module.weight[0].numel() ** -0.5)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0.2, 0.4)
    return model.eval()


def sample(model: STAtten, batch: int) -> np.ndarray:
    config = model.config
    frame = (config.in_channels, *config.image_size)
    random = np.random.default_rng(0)
    if config.input == "image":
        return random.random((batch, *frame), dtype=np.float32)
    return random.poisson(0.5, (batch, config.time_steps, *frame)).astype(np.float32)


def spikingjelly(model: STAtten) -> Callable[[np.ndarray], None]:
    """Its baseline of the same depth, width, heads, pooling, steps and classes."""
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer

    config = model.config
    other = SpikeDrivenTransformer(
        T=config.time_steps,
        in_channels=config.in_channels,
        num_classes=config.num_classes,
        embed_dims=config.embed_dim,
        num_heads=config.num_heads,
        depths=config.depth,
        mlp_ratio=config.mlp_ratio,
        pooling_stat=config.pooling_stat,
    ).eval()

    @torch.no_grad()
    def run(x: np.ndarray) -> None:
        functional.reset_net(other)
        given = torch.from_numpy(x)
        other(given if given.dim() == 4 else given.transpose(0, 1).contiguous())

    return run


def eager(model: STAtten) -> Callable[[np.ndarray], np.ndarray]:
    """The baseline, with the weights of `model`."""
    released = EagerSTAtten(model.config).eval()
    released.load_state_dict(model.state_dict())

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        return released(torch.from_numpy(x)).numpy()

    return run


# what is compared


@dataclass
class Subject:
    """A network as everything that runs it; `macs` of one sample."""

    name: str
    model: STAtten
    macs: int
    contenders: dict[str, Callable[[np.ndarray], Any]] = field(default_factory=dict)

    @classmethod
    def prepare(cls, name: str, folder: Path, threads: int, wanted: str) -> "Subject":
        """Export, load and compare."""
        model = network(name)
        graph = build_graph(model)
        quantised = quantize(graph, QuantizeOptions(8))
        files = write(name, graph, quantised, folder)
        subject = cls(name, model, multiplications(graph))
        subject.contenders[EAGER] = eager(model)
        if find_spec("spikingjelly"):
            subject.contenders[SDT] = spikingjelly(model)
        for label, (flavour, engine) in FILES.items():
            if find_spec(engine) and wanted in label:
                session = load(files[flavour], engine=engine, threads=threads)
                subject.contenders[label] = lambda x, session=session: session.predict(x).logits
        subject.compare(quantised)
        return subject

    def compare(self, quantised: nir.NIRGraph) -> None:
        """Exit where results are not equal."""
        x = sample(self.model, 1 if self.model.config.image_size[0] > 64 else 4)
        exact = real_outputs(quantised, IntegerRunner(quantised).run(x).outputs)["logits"]
        eager = self.contenders[EAGER](x)
        for label in FILES:
            if label not in self.contenders:
                continue
            found = np.concatenate([self.contenders[label](x), self.contenders[label](x[:1])])  # a batch and a sample
            if label.startswith("float32"):
                wanted = np.concatenate([eager, eager[:1]])
                far = np.abs(found - wanted).max() / (eager.std() or 1)
                same = int((found.argmax(1) == wanted.argmax(1)).sum())
                spread = f"logits within {far:.2g} of their spread"
                print(f"{self.name}: {label}: {same}/{len(found)} classes as eager, {spread}")
                if same < len(found):
                    raise SystemExit(f"{self.name}: {label} disagrees with eager")
                continue
            if not np.array_equal(found, np.concatenate([exact, exact[:1]])):
                raise SystemExit(f"{self.name}: {label} differs from the integer runner")
            print(f"{self.name}: {label}: logits equal the integer runner's bit for bit")


def write(name: str, graph: nir.NIRGraph, quantised: nir.NIRGraph, folder: Path) -> dict[str, Path]:
    """Flavour -> file."""
    files = {flavour: folder / f"{name}.{flavour}.onnx" for flavour in ("float32", "integer", "qdq")}
    save_onnx(build_onnx(graph), files["float32"])
    save_onnx(build_integer_onnx(quantised, flavour="integer"), files["integer"])
    save_onnx(build_integer_onnx(quantised, flavour="qdq"), files["qdq"])
    return files


def multiplications(graph: nir.NIRGraph) -> int:
    """Multiply-adds of a sample: convolutions, linear layers and attention, over all steps that have to be computed."""
    hints, shapes = graph.metadata["statten"], infer_shapes(graph)
    steps, total = int(hints["time_steps"]), 0
    held = {target for source, target in graph.edges if source == "image"}
    while True:  # layers without memory behind a held image
        more = {
            z for a, z in graph.edges if a in held and isinstance(graph.nodes[a], nir.Conv2d | nir.Scale | nir.Conv1d)
        }
        if more <= held:
            break
        held |= more
    for name, node in graph.nodes.items():
        times = 1 if name in held else steps
        if isinstance(node, nir.Conv2d | nir.Affine | nir.Linear):
            total += times * int(np.prod(node.weight.shape)) * int(np.prod(shapes[name][1:], dtype=np.int64))
        elif isinstance(node, STAttenAttention):
            total += 2 * steps * int(np.prod(shapes[name])) * shapes[name][0] // node.num_heads
    return total


def peak(threads: int, *, integer: bool) -> float:
    """Operations per second of a large product of matrices in onnxruntime: the best of many."""
    rows = size = 1024
    dtype = np.int8 if integer else np.float32
    weight = numpy_helper.from_array(np.ones((size, size), dtype), "w")
    kinds = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    ends = [helper.make_tensor_value_info(n, kind, [rows, size]) for n, kind in zip("xy", kinds, strict=True)]
    product = helper.make_node("MatMulInteger" if integer else "MatMul", ["x", "w"], ["y"])
    body = helper.make_graph([product], "peak", ends[:1], ends[1:], [weight])
    model: onnx.ModelProto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.ones((rows, size), np.uint8 if integer else np.float32)
    taken = []
    for _ in range(60):
        start = time.perf_counter()
        session.run(None, {"x": x})
        taken.append(time.perf_counter() - start)
    return 2 * rows * size * size / min(taken)


# measuring


def measure(contenders: dict[str, Callable[[np.ndarray], Any]], x: np.ndarray, seconds: float) -> dict[str, float]:
    """Median milliseconds per sample. Everybody in turn: once to warm up, then a few times, at most 0.3 s."""
    taken: dict[str, list[float]] = {label: [] for label in contenders}
    spent = dict.fromkeys(contenders, 0.0)
    start = time.perf_counter()
    rounds = 0
    while rounds < 2 or time.perf_counter() - start < seconds:
        for label, run in contenders.items():
            if rounds > 2 and spent[label] > 2 * min(spent.values()) + seconds / len(contenders):
                continue  # slow ones run less often
            time.sleep(0.02)  # threads of the one before spin for a while
            if rounds == 0 or min(taken[label], default=1) * len(x) < 300:
                run(x)
            began = time.perf_counter()
            for _ in range(4):
                now = time.perf_counter()
                run(x)
                taken[label].append(1e3 * (time.perf_counter() - now) / len(x))
                if time.perf_counter() - began > 0.3:
                    break
            spent[label] += time.perf_counter() - began
        rounds += 1
    return {label: statistics.median(times) for label, times in taken.items()}


def report(subject: Subject, batch: int, found: dict[str, float], peaks: dict[bool, float]) -> None:
    floats = {engine: found.get(f"float32, {engine}") for engine in ("onnxruntime", "OpenVINO")}
    for label, ms in found.items():
        integer = label.startswith(("integer", "qdq"))
        share = "" if label == SDT else f"{2e3 * subject.macs / ms / peaks[integer]:7.0%}"
        own = floats.get(label.rpartition(", ")[2]) if integer else None
        ratio = f"{found[EAGER] / ms:7.2f}"
        print(
            f"{subject.name:21}{batch:5}  {label:22}{ms:9.2f}{ratio}{f'{own / ms:9.2f}' if own else ' ' * 9}{share:>9}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=40, help="for each network and batch")
    parser.add_argument("--engines", default="", help="only files whose label holds this text")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by kind of operation")
    given: Any = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        if given.profile:
            for name in given.networks:
                model = network(name)
                graph = build_graph(model)
                files = write(name, graph, quantize(graph, QuantizeOptions(8)), Path(folder))
                for label, (flavour, engine) in FILES.items():
                    if find_spec(engine) and given.engines in label:
                        print(f"\n{name}, {label}, one sample on one core")
                        print_kinds(files[flavour], engine, sample(model, 1))
            return
        peaks = {integer: peak(given.threads, integer=integer) for integer in (False, True)}
        print(f"peak: {peaks[False] / 1e9:,.0f} GFLOP/s in float32, {peaks[True] / 1e9:,.0f} GOP/s in int8")
        header = f"{'network':21}batch  {'':22}{'ms':>9}{'x eager':>9}{'x float':>9}{'of peak':>9}"
        for name in given.networks:
            subject = Subject.prepare(name, Path(folder), given.threads, given.engines)
            print(f"{name}: {subject.macs / 1e9:.3f} G multiply-adds a sample\n{header}")
            for batch in given.batches:
                found = measure(subject.contenders, sample(subject.model, batch), given.seconds)
                report(subject, batch, found, peaks)


if __name__ == "__main__":
    main()
