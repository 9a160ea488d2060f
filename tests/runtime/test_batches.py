"""Batches in micro-batches: what is cut how, and that nothing but speed changes."""

import threading
from collections.abc import Mapping

import numpy as np
import pytest

from statten_deploy.errors import InputError
from statten_deploy.runtime import load
from statten_deploy.runtime.batches import Batches
from statten_deploy.runtime.engines import Port
from tests.runtime.conftest import samples


class Doubles:
    """``y = 2 x``; remembers what it was given."""

    def __init__(self, numbers: int = 2048) -> None:
        self.inputs, self.outputs = ((Port(name, np.dtype(np.float32), (None, numbers)),) for name in "xy")
        self.sizes: list[int] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.sizes.append(len(feeds["x"]))
        return {"y": 2 * feeds["x"]}


@pytest.mark.parametrize(
    ("rows", "workers", "fixed", "sizes"),
    [
        (2, 2, False, [1, 1]),
        (5, 2, False, [2, 3]),
        (16, 2, False, [4, 4, 4, 4]),
        (17, 2, False, [1, 4, 4, 4, 4]),
        (3, 8, False, [1, 1, 1]),
        (5, 2, True, [1] * 5),
        (8, 2, True, [4, 4]),
        (9, 2, True, [4, 4, 4]),  # padded
        (6, 1, False, [2, 4]),
    ],
)
def test_how_a_batch_is_cut(rows: int, workers: int, fixed: bool, sizes: list[int]) -> None:
    single, other, made = Doubles(), Doubles(), []
    batches = Batches(single, workers, lambda size: (made.append(size), other)[1], fixed=fixed)
    x = np.arange(2048 * rows, dtype=np.float32).reshape(rows, -1)
    for _ in range(2):
        np.testing.assert_array_equal(batches.run({"x": x})["y"], 2 * x)
    assert sorted(other.sizes) == sorted(sizes * 2)
    assert single.sizes == []
    assert made == [max(sizes) if fixed else 0]  # once
    np.testing.assert_array_equal(batches.run({"x": x[:1]})["y"], 2 * x[:1])
    assert single.sizes == [1]


@pytest.mark.parametrize(("numbers", "size"), [(1, 8), (256, 8), (2000, 4), (3072, 2), (150_528, 2)])
def test_small_samples_go_together(numbers: int, size: int) -> None:
    """Calls cost more than they compute; large ones would push each other out of the cache."""
    engine = Doubles(numbers)
    Batches(engine, 1, lambda _: engine).run({"x": np.zeros((16, numbers), dtype=np.float32)})
    assert engine.sizes == [size] * (16 // size)


def test_micro_batches_run_at_the_same_time() -> None:
    """Each waits for the other: one after the other would never end."""
    barrier = threading.Barrier(2, timeout=60)

    class Meets(Doubles):
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            barrier.wait()
            return super().run(feeds)

    assert len(Batches(Doubles(), 2, lambda _: Meets()).run({"x": np.zeros((2, 2), np.float32)})["y"]) == 2


def test_one_that_fails_fails_the_batch() -> None:
    class Fails(Doubles):
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if feeds["x"].any():
                raise InputError("out of memory")
            return super().run(feeds)

    x = np.zeros((16, 2), np.float32)
    x[9] = 1
    with pytest.raises(InputError, match="out of memory"):
        Batches(Doubles(), 2, lambda _: Fails()).run({"x": x})


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("network", ["image", "frames"])
def test_every_size_of_batch_gives_what_single_samples_give(artefact, engine: str, network: str) -> None:
    """Outputs, spike counts and the states of streams."""
    x = samples(network, 9)
    session = load(artefact(network), engine=engine, threads=2)
    alone = [session.predict(sample[None]) for sample in x]
    for rows in (2, 3, 8, 9):
        result = session.predict(x[:rows])
        np.testing.assert_array_equal(result.logits, np.concatenate([one.logits for one in alone[:rows]]))
        for name, count in result.spike_counts.items():
            np.testing.assert_array_equal(count, np.concatenate([one.spike_counts[name] for one in alone[:rows]]))
    together, single = session.stream(batch=9), session.stream()
    given = x if network == "image" else x[:, :2]
    together.push(given)
    single.push(given[4])
    for name, value in single.state().items():
        if name.startswith("state/"):
            np.testing.assert_array_equal(together.state()[name][4:5], value, err_msg=name)


def test_batches_from_several_threads(artefact) -> None:
    x = samples("frames", 8)
    session = load(artefact("frames", "sequence"), threads=2)
    expected, found = session.predict(x).logits, {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: session.predict(x).logits})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        np.testing.assert_array_equal(found[index], expected)
