"""The seed's step `tinkex_training`: train the session on the dataset, and give what came of it.

It saves each checkpoint as progress, so that an experiment that was interrupted goes on from the
last one. Unlike the seed's loop it goes through the session (`TinkexSession.train`), always saves
the last step, and loses no rows when a step fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from crucible_tinkex.config import OptimizerSection
from crucible_tinkex.config.sweep.steps import TRAINING
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import TRAIN_WINDOW_STEPS
from crucible_tinkex.training.attempt.measurements import Measurements
from crucible_tinkex.training.harness.cells import awaited
from crucible_tinkex.training.harness.plan import Plan, StepContext
from crucible_tinkex.training.tinkex.options import TrainOptions, optimizer
from crucible_tinkex.training.tinkex.results import Checkpoint, StepRow, TrainResult


def register_training_step(plan: Plan, *, name: str = TRAINING, **options: Any) -> Plan:
    """Add the step; `options` are those of `train`, over which a condition's `params` win.

    Raises `ConfigError` for an option that there is not.
    """
    asked = dict(options)
    evaluation = options.pop("eval_dataset", None)
    TrainOptions.of(options)

    async def train(ctx: StepContext) -> Mapping[str, Any]:
        return await _train(ctx, {**options, "seed": ctx.seed, **ctx.params}, evaluation)

    return plan.add_step(name, train, options, graceful=True, training=asked)


def check_training(plan: Plan, dataset: Any) -> None:
    """Raises `ConfigError` for a training that no session could do: found when the harness begins,
    and not in the cell of the last condition, behind the trainings of all others."""
    for step in plan.steps:
        if step.training is None:
            continue
        if dataset is None:
            raise ConfigError(f"step {step.name!r} trains: give the harness a dataset")
        for condition, params in plan.conditions.items():
            try:
                _check({**step.training, **params})
            except ConfigError as error:
                raise ConfigError(f"condition {condition!r}: {error.message}") from error


def _check(options: dict[str, Any]) -> None:
    options.pop("eval_dataset", None)
    optimizer(OptimizerSection(), TrainOptions.of(options).adam_params)


async def _train(ctx: StepContext, options: dict[str, Any], evaluation: Any) -> Mapping[str, Any]:
    before: list[StepRow] = list(ctx.progress.get("rows", []))
    saved = [Checkpoint(**c) for c in ctx.progress.get("checkpoints", [])]
    start = saved[-1].step if saved else 0
    if ctx.session.status == "failed":
        await awaited(ctx.session.recover)
    if saved:
        await awaited(ctx.session.load_checkpoint, saved[-1])
    kept = [row for row in before if row["step"] <= start]
    rows = list(kept)
    evaluation = options.pop("eval_dataset", evaluation)
    told = options.pop("on_step_end", None)
    heard = options.pop("on_checkpoint", None)

    def on_step_end(row: StepRow) -> None:
        rows.append(row)
        if ctx.is_stopping():
            ctx.session.stop()
        if told is not None:
            told(row)

    def on_checkpoint(checkpoint: Checkpoint) -> None:
        saved.append(checkpoint)
        ctx.save({"rows": rows, "checkpoints": [c.to_json() for c in saved]})
        if heard is not None:
            heard(checkpoint)

    train = partial(
        ctx.session.train,
        eval_dataset=evaluation,
        start_step=start,
        on_step_end=on_step_end,
        on_checkpoint=on_checkpoint,
        **options,
    )
    result: TrainResult = await awaited(train, ctx.dataset)
    if ctx.is_stopping():
        raise asyncio.CancelledError  # it may have ended early; what it saved is its progress
    whole = [*kept, *result.results]
    return {
        "metrics": dict(ctx.session.adapter.calculate_metrics(whole)),
        "rows": whole,
        "checkpoints": [c.to_json() for c in saved],
        "final_metrics": _final(whole, result.final_metrics),
        "best_metric": result.best_metric,
        "trace_id": ctx.trace_id,
    }


def _final(rows: Sequence[StepRow], found: Mapping[str, float]) -> dict[str, float]:
    """The means over the last steps of the whole training, also of those before it was taken up."""
    steps = Measurements()
    for row in rows[-TRAIN_WINDOW_STEPS:]:
        measured = {n: v for n, v in row["metrics"].items() if n.startswith("train/")}
        # Rows that an earlier version saved have no weight: their tokens are near it.
        steps.stepped(measured, row["weight"] if "weight" in row else row["tokens"])
    return {**found, **steps.means()}
