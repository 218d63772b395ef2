"""The recipe `sft`: next-token prediction on the rows' completions, and held-out metrics of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from crucible_tinkex.client.interface import TrainingClient
from crucible_tinkex.client.model.loss import cross_entropy
from crucible_tinkex.datasets import epoch_of
from crucible_tinkex.protocol.wire import AdamParams, Datum, ForwardBackwardOutput
from crucible_tinkex.registry import Spent
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.losses.objective import Objective, measured
from crucible_tinkex.training.losses.registry import learning_functions
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.datums import datum, total_weight
from crucible_tinkex.training.recipes.evaluation import cost, evaluate
from crucible_tinkex.training.recipes.recipe import Evaluation, Tell, Update
from crucible_tinkex.training.recipes.schedule import adam_params
from crucible_tinkex.user_calls import called
from crucible_tinkex.user_code import check_code

T = TypeVar("T")

FINGERPRINT_ROWS = 2


class SupervisedRecipe:
    """A `Recipe`. `train/nll` is the mean over the batch, in nats per token that is learnt."""

    def __init__(self, plan: TrialPlan, data: SweepData) -> None:
        """Raises `ConfigError` for a loss or scheme that cannot be loaded here, and
        `TrialFailedError` where its source is another than the sweep's."""
        self._plan = plan
        self._data = data
        for name, source in plan.code.items():
            check_code(name, source, what="function")
        self._objective = Objective.of(plan.experiment.train)
        self._users = ", ".join(learning_functions(plan.experiment.train))

    async def update(self, step: int, client: TrainingClient) -> Update:
        train = self._plan.experiment.train
        rows = self._data.train.batch(seed=self._plan.seed, step=step, batch_size=train.step_rows)
        batch = await self._strange(self._datums, rows)
        return Update(
            batch,
            self._adam(step),
            total_weight(batch),
            self._objective.loss.service,
            accumulate=train.accumulate,
            custom=self._objective.loss.custom,
        )

    async def _strange(self, function: Callable[..., T], *args: Any) -> T:
        """Its result; called where it cannot stop the others, if it calls what the user wrote."""
        if not self._users:
            return function(*args)
        return await called(function, *args, what=self._users)

    def _datums(self, rows: Sequence[int]) -> list[Datum]:
        return [self._objective.datum(self._data.train, i) for i in rows]

    async def measure(self, update: Update, output: ForwardBackwardOutput) -> Mapping[str, float]:
        return measured(update, output, is_plain=self._objective.is_plain)

    async def evaluate(self, client: TrainingClient, tell: Tell) -> Evaluation:
        if self._data.eval is None:
            return Evaluation()
        section = self._plan.experiment.evaluation
        return await evaluate(
            client, self._data.eval, section, tokenizer=self._data.tokenizer, tell=tell
        )

    def evaluation_cost(self) -> Spent:
        if self._data.eval is None:
            return Spent()
        return cost(self._data.eval, self._plan.experiment.evaluation)

    async def fingerprint(self, client: TrainingClient) -> float:
        """The loss of the first training rows, in nats per token that is learnt."""
        rows = range(min(FINGERPRINT_ROWS, len(self._data.train)))
        batch = [datum(self._data.train, i) for i in rows]
        return cross_entropy(await client.forward(batch), batch) / total_weight(batch)

    def epoch(self, step: int) -> int:
        batch_size = self._plan.experiment.train.step_rows
        return epoch_of(max(step, 1), rows=self._data.train.epoch_rows, batch_size=batch_size)

    def _adam(self, step: int) -> AdamParams:
        optimizer = self._plan.experiment.optimizer
        return adam_params(optimizer, step=step, total_steps=self._plan.total_steps)
