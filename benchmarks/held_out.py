"""How much the figures of `auto` flatter it: its numbers chosen on one task, judged on the other.

    nice -n 15 python -m benchmarks.held_out     # a quarter of an hour

Every choice of `KEEP`, `FIRST` and `MARGIN` is replayed without a prior; the one that needs the
fewest tokens on one task's surfaces is reported on the other's, beside the one in the code.
"""

from __future__ import annotations

import argparse
import itertools
from statistics import fmean

from benchmarks.recorded_grid import surfaces
from benchmarks.replay import Score, automatic, mean, replay
from crucible_tinkex.search import auto

NAMES = ("KEEP", "FIRST", "MARGIN")
CHOICES = tuple(itertools.product((4, 6, 8), (4, 6, 8), (0.05, 0.1, 0.2)))
Choice = tuple[int, int, float]


def scores(choice: Choice, orders: int) -> dict[str, Score]:
    """By task, the mean over its surfaces."""
    usual = {name: getattr(auto, name) for name in NAMES}
    try:
        for name, value in zip(NAMES, choice, strict=True):
            setattr(auto, name, value)
        found: dict[str, list[Score]] = {}
        for surface in surfaces():
            of_surface = replay(surface, automatic(surface, []), range(orders))
            found.setdefault(surface.task, []).append(mean(of_surface))
    finally:
        for name, value in usual.items():
            setattr(auto, name, value)
    return {task: mean(of_task) for task, of_task in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=30)
    orders = parser.parse_args().orders
    found = {choice: scores(choice, orders) for choice in CHOICES}
    usual = tuple(getattr(auto, name) for name in NAMES)
    tasks = list(found[CHOICES[0]])
    held_out = []
    for task in tasks:
        (other,) = (t for t in tasks if t != task)
        chosen = min(CHOICES, key=lambda c: found[c][other].tokens)
        held_out.append(found[chosen][task])
        print(
            f"{task}: {1 / found[chosen][task].tokens:.1f} x with {chosen}, chosen on {other}; "
            f"killed {found[chosen][task].killed:.1%}; in the code {usual}: "
            f"{1 / found[usual][task].tokens:.1f} x; all choices "
            f"{1 / max(s[task].tokens for s in found.values()):.1f} to "
            f"{1 / min(s[task].tokens for s in found.values()):.1f} x"
        )
    tokens = fmean(score.tokens for score in held_out)
    print(f"held out, mean of both: {1 / tokens:.1f} x")


if __name__ == "__main__":
    main()
