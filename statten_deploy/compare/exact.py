"""Integer engines against the numpy reference: every spike, every membrane and every integer output, no tolerance."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from statten_deploy.compare.executors import Array, IntegerExecution
from statten_deploy.compare.verify import (
    Agreement,
    LayerAgreement,
    batch_size,
    note_activity,
    predicted_classes,
    same_interface,
)


class IntegerExecutor(Protocol):
    """Runs a batch of inputs in integers."""

    name: str

    def run(self, x: Array) -> IntegerExecution:
        """Outputs, spikes and membranes for one batch."""


def verify_exact(reference: IntegerExecutor, candidate: IntegerExecutor, samples: Array) -> Agreement:
    """Run both on `samples` [N, ...]; the first difference of every layer is named with its step, sample and index.

    Layers whose membranes the candidate cannot show are compared in their spikes, and a note says so.
    """
    agreement = Agreement(reference.name, candidate.name, exact=True)
    hidden: list[str] = []
    start, step = 0, 1  # the first sample alone tells how much memory one takes
    while start < len(samples):
        batch = samples[start : start + step]
        expected, found = reference.run(batch), candidate.run(batch)
        if not same_interface(agreement, expected, found):
            break
        compare_integers(agreement, expected, found, range(start, start + len(batch)))
        hidden = sorted(expected.membranes.keys() - found.membranes.keys())
        start += step
        step = batch_size(expected, len(batch))
        del expected, found  # before the next batch needs memory for its own
    if hidden and agreement.passed:
        agreement.notes.append(f"membranes of {len(hidden)} layers are not shown by {candidate.name}: spikes compared")
    note_activity(agreement)
    return agreement


def compare_integers(
    agreement: Agreement, expected: IntegerExecution, found: IntegerExecution, numbers: Sequence[int]
) -> None:
    """Add one batch; `numbers` are those of its samples."""
    count = len(next(iter(expected.outputs.values())))
    flipped: NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)
    for name, spikes in expected.spikes.items():
        layer = agreement.layers.setdefault(name, LayerAgreement(name))
        different = spikes != found.spikes[name]
        layer.sites += spikes.size
        layer.reference_spikes += int(np.count_nonzero(spikes))
        layer.spikes += int(np.count_nonzero(found.spikes[name]))
        mismatches = int(np.count_nonzero(different))
        layer.mismatches += mismatches
        if mismatches:
            flipped |= different.any(axis=(0, *range(2, different.ndim)))
            _report(agreement, f"layer {name!r}: {mismatches} spikes differ", different, numbers)
        _compare_membranes(agreement, name, expected, found, numbers, quiet=bool(mismatches))
    for name in expected.membranes.keys() - expected.spikes.keys():  # integrators do not fire
        _compare_membranes(agreement, name, expected, found, numbers)
    for name, value in expected.integers.items():
        if name not in found.integers:
            agreement.problems.append(f"integer output {name!r} is missing from {agreement.candidate}")
            continue
        unlike = value != found.integers[name]
        wrong = int(np.count_nonzero(unlike))
        agreement.output_mismatches += wrong
        if wrong:
            where = tuple(int(i) for i in np.argwhere(unlike)[0])
            agreement.problems.append(
                f"output {name!r}: {wrong} integers differ, first at sample {numbers[where[0]]}, index {where[1:]}"
            )
        difference = np.abs(expected.outputs[name].astype(np.float64) - found.outputs[name])
        agreement.max_abs_diff = max(agreement.max_abs_diff, float(difference.max(initial=0.0)))
    output = next(iter(expected.outputs))
    differ = predicted_classes(expected.outputs[output]) != predicted_classes(found.outputs[output])
    agreement.predictions_differ += int(differ.sum())
    agreement.samples += count
    agreement.samples_with_flips += int(flipped.sum())


def _compare_membranes(
    agreement: Agreement,
    name: str,
    expected: IntegerExecution,
    found: IntegerExecution,
    numbers: Sequence[int],
    *,
    quiet: bool = False,
) -> None:
    if name in expected.membranes and name in found.membranes:
        unlike = expected.membranes[name] != found.membranes[name]
        agreement.membrane_sites += unlike.size
        wrong = int(np.count_nonzero(unlike))
        agreement.membrane_mismatches += wrong
        if wrong and not quiet:
            _report(agreement, f"layer {name!r}: {wrong} membranes differ", unlike, numbers)


def _report(agreement: Agreement, what: str, different: NDArray[np.bool_], numbers: Sequence[int]) -> None:
    step, sample, *index = (int(i) for i in np.argwhere(different)[0])
    agreement.problems.append(f"{what}, first at step {step}, sample {numbers[sample]}, neuron {tuple(index)}")
