"""Judging a report against the state of its run, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from steelyard_server.core.events import Float32s
from steelyard_server.runs.errors import Exists, Invalid, Unready
from steelyard_server.runs.messages import Disposition, Report
from steelyard_server.runs.state import RunState
from steelyard_server.runs.steps import StepRecord


def judge(state: RunState, report: Report, digest_of: Callable[[int], int | None]) -> Disposition:
    """What to do with a report. RunError where it must be refused; the state is not touched.

    `digest_of` gives the digest of a step that is no longer in memory.
    """
    if report.step >= state.next_step:
        raise Unready(
            f"expected a report of a step below {state.next_step}, the next to draw; got step {report.step}",
            reason="step",
        )
    record = state.steps.get(report.step)
    _check_digest(report, record.drawn.digest if record else digest_of(report.step))
    check_signals(report.signals, f"step {report.step}")
    if "loss" not in report.signals:
        raise Invalid(
            f"expected the signal 'loss' in the report of step {report.step}; got {sorted(report.signals)}",
            reason="shape",
        )
    if report.offset + report.count > state.spec.batch_size:
        raise Invalid(
            f"expected positions within the batch of {state.spec.batch_size}; got {report.count} values from "
            f"position {report.offset} on at step {report.step}",
            reason="shape",
        )
    if record is None:
        return Disposition.LATE
    return _judge_values(state, report, record)


def check_signals(signals: Mapping[str, Float32s], what: str) -> None:
    """Invalid where there is no signal, an empty one, or their lengths differ."""
    counts = {name: len(values) for name, values in signals.items()}
    if not counts or 0 in counts.values() or len(set(counts.values())) > 1:
        raise Invalid(
            f"expected at least one signal, all of one length above 0, for {what}; got lengths {counts}",
            reason="shape",
        )


def check_values(state: RunState, signals: Mapping[str, Float32s], what: str) -> None:
    """Invalid where the run refuses non-finite values, or the policy cannot use the finite ones."""
    usable = dict(signals)
    for name, values in signals.items():
        finite = np.isfinite(values)
        if finite.all():
            continue
        if state.spec.on_nonfinite == "reject":
            at = int(finite.argmin())
            raise Invalid(
                f"expected finite values of {name!r} for {what} (the run's on_nonfinite is 'reject'); "
                f"got {values[at]} at position {at}",
                reason="nonfinite",
            )
        usable[name] = np.where(finite, values, np.float32(0))
    for derived in state.derived:
        if derived.signal not in usable:
            continue
        objection = state.policy.objection(derived.name, usable[derived.signal])
        if objection is not None:
            raise Invalid(f"{what}: {objection}", reason="values")


def _check_digest(report: Report, served: int | None) -> None:
    if served is None:
        raise Unready(
            f"step {report.step} is no longer retained, so its report cannot be checked", reason="step"
        )
    if served != report.digest:
        raise Unready(
            f"expected the digest {served:016x} of the batch that was served at step {report.step}; "
            f"got {report.digest:016x}: the losses belong to another batch",
            reason="digest",
        )


def _judge_values(state: RunState, report: Report, record: StepRecord) -> Disposition:
    if not record.is_news(report.offset, report.count):
        if record.contradicts(report.offset, report.signals):
            raise Exists(
                f"positions {report.offset}..{report.offset + report.count - 1} of step {report.step} were reported "
                "before with other values",
                reason="conflict",
            )
        if record.holds(report.offset, report.signals):
            return Disposition.DUPLICATE
    if record.closed:
        return Disposition.LATE
    check_values(state, report.signals, f"step {report.step}")
    return Disposition.APPLIED
