"""What two readings say about a setting: pure.

A reading is a list of numbers that a model gave: logprobs of the learnt tokens, in nats, in the
second step's forward pass and after it. Their distance is a root mean square. Models with equal
settings are read several times, and the largest distance between these is the noise. A setting is
applied where two values of it are further apart than `FACTOR` times the noise. It is not applied
where they are not, though a share of what two steps moved would have been seen that is smaller
than any effect measured on a server that applies it (base `nano`: the second moment's decay .07 of
it, the output layer .005, everything else more); where the noise is larger, it cannot be told.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from crucible_tinkex.errors import ServiceError
from crucible_tinkex.training.attest.contrasts import MOVES, RANK, Contrast
from crucible_tinkex.training.attest.settings import Settings

Verdict: TypeAlias = Literal["applied", "not applied", "cannot be told"]
APPLIED: Verdict = "applied"
NOT_APPLIED: Verdict = "not applied"
CANNOT_BE_TOLD: Verdict = "cannot be told"

FACTOR = 4.0
FLOOR = 1e-6
"""Nats. What the last digit of a 32-bit logprob is worth."""
RESOLUTION = 0.02
"""The share of what two steps moved that must be seen before its absence says anything."""
FAINT: Mapping[str, float] = {"lora.train_unembed": 1e-3}
"""The same for settings whose effect is smaller."""


@dataclass(frozen=True)
class Reading:
    """What a short-lived model gave."""

    values: tuple[float, ...]
    """Logprobs during and after the steps."""
    moved: float
    """How far the steps moved the logprobs of the rows that were read before them."""
    rank: int | None = None
    """What the service says the model's rank is."""


Read: TypeAlias = Reading | ServiceError
"""A reading, or how the service refused the settings."""


@dataclass(frozen=True)
class Finding:
    """What is known of one setting."""

    key: str
    asked: tuple[Any, ...]
    field: str
    """The setting of the two models, where it is not the key's own."""
    probed: tuple[Any, Any]
    verdict: Verdict
    why: str
    varies: bool

    @property
    def refused(self) -> bool:
        """Whether a sweep that varies it would compare equal trials."""
        return self.varies and self.verdict == NOT_APPLIED


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Root mean square difference in nats; NaN where it cannot be computed."""
    if not a or len(a) != len(b):
        return math.nan
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


def noise_of(readings: Sequence[Reading]) -> float:
    """The largest distance between readings of equal settings."""
    pairs = itertools.combinations(readings, 2)
    return max((distance(x.values, y.values) for x, y in pairs), default=0.0)


def judge(contrast: Contrast, readings: Mapping[Settings, Read], noise: float) -> Finding:
    """The verdict on one setting, with its reason in words."""
    verdict, why = _judged(contrast, readings[contrast.a], readings[contrast.b], noise)
    asked, field, probed = contrast.asked, contrast.field, contrast.probed
    return Finding(contrast.key, asked, field, probed, verdict, why, varies=contrast.varies)


def _judged(contrast: Contrast, a: Read, b: Read, noise: float) -> tuple[Verdict, str]:
    for value, read in zip(contrast.probed, (a, b), strict=True):
        if isinstance(read, ServiceError):
            verdict = NOT_APPLIED if value in contrast.asked else CANNOT_BE_TOLD
            return verdict, f"the service refuses {contrast.field} = {value}: {read.message}"
    assert isinstance(a, Reading) and isinstance(b, Reading)
    if contrast.key == RANK and (told := _other_rank(contrast, a, b)):
        return NOT_APPLIED, told
    seen = max(a.moved, b.moved) if contrast.key == MOVES else distance(a.values, b.values)
    share = FAINT.get(contrast.key, RESOLUTION)
    return _seen(seen, moved=max(a.moved, b.moved), noise=noise, share=share)


def _other_rank(contrast: Contrast, a: Reading, b: Reading) -> str | None:
    for read, asked in ((a, contrast.a.rank), (b, contrast.b.rank)):
        if read.rank is not None and read.rank != asked:
            return f"the service made an adapter of rank {read.rank} where {asked} was asked for"
    return None


def _seen(seen: float, *, moved: float, noise: float, share: float) -> tuple[Verdict, str]:
    least = max(FLOOR, FACTOR * noise)
    if math.isnan(seen) or math.isnan(moved) or math.isnan(noise):
        return CANNOT_BE_TOLD, "what the service answered is not a number"
    apart = f"{seen:.2g} nats apart, with a noise of {noise:.2g}"
    if seen > least:
        return APPLIED, apart
    if least <= share * moved:
        return NOT_APPLIED, apart
    if moved <= least:
        return CANNOT_BE_TOLD, f"two steps moved the model by {moved:.2g} nats only; {apart}"
    return CANNOT_BE_TOLD, f"the noise hides it: {apart}"
