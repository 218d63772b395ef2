"""Drives a training to its end, through losses of the service's session if the policy says so."""

from __future__ import annotations

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.training.outcome import Verdict, judge
from crucible_tinkex.training.tinkex.options import RecoveryPolicy
from crucible_tinkex.training.tinkex.running import TrainingRun
from crucible_tinkex.training.tinkex.service.live import LiveModel


async def drive(live: LiveModel, run: TrainingRun, policy: RecoveryPolicy, bridge: Bridge) -> None:
    """Attempts count anew when the training got further than ever before."""
    tries, reached, is_lost = 0, run.session_step, False
    while True:
        try:
            if is_lost:
                await live.reopen(policy, run)
                is_lost = False
            await _to_end(live, run)
            return
        except CrucibleError as error:
            tries = tries + 1 if run.session_step <= reached else 1
            reached = max(reached, run.session_step)
            if not policy.enabled or judge(error) is not Verdict.RETRY:
                raise
            if tries > policy.max_attempts:
                bridge.execute("recovery_failed", {"attempts": tries - 1})
                raise
            is_lost = True
            bridge.execute("recovery_started", {"attempt": tries}, error=str(error))
            await live.sleep(policy.delay_s(tries))


async def _to_end(live: LiveModel, run: TrainingRun) -> None:
    while True:
        if run.owes_evaluation:
            await run.evaluate(live.client)
        if run.owes_checkpoint:
            run.saved(await live.save(run.session_step, run.found.carried()))
        if run.is_done:
            return
        await run.to_milestone(live.client)
