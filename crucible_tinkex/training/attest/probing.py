"""Trains the short-lived models of an attestation: one session each, a few at a time.

Every session is closed whatever happens, so no model stays behind. A setting that the service
refuses is a finding; any other error ends the attestation, and nothing more is sent.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from crucible_tinkex.client.interface import TrainingClient, TrainingService
from crucible_tinkex.client.model.loss import target_logprobs
from crucible_tinkex.client.model.witnessed import WitnessedTraining
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.errors import OperationFailedError, RequestRejectedError, ServiceError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput
from crucible_tinkex.registry import Spent
from crucible_tinkex.training.attempt.meter import Meter
from crucible_tinkex.training.attest.contrasts import Contrast, base_of, settings_of
from crucible_tinkex.training.attest.judging import (
    Finding,
    Read,
    Reading,
    distance,
    judge,
    noise_of,
)
from crucible_tinkex.training.attest.rows import off_policy, weighed
from crucible_tinkex.training.attest.settings import Settings
from crucible_tinkex.training.recipes.datums import datum
from crucible_tinkex.training.recipes.evaluation import bounded

FIRST_ROWS, SECOND_ROWS = 1, 4
REPEATS = 3
"""Models with equal settings that measure the noise."""
AT_ONCE = 4

Connect = Callable[[], TrainingService]


@dataclass(frozen=True)
class Attestation:
    """What was found, and what it cost."""

    findings: tuple[Finding, ...] = ()
    noise: float = 0.0
    """Nats between models with equal settings."""
    models: int = 0
    spent: Spent = field(default_factory=Spent)

    @property
    def step_s(self) -> tuple[float, float]:
        """From the least to the most that one small step took: a model's two were followed by two
        passes, and came after it was made."""
        turns = 1 + math.ceil((self.models - 1) / AT_ONCE)
        return self.spent.seconds / turns / 5, self.spent.seconds / turns / 2

    @property
    def record(self) -> dict[str, Any]:
        """JSON values for a journal."""
        findings = {f.key: {"verdict": f.verdict, "why": f.why} for f in self.findings}
        return {
            "findings": findings,
            "noise": self.noise,
            "models": self.models,
            "spent": asdict(self.spent),
        }


def cost(contrasts: Sequence[Contrast], data: TokenisedDataset) -> Attestation:
    """What `attest` will use, without findings; its seconds are not known."""
    if not contrasts:
        return Attestation()
    batches = _batches(data)
    tokens = sum(d.model_input.length for batch in batches for d in batch)
    wanted = [*[base_of(contrasts)] * REPEATS, *_others(contrasts)]
    # Each batch is scored once after the steps; where the sampler's logprobs are made up from the
    # model's, before them, too.
    train = sum(settings.accumulate for settings in wanted) * tokens
    prefill = sum(1 + settings.is_policy for settings in wanted) * tokens
    spent = Spent(train, prefill, steps=len(wanted) * len(batches))
    return Attestation(models=len(wanted), spent=spent)


def _others(contrasts: Sequence[Contrast]) -> list[Settings]:
    base = base_of(contrasts)
    return [s for s in settings_of(contrasts) if s != base]


async def attest(
    connect: Connect, contrasts: Sequence[Contrast], data: TokenisedDataset, *, base_model: str
) -> Attestation:
    """Raises `ServiceError` where the service fails, or refuses what no setting is to blame for."""
    if not contrasts:
        return Attestation()
    meter = Meter(time.monotonic)
    prober = _Prober(connect, _batches(data), base_model, meter)
    base = base_of(contrasts)
    first = await prober.read(base)  # one model says at once whether there is anything to find
    wanted = [*[base] * (REPEATS - 1), *_others(contrasts)]
    reads = await bounded([partial(prober.tried, s) for s in wanted], at_once=AT_ONCE)
    repeats = [first]
    for read in reads[: REPEATS - 1]:
        if isinstance(read, ServiceError):
            raise read
        repeats.append(read)
    readings: Mapping[Settings, Read] = {base: first, **dict(zip(wanted, reads, strict=True))}
    noise = noise_of(repeats)
    findings = tuple(judge(contrast, readings, noise) for contrast in contrasts)
    return Attestation(findings, noise, 1 + len(wanted), meter.spent())


def _batches(data: TokenisedDataset) -> tuple[list[Datum], list[Datum]]:
    """Unequal in size, so that the norms of their gradients differ."""
    rows = [datum(data, row % len(data)) for row in range(FIRST_ROWS + SECOND_ROWS)]
    return rows[:FIRST_ROWS], rows[FIRST_ROWS:]


class _Prober:
    def __init__(
        self, connect: Connect, batches: Sequence[Sequence[Datum]], base_model: str, meter: Meter
    ) -> None:
        self._connect = connect
        self._batches = batches
        self._base_model = base_model
        self._meter = meter

    async def tried(self, settings: Settings) -> Read:
        try:
            return await self.read(settings)
        except (RequestRejectedError, OperationFailedError) as error:
            if isinstance(error, OperationFailedError) and error.category != "user":
                raise
            return error

    async def read(self, settings: Settings) -> Reading:
        service = self._connect()
        try:
            training = await service.create_training(
                base_model=self._base_model,
                lora=settings.lora,
                user_metadata={"purpose": "attest"},
            )
            return await self._read(WitnessedTraining(training, self._meter), settings)
        finally:
            await service.close()

    async def _read(self, model: TrainingClient, settings: Settings) -> Reading:
        first, second = self._batches
        if settings.is_policy:
            before, _ = scored = await asyncio.gather(model.forward(first), model.forward(second))
            pairs = zip(self._batches, scored, strict=True)
            await self._step(model, [off_policy(b, o, settings) for b, o in pairs], settings)
            during: tuple[float, ...] = ()
        else:
            batches = [weighed(batch, settings.weights) for batch in self._batches]
            before, last = await self._step(model, batches, settings)
            during = _numbers(last, second)
        after = await asyncio.gather(model.forward(first), model.forward(second))
        learnt = _numbers(after[0], first)
        return Reading(
            values=(*during, *learnt, *_numbers(after[1], second)),
            moved=distance(_numbers(before, first), learnt),
            rank=await _rank(model),
        )

    async def _step(
        self, model: TrainingClient, batches: Sequence[Sequence[Datum]], settings: Settings
    ) -> tuple[ForwardBackwardOutput, ForwardBackwardOutput]:
        """Both steps, sent at once; what each batch's own pass answered."""
        sent: list[Awaitable[Any]] = []
        config = dict(settings.loss_config) or None
        for step, batch in enumerate(batches):
            for rows in [*[batches[1 - step]] * (settings.accumulate - 1), batch]:
                sent += [model.forward_backward(rows, loss_fn=settings.loss, loss_fn_config=config)]
            sent += [model.optim_step(settings.adam(step))]
        answers = await asyncio.gather(*sent)
        return answers[settings.accumulate - 1], answers[-2]


def _numbers(output: ForwardBackwardOutput, batch: Sequence[Datum]) -> tuple[float, ...]:
    """The logprobs of the tokens that are learnt."""
    found: list[float] = []
    for logprobs, given in zip(target_logprobs(output, batch), batch, strict=True):
        weights = given.loss_fn_inputs["weights"].data
        found += [float(p) for p, w in zip(logprobs, weights, strict=True) if w]
    return tuple(p if math.isfinite(p) else math.nan for p in found)


async def _rank(model: TrainingClient) -> int | None:
    """What the service says; None where it says nothing."""
    try:
        return (await model.info()).lora_rank
    except RequestRejectedError:
        return None
