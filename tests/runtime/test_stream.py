"""Streams: frames in, results out, and what is remembered in between."""

import threading
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from statten_deploy.errors import InputError
from statten_deploy.export.onnx import build_onnx, save_onnx
from statten_deploy.ir import TemporalMean
from statten_deploy.runtime import Result, Session, load
from tests.export.onnx.onnx_harness import F32, graph_of, lif
from tests.runtime.conftest import NETWORKS, samples, write


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def frames_of(network: str, x: np.ndarray) -> list[np.ndarray]:
    """One sample as what is pushed one after the other: its frames, or its image once for each call."""
    return [x] * 2 if network == "image" else list(x)


@pytest.mark.parametrize("network", NETWORKS)
def test_pushed_frames_give_what_the_whole_sample_gives(artefact, engine: str, network: str) -> None:
    x = samples(network, 3)
    expected = load(artefact(network, "sequence"), threads=1).predict(x)
    session = load(artefact(network), engine=engine, threads=1)
    for row, sample in enumerate(x):
        session.reset()
        results = [session.push(frame) for frame in frames_of(network, sample)]
        given = [result for result in results if result is not None]
        steps = session.steps_per_call
        assert [result.steps for result in given] == list(range(steps, 5, steps))
        assert [result.complete for result in given] == [False] * (4 // steps - 1) + [True]
        if network == "frames":
            assert [result is None for result in results] == [True, False] * 2
        np.testing.assert_array_equal(given[-1].logits, expected.logits[row])
        assert given[-1].label == expected.labels[row]
        for name, count in expected.spike_counts.items():
            assert sum(result.spike_counts[name] for result in given) == count[row], name


def test_the_answer_of_every_call_is_that_of_a_sample_that_ends_there(artefact, tmp_path: Path) -> None:
    (x,) = samples("sliding", 1)
    short = {steps: write(tmp_path / f"{steps}.onnx", "sliding", time_steps=steps) for steps in (1, 2, 3, 4)}
    stream = load(artefact("sliding"), threads=1).stream()
    seen = set()
    for steps, frame in enumerate(x, 1):
        result = pushed(stream, frame)
        np.testing.assert_array_equal(result.logits, load(short[steps]).predict(x[None, :steps]).logits[0])
        seen.add(result.logits.tobytes())
    assert len(seen) > 2


def pushed(stream: Any, frames: np.ndarray) -> Result:
    result = stream.push(frames)
    assert result is not None
    return result


@pytest.mark.parametrize("network", NETWORKS)
def test_several_frames_at_once(artefact, network: str) -> None:
    """Results of their last call; spikes of all their calls."""
    x = samples(network, 1)[0]
    session = load(artefact(network), threads=1)
    one_by_one, at_once = session.stream(), session.stream()
    results = [result for frame in frames_of(network, x) if (result := one_by_one.push(frame)) is not None]
    together = pushed(at_once, np.stack(frames_of(network, x)))
    np.testing.assert_array_equal(together.logits, results[-1].logits)
    for name, count in together.spike_counts.items():
        assert count == sum(result.spike_counts[name] for result in results)
    assert_same(one_by_one.state(), at_once.state())


def test_outputs_of_every_step_line_up(tmp_path: Path) -> None:
    """Beside a mean, of which the last counts: of a push, and of a whole sample."""
    nodes = {"x": nir.Input({"input": np.array([4])}), "n": lif((4,)), "mean": TemporalMean()}
    nodes |= {name: nir.Output({"output": np.array([4])}) for name in ("rate", "spikes")}
    graph = graph_of(nodes, [("x", "n"), ("n", "spikes"), ("n", "mean"), ("mean", "rate")], time_steps=6)
    x = np.random.default_rng(0).normal(1, 1, (3, 6, 4)).astype(F32)
    for layout in ("sequence", "stream"):
        save_onnx(build_onnx(graph, layout=layout), tmp_path / f"{layout}.onnx")  # type: ignore[arg-type]
    expected = load(tmp_path / "sequence.onnx", threads=1).predict(x).outputs
    assert 0.2 < expected["spikes"].mean() < 0.8
    session = load(tmp_path / "stream.onnx", threads=1)
    stream = session.stream()
    pushes = [pushed(stream, part).outputs for part in (x[1, :1], x[1, 1:4], x[1, 4:])]
    assert [part["spikes"].shape for part in pushes] == [(1, 4), (3, 4), (2, 4)]
    np.testing.assert_array_equal(np.concatenate([part["spikes"] for part in pushes]), expected["spikes"][1])
    for name, value in session.predict(x).outputs.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def test_a_stream_goes_on_beyond_the_steps_of_a_sample(artefact) -> None:
    """Membranes and the mean go on; `complete` says that the network has had what it was trained on."""
    stream = load(artefact("sliding"), threads=1).stream()
    frames = samples("sliding", 3).reshape(12, 3, 8, 8)
    results = [pushed(stream, frame) for frame in frames]
    assert [result.complete for result in results] == [False] * 3 + [True] * 9
    assert stream.steps == results[-1].steps == 12


def test_streams_side_by_side_equal_streams_alone(artefact, engine: str) -> None:
    x = samples("frames", 3)
    session = load(artefact("frames"), engine=engine, threads=1)
    together = session.stream(batch=3)
    assert together.push(x[:, 0]) is None
    assert together.pending == 1
    result = pushed(together, x[:, 1:4])
    assert (together.pending, together.steps) == (0, 4)
    assert result.logits.shape == (3, 5)
    for row in range(3):
        alone = pushed(session.stream(), x[row])
        np.testing.assert_array_equal(alone.logits, result.logits[row])
        assert result.labels[row] == alone.label
        for name, count in alone.spike_counts.items():
            assert result.spike_counts[name][row] == count
    with pytest.raises(ValueError, match="can only convert an array of size 1"):
        _ = result.label
    for batch in (0, 1.5, "2"):
        with pytest.raises(InputError, match=f"batch must be a whole number of at least 1, got {batch!r}"):
            session.stream(batch=batch)  # type: ignore[arg-type]


def test_reset_forgets_everything(artefact) -> None:
    x = samples("frames", 2)
    stream = load(artefact("frames"), threads=1).stream()
    first = pushed(stream, x[0]).logits
    stream.push(x[1, 0])
    stream.reset()
    assert (stream.steps, stream.pending) == (0, 0)
    np.testing.assert_array_equal(pushed(stream, x[0]).logits, first)
    assert not np.array_equal(pushed(stream, x[0]).logits, first)  # without the reset


def test_the_session_s_own_stream_and_others_are_apart(artefact) -> None:
    x = samples("sliding", 2)
    session = load(artefact("sliding"), threads=1)
    expected = load(artefact("sliding", "sequence")).predict(x).logits
    other = session.stream()
    for step in range(4):
        mine, its = session.push(x[0, step]), pushed(other, x[1, step])
        session.predict(x)  # has nothing to do with either
    assert mine is not None
    np.testing.assert_array_equal(np.stack([mine.logits, its.logits]), expected)


def test_files_in_the_sequence_layout_have_no_streams(artefact) -> None:
    session = load(artefact("frames", "sequence"), threads=1)
    message = r"sequence.onnx: takes all 4 steps in one call \(predict\); export it with --layout stream to push frames"
    for use in (session.stream, session.reset, session.state, lambda: session.push(samples("frames", 1)[0, 0])):
        with pytest.raises(InputError, match=message):
            use()


# saved states


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_saved_state_goes_on_in_another_process_s_session(
    artefact, engine: str, network: str, tmp_path: Path
) -> None:
    """Through a file, in the middle of a chunk, and from one engine into another.

    A mean over three steps may differ in its last bit: OpenVINO multiplies with a third.
    """
    first, second = load(artefact(network), threads=1), load(artefact(network), engine=engine, threads=1)
    pushes = [*frames_of(network, samples(network, 1)[0]), *frames_of(network, samples(network, 1, seed=2)[0])]
    whole = first.stream()
    expected = [whole.push(frame) for frame in pushes]
    for cut in (0, 1, len(pushes) // 2 + 1):
        before, after = first.stream(), second.stream()
        for frame in pushes[:cut]:
            before.push(frame)
        np.savez(tmp_path / "state.npz", **before.state())
        with np.load(tmp_path / "state.npz", allow_pickle=False) as saved:
            after.restore(saved)
        assert (after.steps, after.pending) == (before.steps, before.pending)
        for frame, wanted in zip(pushes[cut:], expected[cut:], strict=True):
            found = after.push(frame)
            assert (found is None) == (wanted is None)
            if found is not None and wanted is not None:
                np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-6 if engine == "openvino" else 0)
                assert found.steps == wanted.steps


def test_a_saved_state_does_not_change_with_its_stream_nor_with_its_arrays(artefact) -> None:
    stream = load(artefact("frames"), threads=1).stream()
    x = samples("frames", 2)
    stream.push(x[0, :3])
    saved = stream.state()
    expected = pushed(stream, x[1, :3]).logits
    stream.restore(saved)
    for value in saved.values():
        if value.dtype == F32:
            value[...] = 100
    np.testing.assert_array_equal(pushed(stream, x[1, :3]).logits, expected)


def test_a_camera_may_fill_the_same_buffer_again(artefact) -> None:
    """Frames that wait are kept, not the array in which they came; nor are the arrays of a saved state the stream's."""
    session, (x,) = load(artefact("frames"), threads=1), samples("frames", 1)
    expected, stream, buffer = pushed(session.stream(), x).logits, session.stream(), np.empty_like(x[0])
    for frame in x:
        buffer[...] = frame
        result = stream.push(buffer)
        buffer[...] = 50
        for value in stream.state().values():
            if value.dtype == F32:
                value[...] = 100
    assert result is not None
    np.testing.assert_array_equal(result.logits, expected)


def spoiled(state: dict[str, np.ndarray], name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    changed = {**state, name: value}
    return {key: content for key, content in changed.items() if content is not None}


V = "state/head_lif.v"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("artefact", np.asarray("0" * 64), r"the state is not one of .*frames.stream.onnx"),
        ("artefact", None, "the state is not one of"),
        (V, None, "the state is damaged: entries are missing or unknown"),
        ("more", np.zeros(3), "the state is damaged: entries are missing or unknown"),
        ("pending", None, "the state is damaged: entries are missing or unknown"),
        (V, np.zeros((2, 16), F32), r"'state/head_lif.v' is float32 \[2, 16\], expected float32 \[1, 16\]"),
        (V, np.zeros((1, 16)), r"'state/head_lif.v' is float64 \[1, 16\], expected float32"),
        (V, np.full((1, 16), np.nan, F32), "'state/head_lif.v' holds NaN or infinite values"),
        ("steps", np.asarray(-2), "'steps' is -2, expected a whole number"),
        ("steps", np.asarray(1.5), "'steps' is 1.5, expected a whole number"),
        ("pending", np.zeros((1, 2, 3, 8, 8), F32), "'pending' holds 2 frames, more than can wait"),
        ("pending", np.zeros((1, 1, 3, 8, 9), F32), r"'pending' is float32 \[1, 1, 3, 8, 9\], expected"),
        ("pending", np.zeros(3, F32), r"'pending' is float32 \[3\], expected"),
    ],
)
def test_states_that_do_not_fit_change_nothing(artefact, name: str, value: np.ndarray | None, message: str) -> None:
    stream = load(artefact("frames"), threads=1).stream()
    stream.push(samples("frames", 1)[0, :3])
    before = stream.state()
    with pytest.raises(InputError, match=message) as caught:
        stream.restore(spoiled(before, name, value))
    assert "\n" not in str(caught.value)
    assert_same(stream.state(), before)


def test_a_saved_file_that_is_damaged_changes_nothing(artefact, tmp_path: Path) -> None:
    """It is read only when it is restored; and what is no saved state at all."""
    stream = load(artefact("frames"), threads=1).stream()
    stream.push(samples("frames", 1)[0, :3])
    before = stream.state()
    np.savez(tmp_path / "state.npz", **before)
    content = bytearray((tmp_path / "state.npz").read_bytes())
    content[content.index(V.encode()) + 200] ^= 255  # among its numbers
    (tmp_path / "damaged.npz").write_bytes(content)
    np.savez(tmp_path / "objects.npz", **{**before, "pending": np.array([None])})
    files = [np.load(tmp_path / name, allow_pickle=False) for name in ("damaged.npz", "objects.npz")]
    for state in (*files, None, [1], np.zeros(3), {**before, "pending": [[1], [1, 2]]}):
        with pytest.raises(InputError, match=r"^the state cannot be read \(.*\); save it with state\(\)$"):
            stream.restore(state)  # type: ignore[arg-type]
    for file in files:
        file.close()
    assert_same(stream.state(), before)


def test_no_image_can_wait_in_a_restored_state(artefact) -> None:
    """Every image gives a result; only frames wait for their chunk."""
    stream = load(artefact("image"), threads=1).stream()
    waiting = {**stream.state(), "pending": np.zeros((1, 1, 3, 8, 8), F32)}
    with pytest.raises(InputError, match="'pending' holds 1 frames, more than can wait"):
        stream.restore(waiting)


def test_a_state_of_another_file_or_batch(artefact) -> None:
    session = load(artefact("frames"), threads=1)
    with pytest.raises(InputError, match="the state is not one of"):
        load(artefact("sliding"), threads=1).restore(session.state())
    with pytest.raises(InputError, match=r"expected float32 \[2,"):
        session.stream(batch=2).restore(session.state())


# wrong frames, and engines that fail

FRAME = np.zeros((3, 8, 8), F32)


@pytest.mark.parametrize(
    ("batch", "frames", "message"),
    [
        (None, FRAME[0], r"frames: expected shape \[3, 8, 8\] or \[steps, 3, 8, 8\], found \[8, 8\]"),
        (None, FRAME[None, :0], r"found \[1, 0, 8, 8\]"),
        (None, np.zeros((0, 3, 8, 8), F32), r"found \[0, 3, 8, 8\]"),
        (None, FRAME.astype(np.float16), "found float16; convert it with astype"),
        (None, FRAME - 1, "holds -1, the network takes values of at least 0"),
        (None, FRAME * np.nan, "holds NaN"),
        (2, FRAME, r"expected shape \[2, 3, 8, 8\] or \[2, steps, 3, 8, 8\], found \[3, 8, 8\]"),
        (2, np.stack([FRAME] * 3), r"found \[3, 3, 8, 8\]"),
    ],
)
def test_wrong_frames_change_nothing(artefact, batch: int | None, frames: np.ndarray, message: str) -> None:
    stream = load(artefact("frames"), threads=1).stream(batch)
    x = samples("frames", 2)
    stream.push(x[0, 0] if batch is None else x[:, 0])
    before = stream.state()
    with pytest.raises(InputError, match=message):
        stream.push(frames)
    assert_same(stream.state(), before)


def test_an_engine_that_fails_in_the_second_of_two_calls_changes_nothing(artefact) -> None:
    session = load(artefact("frames"), threads=1)
    stream, working = session.stream(), session._ready
    x = samples("frames", 2).reshape(8, 3, 8, 8)
    stream.push(x[:3])
    before, calls = stream.state(), 0

    class Failing:
        inputs, outputs = working.inputs, working.outputs

        def run(self, feeds: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise InputError("out of memory")
            return working.run(feeds)

    session._ready = Failing()
    with pytest.raises(InputError, match="out of memory"):
        stream.push(x[3:7])
    session._ready = working
    assert calls == 2
    assert_same(stream.state(), before)


# threads


def together(work: Any, count: int) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_stream_for_each_thread(artefact, engine: str) -> None:
    x = samples("sliding", 6)
    session: Session = load(artefact("sliding"), engine=engine, threads=1)
    expected = load(artefact("sliding", "sequence")).predict(x).logits
    found: dict[int, np.ndarray] = {}
    barrier = threading.Barrier(6)

    def work(index: int) -> None:
        stream = session.stream()
        barrier.wait()
        for frame in x[index]:
            found[index] = pushed(stream, frame).logits

    together(work, 6)
    np.testing.assert_array_equal(np.stack([found[index] for index in range(6)]), expected)


def test_one_stream_from_several_threads_takes_every_frame_once(artefact) -> None:
    """The same frame from all, so that the order does not matter: the sum must be that of one thread."""
    frame = samples("sliding", 1)[0, 0]
    session = load(artefact("sliding"), threads=1)

    def work(_index: int) -> None:
        for _ in range(5):
            session.push(frame)

    together(work, 8)
    alone = session.stream()
    alone.push(np.stack([frame] * 40))
    assert_same(session.state(), alone.state())
    assert session.own_stream.steps == 40
