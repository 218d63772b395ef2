"""What trials are called."""

from __future__ import annotations

from dataclasses import replace

from sweep_states import Journal

from crucible_tinkex.sweep.deciding.planner import Planner


def test_only_the_untrained_base_is_called_base() -> None:
    journal = Journal(search={"reference": True, "space": {}})
    journal.decide()
    names = [t.run_name for t in journal.state.trials.values()]
    assert sorted(names) == ["0000-base-s0", "0001-s0"]


def test_a_trial_keeps_the_name_that_the_journal_has() -> None:
    """What it is called now may differ, and its curves and messages would have two names."""
    journal = Journal(search={"space": {"lora.rank": [4]}})
    journal.decide()
    (trial,) = journal.state.trials.values()
    assert trial.run_name == "0000-rank=4-s0"
    planner = Planner(journal.experiment, rows=20, fingerprint="f")
    assert planner.of(replace(trial, run_name="0000-older")).run_name == "0000-older"
