"""When a sweep whose trials all fail is given up, and how often a trial was lost: pure, from what
the journal says.

A mistake that every trial shares (a loss that the service refuses, a rate at which all diverge)
would otherwise be paid for once per trial. One trial that got as far as a result shows that it is
not shared. Only failures of the newest run count: who starts another has mended something.
"""

from __future__ import annotations

from dataclasses import dataclass

from crucible_tinkex.config import RunSection
from crucible_tinkex.registry import FAILED, SweepState


def failing(state: SweepState, run: RunSection) -> str | None:
    """Why to give up, in words."""
    failed = [state.trials[trial_id] for trial_id in sorted(state.failures)]
    if not run.fail_fast or len(failed) < run.fail_fast or _any_succeeded(state):
        return None
    last = max(failed, key=lambda t: t.index)
    return (
        f"run.fail_fast = {run.fail_fast}: {len(failed)} "
        f"{'trial' if len(failed) == 1 else 'trials'} failed and none succeeded; "
        f"{last.run_name}: {last.error}"
    )


def _any_succeeded(state: SweepState) -> bool:
    """Whether a trial that trains has a result; the untrained base proves nothing."""
    measured = (trial for trials in state.measured.values() for trial in trials)
    return any(t.state != FAILED and not t.reference for t in measured)


@dataclass
class Losses:
    """How often a trial was lost since it last got further."""

    count: int = 0
    step: int = -1

    def again(self, step: int) -> int:
        self.count = 1 if step > self.step else self.count + 1
        self.step = max(step, self.step)
        return self.count
