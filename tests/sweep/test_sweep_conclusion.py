"""Conclusions from journals, and comparisons from evaluation rows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import (
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    Origin,
    Spent,
    SweepState,
    TrialRecord,
)
from crucible_tinkex.sweep.results.batches import batches
from crucible_tinkex.sweep.results.conclusion import comparison, conclusion, configuration_names
from crucible_tinkex.sweep.results.leaderboard import configurations
from crucible_tinkex.sweep.results.views.aggregates import aggregates
from crucible_tinkex.sweep.results.views.tables import comparison_table, conclusion_table

RNG = np.random.default_rng(2)
BEGIN = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def own_numbers() -> None:
    """No test depends on those before it."""
    RNG.bit_generator.state = BEGIN


def trial(index: int, rank: int, seed: int, nll: float | None, **more: Any) -> TrialRecord:
    values = {"lora.rank": rank, "optimizer.learning_rate": 1e-3}
    found = TrialRecord(f"t{index}", index, f"{index:04}", values, seed, 9, state=DONE, step=9)
    found.spends[1] = Spent(train_tokens=100 * rank)
    if nll is not None:
        found.metrics, found.metrics_step = {"eval/nll": nll}, 9
        found.results = {9: found.metrics}
    for key, value in more.items():
        setattr(found, key, value)
    return found


def grid(means: dict[int, float], seeds: int, *, first: int = 0) -> list[TrialRecord]:
    cells = [(rank, seed) for rank in means for seed in range(first, first + seeds)]
    return [
        trial(100 * rank + seed, rank, seed, means[rank] + RNG.normal(0, 0.01))
        for rank, seed in cells
    ]


def state(trials: Sequence[TrialRecord], seeds: int, metric: str = "eval/nll") -> SweepState:
    search = {"metric": metric, "seeds": list(range(seeds))}
    meta = {"sweep": "s", "experiment": {"search": search}}
    return SweepState(version=2, meta=meta, trials={t.trial_id: t for t in trials})


def test_what_varied_names_the_winner() -> None:
    base = trial(0, 0, 0, 0.1, reference=True, values={})
    found = conclusion(state([base, *grid({4: 1.0, 8: 1.5, 16: 1.8}, 5)], 5))
    assert found.verdict.startswith("winner: rank = 4, better than all 2 others; eval/nll")
    assert [r.name for r in found.rivals] == ["rank = 8", "rank = 16"]
    assert found.terms.zone == 0.002


def test_settings_are_named_in_one_order_however_they_were_asked_for() -> None:
    guess = trial(1, 4, 0, 1.0, values={"optimizer.learning_rate": 1e-2, "lora.rank": 4})
    found = configurations(state([trial(0, 8, 0, 2.0), guess], 1))
    assert configuration_names(found) == ["lr = 0.01, rank = 4", "lr = 0.001, rank = 8"]


def test_what_it_would_cost_is_in_training_tokens() -> None:
    found = conclusion(state(grid({4: 1.0, 8: 1.02}, 3), 3))
    assert found.kind == "open" and found.more is not None and found.more.seeds
    assert found.more.cost == pytest.approx(found.more.seeds * 1200)
    assert "training tokens) would settle it" in found.verdict


def amended(found: SweepState, *, after: int, changed: str = "search.space") -> SweepState:
    """As if the sweep had been asked for more when it had so many trials."""
    more = SweepState(version=2, meta=found.meta)
    for place, t in enumerate(found.trials.values()):
        if place == after:
            more.apply({"type": "amended", "meta": {}, "changed": [changed], "time": 0.0})
        t.index = place
        more.trials[t.trial_id] = t
    return more


def test_what_was_added_to_a_sweep_spends_what_is_left_of_alpha() -> None:
    found = state(grid({4: 1.0, 8: 1.05, 16: 1.1}, 5), 5)
    before, after = (conclusion(s) for s in (amended(found, after=99), amended(found, after=10)))
    low = [{r.name: r.low for r in c.rivals} for c in (before, after)]
    assert low[1]["rank = 16"] < low[0]["rank = 16"], "it came later"
    assert low[1]["rank = 8"] >= low[0]["rank = 8"], "that was there from the beginning"


def test_a_grid_that_comes_one_by_one_is_judged_as_the_whole() -> None:
    known = state(grid({4: 1.0, 8: 1.05}, 5), 5)
    alone = conclusion(known).rivals[0].low
    known.meta["configurations"] = 8
    assert conclusion(known).rivals[0].low < alone


def batch_of(found: SweepState, *, aside: Sequence[int] = ()) -> dict[int, tuple[int, int]]:
    """By rank."""
    ranked = configurations(found)
    numbers = [(b.batch, b.peers) for b in batches(found, ranked, aside=aside)]
    ranks = (int(c.values["lora.rank"]) for c in ranked)
    return dict(sorted(zip(ranks, numbers, strict=True)))


def test_more_of_the_budget_is_no_new_batch() -> None:
    found = state(grid({4: 1.0, 8: 1.1, 16: 1.2}, 2), 2)
    found.meta["configurations"] = 5
    for changed in ("budget.hours", "search.seeds", "train.max_steps"):
        more = amended(found, after=4, changed=changed)
        assert batch_of(more) == dict.fromkeys((4, 8, 16), (0, 5))
    for changed in ("search.space.lora.rank", "search.trials"):
        more = amended(found, after=4, changed=changed)
        assert batch_of(more) == {4: (0, 2), 8: (0, 2), 16: (8, 3)}


def test_a_clone_is_a_batch_by_itself_and_takes_nothing_of_the_others() -> None:
    found = state(grid({4: 1.0, 8: 1.1}, 1), 1)
    found.meta["configurations"] = 3
    forked = trial(50, 4, 0, 0.9, origin=Origin("t400", 3, "tinker://4"))
    more = amended(found, after=99)
    more.trials["t50"] = forked
    numbers = [(b.batch, b.peers) for b in batches(more, configurations(more))]
    assert sorted(numbers) == [(0, 3), (0, 3), (101, 1)]


def test_leaders_are_as_many_as_are_confirmed() -> None:
    found = state([*grid({4: 1.0, 8: 1.1, 16: 1.2}, 1), *grid({4: 1.0, 8: 1.1}, 3, first=10)], 1)
    found.meta["configurations"] = 12
    found.meta["experiment"]["search"] |= {"confirm": "auto", "confirm_top": 2}
    assert batch_of(found, aside=[0])[4] == (0, 2)
    assert batch_of(state(grid({4: 1.0}, 1), 1), aside=[0]) == {4: (0, 1)}, "nothing is fresh yet"
    found.trials = {i: t for i, t in found.trials.items() if t.seed < 10}
    assert batch_of(found, aside=[0])[4] == (0, 12), "the search itself is judged"


def test_what_was_stopped_failed_or_runs_is_left_out() -> None:
    trials = grid({2: 1.0, 4: 1.3, 8: 0.5, 16: 1.0, 32: 1.0}, 4)
    by_rank = {rank: [t for t in trials if t.values["lora.rank"] == rank] for rank in (8, 16, 32)}
    by_rank[8][3].state, by_rank[8][3].error = STOPPED, "at step 3: 4th of 4"
    for t in by_rank[16]:
        t.state, t.error = FAILED, "loss became nan"
    for t in by_rank[32]:
        t.state = RUNNING
    found = conclusion(state(trials, 4))
    assert found.leader == "rank = 2"
    assert {one.name: one.reason for one in found.left_out} == {
        "rank = 8": "stopped: at step 3: 4th of 4",
        "rank = 16": "failed: loss became nan",
        "rank = 32": "unfinished",
    }
    assert any("values flatter" in note for note in found.notes), "halving chose by these seeds"


def test_fresh_seeds_judge_whom_the_asked_ones_chose() -> None:
    trials = [*grid({4: 1.0, 8: 1.5}, 1), *grid({4: 1.0, 8: 1.5}, 5, first=10)]
    found = conclusion(state(trials, 1))
    assert found.kind == "winner" and found.rivals[0].seeds == 5
    assert "fresh seeds only" in found.notes[0]


def test_conclusions_are_tables_too() -> None:
    trials = grid({4: 1.0, 8: 1.5, 16: 2.0}, 5)
    trials += [trial(900, 32, 0, None, state=FAILED, error="loss became nan")]
    table = conclusion_table(conclusion(state(trials, 5)))
    assert table["name"].to_pylist() == ["rank = 4", "rank = 8", "rank = 16", "rank = 32"]
    assert table["seeds"].to_pylist() == [5, 5, 5, None]
    first, second, _, last = table.to_pylist()
    assert first["value_low"] < first["value"] < first["value_high"] and first["behind_by"] == 0
    means = [row["mean"] for row in (first, second)]
    by_rank = [[t for t in trials if t.values["lora.rank"] == rank] for rank in (4, 8)]
    assert means == [pytest.approx(fmean(t.metrics["eval/nll"] for t in of)) for of in by_rank]
    assert 0 < second["low"] < second["behind_by"] < second["high"] and second["separable"]
    assert last["why"] == "failed: loss became nan"
    assert table.to_pandas()["name"].iloc[-1] == "rank = 32"
    assert conclusion_table(conclusion(state([], 1))).schema == table.schema


def test_one_seed_each_says_nothing() -> None:
    found = conclusion(state(grid({4: 1.0, 8: 2.0}, 1), 1))
    assert found.verdict.startswith("n = 1")
    assert found.value and found.mean == found.value.value
    assert "none of 0" in conclusion(state([], 1)).verdict


NULL_SWEEP = {  # what experiments/null_sweep.toml gave: eps to eval/nll of seeds 0, 1, 2
    1e-8: (4.9283452953879285, 5.136558303682823, 5.167707490170096),
    1e-7: (4.929104622893446, 5.132592985949178, 5.1652036107431245),
    1e-6: (4.931901907357644, 5.134470746273131, 5.166813313491701),
    1e-5: (4.930667832141786, 5.138051476065568, 5.165361868114922),
}


def null_trials() -> list[TrialRecord]:
    return [
        trial(10 * i + seed, 8, seed, nll, values={"optimizer.eps": eps})
        for i, (eps, values) in enumerate(NULL_SWEEP.items())
        for seed, nll in enumerate(values)
    ]


def test_settings_that_do_not_matter_are_not_separable() -> None:
    found = conclusion(state(null_trials(), 3))
    assert found.kind == "open" and len(found.not_separable) == 4
    assert "4 of 4 are not separable" in found.verdict and found.take is None
    assert found.rivals[0].p > 0.05, "not for a single look, either"


def test_what_matters_is_the_sweeps_to_say() -> None:
    null = state(null_trials(), 3)
    null.meta["experiment"]["search"]["indifference"] = 1.0
    found = conclusion(null)
    assert found.kind == "tie" and found.terms.zone == 1.0


def test_a_configuration_that_is_no_leader_says_so() -> None:
    trials = [*grid({4: 1.0, 8: 1.5, 16: 3.0}, 2), *grid({4: 1.0, 8: 1.5}, 5, first=10)]
    (left,) = conclusion(state(trials, 2)).left_out
    assert left.name == "rank = 16" and left.reason.startswith("no leader")


def test_a_configurations_curve_is_over_its_seeds() -> None:
    trials = grid({4: 1.0, 8: 1.5}, 2)
    trials[3].state, trials[3].error = STOPPED, "place 2 of 2"
    first, second = aggregates(state(trials, 2))
    values = [t.metrics["eval/nll"] for t in trials[:2]]
    assert first.name == "rank = 4" and first.metrics == {"eval/nll": {9: values}}
    assert second.state == "done, 1 of 2 trials done; stopped: place 2 of 2"
    assert aggregates(state(grid({4: 1.0}, 1), 1)) == []


def evaluations(trials: Sequence[TrialRecord], *, grouped: bool = False) -> pa.Table:
    hardness = RNG.normal(2, 1, size=50)
    rows: list[dict[str, Any]] = [
        {
            "trial_id": t.trial_id,
            "step": step,
            "example_id": f"e{i}",
            "nll": float(hardness[i] + t.metrics["eval/nll"] + RNG.normal(0, 0.1)),
            "correct": bool(hardness[i] + t.metrics["eval/nll"] < 3),
            "group": f"document {i // 10}" if grouped else None,
            "scores": [("eval/pass@2", t.values["lora.rank"] / 10 + i / 100)],
        }
        for t in trials
        for step in (3, 9)
        for i in range(50)
    ]
    scores = pa.array([row.pop("scores") for row in rows], pa.map_(pa.string(), pa.float64()))
    return pa.Table.from_pylist(rows).append_column("scores", scores)


def test_two_trials_stand_for_their_configurations() -> None:
    trials = grid({4: 1.0, 8: 1.3}, 2)
    found = comparison(state(trials, 2), evaluations(trials), "400", "t801")
    assert found.verdict.startswith("rank = 4 is better: (rank = 4) - (rank = 8) = -0.")
    assert (found.pairs, found.examples, found.seeds) == (100, 50, 2)
    [row] = comparison_table(found).to_pylist()
    assert row["difference"] == found.difference and row["verdict"] == found.verdict


@pytest.mark.parametrize("order", [("0", "400"), ("400", "0")])
def test_the_untrained_base_is_compared_with_all_seeds_of_another(order: tuple[str, str]) -> None:
    trained = [trial(400 + i, 4, 10_000 + i, 1.0) for i in range(3)]
    base = trial(0, 4, 0, 5.0, values={"lora.rank": 0}, reference=True)
    rows = evaluations([base, *trained])
    base.values = {}
    found = comparison(state([base, *trained], 3), rows, *order)
    assert found.verdict.startswith("rank = 4, lr = 0.001 is better: ")
    assert "untrained" in found.verdict
    assert (found.pairs, found.examples, found.seeds) == (150, 50, 3)
    assert found.left_out == (0, 0)


def test_rows_of_one_document_are_one_cluster() -> None:
    trials = grid({4: 1.0, 8: 1.3}, 1)
    found = comparison(state(trials, 1), evaluations(trials, grouped=True), "400", "800")
    assert (found.examples, found.clusters) == (50, 5)
    assert any("only 5 independent examples" in note for note in found.notes)


def test_a_sweep_ranked_by_answers_is_compared_by_their_scores() -> None:
    trials = grid({4: 1.0, 8: 1.3}, 2)
    found = comparison(state(trials, 2, "eval/pass@2"), evaluations(trials), "400", "800")
    assert found.difference == pytest.approx(-0.4)
    with pytest.raises(ConfigError, match="eval/f1_macro has no value per held-out row"):
        comparison(state(trials, 2, "eval/f1_macro"), evaluations(trials), "400", "800")


def test_comparisons_that_cannot_be_made() -> None:
    trials = grid({4: 1.0, 8: 1.3}, 2)
    rows = evaluations(trials)
    with pytest.raises(ConfigError, match="no trial 'x'"):
        comparison(state(trials, 2), rows, "400", "x")
    with pytest.raises(ConfigError, match="seeds of one configuration"):
        comparison(state(trials, 2), rows, "400", "401")
    with pytest.raises(ConfigError, match="train/nll has no value per held-out row"):
        comparison(state(trials, 2, "train/nll"), rows, "400", "800")
    nothing = comparison(state(trials, 2), rows.slice(0, 0), "400", "800")
    assert "have no measured example yet" in nothing.verdict
