"""The weights of a trained trial, saved for sampling: what `chat`, `export` and `models` use.

Two phases, as every checkpoint: announced, saved, committed. It is a convenience, because the same
weights are in the trial's last resumable checkpoint: a service that refuses it costs a warning,
never the trial. One that is out of reach is everybody's trouble, and raises.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from crucible_tinkex.client.interface import TrainingClient, TrainingService
from crucible_tinkex.errors import (
    CrucibleError,
    OperationFailedError,
    RequestRejectedError,
    StaleAttemptError,
)
from crucible_tinkex.names import TinkerPath, sampler_name
from crucible_tinkex.registry import CheckpointRecord, RegistryPort, Spent

log = logging.getLogger(__name__)


async def save_for_sampling(
    wanted: CheckpointRecord,
    spent: Spent,
    training: TrainingClient,
    service: TrainingService,
    registry: RegistryPort,
) -> None:
    """Save what `wanted` describes; its path is not known yet."""
    trial_id, attempt = wanted.trial_id, wanted.attempt
    name = sampler_name(trial_id, attempt, wanted.step)
    intended = str(TinkerPath(training.model_id, "sampler_weights", name))
    await registry.intend_checkpoint(trial_id, attempt, intended)
    try:
        path = await training.save_for_sampler(name)
    except (OperationFailedError, RequestRejectedError) as e:
        log.warning("trial %s has no checkpoint for sampling: %s", trial_id, e)
        return  # it stays announced: what the service may have saved all the same is not forgotten
    try:
        await registry.commit_checkpoint(replace(wanted, path=path), spent)
    except StaleAttemptError:  # whoever replaced this attempt may have looked too early
        with contextlib.suppress(CrucibleError):
            await service.delete_checkpoint(path)
        raise
