"""Searches replayed over recorded curves: tokens until a setting is found, and winners killed.

Found: a point within 0.5 % of the best final loss was trained to its end. A search that has ended
without it goes on with what it dropped, the best first, so every search has a number. Killed: the
point that ends best was started and stopped when the search ended.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.recorded_grid import RECORDED, Ledger, Surface, surfaces
from crucible_tinkex.config import Experiment
from crucible_tinkex.search import auto
from crucible_tinkex.search.learners import Told
from crucible_tinkex.search.learning import LearningSearch
from crucible_tinkex.search.priors import RANK, RATE, Question, Record, suggest
from crucible_tinkex.search.stopping import Halving, Hyperband, Standing, StoppingRule, TopK

Search = Callable[[Ledger, np.random.Generator], None]
"""Trains points of the ledger's surface until it has its answer."""
Expected = Callable[[Mapping[str, Any]], float]
"""The loss that a prior expects of a point."""


# --- without stopping -------------------------------------------------------------------------


def grid(ledger: Ledger, draw: np.random.Generator) -> None:
    """All of it: what a grid has found is known when it is over."""
    for point in range(len(ledger.surface.points)):
        ledger.train(point, ledger.surface.total)
    ledger.reached = ledger.spent


def random(ledger: Ledger, draw: np.random.Generator) -> None:
    for point in draw.permutation(len(ledger.surface.points)):
        ledger.train(int(point), ledger.surface.total)
        if ledger.found:
            return


def learning(strategy: str) -> Search:
    """One of the strategies that learn, told every final loss, one trial at a time."""

    def search(ledger: Ledger, draw: np.random.Generator) -> None:
        surface = ledger.surface
        study = LearningSearch(_declared(surface, strategy, seed=int(draw.integers(2**31))))
        places = {study.settings(p): i for i, p in enumerate(surface.points)}
        told: list[Told] = []
        known: set[object] = set()
        while not ledger.found:
            values = study.next(told, known=known, number=len(told))
            assert values is not None, "the space is the grid, so it holds a good point"
            settings = study.settings(values)
            at = study.places(values)
            assert at is not None
            known.add(settings)
            loss = ledger.train(places[settings], surface.total)
            told.append(Told(at, loss, ended=True))

    return search


def _declared(surface: Surface, strategy: str, *, seed: int) -> Experiment:
    return Experiment.build(
        {
            "name": surface.task,
            "model": {"base": "nano"},
            "data": {"train": "train.jsonl"},
            "train": {"max_steps": surface.total},
            "search": {
                "strategy": strategy,
                "trials": len(surface.points),
                "seed": seed,
                "space": axes_of(surface),
            },
        }
    )


# --- with stopping ----------------------------------------------------------------------------


def stopping(rule: StoppingRule) -> Search:
    """Everybody in a random order, one at a time, as the policy does it with one slot."""

    def search(ledger: Ledger, draw: np.random.Generator) -> None:
        order = [int(i) for i in draw.permutation(len(ledger.surface.points))]
        for bracket in range(rule.brackets):
            run_rule(ledger, order[bracket :: rule.brackets], rule, bracket)

    return search


def run_rule(ledger: Ledger, order: Sequence[int], rule: StoppingRule, bracket: int = 0) -> None:
    """One bracket of a rule that compares trials. Whoever may go on does so before the next one
    starts, the highest rung first."""
    rungs = rule.rungs(ledger.surface.total, bracket)
    standing: list[dict[int, float]] = [{} for _ in rungs]
    gone: list[set[int]] = [set() for _ in rungs]

    def promote(level: int, *, final: bool) -> bool:
        losses = sorted(standing[level].values())
        for point in auto.best(standing[level], len(losses)):
            if point in gone[level]:
                continue
            place = losses.index(standing[level][point])
            found = Standing(rungs[level], place, losses, final, ledger.surface.total)
            if rule.judge(found) != "go":
                return False
            gone[level].add(point)
            standing[level + 1][point] = ledger.train(point, rungs[level + 1])
            return True
        return False

    highest = len(rungs) - 2
    for point in order:
        standing[0][point] = ledger.train(point, rungs[0])
        level = highest
        while level >= 0:
            level = highest if promote(level, final=False) else level - 1
    for level in range(len(rungs) - 1):
        while promote(level, final=True):
            pass


def population(ledger: Ledger, draw: np.random.Generator) -> None:
    """A population of eight, which at every sixth of the way replaces its worst quarter by
    neighbours of its best. Recorded curves have no forks: a newcomer starts from nothing, so this
    is dearer than population based training is, and does not profit from warm weights."""
    surface = ledger.surface
    axes = axes_of(surface)
    places = {tuple(p.values()): i for i, p in enumerate(surface.points)}
    members = [int(i) for i in draw.permutation(len(surface.points))[:8]]
    for sixth in range(1, 7):
        step = surface.total * sixth // 6
        losses = {point: ledger.train(point, step) for point in members}
        ranked = list(auto.best(losses, len(losses)))
        if sixth == 6:
            break
        near = [places[tuple(p.values())] for p in auto.neighbours(surface.points[ranked[0]], axes)]
        fresh = [p for p in near if p not in ledger.at]
        draw.shuffle(fresh)
        kept = len(ranked) - min(2, len(fresh))
        members = ranked[:kept] + fresh[: len(ranked) - kept]


# --- auto -------------------------------------------------------------------------------------


def automatic(expected: Expected | None) -> Search:
    """`expected`: what a prior that is in range says of a point; None: there is none."""

    def search(ledger: Ledger, draw: np.random.Generator) -> None:
        surface = ledger.surface
        order = [int(i) for i in draw.permutation(len(surface.points))]
        if expected is not None:
            likely = auto.by_likelihood([surface.points[i] for i in order], expected)
            order = [order[i] for i in likely]
        plan = auto.recipe(len(order), surface.total, informed=expected is not None)
        _refine(ledger, _rungs(ledger, order, plan), plan)

    return search


def _rungs(ledger: Ledger, order: Sequence[int], plan: auto.Recipe) -> int:
    """The leader among those that were trained to the end."""
    going: Sequence[int] = order[: plan.first]
    for step, keep in plan.rungs:
        going = list(auto.best({p: ledger.train(p, step) for p in going}, keep))
    final = {p: ledger.train(p, plan.total_steps) for p in going}
    return next(iter(auto.best(final, 1)))


def _refine(ledger: Ledger, leader: int, plan: auto.Recipe) -> None:
    surface = ledger.surface
    axes = axes_of(surface)
    places = {tuple(p.values()): i for i, p in enumerate(surface.points)}
    tried: set[int] = set()
    while True:
        tried.add(leader)
        better = leader
        for near in auto.neighbours(surface.points[leader], axes):
            point = places[tuple(near.values())]
            if point in tried or ledger.at.get(point) == surface.total:
                continue
            tried.add(point)
            if _climbs(ledger, point, better, plan):
                better = point
        if better == leader:
            return
        leader = better


def _climbs(ledger: Ledger, point: int, leader: int, plan: auto.Recipe) -> bool:
    """Train a neighbour as far as it is worth it; whether it ends better than the leader."""
    surface = ledger.surface
    for step, _ in plan.rungs:
        if not auto.worth_it(ledger.train(point, step), surface.loss(leader, step)):
            return False
    return ledger.train(point, surface.total) < surface.loss(leader, surface.total)


def axes_of(surface: Surface) -> dict[str, list[Any]]:
    keys = list(surface.points[0])
    return {key: list(dict.fromkeys(p[key] for p in surface.points)) for key in keys}


def experience(others: Sequence[Surface]) -> list[Record]:
    """What a user's storage would hold of other tasks: their final losses."""
    return [
        Record(
            base="nano",
            learning_rate=point[RATE],
            rank=point[RANK],
            batch_size=point["train.batch_size"],
            steps=surface.total,
            metric=float(loss),
            sweep=f"{surface.task} {point.get('optimizer.schedule')}",
        )
        for surface in others
        for point, loss in zip(surface.points, surface.losses[:, -1], strict=True)
    ]


def likelihood(records: Sequence[Record], surface: Surface) -> Expected:
    """The place of a point's rate among the prior's guesses for its batch size."""
    axes = axes_of(surface)
    rates, ranks = tuple(axes[RATE]), tuple(axes[RANK])
    guessed = {
        batch: {
            s.values[RATE]: s.loss
            for s in suggest(
                records, Question("nano", batch, surface.total, ranks, rates), count=len(rates)
            ).suggestions
        }
        for batch in axes["train.batch_size"]
    }
    return lambda point: guessed[point["train.batch_size"]].get(point[RATE], 1.0)


# --- the table --------------------------------------------------------------------------------


def searches(surface: Surface, others: Sequence[Surface]) -> dict[str, tuple[Search, float]]:
    """Name to the search and the share of the orders that it is replayed with (a sampler's second
    is dear)."""
    prior = likelihood(experience(others), surface)
    early, rung = round(surface.total * auto.FIRST_SHARE), surface.total // 9
    return {
        "grid": (grid, 0.001),
        "random": (random, 1),
        "tpe": (learning("tpe"), 0.03),
        "gp": (learning("gp"), 0.01),
        "asha, from 1/9": (stopping(Halving(3, rung)), 1),
        "asha, from 1/18": (stopping(Halving(3, early)), 1),
        "hyperband": (stopping(Hyperband(eta=3, first_rung=rung)), 1),
        "top 4 after 1/9": (stopping(TopK(4, rung)), 1),
        "top 6 after 1/18": (stopping(TopK(6, early)), 1),
        "top 8 after 1/9": (stopping(TopK(8, rung)), 1),
        "population": (population, 1),
        "auto, no prior": (automatic(None), 1),
        "auto, wrong prior": (automatic(lambda point: point[RATE]), 1),
        "auto": (automatic(prior), 1),
    }


@dataclass(frozen=True)
class Score:
    """Means over the orders; tokens as a share of the grid's."""

    tokens: float
    trained: float
    found: float
    killed: float
    regret: float


def replay(surface: Surface, search: Search, orders: int) -> Score:
    whole = surface.tokens.sum()
    scores = []
    for order in range(orders):
        ledger = Ledger(surface)
        search(ledger, np.random.default_rng(order))
        trained, found, killed = ledger.spent, ledger.found, ledger.killed
        ended = [p for p, at in ledger.at.items() if at == surface.total]
        answer = min(surface.losses[p, -1] for p in ended)
        _finish(ledger)
        assert ledger.reached is not None
        regret = answer / surface.losses[:, -1].min() - 1
        scores.append((ledger.reached / whole, trained / whole, found, killed, regret))
    return Score(*(fmean(column) for column in zip(*scores, strict=True)))


def _finish(ledger: Ledger) -> None:
    """Go on with what was dropped: those trained longest first, the best of those first."""
    surface = ledger.surface
    left = [p for p in range(len(surface.points)) if ledger.at.get(p, 0) < surface.total]
    depth = {p: ledger.at.get(p, 0) for p in left}
    loss = {p: surface.loss(p, depth[p]) if depth[p] else np.inf for p in left}
    for point in sorted(left, key=lambda p: (-depth[p], loss[p])):
        if ledger.found:
            return
        ledger.train(point, surface.total)


COLUMNS = (
    "search",
    "fewer tokens than the grid",
    "all it trains, of the grid",
    "found",
    "winner killed",
    "answer worse by",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def _row(name: str, score: Score) -> str:
    return (
        f"| {name} | {1 / score.tokens:.1f} x | {score.trained:.3f} | {score.found:.1%} | "
        f"{score.killed:.1%} | {score.regret:.2%} |"
    )


def tables(orders: int, path: Path = RECORDED, only: Sequence[str] = ()) -> Iterator[str]:
    """One for every surface, then the mean over them."""
    found = list(surfaces(path))
    scores: dict[str, list[Score]] = {}
    for surface in found:
        others = [s for s in found if s.task != surface.task and s.seed == "mean"]
        lines = [
            f"{surface.task}, seed {surface.seed}: {len(surface.points)} points x {surface.total} "
            f"steps, {surface.good.sum()} within 0.5 % of the best",
            "",
            HEAD,
        ]
        for name, (search, share) in searches(surface, others).items():
            if only and name not in only:
                continue
            score = replay(surface, search, max(1, round(orders * share)))
            scores.setdefault(name, []).append(score)
            lines.append(_row(name, score))
        yield "\n".join(lines)
    means = [_row(name, _mean(of_all)) for name, of_all in scores.items()]
    yield "\n".join([f"Mean of the {len(found)}", "", HEAD, *means])


def _mean(scores: Sequence[Score]) -> Score:
    return Score(*(fmean(column) for column in zip(*map(astuple, scores), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--curves", type=Path, default=RECORDED)
    parser.add_argument("--only", nargs="*", default=())
    options = parser.parse_args()
    began = time.monotonic()
    for table in tables(options.orders, options.curves, options.only):
        print(table, flush=True)
        print(f"({time.monotonic() - began:.0f} s)\n")


if __name__ == "__main__":
    main()
