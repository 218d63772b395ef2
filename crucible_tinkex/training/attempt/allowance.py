"""What a session asks before it sends an operation: is there still something to spend?

The registry adds up what all sessions of a sweep send, each before it is sent, so the answer does
not depend on how often the driver looks: the operation that reaches a cap is the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from crucible_tinkex.config import BudgetSection
from crucible_tinkex.registry import RegistryPort, Spent, Used
from crucible_tinkex.training.attempt.meter import Meter, cost_of
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.recipe import Update


@dataclass(frozen=True)
class Allowance:
    """The caps of a sweep and of one trial on what sessions send. `per_million`: dollars for tokens
    of training, prefill and samples; None: not known."""

    budget: BudgetSection
    per_million: tuple[float, float, float] | None = None

    def refuses(self, operation: Spent, used: Used) -> bool:
        """Whether it may not be sent. `used`: by everybody, with this operation."""
        caps = vars(self.budget), vars(self.budget.trial)
        pairs = zip(caps, used, strict=True)
        return any(self._reached(cap, operation, total - operation) for cap, total in pairs)

    def _reached(self, caps: Mapping[str, float | None], operation: Spent, before: Spent) -> bool:
        """A cap on steps stops steps only: what they taught may still be measured."""
        used: dict[str, float] = {"tokens": before.tokens}
        if operation.steps:
            used["steps"] = before.steps
        if self.per_million is not None:
            kinds = (before.train_tokens, before.prefill_tokens, before.sample_tokens)
            pairs = zip(self.per_million, kinds, strict=True)
            used["dollars"] = sum(price * count for price, count in pairs) / 1e6
        return any((cap := caps[key]) is not None and value >= cap for key, value in used.items())


class Purse:
    """Of one session: counts each operation before it is sent, and sets `drain` where a budget is
    used up. Without a budget that needs it, it asks nobody."""

    def __init__(
        self, plan: TrialPlan, registry: RegistryPort, meter: Meter, drain: asyncio.Event
    ) -> None:
        self._trial_id = plan.trial_id
        self._allowance = Allowance(plan.experiment.budget, plan.per_million)
        self._registry = registry
        self._meter = meter
        self._drain = drain

    async def may_step(self, attempt: int, update: Update) -> bool:
        cost = cost_of(update.batch, custom=update.custom is not None)
        return await self.may_send(attempt, cost)

    async def may_send(self, attempt: int, operation: Spent | None = None) -> bool:
        """`operation`: None where what it will use is not known."""
        if not self._allowance.budget.meters:
            return True
        operation = operation or Spent()
        spent = self._meter.spent() + operation
        used = await self._registry.record_spend(self._trial_id, attempt, spent)
        if self._allowance.refuses(operation, used):
            self._drain.set()
        return not self._drain.is_set()
