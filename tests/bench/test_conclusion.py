"""`conclude` and `next_seeds`: what is claimed of which numbers, in words and in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from crucible_tinkex import bench
from crucible_tinkex.bench.power import seeds_to_settle
from crucible_tinkex.bench.selection.configurations import table
from crucible_tinkex.bench.selection.contest import contest
from crucible_tinkex.errors import ConfigError

LOSS = bench.terms("eval/nll")
RNG = np.random.default_rng(8)


def sweep(
    means: Mapping[str, float], seeds: int, *, sd: float = 0.01, **options: object
) -> list[bench.Configuration]:
    shared = RNG.normal(0, sd, size=seeds)
    return [
        bench.Configuration(
            name, {s: mean + shared[s] + RNG.normal(0, sd) for s in range(seeds)}, **options
        )  # type: ignore[arg-type]
        for name, mean in means.items()
    ]


def test_a_clear_winner() -> None:
    found = bench.conclude(sweep({"a": 1.0, "b": 1.2, "c": 1.3}, 5), LOSS, control="b")
    assert (found.kind, found.leader, found.take) == ("winner", "a", "a")
    assert found.verdict.startswith("winner: a, better than all 2 others; eval/nll ")
    assert found.not_separable == ("a",) and found.more is None
    assert found.value is not None and found.value.low < 1.0 < found.value.high
    b, c = found.rivals
    assert (b.name, c.name) == ("b", "c") and b.separable and not b.good_enough
    assert b.low < 0.2 < b.high and b.p_always < 0.05 and b.p < 0.001
    assert {r.name: r.behind_by < 0 for r in found.against_control} == {"a": True, "c": False}
    assert found.omnibus is not None and found.omnibus.p < 1e-4
    assert found.terms.zone == 0.002, "the metric's own"


def test_higher_is_better_where_the_metric_says_so() -> None:
    found = bench.conclude(sweep({"a": 0.5, "b": 0.8}, 9), bench.terms("eval/accuracy"))
    assert found.take == "b" and found.rivals[0].behind_by == pytest.approx(0.3, abs=0.05)
    assert found.rivals[0].mean < 0.6


def test_a_tie_takes_the_cheaper() -> None:
    agreed = bench.terms(zone=0.1)
    dear, cheap, bad = (
        sweep({name: mean}, 8, cost=cost)[0]
        for name, mean, cost in (("dear", 1.0, 3.0), ("cheap", 1.01, 1.0), ("bad", 1.5, 0.5))
    )
    found = bench.conclude([dear, cheap, bad], agreed)
    assert (found.kind, found.take) == ("tie", "cheap")
    assert "cheap" in found.verdict and set(found.not_separable) == {"dear", "cheap"}


def test_a_difference_that_does_not_matter_makes_no_winner() -> None:
    a, b = sweep({"a": 1.0, "b": 1.0005}, 8, sd=1e-5, cost=2.0)
    bad = sweep({"bad": 1.5}, 8, sd=1e-5, cost=2.0)[0]
    found = bench.conclude([a, b, bad], LOSS)
    assert (found.kind, found.take) == ("tie", "a") and set(found.not_separable) == {"a", "b"}
    assert found.rivals[0].separable and "told from the best" in " ".join(found.notes)
    cheap = bench.Configuration("b", b.values, cost=1.0)
    assert bench.conclude([a, cheap, bad], LOSS).take == "b"
    assert bench.conclude([a, b, bad], bench.terms(zone=0.0)).kind == "winner"


def test_too_little_says_what_would_settle_it() -> None:
    found = bench.conclude(sweep({"a": 1.0, "b": 1.009}, 4, cost=2.0), LOSS)
    assert found.kind == "open" and found.take is None
    assert found.more is not None and found.more.seeds and found.more.runs == 2 * found.more.seeds
    assert found.more.cost == 2.0 * found.more.runs
    assert f"about {found.more.seeds} more seeds" in found.verdict


def test_the_forecast_is_about_right() -> None:
    """As many seeds as it says give a settled question four times in five."""
    needed = seeds_to_settle(0.8, 1.0, shared=4, df=3, level=0.05 / 2, zone=0.0)
    assert needed is not None
    settled = 0
    for _ in range(400):
        d = RNG.normal(0.8, 1.0, size=needed)
        pair = [
            bench.Configuration("a", dict(enumerate(np.zeros(needed)))),
            bench.Configuration("b", dict(enumerate(d))),
        ]
        settled += bench.conclude(pair, bench.terms()).kind == "winner"
    assert settled / 400 == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize(
    ("configurations", "said"),
    [
        ([], "none of 0 configurations"),
        (sweep({"a": 1}, 3), "only a is complete"),
        (sweep({"a": 1, "b": 2}, 1), "n = 1: nothing can be said of 2 configurations"),
        ([bench.Configuration("a", {0: math.nan}), bench.Configuration("b", {})], "none of 2"),
        (sweep({"a": 1}, 3) + sweep({"b": 1}, 1), "only one of 2 configurations has two seeds"),
    ],
)
def test_nothing_to_compare(configurations: list[bench.Configuration], said: str) -> None:
    found = bench.conclude(configurations, LOSS)
    assert found.kind == "nothing" and said in found.verdict and found.take is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_constant_values_are_no_evidence() -> None:
    found = bench.conclude(sweep({"a": 1.0, "b": 2.0}, 5, sd=0.0), LOSS)
    assert found.kind == "open" and "seeds do not act as repeats" in found.notes[0]
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_spread_of_a_value_is_not_that_between_its_two_groups_of_seeds() -> None:
    """Fresh seeds that are far from the others do not widen the interval that they move."""

    def value(alone: Sequence[float]) -> bench.Estimate:
        shared = {"a": [0.0, 0.1, -0.1], "b": [9.1, 9.0, 8.8]}
        rows = {name: dict(enumerate(values)) for name, values in shared.items()}
        rows["a"] |= {3 + i: v for i, v in enumerate(alone)}
        found = bench.conclude([bench.Configuration(n, v) for n, v in rows.items()], bench.terms())
        assert found.value is not None and found.value.seeds == 2
        return found.value

    near, far = value([0.0, 0.1]), value([1.0, 1.1])
    assert far.value == pytest.approx(1.05)
    assert far.high - far.low == pytest.approx(near.high - near.low)


def test_what_did_not_finish_is_named_and_not_claimed() -> None:
    stopped = bench.Configuration("s", {0: 0.1, 1: 0.1}, status="stopped", reason="rung 10")
    failed = bench.Configuration("f", {}, status="failed", reason="loss became nan")
    once = bench.Configuration("o", {0: 0.2})
    found = bench.conclude([*sweep({"a": 1, "b": 2}, 4), stopped, failed, once], LOSS)
    assert found.leader == "a"
    assert {one.name: one.reason for one in found.left_out} == {
        "s": "stopped: rung 10",
        "f": "failed: loss became nan",
        "o": "seen with one seed only",
    }
    assert "3 configurations do not compete" in " ".join(found.notes)


def test_missing_seeds_and_unpaired_ones() -> None:
    a, b, c = sweep({"a": 1.0, "b": 1.2, "c": 1.4}, 6)
    b.values.pop(2)  # type: ignore[attr-defined]
    found = bench.conclude([a, b, c], LOSS)
    assert found.rivals[0].shared == 5 and "1 have fewer seeds" in " ".join(found.notes)
    apart = bench.Configuration("d", {s + 100: v for s, v in c.values.items()})
    assert "no seeds are shared" in " ".join(bench.conclude([a, apart], LOSS).notes)


def test_seeds_that_chose_the_leaders_do_not_judge_them() -> None:
    pair = sweep({"a": 1.0, "b": 1.3}, 7)
    lucky = [bench.Configuration(c.name, {**c.values, 0: 0.0}) for c in pair]
    found = bench.conclude(lucky, LOSS, chosen_by=[0])
    assert found.rivals[0].seeds == 6 and "fresh seeds only" in found.notes[0]
    assert found.value is not None and found.value.value > 0.9
    assert "flatter" in bench.conclude(lucky, LOSS, chosen_by=range(7)).notes[0]
    single = [bench.Configuration(name, {0: 1.0}) for name in "ab"]
    assert not bench.conclude(single, LOSS, chosen_by=[0]).notes, "nobody was judged"


def shares(sizes: Sequence[int], *, peers: int = 0) -> list[float]:
    """Of alpha, of each configuration in batches of these sizes, `peers` in the last one in all."""
    batches = [batch for batch, size in enumerate(sizes) for _ in range(size)]
    rows = [
        bench.Configuration(
            str(i), {0: 0.0, 1: 1.0}, batch=b, peers=peers if b == batches[-1] else 0
        )
        for i, b in enumerate(batches)
    ]
    return list(table(rows, direction="max").shares)


@pytest.mark.parametrize("sizes", [(2,), (3, 5), (2, 1, 1, 1, 1), (1, 1, 1, 1), (12,) * 30])
def test_all_shares_of_alpha_together_are_no_more_than_alpha(sizes: tuple[int, ...]) -> None:
    assert sum(shares(sizes)) <= 1
    if len(sizes) == 1 or sum(sizes[:-1]) < 2:
        return
    before = shares(sizes[:-1])
    assert shares(sizes)[: len(before)] == before, "what was claimed stays claimed"


def test_a_batch_that_comes_one_by_one_spends_nothing_early() -> None:
    assert shares([3], peers=12) == shares([12])[:3]
    assert shares([12, 2], peers=4)[-1] == shares([12, 4])[-1]
    assert shares([5], peers=3) == shares([5])


def test_the_first_two_are_judged_as_one_batch_and_hardly_pay_for_what_may_come() -> None:
    assert shares([1, 1]) == shares([2]), "of one alone nothing could be claimed"
    pair = sweep({"a": 1.0, "b": 1.05}, 6)
    found = bench.conclude(pair, LOSS)
    half = (found.rivals[0].high - found.rivals[0].low) / 2
    values = np.array([list(c.values.values()) for c in pair])
    alone = contest(-values, zone=0, alpha=0.05, shares=np.array([0.5, 0.5])).duels.half_width.max()
    assert alone < half < 1.04 * alone


def test_what_is_added_later_is_judged_more_strictly() -> None:
    known = sweep({"a": 1.0, "b": 1.05, "c": 1.1}, 6)
    together = bench.conclude(known, LOSS).rivals[-1]
    c = bench.Configuration("c", known[2].values, batch=1)
    added = bench.conclude([*known[:2], c], LOSS).rivals[-1]
    assert added.name == together.name == "c" and added.behind_by == together.behind_by
    assert added.low < together.low and added.p_always > together.p_always


def test_bad_terms() -> None:
    for options, said in (
        ({"alpha": 0}, "alpha"),
        ({"zone": -1}, "zone"),
        ({"zone": math.nan}, "zone"),
        ({"looks": 0}, "looks"),
        ({"direction": "up"}, "'min' or 'max'"),
        ({"metric": "f1"}, "say which way 'f1' is better: direction 'min' or 'max'$"),
        ({"metric": "eval/acuracy"}, "did you mean 'eval/accuracy'"),
    ):
        with pytest.raises(ConfigError, match=said):
            bench.terms(**options)  # type: ignore[arg-type]
    assert bench.terms("f1", "max").direction == "max" and bench.terms().direction == "min"
    with pytest.raises(ConfigError, match="no configuration 'x'"):
        bench.conclude(sweep({"a": 1, "b": 2}, 2), LOSS, control="x")
    with pytest.raises(ConfigError, match="two configurations are called 'a'"):
        bench.conclude(sweep({"a": 1}, 2) * 2, LOSS)


class Runs:
    """Answers what `next_seeds` asks for."""

    def __init__(self, means: Mapping[str, float], **options: object) -> None:
        self.means, self.options = means, options
        self.values: dict[str, dict[int, float]] = {name: {} for name in means}
        self.shared: dict[int, float] = {}

    def configurations(self) -> list[bench.Configuration]:
        return [bench.Configuration(n, dict(v)) for n, v in self.values.items()]

    def run(self, agreed: bench.Terms) -> bench.NextSeeds:
        for _ in range(100):
            asked = bench.next_seeds(self.configurations(), agreed, **self.options)  # type: ignore[arg-type]
            assert len(set(asked.runs)) == len(asked.runs)
            if not asked.runs:
                return asked
            for name, seed in asked.runs:
                assert seed not in self.values[name], "nothing is run twice"
                common = self.shared.setdefault(seed, RNG.normal())
                self.values[name][seed] = self.means[name] + common + RNG.normal(0, 0.3)
        raise AssertionError("it does not end")


def test_seeds_go_to_those_who_may_still_win() -> None:
    runs = Runs({"a": 1.0, "b": 1.3, "c": 4.0})
    asked = runs.run(bench.terms(zone=0.5))
    assert asked.settled and asked.leader == "a"
    assert len(runs.values["c"]) == 3 < len(runs.values["b"])
    alone = set(runs.values["a"]) - set(runs.values["b"])
    assert len(alone) == 2
    found = bench.conclude(runs.configurations(), bench.terms(zone=0.5))
    assert found.kind in ("tie", "winner")
    assert found.value is not None and found.value.seeds == 2


def test_leaders_are_chosen_by_exploring_seeds_and_judged_by_others() -> None:
    runs = Runs({f"c{i}": float(i) for i in range(8)}, chosen_by=(0,), leaders=3)
    for name, mean in runs.means.items():
        runs.values[name][0] = mean
    asked = runs.run(bench.terms(zone=0.5))
    assert asked.settled and asked.leader == "c0"
    assert [n for n, v in runs.values.items() if len(v) > 1] == ["c0", "c1", "c2"]


def test_limits_end_it_unsettled() -> None:
    equal = {"a": 1.0, "b": 1.0}
    few = Runs(equal, most_seeds=4).run(bench.terms())
    assert not few.settled and "open after 4 seeds" in few.reason
    short = Runs(equal, most_runs=5).run(bench.terms())
    assert not short.settled and "5 runs do not suffice" in short.reason


def test_failed_seeds_are_not_asked_for_again() -> None:
    a = bench.Configuration("a", {0: 1.0, 1: 1.1, 2: 0.9})
    b = bench.Configuration("b", {0: 1.3, 1: 1.2}, missing_seeds=(2,))
    asked = bench.next_seeds([a, b], bench.terms())
    assert asked.runs == (("a", 3), ("b", 3))


def test_nothing_to_ask_for() -> None:
    assert bench.next_seeds(sweep({"a": 1}, 1), LOSS).settled
    same = bench.next_seeds(sweep({"a": 1, "b": 2}, 3, sd=0), LOSS)
    assert not same.runs and "the seeds change nothing" in same.reason
    with pytest.raises(ConfigError, match="say which"):
        bench.next_seeds([], LOSS, leaders=3)
