"""What a conclusion says: frozen, in the metric's own unit, stable as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from crucible_tinkex.bench.classical import Test
from crucible_tinkex.bench.selection.configurations import LeftOut
from crucible_tinkex.metrics import Direction
from crucible_tinkex.names import plain

Kind = Literal["winner", "tie", "open", "nothing"]


@dataclass(frozen=True)
class Terms:
    """On which terms a conclusion is drawn."""

    metric: str
    direction: Direction
    zone: float
    """Differences up to this do not matter, in the metric's unit."""
    alpha: float
    """The probability of declaring a false winner, over all looks."""
    looks: int = 1
    """Rungs that are concluded from; each has its share of `alpha`."""
    cost_unit: str = ""
    """Of the configurations' `cost`, for words."""
    share: float = 1.0
    """Of `alpha`, for this conclusion; the rest is for others, on other values."""

    @property
    def level(self) -> float:
        return self.alpha * self.share / self.looks

    @property
    def sign(self) -> float:
        """Between the metric's unit and "higher is better"."""
        return -1.0 if self.direction == "min" else 1.0


@dataclass(frozen=True)
class Estimate:
    """A value in the metric's unit with its interval; infinite bounds: nothing is known."""

    value: float
    low: float
    high: float
    seeds: int
    about: str
    unseen: bool = False
    """Whether these seeds took no part in the choice: then it is not the mean of a leaderboard."""


@dataclass(frozen=True)
class Rival:
    """One configuration against the leader, or against the control."""

    name: str
    mean: float
    seeds: int
    shared: int
    """Seeds that both have: what the comparison rests on."""
    behind_by: float
    """How much worse it is, whatever the direction; negative: better."""
    low: float
    high: float
    """Always-valid interval of `behind_by`, for all rivals together."""
    p_always: float
    """Always valid, adjusted for the number of rivals."""
    p: float
    """Of a single look, adjusted for the number of rivals: Holm; Dunnett against a control."""
    separable: bool
    """Whether the always-valid interval excludes that they are equal."""
    good_enough: bool
    """Whether it is proved not to be worse by more than the zone."""


@dataclass(frozen=True)
class Forecast:
    """What would probably settle it, if differences and spread are as seen so far."""

    seeds: int | None
    """More for the one that needs most; None if more than a thousand would not do."""
    runs: int | None
    """More in all: the leader and its open rivals."""
    cost: float | None
    """Of those, where costs are known."""


@dataclass(frozen=True)
class Conclusion:
    """What the evidence supports."""

    kind: Kind
    verdict: str
    terms: Terms
    leader: str | None
    take: str | None
    """The one to use: the winner, of a tie the cheapest good one; None while it is open."""
    not_separable: tuple[str, ...] = ()
    """The leader and all that may be as good, or are proved to be so within the zone."""
    value: Estimate | None = None
    """Of the leader on a new seed, corrected for its having been chosen."""
    mean: float | None = None
    """Of the leader over all seeds that count, as it is of each rival: not corrected."""
    rivals: tuple[Rival, ...] = ()
    against_control: tuple[Rival, ...] = ()
    omnibus: Test | None = None
    more: Forecast | None = None
    """What would settle it, while it is open."""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: keys are only ever added; what is not finite is null."""
        found: dict[str, Any] = plain(asdict(self))
        return found
