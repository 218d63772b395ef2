"""Which configurations were asked for together, before anything of them was measured.

What is added to a sweep later may be added because of what is known, so it is judged more strictly
(`bench.Configuration.batch`). An amendment of the search begins a batch, one of the budget does
not; a clone is one by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from crucible_tinkex.registry import SweepState
from crucible_tinkex.sweep.results.leaderboard import Configuration

ASKED = "configurations"
"""In the sweep's metadata: how many its search asks for in all."""
ADDING = frozenset(
    f"search.{key}"
    for key in (
        *("strategy", "space", "configs", "enqueue", "where", "when"),
        *("trials", "seed", "confirm", "confirm_top"),
    )
)
"""Keys by which more configurations come to be judged."""


class Batch(NamedTuple):
    """As `bench` takes it."""

    batch: int
    peers: int


def batches(
    state: SweepState, found: Sequence[Configuration], *, aside: Collection[int] = ()
) -> list[Batch]:
    """One for each of `found`. `aside`: seeds that judge nothing."""
    judging = [[t.index for t in c.trials if t.seed not in aside] for c in found]
    is_fresh = bool(aside) and any(judging)
    begun = [a["trials"] for a in state.amendments if ADDING & {_section(k) for k in a["changed"]}]
    numbers = [
        _number(c, min(own or [t.index for t in c.trials]), begun)
        for c, own in zip(found, judging, strict=True)
    ]
    sizes = Counter(n for n, own in zip(numbers, judging, strict=True) if own or not is_fresh)
    searched = [n for n in sizes if not n % 2]
    if searched:
        last = max(searched)
        before = sum(sizes[n] for n in searched) - sizes[last]
        sizes[last] = max(sizes[last], _asked(state, confirming=is_fresh) - before)
    # Who judges nothing spends nothing: a batch of such alone would take from those after it.
    first = min(sizes, default=0)
    return [Batch(n, sizes[n]) if sizes[n] else Batch(first, sizes[first]) for n in numbers]


def _number(configuration: Configuration, first: int, begun: Sequence[int]) -> int:
    """Rises with time; odd for clones. `first`: the number of the trial that judges it first;
    `begun`: of the trials with which amendments begin."""
    if configuration.forked:
        return 2 * first + 1
    return 2 * max((trials for trials in begun if trials <= first), default=0)


def _section(key: str) -> str:
    """`search.space` of `search.space.lora.rank`."""
    return ".".join(key.split(".")[:2])


def _asked(state: SweepState, *, confirming: bool) -> int:
    """How many will be judged together, as far as was said; fewer may come."""
    search = state.meta["experiment"]["search"]
    asked: int = state.meta.get(ASKED, 0)
    return min(asked, search.get("confirm_top", asked)) if confirming else asked
