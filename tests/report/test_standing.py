"""What a page says of how sure a sweep's ranking is, also where the numbers are bad."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import BROWSER, drawn

from crucible_tinkex.config import Experiment
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, SweepState
from crucible_tinkex.report.data import report_data
from crucible_tinkex.report.markdown import markdown
from crucible_tinkex.report.page import page
from crucible_tinkex.report.writing import leaderboard_csv, write_report

Value = Callable[[int, int], float | None]
NOISE = np.random.default_rng(4).normal(0, 0.01, size=(100, 40))


def swept(
    folder: Path,
    value: Value,
    *,
    ranks: Sequence[int] = (2, 4, 8),
    seeds: Sequence[int] = (0, 1, 2, 3),
    fresh: Sequence[int] = (),
    metric: str = "eval/nll",
    name: str = "s",
    over: bool = True,
) -> dict[str, Any]:
    """`value` of a rank and a seed; None: the trial lacks the metric."""
    search = {"seeds": list(seeds), "metric": metric, "confirm": "auto" if fresh else 0}
    raw = {"model": {"base": "nano"}, "data": {"train": "x", "eval": "y"}, "name": "s"}
    experiment = Experiment.build({**raw, "search": {**search, "space": {"lora.rank": [2]}}})
    paths = SweepPaths.of(folder, name)
    state = SweepState()

    def tell(kind: str, **fields: Any) -> None:
        state.apply({"type": kind, "time": 0.0, "epoch": 1, **fields})

    tell("created", meta={"sweep": "s", "experiment": experiment.stored(paths.root)}, v=2)
    tell("run", run="r")
    points = itertools.product(ranks, [*seeds, *fresh])
    for index, (rank, seed) in enumerate(points):
        trial_id = f"t{index}"
        trial = {"trial_id": trial_id, "index": index, "run_name": trial_id, "seed": seed}
        trial |= {"values": {"lora.rank": rank}, "total_steps": 6}
        trial["phase"] = "confirm" if seed in fresh else "search"
        kind = "confirm" if seed in fresh else "start"
        decision = {"kind": kind, "trial_id": trial_id, "to_step": 6, "total_steps": 6}
        tell("decision", decision={**decision, "reason": "next", "trial": trial})
        tell("attempt", trial_id=trial_id, attempt=1)
        found = value(rank, seed)
        metrics = {"train/nll": 1.0} if found is None else {metric: found, "train/nll": 1.0}
        tell("result", trial_id=trial_id, step=6, metrics=metrics)
        spent = {"train_tokens": 100 * rank}
        tell("finished", trial_id=trial_id, state=DONE, error=None, spent=spent)
    if over:
        tell("decision", decision={"kind": "end", "reason": "no trial is left"})
    return report_data(state, paths)


def clear(rank: int, seed: int) -> float:
    return {2: 1.0, 4: 1.001, 8: 1.5}.get(rank, 2.0) + float(NOISE[rank, seed % 40])


def by_rank(data: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {c["values"]["lora.rank"]: c for c in data["configurations"]}


def test_who_is_not_separable_is_marked_with_its_interval(tmp_path: Path) -> None:
    data = swept(tmp_path, clear, seeds=range(6))
    found = by_rank(data)
    leader, other = sorted((found[2], found[4]), key=lambda c: c["mean"])
    assert leader["name"] == data["conclusion"]["leader"] and "low" not in leader
    assert [c["standing"] for c in (leader, other, found[8])] == [
        "not separable",
        "not separable",
        "worse",
    ]
    assert other["low"] < leader["mean"] < other["high"], "it reaches the leader"
    assert leader["mean"] < found[8]["low"] < found[8]["mean"] < found[8]["high"]
    assert found[8]["behind_by"] == pytest.approx(0.5, abs=0.02)
    assert "training tokens) would settle it" in data["verdict"]


def test_it_lies_on_the_right_side_where_more_is_better(tmp_path: Path) -> None:
    value: Value = lambda rank, seed: clear(rank, seed) / 4  # noqa: E731
    found = by_rank(swept(tmp_path, value, seeds=range(6), metric="eval/accuracy"))
    assert found[8]["standing"] == "best"
    assert found[2]["low"] < found[2]["mean"] < found[2]["high"] < found[8]["mean"]


def test_a_reader_can_paste_the_command_that_runs_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = swept(tmp_path / "runs", clear, seeds=[0])
    assert data["reproduce"]["command"] == "crucible run runs/s/experiment.toml"
    monkeypatch.chdir(tmp_path / "..")
    far = swept(tmp_path / "a b", clear, seeds=[0])["reproduce"]["command"]
    assert far == f"crucible run '{tmp_path.name}/a b/s/experiment.toml'"


def test_fresh_seeds_are_told_from_those_of_the_search(tmp_path: Path) -> None:
    data = swept(tmp_path, clear, seeds=[0], fresh=range(10_000, 10_006))
    assert by_rank(data)[8]["fresh_seeds"] == list(range(10_000, 10_006))
    assert by_rank(data)[8]["phase"] == "confirm" and by_rank(data)[8]["n"] == 6
    assert "fresh seeds only" in data["conclusion"]["notes"][0]


def test_the_files_say_it_too(tmp_path: Path) -> None:
    data = swept(tmp_path, clear, seeds=range(6))
    head, first, *_ = leaderboard_csv([data]).splitlines()
    assert head.endswith("standing,low,high") and "not separable" in first
    assert "≈" in markdown(data) and data["verdict"] in markdown(data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"value": clear, "seeds": [0]}, "n = 1: nothing can be said of 3 configurations"),
        ({"value": lambda r, s: 1.0}, "not enough evidence"),
        ({"value": lambda r, s: 1.0 * r}, "not enough evidence"),
        ({"value": lambda r, s: math.nan}, "none of 3 configurations is complete and measured"),
        ({"value": lambda r, s: math.inf}, "none of 3 configurations is complete and measured"),
        ({"value": lambda r, s: math.nan if r == 8 else clear(r, s)}, "not"),
        ({"value": lambda r, s: None}, "none of 3 configurations is complete and measured"),
        ({"value": lambda r, s: None if (r, s) == (2, 1) else clear(r, s)}, "not"),
        ({"value": lambda r, s: None if s else clear(r, s)}, "n = 1"),
        ({"value": clear, "ranks": [2]}, "nothing to compare: only"),
        ({"value": clear, "ranks": []}, "none of 0 configurations"),
        ({"value": lambda r, s: None if r == 8 or s else clear(r, s)}, "n = 1"),
    ],
)
def test_bad_numbers_are_said_in_words(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    data = swept(tmp_path, **options)
    assert said in data["verdict"]
    json.dumps(data, allow_nan=False)
    page([data])
    markdown(data)
    leaderboard_csv([data])
    assert all(c.get("standing") != "best" for c in data["configurations"])


def near(rank: int, seed: int) -> float:
    return {2: 1.0, 4: 1.02}.get(rank, 2.0) + float(NOISE[rank, seed % 40])


def far(rank: int, seed: int) -> float:
    """So near that some hundred seeds would be needed."""
    return {2: 1.0, 4: 1.004}.get(rank, 2.0) + float(NOISE[rank, seed % 40])


@pytest.mark.parametrize(
    ("value", "options", "offered", "rarely"),
    [
        (clear, {"seeds": [0]}, True, False),
        (near, {"seeds": range(4)}, True, False),
        (near, {"seeds": range(4), "over": False}, False, False),
        # It would be left out of the confirmation, and a winner be declared without it.
        (lambda r, s: None if (r, s) == (4, 3) else near(r, s), {}, False, False),
        (near, {"seeds": [0], "fresh": range(10_000, 10_004)}, False, False),  # confirm = "auto"
        (far, {"seeds": range(4)}, False, True),
        (clear, {"seeds": [0], "ranks": [2]}, False, False),
        (lambda r, s: clear(r, s) if r == 2 else None, {"seeds": [0]}, False, False),
        (lambda r, s: 1.0 * r + float(NOISE[r, s]), {"seeds": range(8)}, False, False),  # a winner
    ],
)
def test_fresh_seeds_are_offered_where_they_may_tell_the_leaders_apart(
    tmp_path: Path, value: Value, options: dict[str, Any], offered: bool, rarely: bool
) -> None:
    data = swept(tmp_path, value, **options)
    assert (data["surer"] is not None, data["rarely_worth"]) == (offered, rarely), data["verdict"]
    if offered:
        assert data["surer"].startswith(f"crucible extend s --storage {tmp_path} --set ")


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_a_browser_shows_what_is_not_separable_in_several_sweeps(tmp_path: Path) -> None:
    confirmed = swept(tmp_path, clear, seeds=[0], fresh=range(10_000, 10_006))
    single = swept(tmp_path, clear, seeds=[0], name="single")
    dom = drawn(write_report([confirmed, single], tmp_path / "out"), tmp_path)
    assert (
        dom.count("<td>≈ best</td>") == 2
        and dom.count("<td>worse</td>") == 1
        and dom.count("<td>6 fresh</td>") == 3
    )
    assert 'href="#sweep-single"' in dom and 'id="sweep-single"' in dom
    assert "judged on fresh seeds only" in dom and "n = 1: nothing can be said" in dom
    arguments = f"single --storage {tmp_path}"
    assert f"crucible extend {arguments} --set search.confirm=auto" in dom
    assert "that both have run.</p>" not in dom
