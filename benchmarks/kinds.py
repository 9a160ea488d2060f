"""Where an engine spends its time, by kind of operation: the profilers of onnxruntime and OpenVINO."""

import json
import os
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import numpy as np

RUNS = 30


def print_kinds(path: Path, engine: str, x: np.ndarray) -> None:
    """The kinds that take 1 % and more of the time, medians of every node over some runs, on one core."""
    times = (_onnxruntime if engine == "onnxruntime" else _openvino)(path, x)
    total, number = Counter[str](), Counter[str]()
    for (kind, _), microseconds in times.items():
        total[kind] += microseconds
        number[kind] += 1
    whole = sum(total.values())
    print(f"{whole / 1e3:9.2f} ms in {len(times)} nodes")
    for kind, microseconds in total.most_common():
        if microseconds > whole / 100:
            print(f"{microseconds / 1e3:9.2f} ms {microseconds / whole:4.0%}  {number[kind]:4} {kind}")


def _onnxruntime(path: Path, x: np.ndarray) -> dict[tuple[str, str], float]:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, {session.get_inputs()[0].name: x})
        events = json.loads(Path(session.end_profiling()).read_text())
    found = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["args"]["op_name"], event["name"]].append(float(event["dur"]))
    return {key: median(taken) for key, taken in found.items()}


def _openvino(path: Path, x: np.ndarray) -> dict[tuple[str, str], float]:
    import openvino

    from statten_deploy.runtime.engines import EXACT, read_for_openvino

    core = openvino.Core()
    network = read_for_openvino(core, path)
    network.reshape({0: list(x.shape)})
    settings = {**EXACT, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERF_COUNT": True}
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    found = defaultdict(list)
    for _ in range(RUNS):
        request.infer({0: x})
        for index, node in enumerate(request.profiling_info):
            if str(node.status).endswith("EXECUTED"):
                key = f"{node.node_type} ({node.exec_type})", f"{index} {node.node_name}"
                found[key].append(node.real_time.total_seconds() * 1e6)
    return {key: median(taken) for key, taken in found.items()}
