"""Steps that a caller takes one by one: a gradient is added up on the service, then applied."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from crucible_tinkex.config import OptimizerSection
from crucible_tinkex.training.attempt.stepping import send
from crucible_tinkex.training.losses.gradient_hooks import grad_norm
from crucible_tinkex.training.losses.objective import mean_loss
from crucible_tinkex.training.recipes.recipe import Update
from crucible_tinkex.training.recipes.schedule import adam_params
from crucible_tinkex.training.tinkex.service.live import LiveModel


class Gradient:
    """What was added since the last step; knows the losses of it."""

    def __init__(self, live: LiveModel) -> None:
        self._live = live
        self._losses: list[tuple[float, float]] = []

    def forget(self) -> None:
        """The service's session is another one now."""
        self._losses.clear()

    async def add(self, update: Update) -> dict[str, Any]:
        """`loss` is the mean per weight, in nats."""
        output = await send(self._live.client, update, update.batch)
        mean = mean_loss(update, output)
        self._losses.append((mean * update.weight, update.weight))
        return {
            "loss": mean,
            "loss_sum": mean * update.weight,
            "metrics": dict(output.metrics),
            "timestamp": datetime.now(UTC).isoformat(),
        }

    async def apply(self, settings: OptimizerSection) -> dict[str, Any]:
        params = adam_params(settings, step=settings.warmup_steps + 1, total_steps=1)
        answer = await self._live.client.optim_step(params)
        self._live.step += 1
        row = {
            "step": self._live.step,
            "grad_norm": grad_norm(answer),
            "metrics": dict(answer.metrics or {}),
            "timestamp": datetime.now(UTC).isoformat(),
        }
        loss = sum(part for part, _ in self._losses)
        weight = sum(part for _, part in self._losses)
        self._losses.clear()
        self._live.stepped(row, params, loss / weight if weight else None)
        return row
