"""What the runtime costs: import time and memory against torch, a call against bare onnxruntime, a stream against the
sequence file.

python benchmarks/runtime.py [--rounds N]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from statten_deploy import export_onnx
from statten_deploy.api import ExportOptions
from statten_deploy.models.config import load_config
from statten_deploy.models.statten import STAtten
from statten_deploy.runtime import load

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("digits", "cifar10-2-256")

PROBE = """
import json, time
start = time.perf_counter()
{code}
seconds = time.perf_counter() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, int(peak.split()[1]) / 1024]))
"""


def probe(code: str) -> list[float]:
    """Seconds and peak memory in MB of a fresh interpreter that runs `code`."""
    done = subprocess.run([sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def imports(model: Path, rounds: int) -> None:
    """Fresh interpreters, interleaved."""
    use = f"import numpy as np; from statten_deploy.runtime import load; s = load({str(model)!r}, threads=1); "
    cases = {
        "nothing": "pass",
        "import statten_deploy.runtime": "import statten_deploy.runtime",
        "  and onnxruntime": "import statten_deploy.runtime, onnxruntime",
        "  and load digits.onnx, predict": use + "s.predict(np.zeros((1, *s.sample_shape), np.float32))",
        "import torch": "import torch",
        "import statten_deploy.api": "import statten_deploy.api",
    }
    found: dict[str, list[list[float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, code in cases.items():
            found[name].append(probe(code))
    print(f"{'fresh interpreter':36}{'seconds':>10}{'peak MB':>10}")
    for name, values in found.items():
        seconds, memory = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:36}{seconds:10.3f}{memory:10.0f}")


def interleaved(calls: dict[str, object], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()  # type: ignore[operator]
            if turn >= 3:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def overhead(sequence: Path, stream: Path, rounds: int) -> None:
    """A whole sample: bare onnxruntime, predict, and the same sample as a stream; one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    bare = onnxruntime.InferenceSession(str(sequence), options, providers=["CPUExecutionProvider"])
    session, streaming = load(sequence, threads=1), load(stream, threads=1)
    x = np.random.default_rng(0).random((1, *session.sample_shape), dtype=np.float32)
    one = streaming.stream()

    def whole_stream() -> None:
        one.reset()
        for _ in range(streaming.interface.calls):
            one.push(x[0])

    calls = {
        "bare onnxruntime": lambda: bare.run(None, {session.input.name: x}),
        "predict": lambda: session.predict(x),
        "pushed, all calls of a sample": whole_stream,
    }
    base = None
    for name, milliseconds in interleaved(calls, rounds).items():
        base = base or milliseconds
        print(f"  {name:34}{milliseconds:9.3f} ms  {milliseconds / base:6.2f}x")
    difference = np.abs(session.predict(x).logits - streaming.predict(x).logits).max()
    memory = sum(value.nbytes for value in one.state().values())
    print(f"  stream against sequence: largest difference {difference:g}; state {memory / 1e3:,.0f} kB a stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            checkpoint = ROOT / f"models/zoo/{name}.ckpt"
            config = ROOT / f"models/configs/{name}.yaml"
            model = checkpoint if checkpoint.exists() else STAtten(load_config(config)).eval()
            paths = {layout: Path(folder) / f"{name}.{layout}.onnx" for layout in ("sequence", "stream")}
            for layout, path in paths.items():
                export_onnx(model, path, layout=layout, options=ExportOptions(verify=False))  # type: ignore[arg-type]
            if name == NETWORKS[0]:
                imports(paths["sequence"], max(3, rounds // 6))
            print(f"{name}, batch 1, one thread")
            overhead(paths["sequence"], paths["stream"], rounds)


if __name__ == "__main__":
    main()
