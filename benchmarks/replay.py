"""Searches replayed over recorded curves: tokens until a setting is found, and winners killed.

Found: a point within 0.5 % of the best final loss was trained to its end. A search that has ended
without it goes on with what it dropped, the best first, so every search has a number. Killed: the
point that ends best was started and stopped when the search ended.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.recorded_grid import RECORDED, Ledger, Surface, surfaces
from crucible_tinkex.search import auto
from crucible_tinkex.search.priors import RANK, RATE, Question, Record, suggest
from crucible_tinkex.search.stopping import Halving, StoppingRule

Search = Callable[[Ledger, np.random.Generator], None]
"""Trains points of the ledger's surface until it has its answer."""


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


def learning(make: Callable[[int], Any]) -> Search:
    """With an Optuna sampler; a point that was tried is not tried again."""

    def search(ledger: Ledger, draw: np.random.Generator) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        surface = ledger.surface
        axes = axes_of(surface)
        places = {tuple(p.values()): i for i, p in enumerate(surface.points)}
        space = {key: _distribution(values) for key, values in axes.items()}
        study = optuna.create_study(sampler=make(int(draw.integers(2**31))))
        order = [int(i) for i in draw.permutation(len(surface.points))]
        while not ledger.found:
            asked = study.ask(space)
            point = places[tuple(_value(axes[k], asked.params[k]) for k in axes)]
            if point in ledger.at:
                known = surface.loss(point, surface.total)
                study.tell(asked, known)
                if len(study.trials) % 5:
                    continue
                point = next(i for i in order if i not in ledger.at)
                params = {k: _place(axes[k], surface.points[point][k]) for k in axes}
                loss = ledger.train(point, surface.total)
                study.add_trial(optuna.create_trial(params=params, distributions=space, value=loss))
                continue
            study.tell(asked, ledger.train(point, surface.total))

    return search


def _tpe(seed: int) -> Any:
    import optuna

    return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def _gp(seed: int) -> Any:
    import optuna

    return optuna.samplers.GPSampler(seed=seed)


def _ordered(values: Sequence[Any]) -> bool:
    return all(not isinstance(v, str) for v in values)


def _distribution(values: Sequence[Any]) -> Any:
    import optuna

    if _ordered(values):
        return optuna.distributions.IntDistribution(0, len(values) - 1)
    return optuna.distributions.CategoricalDistribution(tuple(values))


def _value(values: Sequence[Any], found: Any) -> Any:
    return values[found] if _ordered(values) else found


def _place(values: Sequence[Any], value: Any) -> Any:
    return values.index(value) if _ordered(values) else value


# --- with stopping ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TopK:
    """One rung; the best `keep` go on once everybody has come."""

    keep: int
    rung: int

    def rungs(self, total_steps: int) -> tuple[int, ...]:
        return (self.rung, total_steps)

    def judge(self, place: int, of: int, *, final: bool) -> str:
        if not final:
            return "wait"
        return "go" if place < self.keep else "stop"


def stopping(rule: StoppingRule) -> Search:
    """Everybody in a random order, one at a time, as the policy does it with one slot."""

    def search(ledger: Ledger, draw: np.random.Generator) -> None:
        run_rule(ledger, [int(i) for i in draw.permutation(len(ledger.surface.points))], rule)

    return search


def run_rule(ledger: Ledger, order: Sequence[int], rule: StoppingRule) -> None:
    rungs = rule.rungs(ledger.surface.total)
    standing: list[dict[int, float]] = [{} for _ in rungs]
    gone: list[set[int]] = [set() for _ in rungs]

    def promote(*, final: bool, level: int) -> bool:
        for point in auto.best(standing[level], len(standing[level])):
            if point in gone[level]:
                continue
            place = sum(loss < standing[level][point] for loss in standing[level].values())
            if rule.judge(place, len(standing[level]), final=final) != "go":
                return False
            gone[level].add(point)
            standing[level + 1][point] = ledger.train(point, rungs[level + 1])
            return True
        return False

    for point in order:
        standing[0][point] = ledger.train(point, rungs[0])
        level = len(rungs) - 2
        while level >= 0:
            level = len(rungs) - 2 if promote(final=False, level=level) else level - 1
    for level in range(len(rungs) - 1):
        while promote(final=True, level=level):
            pass


def hyperband(ledger: Ledger, draw: np.random.Generator) -> None:
    """Brackets of eta 3, one after the other, over parts of the grid (Li et al. 2018)."""
    order = [int(i) for i in draw.permutation(len(ledger.surface.points))]
    shares = np.array([9.0, 5.0, 3.0])
    cuts = np.cumsum(np.round(shares / shares.sum() * len(order)).astype(int))[:-1]
    total = ledger.surface.total
    for part, first in zip(np.split(np.array(order), cuts), (9, 3, 1), strict=True):
        if first == 1:
            for point in part:
                ledger.train(int(point), total)
        else:
            run_rule(ledger, [int(i) for i in part], Halving(3, total // first))


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


def automatic(expected: Callable[[Mapping[str, Any]], float] | None, first: float = 1.0) -> Search:
    """`expected`: what the prior says of a point; None: no prior. `first`: the share of the points
    that start."""

    def search(ledger: Ledger, draw: np.random.Generator) -> None:
        surface = ledger.surface
        order = [int(i) for i in draw.permutation(len(surface.points))]
        if expected is not None:
            order.sort(key=lambda i: expected(surface.points[i]))
        count = max(1, round(first * len(order))) if expected is not None else len(order)
        leader = _rungs(ledger, order, auto.recipe(count, surface.total))
        _refine(ledger, leader, auto.recipe(len(order), surface.total))

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


def likelihood(records: Sequence[Record], surface: Surface) -> Callable[[Mapping[str, Any]], float]:
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
    rung = surface.total // 9
    return {
        "grid": (grid, 0.001),
        "random": (random, 1),
        "tpe": (learning(_tpe), 0.05),
        "gp": (learning(_gp), 0.01),
        "asha": (stopping(Halving(3, rung)), 1),
        "hyperband": (hyperband, 1),
        "top-4 after 1/9": (stopping(TopK(4, rung)), 1),  # type: ignore[arg-type]
        "top-8 after 1/9": (stopping(TopK(8, rung)), 1),  # type: ignore[arg-type]
        "population": (population, 1),
        "auto, no prior": (automatic(None), 1),
        "auto": (automatic(prior, 0.5), 1),
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


def tables(orders: int, path: Path = RECORDED, only: Sequence[str] = ()) -> Iterator[str]:
    found = list(surfaces(path))
    for surface in found:
        others = [s for s in found if s.task != surface.task and s.seed == "mean"]
        lines = [
            f"{surface.task}, seed {surface.seed}: {len(surface.points)} points x {surface.total} "
            f"steps, {surface.good.sum()} within 0.5 % of the best",
            "",
            "| search | fewer tokens than the grid | all it trains, of the grid | found | "
            "winner killed | answer worse by |",
            "|---|---|---|---|---|---|",
        ]
        for name, (search, share) in searches(surface, others).items():
            if only and name.split(",")[0].split()[0] not in only:
                continue
            score = replay(surface, search, max(1, round(orders * share)))
            lines.append(
                f"| {name} | {1 / score.tokens:.1f} x | {score.trained:.3f} | {score.found:.1%} | "
                f"{score.killed:.1%} | {score.regret:.2%} |"
            )
        yield "\n".join(lines)


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
