"""What finished sweeps on disk teach a prior."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from local_sweeps import Bench

from crucible_tinkex.config import ModelSection, SearchSection
from crucible_tinkex.registry import DONE, PERSON, STOPPED
from crucible_tinkex.search.auto_settings import chosen
from crucible_tinkex.search.learned.priors import Question, suggest
from crucible_tinkex.search.learned.records import published
from crucible_tinkex.sweep.preparing.experience import finished_trials, records_of

ASSETS = Path(__file__).parent.parent / "assets"


def test_every_trial_that_is_done_is_a_record_and_the_reference_is_not(tmp_path: Path) -> None:
    state = Bench(tmp_path).run()
    records, unread = finished_trials(tmp_path)
    assert not unread and len(records) == 6 < len(state.trials)
    assert {(r.base, r.batch_size, r.steps) for r in records} == {("nano", 4, 8)}
    found = {(r.learning_rate, r.rank): r.metric for r in records}
    for trial in state.trials.values():
        if not trial.reference:
            key = trial.values["optimizer.learning_rate"], trial.values["lora.rank"]
            assert found[key] == trial.metrics["eval/nll"]


def test_a_sweep_in_which_one_trial_went_to_the_end_is_experience(tmp_path: Path) -> None:
    """Its rule stopped the others for that one, at which the next sweep begins."""
    stopping = {"rule": "topk", "first_rung": 2, "keep": 1}
    state = Bench(tmp_path, search={"stopping": stopping}).run()
    (winner,) = (t for t in state.trials.values() if t.state == DONE and not t.reference)
    records, _ = finished_trials(tmp_path)
    assert [r.outdone for r in records] == [False] + [True] * 5
    assert min(r.metric for r in records) == records[0].metric == winner.metrics["eval/nll"]
    prior = suggest(records, Question("nano", 4, 8, ranks=(2, 8)), count=1)
    assert prior.suggestions[0].values == winner.values and prior.in_range


def test_what_a_person_stopped_is_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.run()
    trial = next(t for t in state.trials.values() if not t.reference)
    trial.state, trial.hold = STOPPED, PERSON
    assert len(list(records_of(state))) == 5


def test_what_does_not_vary_is_read_off_the_declaration(tmp_path: Path) -> None:
    space = {"optimizer.learning_rate": [1e-4, 1e-3], "optimizer.beta1": [0.8, 0.9]}
    Bench(tmp_path, lora={"rank": 5}, search={"space": space}).run()
    records, _ = finished_trials(tmp_path)
    assert {r.rank for r in records} == {5}
    assert len({r.sweep for r in records}) == 2, "one curve for each of what else varies"


def test_the_own_sweep_is_what_a_prior_guesses_from(tmp_path: Path) -> None:
    Bench(tmp_path).run()
    records, _ = finished_trials(tmp_path)
    best = min(records, key=lambda r: r.metric)
    prior = suggest(records, Question("nano", 4, 8, ranks=(2, 8)), count=1)
    assert prior.in_range and prior.suggestions[0].values["lora.rank"] == best.rank
    assert prior.suggestions[0].loss < 0.5


def test_a_storage_decides_for_its_own_base_and_says_nothing_of_another(tmp_path: Path) -> None:
    """Through the journal, beside the published grids, whose nearest model is no toy."""
    bench = Bench(tmp_path)
    bench.run()
    records, _ = finished_trials(tmp_path)
    best = min(records, key=lambda r: r.metric)
    search = SearchSection(strategy="auto")
    asked = bench.experiment.model_copy(update={"search": search})
    found = chosen(asked, steps=8, records=[*published(), *records])
    assert found.experiment.search.enqueue[0]["optimizer.learning_rate"] == best.learning_rate
    assert any("finished sweep of nano in this storage" in note for note in found.notes)
    other = asked.model_copy(update={"model": ModelSection(base="smollm2-135m-instruct")})
    assert any("say nothing of" in n for n in chosen(other, steps=8, records=records).notes)
    assert chosen(other, steps=8, records=[*published(), *records]).notes == (
        chosen(other, steps=8, records=published()).notes
    )


def test_another_loss_is_another_way(tmp_path: Path) -> None:
    Bench(tmp_path, lora={"train_mlp": False}).run()
    records, _ = finished_trials(tmp_path)
    assert {r.way for r in records} == {"lora.train_mlp = False"}


def test_old_journals_are_read_and_damaged_ones_named(tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "sweep-0.1.0", tmp_path / "old")
    shutil.copytree(ASSETS / "sweep-0.1.0", tmp_path / "torn")
    for path in (tmp_path / "torn" / "journal").iterdir():
        path.write_bytes(b"\0" * 64 + path.read_bytes()[64:])
    (tmp_path / "notes.txt").write_text("no sweep")
    (tmp_path / "empty").mkdir()
    records, unread = finished_trials(tmp_path)
    assert records and unread == ["torn"]
    assert all(r.metric > 0 for r in records)


def test_a_sweep_that_only_starts_is_named_where_it_is_damaged(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (begun / "journal").mkdir(parents=True)
    (begun / "resolved.json").write_text('{"x":')
    assert finished_trials(tmp_path) == ([], ["begun"])


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_no_storage_no_experience(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    assert finished_trials(tmp_path / place) == ([], [])
