"""What a session asks before it sends an operation: is there still something to spend?

The registry adds up what all sessions of a sweep send, each before it is sent, so the answer does
not depend on how often the driver looks: the operation that reaches a cap is the last one. That
holds for whole evaluations, too: each announces what it will use, and one that would begin while
those under way may use up the rest waits until they have. How much is written is not known before:
the most there may be, and after an evaluation of the same session, the most it has been.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from crucible_tinkex.client.http.watch import ACTIVE, QueueState
from crucible_tinkex.config import BudgetSection
from crucible_tinkex.registry import RegistryPort, Spent, Used
from crucible_tinkex.training.attempt.meter import Meter, cost_of
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.recipe import Update

POLL_S = 0.5
WAITS = QueueState("paused_budget", "evaluations under way may use up the budget")


@dataclass(frozen=True)
class Allowance:
    """The caps of a sweep and of one trial on what sessions send. `per_million`: dollars for tokens
    of training, prefill and samples; None: not known."""

    budget: BudgetSection
    per_million: tuple[float, float, float] | None = None

    def refuses(self, operation: Spent, used: Used) -> bool:
        """Whether it may not be sent. `used`: by everybody, with this operation."""
        own = self._reached(vars(self.budget.trial), operation, used.trial - operation)
        return own or self._reached(vars(self.budget), operation, used.sweep - operation)

    def postpones(self, used: Used) -> bool:
        """Whether evaluations that are under way may use up what is left. `used`: by everybody."""
        return self._reached(vars(self.budget), Spent(), used.sweep + used.announced)

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
        self,
        plan: TrialPlan,
        registry: RegistryPort,
        meter: Meter,
        drain: asyncio.Event,
        tell: Callable[[QueueState], None],
    ) -> None:
        """`tell` hears that an evaluation waits, and that it does no longer."""
        self._trial_id = plan.trial_id
        self._allowance = Allowance(plan.experiment.budget, plan.per_million)
        self._registry = registry
        self._meter = meter
        self._drain = drain
        self._tell = tell
        self._sampled_before = 0
        self._written: int | None = None
        """The most tokens that an evaluation wrote."""

    async def may_step(self, attempt: int, update: Update) -> bool:
        if not self._allowance.budget.meters:
            return True
        cost = cost_of(update.batch, custom=update.custom is not None)
        spent = self._meter.spent() + cost
        used = await self._registry.record_spend(self._trial_id, attempt, spent)
        if self._allowance.refuses(cost, used):
            await self._announce(attempt, None)  # it is not sent: the journal takes it back
            self._drain.set()
        return not self._drain.is_set()

    async def may_evaluate(self, attempt: int, most: Spent) -> bool:
        """`most`: what the evaluation may use. Waits for those of others, while they may leave
        nothing."""
        if not self._allowance.budget.meters:
            return True
        self._sampled_before = self._meter.sampled
        if self._written is not None:
            most = replace(most, sample_tokens=min(most.sample_tokens, self._written))
        waits = False
        while not self._drain.is_set():
            used = await self._announce(attempt, most)
            if self._allowance.refuses(Spent(), used):
                self._drain.set()
            elif not self._allowance.postpones(used):
                break
            await self._announce(attempt, None)
            if not waits and not self._drain.is_set():
                waits = True
                self._tell(WAITS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drain.wait(), POLL_S)
        if waits:
            self._tell(ACTIVE)
        return not self._drain.is_set()

    async def _announce(self, attempt: int, most: Spent | None) -> Used:
        return await self._registry.record_spend(self._trial_id, attempt, self._meter.spent(), most)

    def evaluated(self) -> None:
        """An evaluation is over; what it wrote is what the next one is taken to write."""
        written = self._meter.sampled - self._sampled_before
        self._written = max(written, self._written or 0)
