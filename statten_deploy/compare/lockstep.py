"""All backends on one batch after the other, each beside the reference it is held to. Only totals outlive a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from traceback import format_exception
from typing import cast

from statten_deploy.compare.comparison import Arithmetic
from statten_deploy.compare.exact import compare_integers
from statten_deploy.compare.executors import Array, Execution, Executor, IntegerExecution, Traceable
from statten_deploy.compare.tally import Labels, Tally
from statten_deploy.compare.verify import Agreement, compare_batch, judge, measure_yardstick, same_interface
from statten_deploy.errors import StattenError

MAX_PROBLEMS = 3
"""Of one backend; the first names the first layer, step and neuron that differ."""
MAX_REASON = 300
"""Characters of a message that somebody else's engine raised."""


@dataclass
class Runner:
    """One backend at work.

    reference: what it is compared with, its own name where there is nothing. held: whether a difference is a problem.
    seconds: its longest batch. failed: why it stopped. traces: of what it raised.
    """

    name: str
    arithmetic: Arithmetic
    executor: Executor
    infer: Callable[[Array], object]
    reference: str
    held: bool
    tally: Tally
    notes: list[str]
    agreement: Agreement = field(init=False)
    problems: list[str] = field(default_factory=list)
    failed: str = ""
    seconds: float = 0.0
    traces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.reference, self.name, exact=self.arithmetic == "integer")

    def stop(self, why: str, error: Exception | None = None) -> None:
        """It is out, and that is a problem."""
        self.failed = why
        self.complain(why, error)

    def complain(self, why: str, error: Exception | None = None) -> None:
        """A problem; what was raised is kept as text, for it holds on to arrays."""
        self.problems.append(why)
        if error is not None:
            self.traces.append("".join(format_exception(error)))

    def finish(self, reference: "Runner") -> None:
        """Judge all batches together: a float backend by the tolerances, an integer one by its counts."""
        if not self.held or self.failed:
            return
        agreement = self.agreement
        if agreement.exact:
            if agreement.passed and self.tally.counter.counts() != reference.tally.counter.counts():
                self.problems.append(f"its counts differ from those of {self.reference}, although no spike does")
        else:
            judge(agreement)
            self.notes += agreement.notes
            if agreement.spike_mismatches:
                self.notes.append(_strayed(agreement))
        self.problems += agreement.problems[:MAX_PROBLEMS]


def run_batch(
    runners: Mapping[str, Runner],
    x: Array,
    labels: Labels | None,
    numbers: Sequence[int],
    yardstick: Executor | None = None,
    started: Callable[[str], None] = lambda name: None,
) -> dict[str, Execution]:
    """One batch x [B, ...] through all backends, references before the others; `numbers` are those of its samples.

    Returns what the references gave. `yardstick` is the float reference in float64; it runs only where spikes differ.
    `started` hears who is next. Whoever fails, whatever it raises, is out from then on, with the reason, and so are
    those that are held to it.
    """
    turn = _Turn(x, labels, numbers, yardstick)
    references = {runner.reference for runner in runners.values()}
    for runner in runners.values():
        reference = runners[runner.reference]
        if runner.held and reference.failed and not runner.failed:
            runner.failed = f"{reference.name}, which it is held to, failed"  # no problem of its own
        if runner.failed:
            continue
        started(runner.name)
        try:
            found = turn.take(runner, cast(Traceable, reference.executor))
        except Exception as error:  # engines raise nearly anything
            runner.stop(f"failed on samples {numbers[0]} to {numbers[-1]}: {reason(error)}", error)
            continue
        if runner.name in references and not runner.failed:
            turn.kept[runner.name] = found
        del found  # before the next backend needs memory for its own
    return turn.kept


@dataclass
class _Turn:
    """One batch. kept: what the references gave; exact: what the yardstick gave."""

    x: Array
    labels: Labels | None
    numbers: Sequence[int]
    yardstick: Executor | None
    kept: dict[str, Execution] = field(default_factory=dict)
    exact: Execution | None = None

    def take(self, runner: Runner, reference: Traceable) -> Execution:
        """Run one backend, compare it and count it."""
        start = perf_counter()
        found = runner.executor.run(self.x)
        runner.seconds = max(runner.seconds, perf_counter() - start)
        expected = self.kept.get(runner.reference)
        if runner.held and expected is not None:
            agreement = runner.agreement
            if not same_interface(agreement, expected, found):
                runner.stop(f"gives other layers or outputs than {runner.reference}")
                runner.problems += agreement.problems[:MAX_PROBLEMS]
                return found
            before = agreement.spike_mismatches
            _hold(agreement, reference, self.x, expected, found, self.numbers)
            if self.yardstick is not None and not agreement.exact and agreement.spike_mismatches > before:
                self.exact = self.yardstick.run(self.x) if self.exact is None else self.exact
                measure_yardstick(agreement, expected, self.exact)
        runner.tally.update(self.x, found, expected, self.labels)
        return found


def _hold(
    agreement: Agreement, reference: Traceable, x: Array, expected: Execution, found: Execution, numbers: Sequence[int]
) -> None:
    if agreement.exact:
        compare_integers(agreement, cast(IntegerExecution, expected), cast(IntegerExecution, found), numbers)
    else:
        compare_batch(agreement, reference, x, expected, found)
    agreement.notes.clear()  # of the interface: said once per batch
    del agreement.problems[MAX_PROBLEMS:]


def reason(error: Exception) -> str:
    """One line: what was raised on purpose says it itself, anything else with its kind."""
    line = " ".join(str(error).split())
    if isinstance(error, StattenError):
        return line
    return f"{type(error).__name__}: {line}"[:MAX_REASON].removesuffix(": ")


def _strayed(agreement: Agreement) -> str:
    """How far a float backend strays; of one within the tolerances also why that is no error."""
    told = (
        f"{agreement.spike_mismatches:,} of {agreement.sites:,} spikes differ from {agreement.reference}, in "
        f"{agreement.samples_with_flips:,} of {agreement.samples:,} samples"
    )
    if not agreement.passed:
        return told
    margin = agreement.largest_first_flip_margin
    first = "not traced: recurrent" if margin is None else f"at most {margin:.1e} of the threshold away from it"
    return (
        f"{told}: sums in another order move a membrane by its last bits, a neuron at its threshold flips (first "
        f"flips: {first}), and what follows differs"
    )
