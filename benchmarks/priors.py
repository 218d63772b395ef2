"""How good the first guesses are: every base of the published grids, from all the others.

Regret: the loss of a guess against the best cell of that base's grid. Beside it, the published
formula (tinker-cookbook: LR = 5e-5 x 10 x (2000 / hidden size) ^ P, P .781 for Llama, .0775 for
Qwen, others not covered) and the rule "3e-4, then 1e-3, at the largest rank". A rate that was not
tested stands for the nearest tested one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from crucible_tinkex.search.learned.bases import facts
from crucible_tinkex.search.learned.priors import Question, suggest
from crucible_tinkex.search.learned.records import RANK, RATE, Record, grid_records, published

POWERS = {"llama": 0.781, "qwen": 0.0775}
HIDDEN_SIZES = {
    "Llama-3.2-1B": 2048,
    "Llama-3.2-3B": 3072,
    "Llama-3.1-8B": 4096,
    "Llama-3.1-70B": 8192,
    "Llama-3.3-70B": 8192,
    "Qwen3-4B": 2560,
    "Qwen3-8B": 4096,
    "Qwen3-32B": 5120,
    "Qwen3-30B-A3B": 2048,
    "Qwen3-235B-A22B": 4096,
    "Qwen3-VL-30B-A3B": 2048,
    "Qwen3-VL-235B-A22B": 4096,
    "Qwen3.5-4B": 2560,
}
"""From the models' own config.json; the longest name that fits counts."""

Guess = tuple[float, int]
"""Learning rate and rank."""


@dataclass(frozen=True)
class Grid:
    """What was recorded of one base: the mean test loss of every cell."""

    base: str
    cells: dict[Guess, float]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({rank for _, rank in self.cells}))

    def regret(self, guesses: Sequence[Guess]) -> float:
        """Of the best of the guesses, in percent."""
        best = min(self.cells.values())
        return 100 * (min(self.cells[self._nearest(g)] for g in guesses) / best - 1)

    def _nearest(self, guess: Guess) -> Guess:
        """Of the guess's rank, the cell whose rate is nearest."""
        of_rank = [cell for cell in self.cells if cell[1] == guess[1]]
        return min(of_rank, key=lambda cell: abs(math.log(cell[0] / guess[0])))


def grids(records: Sequence[Record]) -> list[Grid]:
    found: dict[str, dict[Guess, list[float]]] = {}
    for r in records:
        found.setdefault(r.base, {}).setdefault((r.learning_rate, r.rank), []).append(r.metric)
    return [Grid(b, {c: fmean(v) for c, v in cells.items()}) for b, cells in found.items()]


def learned(grid: Grid, records: Sequence[Record]) -> list[Guess]:
    """From every record but this base's own."""
    others = [r for r in records if r.base != grid.base]
    prior = suggest(others, Question(grid.base, 128, 780, ranks=grid.ranks), count=2)
    return [(float(s.values[RATE]), int(s.values[RANK])) for s in prior.suggestions]


def formula(grid: Grid, _: Sequence[Record]) -> list[Guess]:
    power = POWERS.get(facts(grid.base).family or "")
    fitting = [name for name in HIDDEN_SIZES if name in grid.base]
    if power is None or not fitting:
        return []
    hidden = HIDDEN_SIZES[max(fitting, key=len)]
    return [(5e-5 * 10 * (2000 / hidden) ** power, max(grid.ranks))]


def rule(grid: Grid, _: Sequence[Record]) -> list[Guess]:
    return [(3e-4, max(grid.ranks)), (1e-3, max(grid.ranks))]


METHODS: dict[str, Callable[[Grid, Sequence[Record]], list[Guess]]] = {
    "learned from the other bases": learned,
    "3e-4, then 1e-3": rule,
    "published formula": formula,
}


def table(records: Sequence[Record], judged: Sequence[Grid]) -> str:
    lines = [
        f"First guesses, leave one base out ({len(judged)} bases): regret in % of the test loss",
        "",
        "| guesses | bases | first: mean | first: most | first two: mean | first two: most |",
        "|---|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        guesses = [(grid, method(grid, records)) for grid in judged]
        answered = [(grid, found) for grid, found in guesses if found]
        first = [grid.regret(found[:1]) for grid, found in answered]
        both = [grid.regret(found) for grid, found in answered]
        two = (f"{fmean(both):.4f}", f"{max(both):.3f}") if name != "published formula" else "--"
        cells = [name, len(answered), f"{fmean(first):.3f}", f"{max(first):.3f}", *two]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def run(extra: Path | None = None) -> str:
    """`extra`: another table of the same columns; then its bases are judged, none of them in what
    the guesses were learned from."""
    records = published()
    if extra is None:
        return table(records, grids(records))
    with extra.open(encoding="utf-8") as file:
        other = grid_records(file, sweep="")
    return table(records, grids(other))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", type=Path, help="another table of the same columns")
    print(run(parser.parse_args().judge))
