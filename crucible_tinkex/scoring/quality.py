"""Whether a metric reaches its target, judged on the interval of what was measured.

Met: all of the interval is at or beyond the target. Missed: none of it is. Otherwise, or with fewer
rows than asked for, it is not settled. What was not measured is neither met nor missed. The
original counted it as 0, asked `>=` of every metric, and judged points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from crucible_tinkex.metrics import Direction

Status: TypeAlias = Literal["met", "missed", "not settled", "unmeasured"]
MET: Final = "met"
MISSED: Final = "missed"
NOT_SETTLED: Final = "not settled"
UNMEASURED: Final = "unmeasured"


@dataclass(frozen=True)
class Assessment:
    """One target and what was found."""

    metric: str
    target: float
    direction: Direction
    status: Status
    value: float | None = None
    low: float | None = None
    """Of the interval; None where it is not known."""
    high: float | None = None
    n: int | None = None
    """Rows behind it."""
    min_n: int = 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON: keys are only ever added."""
        return asdict(self)

    def __str__(self) -> str:
        sign = "at least" if self.direction == "max" else "at most"
        wanted = f"{self.metric}: {sign} {self.target:g}"
        if self.value is None:
            return f"{wanted}: {self.status}"
        interval = "" if self.low is None else f", {self.low:.4g} to {self.high:.4g}"
        rows = "" if self.n is None else f", {self.n} rows"
        few = f" ({self.min_n} are asked for)" if self.n is not None and self.n < self.min_n else ""
        return f"{wanted}: {self.status} ({self.value:.4g}{interval}{rows}{few})"


def assess(
    metric: str,
    target: float,
    direction: Direction,
    *,
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    min_n: int = 1,
) -> Assessment:
    """Without `low` and `high` the value is taken as exact; an infinite one is not known."""
    if value is None or math.isnan(value):
        return Assessment(metric, target, direction, UNMEASURED, min_n=min_n)
    lowest = value if low is None else low
    highest = value if high is None else high
    worst, best = (lowest, highest) if direction == "max" else (-highest, -lowest)
    wanted = target if direction == "max" else -target
    status: Status = NOT_SETTLED
    enough = min_n <= 1 if n is None else n >= min_n
    if enough:
        status = MET if worst >= wanted else MISSED if best < wanted else NOT_SETTLED
    known = math.isfinite(lowest) and math.isfinite(highest)
    low, high = (lowest, highest) if known else (None, None)
    return Assessment(metric, target, direction, status, value, low, high, n, min_n)


def overall(found: Sequence[Assessment]) -> Status | None:
    """The worst of all: missed, unmeasured, not settled, met; None without targets."""
    statuses = {a.status for a in found}
    order: tuple[Status, ...] = (MISSED, UNMEASURED, NOT_SETTLED, MET)
    return next((status for status in order if status in statuses), None)
