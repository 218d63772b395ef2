"""What people read at 80 columns: nothing cut, seeds together, ties and gaps marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from crucible_tinkex.cli.terminal.live import trials_table
from crucible_tinkex.cli.terminal.tables import (
    leaderboard_table,
    plain_console,
    plain_table,
    print_rows,
    print_sentences,
    verdict,
)
from crucible_tinkex.registry import DONE, FAILED, PERSON, RUNNING, STOPPED, SweepState, TrialRecord
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.sweep.results.views.view import TrialView

AXES = {"lora.rank": 16, "optimizer.learning_rate": 0.0003}


def make_trial(index: int, nll: float | None, *, seed: int = 0, **more: Any) -> TrialRecord:
    values = more.pop("values", {**AXES, "lora.rank": index // 10})
    trial = TrialRecord(f"t{index}", index, f"{index:04}", values, seed, 57, state=DONE, step=57)
    if nll is not None:
        trial.metrics = {"eval/nll": nll, "eval/accuracy": 0.5, "train/nll": 1.0}
        trial.metrics_step, trial.results = 57, {57: trial.metrics}
    return replace(trial, **more)


def make_state(trials: Sequence[TrialRecord], seeds: Sequence[int] = (0,)) -> SweepState:
    search = {"metric": "eval/nll", "seeds": list(seeds)}
    meta = {"sweep": "quickstart", "experiment": {"search": search}}
    return SweepState(version=2, meta=meta, trials={t.trial_id: t for t in trials})


def shown(table: Table, width: int = 80) -> str:
    console: Console = plain_console(width=width, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_seeds_are_one_row_with_what_decided() -> None:
    state = make_state([make_trial(10, 1.0), make_trial(11, 2.0, seed=1)], seeds=(0, 1))
    text = shown(leaderboard_table(state))
    assert "by eval/nll (min, last step)" in text
    assert "1.5000 ± 6.3531" in text
    assert "57/57" in text
    assert text.count("done") == 1
    assert "1.5000 ± 6.3531 over 2 seeds" in verdict(state)


def test_ties_share_a_place_and_are_named() -> None:
    state = make_state([make_trial(10, 1.0), make_trial(20, 1.0), make_trial(30, 2.0)])
    rows = shown(leaderboard_table(state)).splitlines()
    places = [row.split()[0] for row in rows if "done" in row]
    assert places == ["1=", "1=", "3"]
    assert "tied with it: lora.rank = 2" in verdict(state)


def test_a_missing_seed_keeps_a_configuration_from_a_place() -> None:
    failed = make_trial(11, None, seed=1, state=FAILED, error="its loss became NaN")
    trials = [make_trial(10, 1.0), failed, make_trial(20, 2.0), make_trial(21, 2.0, seed=1)]
    state = make_state(trials, seeds=(0, 1))
    rows = [row.split() for row in shown(leaderboard_table(state)).splitlines() if "57/57" in row]
    assert rows[0][0] == "1"
    assert rows[1][0] == "-"
    assert "1/2" in rows[1]
    assert "failed: 0011: its loss became NaN" in verdict(state)


@pytest.mark.parametrize("axes", [2, 4, 9])
@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut(axes: int, width: int) -> None:
    values = {f"optimizer.setting_{i}": 0.000123 * i for i in range(1, axes + 1)}
    trials = [make_trial(i, i / 7, values={**values, "lora.rank": i}) for i in range(3)]
    text = shown(leaderboard_table(make_state(trials), width=width), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for value in ("setting_1", "0.000123", "0.1429", "57/57", "done"):
        assert value in text, text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_only_the_name_of_a_running_trial_is_cut(width: int) -> None:
    name = "0001-rank=16-lr=0.00512-schedule=linear-warmup_steps=2-batch_size=8-adapter=long-s0"
    trial = make_trial(1, 12.3456, state=RUNNING, run_name=name, step=7)
    view = TrialView(trial, {"step": 7, "train/nll": 1.0})
    table = trials_table([view], Objective("eval/nll", "min"), width=width)
    text = shown(table, width)
    assert max(map(len, text.splitlines())) <= width
    for value in ("0001-rank", "7/57", "1.0000", "12.3456", "eval/nll", "running"):
        assert value in text, text
    rows = [line for line in text.splitlines() if "running" in line or "-s0" in line]
    assert len(rows) == 1, "a name is cut, not wrapped"
    assert name in shown(trials_table([view], Objective("eval/nll", "min"), width=160), 160)


def test_only_what_was_tried_again_says_so() -> None:
    def told(**more: Any) -> str:
        trial = TrialView(make_trial(10, 1.0, state=RUNNING, step=3, **more), {})
        return shown(trials_table([trial], Objective("eval/nll", "min", "final"), width=80))

    assert "(try 3)" in told(attempt=4, retries=2)
    assert "(try" not in told(attempt=2)


def test_stopped_is_amber() -> None:
    table = leaderboard_table(make_state([make_trial(10, 1.0), make_trial(20, 2.0, state=STOPPED)]))
    styles = {str(cell): cell.style for cell in table.columns[-1]._cells}  # type: ignore[union-attr]
    assert styles == {"done": "green", "stopped": "yellow"}
    assert "stopped early: 1 of 1" in verdict(make_state([make_trial(20, 2.0, state=STOPPED)]))
    by_hand = make_trial(30, 2.0, state=STOPPED, hold=PERSON)
    both = verdict(make_state([by_hand, make_trial(20, 2.0, state=STOPPED)]))
    assert "stopped early: 2 of 2 trials, 1 by hand" in both


def test_the_step_that_counts_is_the_one_that_is_shown() -> None:
    trial = make_trial(10, 3.0)
    trial.results = {0: {"eval/nll": 9.0}, 57: trial.metrics}
    trial.reference = True
    state = make_state([trial])
    state.meta["experiment"]["search"]["at"] = "best"
    text = " ".join(shown(leaderboard_table(state)).split())
    assert "best step with a checkpoint" in text
    assert "0/57" in shown(leaderboard_table(state))


def test_a_state_of_a_trial_that_runs_is_the_configurations() -> None:
    state = make_state([make_trial(10, None, state=RUNNING)])
    assert "running" in shown(leaderboard_table(state))
    assert verdict(state) == "no configuration is complete yet"


@pytest.mark.parametrize("width", [40, 160])
def test_rows_that_people_copy_from_are_never_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes stdout for a terminal
    monkeypatch.setenv("TERM", "xterm")
    path = f"tinker://{'0' * 36}:train:0/sampler_weights/{'a' * 32}"
    table = plain_table()
    for head in ("trial", "step", "path"):
        table.add_column(head, no_wrap=True)
    table.add_row("0001-lr=0.001", "20", path)
    print_rows(table)
    shown = capsys.readouterr().out
    assert path in shown and "0001-lr=0.001" in shown and "step" in shown
    assert ("--- 1" in shown) == (width == 40)


def test_a_terminal_gets_whole_words_and_a_pipe_whole_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    said = f"best: of two\n      eval/nll [b]0.5\n{'seven words ' * 9}are said of /{'long' * 20}"
    print_sentences(said)
    assert capsys.readouterr().out == f"{said}\n"
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes stdout for a terminal
    print_sentences(said)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == said.splitlines()[:2]
    assert " ".join(line.strip() for line in lines).split() == said.split()
    assert len(lines) > 4 and all(len(line.rstrip()) <= 40 for line in lines[:-1])


def test_a_better_mean_below_a_worse_one_is_explained() -> None:
    """The leader has run a seed more, and that one was a hard one."""
    losses = {(1, 10_000): 1.0, (1, 10_001): 2.0, (1, 10_002): 3.3, (2, 10_000): 1.1}
    losses[2, 10_001] = 2.1
    found = [make_trial(10 * rank, 1.0) for rank in (1, 2)]
    for (rank, seed), loss in losses.items():
        values = {**AXES, "lora.rank": rank}
        found.append(make_trial(len(found), loss, seed=seed, phase="confirm", values=values))
    state = make_state(found)
    assert "shared" not in str(leaderboard_table(state).title)
    state.meta["experiment"]["search"]["confirm"] = "auto"
    table = leaderboard_table(state)
    assert "placed on shared seeds" in str(table.title)
    means = list(table.columns[table_heads(table).index("eval/nll")].cells)
    assert [str(m).split()[0] for m in means] == ["2.1000", "1.6000"]
    state.trials.popitem()
    found[4].results[57]["eval/nll"] = 1.5
    assert "shared" not in str(leaderboard_table(state).title), "as the means say"


def table_heads(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]
