"""The beginning of an attempt: the weights from which it goes on, and what is freed for it.

From the newest checkpoint that can be loaded, which must give the loss that it gave when it was
saved; else from the parent's of a fork; else from the base.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from crucible_tinkex.client.interface import TrainingClient, TrainingService
from crucible_tinkex.client.model.witnessed import Asked, Witness, WitnessedTraining
from crucible_tinkex.config import LoraSection
from crucible_tinkex.errors import CrucibleError, TrialFailedError
from crucible_tinkex.protocol.wire import LoraConfig
from crucible_tinkex.registry import AttemptGrant, CheckpointRecord, RegistryPort
from crucible_tinkex.training.attempt.meter import Meter
from crucible_tinkex.training.outcome import speaks_of_checkpoint
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.recipe import Recipe

log = logging.getLogger(__name__)

SAME_NATS, SAME_SHARE = 0.02, 0.02
"""How far, or by which share, the loss of the same weights may differ from pass to pass."""


@dataclass(frozen=True)
class Begun:
    """A model on the service, and the steps behind its weights."""

    training: TrainingClient
    """What it is asked for is counted."""
    step: int = 0
    metrics: Mapping[str, float] | None = None
    """What the checkpoint carried; None where it was none of this trial's."""


def lora_config(lora: LoraSection, seed: int) -> LoraConfig:
    """What is sent to have an adapter made; `seed` counts where `lora` has none of its own."""
    return LoraConfig(
        rank=lora.rank,
        seed=seed if lora.seed is None else lora.seed,
        train_attn=lora.train_attn,
        train_mlp=lora.train_mlp,
        train_unembed=lora.train_unembed,
    )


class Beginning:
    """Of the attempts of one trial."""

    def __init__(
        self,
        plan: TrialPlan,
        recipe: Recipe,
        service: TrainingService,
        registry: RegistryPort,
        meter: Meter,
        teller: Witness | None = None,
    ) -> None:
        """`teller`: another witness of what the model is asked for."""
        self._plan = plan
        self._recipe = recipe
        self._service = service
        self._registry = registry
        self._meter = meter
        self._teller = teller

    async def begin(self, grant: AttemptGrant) -> Begun:
        """A checkpoint counts as lost only once something else could be opened: where nothing can,
        the service is at fault. Raises `TrialFailedError`."""
        lost: list[tuple[CheckpointRecord, CrucibleError]] = []
        begun = None
        for checkpoint in grant.checkpoints:
            try:
                training = await self._loaded(checkpoint.path)
            except CrucibleError as error:
                if not speaks_of_checkpoint(error):
                    raise
                lost.append((checkpoint, error))
            else:
                await self._verify(training, checkpoint)
                begun = Begun(training, checkpoint.step, checkpoint.metrics)
                break
        begun = begun or await self._fresh()
        for checkpoint, reason in lost:
            await self._registry.lose_checkpoint(
                self._plan.trial_id, grant.attempt, checkpoint.path, str(reason)
            )
        await self._delete(grant)
        return begun

    async def _loaded(self, path: str) -> TrainingClient:
        def load() -> Awaitable[TrainingClient]:
            return self._service.create_training_from_state(path)

        asked = Asked("load_weights", {"path": path, "optimizer": True})
        told = load() if self._teller is None else self._teller.around(asked, load)
        return self._witnessed(await told)

    def _witnessed(self, training: TrainingClient) -> TrainingClient:
        counted = WitnessedTraining(training, self._meter)
        return counted if self._teller is None else WitnessedTraining(counted, self._teller)

    async def _verify(self, training: TrainingClient, checkpoint: CheckpointRecord) -> None:
        """Raises `TrialFailedError` if the service gave other weights than were saved."""
        saved = checkpoint.fingerprint
        if saved is None or not self._plan.experiment.run.verify_resume:
            return
        found = await self._recipe.fingerprint(training)
        if not abs(found - saved) <= max(SAME_NATS, SAME_SHARE * abs(saved)):
            raise TrialFailedError(
                f"the service loaded other weights than were saved as {checkpoint.path}: the loss "
                f"of the same rows was {saved:.4f} and is {found:.4f}; resume on a service that "
                "keeps checkpoints, or set run.verify_resume = false to go on all the same"
            )

    async def _fresh(self) -> Begun:
        """From the base, or from the parent's checkpoint. A fork whose checkpoint cannot be loaded
        fails by name: from another one its numbers would be those of another trial."""
        origin = self._plan.origin
        if origin is None or origin.path is None:
            return Begun(await self._create())
        try:
            training = await self._loaded(origin.path)
        except CrucibleError as error:
            if not speaks_of_checkpoint(error):
                raise
            await self._create()  # where this fails, too, the service is at fault
            raise TrialFailedError(
                f"{origin.path}, step {origin.step} of trial {origin.parent}, from which it was "
                f"forked, cannot be loaded: {error}"
            ) from error
        return Begun(training, origin.step)

    async def _delete(self, grant: AttemptGrant) -> None:
        """Free what an attempt had saved, or nearly, when it ended. What cannot be deleted now is
        left to the next attempt."""
        for path in grant.orphans:
            try:
                await self._service.delete_checkpoint(path)
            except CrucibleError as e:
                log.warning("%s is of no use and could not be deleted: %s", path, e)
            else:
                await self._registry.lose_checkpoint(
                    self._plan.trial_id, grant.attempt, path, "never committed; deleted"
                )

    async def _create(self) -> TrainingClient:
        experiment = self._plan.experiment
        training = await self._service.create_training(
            base_model=experiment.model.base,
            lora=lora_config(experiment.lora, self._plan.seed),
            user_metadata={"trial_id": self._plan.trial_id},
        )
        return self._witnessed(training)
