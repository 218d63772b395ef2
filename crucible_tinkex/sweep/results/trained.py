"""One trained trial of a sweep on disk, and the checkpoint that stands for it."""

from __future__ import annotations

from dataclasses import dataclass

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import CheckpointRecord, SweepState, TrialRecord
from crucible_tinkex.sweep.results.leaderboard import Objective, best
from crucible_tinkex.sweep.results.views.summary import read_state


@dataclass(frozen=True)
class Trained:
    """`checkpoint` is of the step whose value counts, for sampling where there is such a one."""

    paths: SweepPaths
    experiment: Experiment
    """That of the trial."""
    trial: TrialRecord
    checkpoint: CheckpointRecord

    @classmethod
    def find(cls, paths: SweepPaths, name: str | None = None) -> Trained:
        """The trial of this id, name or number; by default the best. Raises `ConfigError`."""
        state = read_state(paths)
        trial = chosen_trial(state, name)
        whole = Experiment.loaded(state.meta["experiment"], folder=paths.root)
        checkpoint = counting_checkpoint(trial, Objective.of(state))
        return cls(paths, whole.configured(trial.values), trial, checkpoint)

    @property
    def base(self) -> str:
        return self.experiment.model.base


def chosen_trial(state: SweepState, name: str | None) -> TrialRecord:
    """By one of its `names`; None: the best trial of the best configuration."""
    if name is None:
        winner = best(state)
        if winner is None:
            raise ConfigError(
                "no configuration of this sweep is complete, so none is the best; name a trial "
                "(`crucible status` shows them)"
            )
        return winner.best_trial
    [trial] = state.named([name])
    return trial


def counting_checkpoint(trial: TrialRecord, objective: Objective) -> CheckpointRecord:
    """Of the step that ranks the trial; of its newest step where that one has none."""
    if trial.reference:
        raise ConfigError(f"trial {trial.run_name} is the untrained base model: it has no weights")
    step = objective.step(trial)
    for among in ([c for c in trial.all_checkpoints if c.step == step], trial.all_checkpoints):
        if among:
            return max(among, key=lambda c: (c.step, c.kind == "sampler", c.attempt))
    raise ConfigError(f"trial {trial.run_name} has no checkpoint yet; it is {trial.state}")
