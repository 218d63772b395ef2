"""How much of alpha a verdict has: all of a sweep's life together has it once."""

from __future__ import annotations

import pytest

from crucible_tinkex import bench
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import CONFIRM, DONE, SEARCH, SweepState, TrialRecord
from crucible_tinkex.sweep.results.judgements import judgement_share

STEPS, CONFIRMED = "train.max_steps", "search.confirm"


def sweep(
    *changes: tuple[int, str], seeds: int = 2, confirm: int | str = 0, fresh: int = 0
) -> SweepState:
    """Two configurations; `changes` are (trials that there were, changed key); `fresh` seeds come
    last."""
    meta = {"experiment": {"search": {"seeds": list(range(seeds)), "confirm": confirm}}}
    state = SweepState(version=2, meta=meta)
    asked = [(s, SEARCH) for s in range(seeds)] + [(10_000 + s, CONFIRM) for s in range(fresh)]
    cells = [(rank, *one) for one in asked for rank in (4, 8)]
    for place in range(len(cells) + 1):
        for at, key in changes:
            if at == place:
                state.apply({"type": "amended", "meta": {}, "changed": [key], "time": 0.0})
        if place < len(cells):
            rank, seed, phase = cells[place]
            found = TrialRecord(
                f"t{place}",
                place,
                f"{place}",
                {"lora.rank": rank},
                seed,
                9,
                state=DONE,
                phase=phase,
            )
            state.trials[found.trial_id] = found
    return state


@pytest.mark.parametrize(
    ("state", "share"),
    [
        (sweep(), 0.9),
        (sweep(confirm="auto", seeds=1), 0.9),
        (sweep(confirm="auto"), 0.09),
        (sweep(confirm="auto", fresh=1), 0.09),
        (sweep(confirm=3, fresh=2), 0.81),
        (sweep(fresh=3), 0.81),
        (sweep((4, STEPS)), 0.05),
        (sweep((4, STEPS), (4, STEPS)), 0.1 / 6),
        (sweep((4, STEPS), confirm="auto"), 0.005),
        (sweep((4, CONFIRMED), confirm="auto", fresh=2), 0.05),
        (sweep((2, CONFIRMED), confirm="auto", seeds=1, fresh=2), 0.9),
        (sweep((6, CONFIRMED), confirm="auto", fresh=2), 0.81),
        (sweep((2, STEPS)), 0.9),
        (sweep((4, "search.space.lora.rank")), 0.9),
        (sweep((4, "budget.hours")), 0.9),
        (sweep((4, "search.metric")), 0.05),
    ],
    ids=[
        "once",
        "one seed cannot be judged, so the fresh ones have all",
        "a search that is to be confirmed",
        "not yet confirmed",
        "its confirmation",
        "confirmed, though no more is asked",
        "trained on",
        "trained on and on",
        "trained on, and both judged again",
        "confirmed as an afterthought",
        "as an afterthought, before anything was judged",
        "confirmed further",
        "trained on before anything was judged",
        "more configurations have their own shares",
        "more budget",
        "by another metric",
    ],
)
def test_the_share_of_alpha(state: SweepState, share: float) -> None:
    assert judgement_share(state) == pytest.approx(share)


@pytest.mark.parametrize("confirm", [0, "auto"])
def test_all_judgements_together_have_alpha_at_most(confirm: str | int) -> None:
    lives = [
        sweep(*[(4, STEPS)] * n, confirm=confirm, fresh=fresh)
        for n in range(50)
        for fresh in ((0, 2) if confirm else (0,))
    ]
    assert sum(map(judgement_share, lives)) <= 1


def test_a_share_makes_intervals_wider() -> None:
    noise = [[0.0, 0.1, -0.2, 0.15, -0.1], [0.1, -0.1, 0.0, 0.2, -0.15]]
    rows = [bench.Configuration(str(i), dict(enumerate(row))) for i, row in enumerate(noise)]
    whole, part = (bench.conclude(rows, bench.terms(share=share)) for share in (1.0, 0.05))
    assert part.rivals[0].low < whole.rivals[0].low
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            bench.terms(share=share)
