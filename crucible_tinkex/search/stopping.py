"""When a trial that reached a rung goes on: pure functions of what was measured there.

`Halving` is asynchronous successive halving (Li et al. 2018, arXiv 1810.05934): a trial goes on as
soon as it is among the best 1/eta of those that reached its rung. When no more trials can come to
a rung, its best goes on even where 1/eta of them is less than one, so a search always ends with a
trial that was trained to the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Verdict: TypeAlias = Literal["go", "wait", "stop"]


class StoppingRule(Protocol):
    """Which rungs there are, and who passes them."""

    def rungs(self, total_steps: int) -> tuple[int, ...]:
        """Ascending; the last is `total_steps`."""
        ...

    def judge(self, place: int, of: int, *, final: bool) -> Verdict:
        """`place`: how many of the `of` trials that were measured at the rung are better; never
        kinder to a worse place. `final`: no further trial will reach this rung."""
        ...


class NoStopping:
    """Every trial is trained to its end."""

    def rungs(self, total_steps: int) -> tuple[int, ...]:
        return (total_steps,)

    def judge(self, place: int, of: int, *, final: bool) -> Verdict:
        return "go"


@dataclass(frozen=True)
class Halving:
    """Rungs at `first_rung * eta**k`; see the module."""

    eta: int = 3
    first_rung: int | None = None
    """By default the total divided by eta twice."""

    def rungs(self, total_steps: int) -> tuple[int, ...]:
        rung = self.first_rung or max(1, total_steps // self.eta**2)
        found = []
        while rung < total_steps:
            found.append(rung)
            rung *= self.eta
        return (*found, total_steps)

    def judge(self, place: int, of: int, *, final: bool) -> Verdict:
        places = of // self.eta
        if place < (max(1, places) if final else places):
            return "go"
        return "stop" if final else "wait"
