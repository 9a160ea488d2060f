"""All backends on one batch after the other, each beside the reference it is held to. Only totals outlive a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

from statten_deploy.compare.comparison import Arithmetic
from statten_deploy.compare.exact import compare_integers
from statten_deploy.compare.executors import Array, Execution, Executor, IntegerExecution, Traceable
from statten_deploy.compare.tally import Labels, Tally
from statten_deploy.compare.verify import Agreement, compare_batch, judge, measure_yardstick, same_interface
from statten_deploy.errors import StattenError

MAX_PROBLEMS = 3
"""Of one backend; the first names the first layer, step and neuron that differ."""


@dataclass
class Runner:
    """One backend at work.

    reference: what it is compared with, its own name where there is nothing. held: whether a difference is a problem.
    seconds: its last batch. failed: why it stopped.
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

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.reference, self.name, exact=self.arithmetic == "integer")

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
    first: int,
    yardstick: Executor | None = None,
    started: Callable[[str], None] = lambda name: None,
) -> dict[str, Execution]:
    """One batch x [B, ...], whose first sample is number `first`, through all backends, references before the others.

    Returns what the references gave. `yardstick` is the float reference in float64; it runs only where spikes differ.
    `started` hears who is next.

    Raises:
        StattenError: a reference failed. Any other backend that fails is out from then on, with the reason.
    """
    kept: dict[str, Execution] = {}
    references = {runner.reference for runner in runners.values()}
    exact: Execution | None = None
    for runner in runners.values():
        if runner.failed:
            continue
        started(runner.name)
        start = perf_counter()
        try:
            found = runner.executor.run(x)
        except StattenError as error:
            if runner.name in references:
                raise
            _stop(runner, f"failed on samples {first} to {first + len(x) - 1}: {error}")
            continue
        runner.seconds = perf_counter() - start
        expected = kept.get(runner.reference)
        if runner.name in references:
            kept[runner.name] = found
        if runner.held and expected is not None:
            if not same_interface(runner.agreement, expected, found):
                _stop(runner, f"gives other layers or outputs than {runner.reference}")
                runner.problems += runner.agreement.problems[:MAX_PROBLEMS]
                continue
            before = runner.agreement.spike_mismatches
            _hold(runner, cast(Traceable, runners[runner.reference].executor), x, expected, found, first)
            if yardstick is not None and not runner.agreement.exact and runner.agreement.spike_mismatches > before:
                exact = yardstick.run(x) if exact is None else exact
                measure_yardstick(runner.agreement, expected, exact)
        runner.tally.update(x, found, expected, labels)
        del found, expected  # before the next backend needs memory for its own
    return kept


def _hold(runner: Runner, reference: Traceable, x: Array, expected: Execution, found: Execution, first: int) -> None:
    agreement = runner.agreement
    if agreement.exact:
        compare_integers(agreement, cast(IntegerExecution, expected), cast(IntegerExecution, found), first)
    else:
        compare_batch(agreement, reference, x, expected, found)
    agreement.notes.clear()  # of the interface: said once per batch
    del agreement.problems[MAX_PROBLEMS:]


def _stop(runner: Runner, reason: str) -> None:
    runner.failed = reason
    runner.problems.append(reason)


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
