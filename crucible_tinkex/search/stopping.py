"""When a trial that reached a rung goes on: pure functions of what was measured there.

Rules that compare trials: `Halving` is asynchronous successive halving (ASHA, Li et al. 2018, arXiv
1810.05934): a trial goes on as soon as it is among the best 1/eta of those that reached its rung.
`TopK` has one rung (or a few), where all wait and the best k go on. `Hyperband` (Li et al. 2018,
JMLR 18/185) runs halving in brackets whose first rungs differ, so that slow starters have a chance.
`Median` (Golovin et al. 2017) stops what is worse than the median of its rivals at the same step,
`Behind` what is far worse than the best of them.

Rules that look at one trial alone: `Plateau`, `Threshold`, `Divergence`. Several rules may hold at
once (`AllOf`). Losses are to minimise; what is not a number is infinity.

When no more trials can come to a rung, its best goes on even where its share is less than one, so a
search by comparison always ends with a trial that was trained to the end (`crowns`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, Protocol, TypeAlias

Verdict: TypeAlias = Literal["go", "wait", "stop"]


def _no_curve() -> Sequence[float]:
    return ()


@dataclass(frozen=True)
class Standing:
    """Where a trial stands at a rung."""

    step: int
    place: int
    """How many of those that were measured at the rung are better."""
    losses: Sequence[float]
    """Of all that were measured at the rung, it included, ascending."""
    final: bool
    """No further trial will reach this rung."""
    total_steps: int = 0
    """Of the trial."""
    curve: Callable[[], Sequence[float]] = field(default=_no_curve)
    """Its own losses up to this rung, in the order of steps."""

    @property
    def of(self) -> int:
        return len(self.losses)


class StoppingRule(Protocol):
    """Which rungs there are, and who passes them."""

    @property
    def brackets(self) -> int:
        """Trial number n belongs to bracket `n % brackets`, and is compared with its own only."""
        ...

    @property
    def crowns(self) -> bool:
        """Whether a configuration must be trained to the end with all its seeds: where none is, the
        best goes on."""
        ...

    @property
    def replaces(self) -> bool:
        """Whether a clone of a better trial takes the place of one that is stopped."""
        ...

    def rungs(self, total_steps: int, bracket: int = 0) -> tuple[int, ...]:
        """Ascending; the last is `total_steps`."""
        ...

    def judge(self, standing: Standing) -> Verdict:
        """Never kinder to a worse place. Only rules that compare trials may say wait."""
        ...


@dataclass(frozen=True)
class _Rule:
    brackets: int = field(default=1, init=False)
    crowns: bool = field(default=True, init=False)
    replaces: bool = field(default=False, init=False)


@dataclass(frozen=True)
class NoStopping(_Rule):
    """Every trial is trained to its end."""

    def rungs(self, total_steps: int, bracket: int = 0) -> tuple[int, ...]:
        return (total_steps,)

    def judge(self, standing: Standing) -> Verdict:
        return "go"


@dataclass(frozen=True)
class Halving(_Rule):
    """Rungs at `first_rung * eta**k`; see the module."""

    eta: int = 3
    first_rung: int | None = None
    """By default the total divided by eta twice."""

    def rungs(self, total_steps: int, bracket: int = 0) -> tuple[int, ...]:
        first = self.first_rung or max(1, total_steps // self.eta**2)
        return _powers(first, self.eta, total_steps)

    def judge(self, standing: Standing) -> Verdict:
        places = standing.of // self.eta
        if standing.place < (max(1, places) if standing.final else places):
            return "go"
        return "stop" if standing.final else "wait"


def _powers(first: int, eta: int, total_steps: int) -> tuple[int, ...]:
    found = []
    while first < total_steps:
        found.append(first)
        first *= eta
    return (*found, total_steps)


@dataclass(frozen=True)
class Hyperband(Halving):
    """Halving in brackets: the first rung of bracket b is `first_rung * eta**b`. Trials go round
    the brackets, equally many to each."""

    brackets: int = 3

    def rungs(self, total_steps: int, bracket: int = 0) -> tuple[int, ...]:
        first = self.first_rung or max(1, total_steps // self.eta ** (self.brackets - 1))
        return _powers(first * self.eta**bracket, self.eta, total_steps)


@dataclass(frozen=True)
class TopK(_Rule):
    """One rung, by default a ninth of the steps; all others end there when the last has come. Or
    several, at `steps`, with one of `keep` for each."""

    keep: int | tuple[int, ...] = 1
    first_rung: int | None = None
    steps: tuple[int, ...] = ()

    def _rungs(self, total_steps: int) -> tuple[int, ...]:
        return self.steps or (self.first_rung or max(1, total_steps // 9),)

    def rungs(self, total_steps: int, bracket: int = 0) -> tuple[int, ...]:
        return (*(s for s in self._rungs(total_steps) if s < total_steps), total_steps)

    def judge(self, standing: Standing) -> Verdict:
        if not standing.final:
            return "wait"
        return "go" if standing.place < self._keep(standing) else "stop"

    def _keep(self, standing: Standing) -> int:
        if isinstance(self.keep, int):
            return self.keep
        return self.keep[self._rungs(standing.total_steps).index(standing.step)]


@dataclass(frozen=True)
class _Regular(_Rule):
    """Looks at a trial every so many steps, by default ten times."""

    every: int | None = None
    first_rung: int | None = None

    def rungs(self, total_steps: int, bracket: int = 0) -> tuple[int, ...]:
        every = self.every or max(1, total_steps // 10)
        found = range(every, total_steps, every)
        return (*(r for r in found if r >= (self.first_rung or 0)), total_steps)


@dataclass(frozen=True)
class Median(_Regular):
    """Stops a trial whose best loss so far is above the median of its rivals' at this step, once
    there are `startup` of them."""

    startup: int = 5

    def judge(self, standing: Standing) -> Verdict:
        rivals = list(standing.losses)
        own = rivals.pop(standing.place)
        if len(rivals) < self.startup:
            return "go"
        best = min((*standing.curve(), own))
        return "stop" if best > median(rivals) or math.isinf(best) else "go"


@dataclass(frozen=True)
class Population(_Regular):
    """At each rung all wait for each other, then the worst fifth ends and is replaced
    (`sweep.deciding.proposing.population`). Among equals nobody is the worst."""

    replaces: bool = field(default=True, init=False)

    def judge(self, standing: Standing) -> Verdict:
        if not standing.final:
            return "wait"
        return "go" if standing.place < standing.of - fifth(standing.of) else "stop"


def fifth(members: int) -> int:
    """To the nearest whole number; at least one of two or more."""
    return max(round(members / 5), min(1, members // 2))


@dataclass(frozen=True)
class Plateau(_Regular):
    """Stops a trial whose last `patience` + 1 losses bettered its earlier best by less than
    `min_delta`."""

    patience: int = 3
    min_delta: float = 0.0

    def judge(self, standing: Standing) -> Verdict:
        curve = standing.curve()
        before, after = curve[: -self.patience - 1], curve[-self.patience - 1 :]
        if not before:
            return "go"
        return "stop" if min(after) > min(before) - self.min_delta else "go"


@dataclass(frozen=True)
class Threshold(_Regular):
    """Stops a trial whose loss is above a bound, or no number."""

    crowns: bool = field(default=False, init=False)
    bound: float = math.inf

    def judge(self, standing: Standing) -> Verdict:
        loss = standing.losses[standing.place]
        return "stop" if loss > self.bound or math.isinf(loss) else "go"


@dataclass(frozen=True)
class Behind(_Regular):
    """Stops a trial whose loss is worse than the best at this step by more than a share of it, or
    no number."""

    margin: float = 0.15

    def judge(self, standing: Standing) -> Verdict:
        loss, best = standing.losses[standing.place], standing.losses[0]
        is_behind = math.isinf(loss) or loss > best + self.margin * abs(best)
        return "stop" if is_behind else "go"


@dataclass(frozen=True)
class Divergence(_Regular):
    """Stops a trial whose loss is no number, or worse than its own best by more than `factor - 1`
    times that."""

    crowns: bool = field(default=False, init=False)
    factor: float = 2.0

    def judge(self, standing: Standing) -> Verdict:
        loss = standing.losses[standing.place]
        best = min((*standing.curve(), loss))
        diverged = math.isinf(loss) or loss > best + (self.factor - 1) * abs(best)
        return "stop" if diverged else "go"


class AllOf:
    """Several rules: a trial goes on where none of them stops it or has it wait. Each judges at its
    own rungs."""

    def __init__(self, rules: Sequence[StoppingRule]) -> None:
        self._rules = rules
        self.brackets = max(rule.brackets for rule in rules)
        self.crowns = any(rule.crowns for rule in rules)
        self.replaces = False

    def rungs(self, total_steps: int, bracket: int = 0) -> tuple[int, ...]:
        return tuple(sorted({s for r in self._rules for s in r.rungs(total_steps, bracket)}))

    def judge(self, standing: Standing) -> Verdict:
        verdicts = {r.judge(standing) for r in self._rules if _has_rung(r, standing)}
        if "stop" in verdicts:
            return "stop"
        return "wait" if "wait" in verdicts else "go"


def _has_rung(rule: StoppingRule, standing: Standing) -> bool:
    brackets = range(rule.brackets)
    return any(standing.step in rule.rungs(standing.total_steps, b) for b in brackets)
