"""Searches replayed over recorded curves: tokens until a setting is found, and winners killed.

Every search but the grid is a sweep as a user declares it, by the product's own strategies and
stopping rules, decided by the sweep's own policy (`benchmarks.recorded_sweep`). Found: a point
within 0.5 % of the best final loss was trained to its end. A search that has ended without it goes
on with what it dropped, the best first, so every search has a number. Killed: the point that ends
best was started and stopped when the search ended. `auto` is replayed without its confirmation, for
which nothing was recorded.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.recorded_grid import HELD_OUT, RECORDED, Ledger, Surface, surfaces
from benchmarks.recorded_sweep import Plans, declared, replay_sweep
from crucible_tinkex.config import Experiment
from crucible_tinkex.search.auto_settings import chosen
from crucible_tinkex.search.learned.records import RANK, RATE, Record

Search = Callable[[Ledger, int], object]
"""Trains points of the ledger's surface until it has its answer. The number seeds it."""
PIECE = 50
"""Orders that a process replays before it answers."""
BATCH, SCHEDULE = "train.batch_size", "optimizer.schedule"


def grid(ledger: Ledger, seed: int) -> None:
    """All of it: what a grid has found is known when it is over."""
    for point in range(len(ledger.surface.points)):
        ledger.train(point, ledger.surface.total)
    ledger.reached = ledger.spent


def until_found(surface: Surface, strategy: str) -> Search:
    """One that stops nobody and would try everything."""
    asked = {"strategy": strategy, "trials": len(surface.points)}
    experiment = declared(surface, asked)
    plans: Plans = {}
    return lambda ledger, seed: replay_sweep(
        experiment, ledger, seed=seed, enough=lambda: ledger.found, plans=plans
    )


def stopping(surface: Surface, **rule: Any) -> Search:
    """Everybody in a random order, under a rule."""
    asked = {"strategy": "random", "trials": len(surface.points), "stopping": rule}
    return _to_its_end(declared(surface, asked))


def automatic(surface: Surface, records: Sequence[Record]) -> Search:
    """What a user gets whose storage holds these finished trials, and who gives only the space."""
    asked = declared(surface, {"strategy": "auto"})
    return _to_its_end(chosen(asked, steps=surface.total, records=records).experiment)


def _to_its_end(experiment: Experiment) -> Search:
    plans: Plans = {}
    return lambda ledger, seed: replay_sweep(experiment, ledger, seed=seed, plans=plans)


# --- what the prior knows ---------------------------------------------------------------------


def experience(others: Sequence[Surface]) -> list[Record]:
    """What a user's storage would hold of other tasks: their final losses."""
    return [
        _record(surface, point, float(loss))
        for surface in others
        for point, loss in zip(surface.points, surface.losses[:, -1], strict=True)
    ]


def misleading(surface: Surface) -> list[Record]:
    """A sweep in which the lowest rates were the best, and twice the rate half as good."""
    return [_record(surface, point, point[RATE]) for point in surface.points]


def _record(surface: Surface, point: Mapping[str, Any], loss: float) -> Record:
    return Record(
        base="nano",
        learning_rate=point[RATE],
        rank=point[RANK],
        batch_size=point[BATCH],
        steps=surface.total,
        metric=loss,
        sweep=f"{surface.task} {point.get(SCHEDULE)}",
    )


# --- the table --------------------------------------------------------------------------------


def searches(surface: Surface, others: Sequence[Surface]) -> dict[str, tuple[Search, float]]:
    """Name to the search and the share of the orders that it is replayed with: a sampler's second
    is dear, and where all are trained up to the one rung the order makes no difference."""
    early, rung = round(surface.total / 18), surface.total // 9
    return {
        "grid": (grid, 0.001),
        "random": (until_found(surface, "random"), 1),
        "tpe": (until_found(surface, "tpe"), 1),
        "gp": (until_found(surface, "gp"), 0.1),
        "asha, from 1/9": (stopping(surface, rule="halving", first_rung=rung), 1),
        "asha, from 1/18": (stopping(surface, rule="halving", first_rung=early), 1),
        "hyperband": (stopping(surface, rule="hyperband", first_rung=rung), 1),
        "top 4 after 1/9": (stopping(surface, rule="topk", first_rung=rung, keep=4), 0.01),
        "top 6 after 1/18": (stopping(surface, rule="topk", first_rung=early, keep=6), 0.01),
        "top 8 after 1/9": (stopping(surface, rule="topk", first_rung=rung, keep=8), 0.01),
        "auto, no prior": (automatic(surface, []), 1),
        "auto, wrong prior": (automatic(surface, misleading(surface)), 1),
        "auto": (automatic(surface, experience(others)), 1),
    }


@dataclass(frozen=True)
class Score:
    """Means over the orders; tokens as a share of the grid's."""

    tokens: float
    trained: float
    found: float
    killed: float
    regret: float


def replay(surface: Surface, search: Search, orders: Iterable[int]) -> list[Score]:
    """Of every order."""
    whole, scores = surface.tokens.sum(), []
    for order in orders:
        ledger = Ledger(surface)
        search(ledger, order)
        trained, found, killed = ledger.spent, ledger.found, ledger.killed
        ended = [p for p, at in ledger.at.items() if at == surface.total]
        answer = min(surface.losses[p, -1] for p in ended)
        _finish(ledger)
        assert ledger.reached is not None
        regret = answer / surface.losses[:, -1].min() - 1
        scores.append(Score(ledger.reached / whole, trained / whole, found, killed, regret))
    return scores


def _finish(ledger: Ledger) -> None:
    """Go on with what was dropped: those trained longest first, the best of those first."""
    surface = ledger.surface
    left = [p for p in range(len(surface.points)) if ledger.at.get(p, 0) < surface.total]
    depth = {p: ledger.at.get(p, 0) for p in left}
    loss = {p: surface.loss(p, depth[p]) if depth[p] else math.inf for p in left}
    for point in sorted(left, key=lambda p: (-depth[p], loss[p])):
        if ledger.found:
            return
        ledger.train(point, surface.total)


def mean(scores: Sequence[Score]) -> Score:
    return Score(*(fmean(column) for column in zip(*map(astuple, scores), strict=True)))


# --- all of them ------------------------------------------------------------------------------


@cache
def _prepared(path: Path) -> list[tuple[Surface, dict[str, tuple[Search, float]]]]:
    """Every surface of a file with its searches; what is known beforehand is of other tasks."""
    known = [s for s in surfaces(RECORDED) if s.seed == "mean"]
    found = list(surfaces(path))
    others = [[k for k in known if k.task != surface.task] for surface in found]
    return [(s, searches(s, o)) for s, o in zip(found, others, strict=True)]


def _part(path: Path, surface: int, name: str, orders: range) -> list[Score]:
    found, its_searches = _prepared(path)[surface]
    return replay(found, its_searches[name][0], orders)


def _parts(
    pool: ProcessPoolExecutor, path: Path, surface: int, orders: int, only: Sequence[str]
) -> dict[str, list[Future[list[Score]]]]:
    """By search, in pieces, so that no process waits long for another."""
    found: dict[str, list[Future[list[Score]]]] = {}
    for name, (_, share) in _prepared(path)[surface][1].items():
        if only and name not in only:
            continue
        wanted = range(max(1, round(orders * share)))
        pieces = [wanted[i : i + PIECE] for i in range(0, len(wanted), PIECE)]
        found[name] = [pool.submit(_part, path, surface, name, piece) for piece in pieces]
    return found


COLUMNS = (
    "search",
    "orders",
    "fewer tokens than the grid",
    "all it trains, of the grid",
    "found",
    "winner killed",
    "answer worse by",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
NOT_REPLAYED = (
    "Population based training is not among them: it trains on with other settings from another's "
    "weights, and recorded curves have no forks. `python -m benchmarks.population` runs it live."
)


def _row(name: str, orders: int, score: Score) -> str:
    return (
        f"| {name} | {orders} | {1 / score.tokens:.1f} x | {score.trained:.3f} | "
        f"{score.found:.1%} | {score.killed:.1%} | {score.regret:.2%} |"
    )


def tables(
    orders: int, path: Path = RECORDED, only: Sequence[str] = (), *, processes: int | None = None
) -> Iterator[str]:
    """One for every surface, then the mean over them."""
    found = _prepared(path)
    of_all: dict[str, list[Score]] = {}
    counts: dict[str, int] = {}
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        parts = [_parts(pool, path, i, orders, only) for i in range(len(found))]
        for (surface, _), of_surface in zip(found, parts, strict=True):
            lines = [
                f"{surface.task}, seed {surface.seed}: {len(surface.points)} points x "
                f"{surface.total} steps, {surface.good.sum()} within 0.5 % of the best",
                "",
                HEAD,
            ]
            for name, futures in of_surface.items():
                scores = [score for future in futures for score in future.result()]
                counts[name] = len(scores)
                of_all.setdefault(name, []).append(mean(scores))
                lines.append(_row(name, len(scores), of_all[name][-1]))
            yield "\n".join(lines)
    means = [_row(name, counts[name], mean(scores)) for name, scores in of_all.items()]
    yield "\n".join([f"Mean of the {len(found)}", "", HEAD, *means, "", NOT_REPLAYED])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--curves", type=Path, default=RECORDED)
    parser.add_argument("--held-out", action="store_true", help="the held-out tasks instead")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--processes", type=int, help="by default one a core")
    options = parser.parse_args()
    path = HELD_OUT if options.held_out else options.curves
    began = time.monotonic()
    for table in tables(options.orders, path, options.only, processes=options.processes):
        print(table, flush=True)
        print(f"({time.monotonic() - began:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
