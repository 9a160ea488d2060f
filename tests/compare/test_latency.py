"""Who is timed when, and how often, by a clock that the calls move themselves."""

import pytest
import torch

from statten_deploy.compare import latency
from statten_deploy.compare.comparison import Latency


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, *seconds: float):
        """A call that takes `seconds`, one after the other, the last one from then on."""
        left = list(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(latency, "perf_counter", lambda: found.now)
    return found


def test_in_turns_after_a_call_to_warm_up(clock: Clock) -> None:
    found = latency.measure({"a": clock.call("a", 9, 1, 2, 3), "b": clock.call("b", 0.5)}, 7, 3, unheard)
    assert clock.log[:6] == ["a", "b", "a", "b", "a", "b"]
    assert found["a"] == Latency(7, 2000.0, pytest.approx(2800.0), 3)  # 1, 2, 3: the 9 was the first call
    assert found["b"] == Latency(7, 500.0, 500.0, 6)


def unheard(name: str, error: Exception) -> None:
    raise AssertionError(name) from error


def test_a_call_that_raises_is_out_and_heard_of(clock: Clock) -> None:
    """At once, or later on; the others go on."""

    def at_once() -> None:
        raise RuntimeError("never")

    def later() -> None:
        clock.log.append("later")
        clock.now += 1
        if clock.log.count("later") == 3:
            raise MemoryError

    heard = []
    calls = {"never": at_once, "later": later, "fine": clock.call("fine", 1)}
    found = latency.measure(calls, 1, 4, lambda name, error: heard.append((name, type(error))))
    assert heard == [("never", RuntimeError), ("later", MemoryError)]
    assert found == {"fine": Latency(1, 1000.0, 1000.0, 4)}


def test_most_and_fewest_runs(clock: Clock) -> None:
    found = latency.measure({"fast": clock.call("fast", 1e-6), "slow": clock.call("slow", 5)}, 1, 2, unheard)
    assert found["fast"].runs == latency.MAX_RUNS
    assert found["slow"].runs == latency.MIN_RUNS


def test_what_would_take_too_long_is_called_once(clock: Clock) -> None:
    found = latency.measure({"slow": clock.call("slow", 7), "other": clock.call("other", 1)}, 1, 2, unheard)
    assert clock.log.count("slow") == 1
    assert found["slow"] == Latency(1, 7000.0, 7000.0, 1)
    assert found["other"].runs == 3


def test_the_machine_is_named() -> None:
    told = latency.machine("cpu")
    assert f"torch {torch.__version__} on {torch.get_num_threads()} thread" in told
    assert "\n" not in told
