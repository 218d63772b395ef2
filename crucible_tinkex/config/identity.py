"""What is measured and what is asked: which settings decide a trial's numbers, and which may change
while a sweep lives.

A trial is what decides its numbers; everything else is the sweep's, and a change of it is an
amendment. A change is a contradiction only where the leaderboard would then compare numbers of
different questions: another base or service, other held-out rows, or the same rows read otherwise.
What the rows *contain* is not known here: their fingerprint is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from crucible_tinkex.config.section import leaves
from crucible_tinkex.config.trial.model import NOT_APPLIED

if TYPE_CHECKING:
    from crucible_tinkex.config.experiment import Experiment
    from crucible_tinkex.config.trial.train import TrainSection

ONLY_ASKED = (
    "epochs",
    "max_steps",
    "eval_every",
    "checkpoint_every",
    "submit_ahead",
    "sampler_checkpoint",
)
"""Of `train`: how far and how often, not what is computed at a step."""
_NEWER = ("adapter", "token_weights", "weight_config")
_CONTRADICTING = (
    "model.base",
    "service.base_url",
    "service.dtype",
    "data.format",
    "data.train_on",
    "data.too_long",
    "data.eval_",
    "train.max_length",
    "evaluation.",
)
_PLACES = ("name", "run.storage", "data.train", "data.eval", "data.corpus", "model.tokenizer")
"""Where something lies; what it contains is in the data's fingerprint (as is how often the rows of
a training file are shown)."""


def trial_settings(
    experiment: Experiment, *, total_steps: int, reference: bool = False
) -> dict[str, Any]:
    """What decides the numbers of a trial, as JSON values. The caller adds the service that
    answered (with its `dtype`), the seed and the data's fingerprint.

    A learning rate that decays depends on `total_steps`; a constant one does not, so a longer trial
    is the same trial. `reference`: the untrained base, which only the evaluation decides.
    """
    measured: dict[str, Any] = {
        "model": {"base": experiment.model.base},
        "evaluation": experiment.evaluation.identity(),
        "reference": reference,
    }
    if reference:
        return measured
    not_applied = {key.removeprefix("lora.") for key in NOT_APPLIED}
    constant = experiment.optimizer.schedule == "constant"
    return {
        **measured,
        "lora": experiment.lora.model_dump(mode="json", exclude=not_applied),
        "optimizer": experiment.optimizer.model_dump(mode="json"),
        "train": _learning(experiment.train),
        **experiment.steps.identity(),
        "schedule_steps": None if constant else total_steps,
    }


def _learning(train: TrainSection) -> dict[str, Any]:
    """Losses are sums, so a step's gradient is the same however its rows are portioned out."""
    fields = train.model_dump(mode="json", exclude={*ONLY_ASKED, "accumulate"})
    # Where they say nothing, a trial is the one it was before there were such keys.
    silent = {name for name in _NEWER if not fields[name]}
    return {**{k: v for k, v in fields.items() if k not in silent}, "batch_size": train.step_rows}


def contradictions(new: Experiment, old: Experiment) -> list[str]:
    """Dotted keys that differ and that a sweep may not change."""
    found = [key for key in _differences(new, old) if _contradicts(key)]
    if (new.data.eval is None) != (old.data.eval is None):
        found.append("data.eval")
    return found


def amendments(new: Experiment, old: Experiment) -> list[str]:
    """Dotted keys that differ and that a sweep may change; places are left out."""
    return [key for key in _differences(new, old) if not _contradicts(key)]


def _contradicts(key: str) -> bool:
    return key.startswith(_CONTRADICTING)


def _differences(new: Experiment, old: Experiment) -> Iterator[str]:
    before, after = _settings(old), _settings(new)
    for key in dict.fromkeys([*before, *after]):
        if before.get(key, _ABSENT) != after.get(key, _ABSENT) and not _is_place(key):
            yield key


def _is_place(key: str) -> bool:
    return key in _PLACES or key.startswith("data.sets")


_ABSENT = object()


def _settings(experiment: Experiment) -> Mapping[str, Any]:
    settings = dict(leaves(experiment.model_dump(mode="json")))
    return {**settings, "search.direction": experiment.search.objective_direction}
