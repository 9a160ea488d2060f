"""Loading and whole samples."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from statten_deploy.errors import InputError
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.export.onnx.integer import build_integer_onnx
from statten_deploy.fixed_point.runner import IntegerRunner, real_outputs
from statten_deploy.runtime import Interface, Port, Session, State, engines, load
from statten_deploy.runtime.engines import choose_engine
from tests.export.onnx.integer_harness import quantised
from tests.export.onnx.onnx_harness import F32, chain, lif, small_network
from tests.runtime.conftest import NETWORKS, samples, write

ENGINES = ["onnxruntime", "openvino"]


def bare(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """The file in onnxruntime, without us."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


@pytest.mark.parametrize("layout", ["sequence", "stream"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_predict_gives_what_the_sequence_file_gives(artefact, engine: str, network: str, layout: str) -> None:
    """In both layouts and engines, and again on the second call: nothing stays behind."""
    x = samples(network, 3)
    expected = bare(artefact(network, "sequence"), x)
    session = load(artefact(network, layout), engine=engine, threads=1)
    for _ in range(2):
        result = session.predict(x)
        assert list(result.outputs) == ["logits"]
        np.testing.assert_array_equal(result.logits, expected["logits"])
        assert {f"spike_counts/{name}" for name in result.spike_counts} == set(expected) - {"logits"}
        for name, count in result.spike_counts.items():
            np.testing.assert_array_equal(count, expected[f"spike_counts/{name}"], err_msg=name)
        assert result.labels.tolist() == expected["logits"].argmax(1).tolist()
        assert result.complete
    assert session.engine == engine
    assert session.sample_shape == x.shape[1:]
    assert len(set(expected["logits"].ravel())) > 5


def test_integer_files_give_the_reference_runner_s_bits(tmp_path: Path) -> None:
    graph, x = quantised("static")
    save_onnx(build_integer_onnx(graph), tmp_path / "net.onnx")
    found = load(tmp_path / "net.onnx", threads=1).predict(x).logits
    np.testing.assert_array_equal(found, real_outputs(graph, IntegerRunner(graph).run(x).outputs)["logits"])


def test_one_session_and_several_in_several_threads(artefact) -> None:
    sessions = [load(artefact("frames", "sequence"), threads=1), load(artefact("sliding", "sequence"), threads=1)]
    x = samples("frames", 6)
    expected = [session.predict(x).logits for session in sessions]
    assert not np.array_equal(*expected)
    wrong: list[Any] = []

    def work(turn: int) -> None:
        for row in range(len(x)):
            which = (turn + row) % 2
            if not np.array_equal(sessions[which].predict(x[row : row + 1]).logits[0], expected[which][row]):
                wrong.append((turn, row))

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_openvino_requests_are_not_shared_between_threads(artefact) -> None:
    session = load(artefact("frames", "sequence"), engine="openvino", threads=1)
    x = samples("frames", 8)
    expected = load(artefact("frames", "sequence")).predict(x).logits
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda row=row: found.update({row: session.predict(x[row : row + 1]).logits[0]}))
        for row in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.stack([found[row] for row in range(8)]), expected)


# options


def test_threads_and_arena_reach_onnxruntime(artefact) -> None:
    for threads, arena in ((1, False), (2, True)):
        settings = load(artefact("frames"), threads=threads, arena=arena)._ready.single.session.get_session_options()
        assert settings.intra_op_num_threads == threads
        assert settings.enable_cpu_mem_arena is arena
        assert settings.enable_mem_pattern is arena


def test_threads_and_precision_reach_openvino(artefact) -> None:
    compiled = load(artefact("frames"), engine="openvino", threads=1)._ready.single._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_the_engine_follows_the_flavour_and_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("float32", None) == choose_engine("integer", None) == "onnxruntime"
    assert choose_engine("qdq", None) == "openvino"
    assert choose_engine("qdq", "onnxruntime") == "onnxruntime"
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "openvino" else object())
    assert choose_engine("qdq", None) == "onnxruntime"
    with pytest.raises(InputError, match="engine 'openvino' is not installed; pip install openvino"):
        choose_engine("float32", "openvino")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tflite"}, "engine 'tflite': expected onnxruntime or openvino"),
        ({"threads": 0}, "threads must be a whole number from 1 to 1024, got 0"),
        ({"threads": 1 << 31}, "threads must be a whole number from 1 to 1024, got 2147483648"),
        ({"threads": 1.5}, "threads must be a whole number from 1 to 1024, got 1.5"),
        ({"threads": "2"}, "threads must be a whole number from 1 to 1024, got '2'"),
        ({"arena": "no"}, "arena must be True or False, got 'no'"),
        ({"engine": "openvino", "provider": 5}, "provider '5' is not a device of this OpenVINO"),
        ({"provider": "MoonExecutionProvider"}, "provider 'MoonExecutionProvider' is not in this onnxruntime; it has"),
        ({"engine": "openvino", "provider": "MOON"}, "provider 'MOON' is not a device of this OpenVINO; it has CPU"),
        ({"engine": "openvino", "arena": True}, "arena belongs to engine 'onnxruntime'"),
    ],
)
def test_options_that_do_not_exist(artefact, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(artefact("frames"), **options)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(artefact) -> None:
    x = samples("frames", 2)
    session = load(artefact("frames"), threads=np.int64(1))
    assert session.stream(np.int32(2)).push(x) is not None


# files


def test_a_file_that_changed_since_its_export_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx")
    load(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"net.onnx: its SHA-256 differs from net.onnx.json: the file was changed"):
        load(path)


def test_a_file_without_a_sidecar_is_loaded(tmp_path: Path) -> None:
    assert len(load(write(tmp_path / "net.onnx", sidecar=False)).sha256) == 64


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(InputError, match=r"text.onnx: not an ONNX file"):
        load(tmp_path / "text.onnx")
    model = build_onnx(chain((4,), lif((4,))), time_steps=2)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match=r"foreign.onnx: no layout in its metadata"):
        load(tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match=r"none.onnx: no such file"):
        load(tmp_path / "none.onnx")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_graph_is_refused_in_one_line(tmp_path: Path, engine: str) -> None:
    path = write(tmp_path / "net.onnx", sidecar=False)
    model = onnx.load(path)
    model.graph.node[3].input[0] = "nowhere"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"net.onnx: not an ONNX file that (onnxruntime|OpenVINO) can load") as caught:
        load(path, engine=engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "old", "new", "message"),
    [
        ("steps_per_call", "2", "4", r"input frames of 2 steps, expected 4"),
        ("states", "head_lif.v", "head_lif.w", r"no state/head_lif.w float32 .*no next/head_lif.w"),
        ("states", '"float32"', '"float64"', r"no state/.* float64 "),
        ("states", '["batch", 5]', '["batch", 6]', r"no state/head_mean.sum float32 \['batch', 6\]"),
    ],
)
def test_metadata_of_another_file(tmp_path: Path, key: str, old: str, new: str, message: str) -> None:
    path = write(tmp_path / "net.onnx", layout="stream", sidecar=False)
    model = onnx.load(path)
    entry = next(entry for entry in model.metadata_props if entry.key == key)
    assert old in entry.value
    entry.value = entry.value.replace(old, new)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=f"its metadata do not describe it: .*{message}"):
        load(path)


def test_a_state_that_no_machine_holds_is_refused_before_it_is_made() -> None:
    f32, shape = np.dtype(F32), (1 << 20, 1 << 20)
    interface = Interface("stream", "float32", 4, 1, False, (State("state/a", "next/a", f32, shape),))

    class Declares:
        inputs = (Port("x", f32, (None, 1, 3)), Port("state/a", f32, (None, *shape)))
        outputs = (Port("y", f32, (None, 5)), Port("next/a", f32, (None, *shape)))

        def run(self, feeds: Any) -> Any:
            raise AssertionError

    with pytest.raises(InputError, match=r"^net.onnx: its state declares .* above the limit"):
        Session(Path("net.onnx"), interface, {}, "", "onnxruntime", Declares())


# inputs

FRAMES = np.zeros((2, 4, 3, 8, 8), F32)
IMAGES = np.zeros((2, 3, 8, 8), F32)


def with_value(x: np.ndarray, value: float) -> np.ndarray:
    changed = x.copy()
    changed.reshape(-1)[7] = value
    return changed


@pytest.mark.parametrize(
    ("network", "x", "message"),
    [
        ("frames", [[1.0]], r"frames: expected a numpy array, float32 \[N, 4, 3, 8, 8\], found list"),
        ("frames", FRAMES.astype(np.float64), r"frames: expected float32 .*, found float64; convert it with astype"),
        ("frames", FRAMES.astype(np.uint8), "found uint8"),
        ("frames", FRAMES[0], r"frames: expected shape \[N, 4, 3, 8, 8\], found \[4, 3, 8, 8\]"),
        ("frames", FRAMES[:, :3], r"found \[2, 3, 3, 8, 8\]"),
        ("frames", FRAMES[:0], r"found \[0, 4, 3, 8, 8\]"),
        ("frames", with_value(FRAMES, np.nan), "frames: holds NaN or infinite values"),
        ("frames", with_value(FRAMES, np.inf), "frames: holds NaN or infinite values"),
        ("frames", with_value(FRAMES, -1), "frames: holds -1, the network takes values of at least 0; scale"),
        ("image", IMAGES[None], r"image: expected shape \[N, 3, 8, 8\]"),
        ("image", with_value(IMAGES, 255), "image: holds 255, the network takes values from 0 to 1; scale the input"),
        ("image", with_value(IMAGES, 1.05), "image: holds 1.05, the network takes values from 0 to 1"),
        ("image", with_value(IMAGES, -0.5), "image: holds -0.5, the network takes values from 0 to 1"),
    ],
)
@pytest.mark.parametrize("layout", ["sequence", "stream"])
def test_wrong_inputs_are_refused_in_one_line(artefact, network: str, layout: str, x: Any, message: str) -> None:
    session = load(artefact(network, layout), threads=1)
    with pytest.raises(InputError, match=message) as caught:
        session.predict(x)
    assert "\n" not in str(caught.value)


def test_values_just_outside_the_range_are_rounding(artefact) -> None:
    load(artefact("image", "sequence"), threads=1).predict(with_value(IMAGES, 1.0001))


def test_the_check_of_values_can_be_left_out(artefact) -> None:
    session = load(artefact("image", "sequence"), threads=1, check_values=False)
    session.predict(with_value(IMAGES, 255))
    with pytest.raises(InputError, match="expected shape"):
        session.predict(IMAGES[0])


def test_views_that_are_not_contiguous(artefact) -> None:
    session = load(artefact("frames", "stream"), threads=1)
    x = samples("frames", 4)
    np.testing.assert_array_equal(session.predict(x[::2]).logits, session.predict(x).logits[::2])


def test_a_file_without_a_range_takes_any_finite_value(tmp_path: Path) -> None:
    save_onnx(build_onnx(small_network(depth=1)), tmp_path / "net.onnx")
    session = load(tmp_path / "net.onnx", threads=1)
    session.predict(with_value(IMAGES, -300))
    with pytest.raises(InputError, match="NaN"):
        session.predict(with_value(IMAGES, np.nan))
