"""A harness's plan as the steps of a sweep's trials: `steps.plan`.

The same function that `harness.run` takes names the steps. Its training is the trial's own there,
so what it says of the training must be what the experiment says; conditions and repeats are what a
sweep is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.sweep.steps import TRAINING
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.training.harness.plan import DEFAULT_CONDITION, Plan, Step
from crucible_tinkex.training.tinkex.options import optimizer
from crucible_tinkex.user_code import load

WHAT = "steps.plan"
_SAME = {
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "accumulate": "train.accumulate",
    "checkpoint_every": "train.checkpoint_every",
    "eval_every": "train.eval_every",
    "submit_ahead": "train.submit_ahead",
    "loss_fn": "train.loss",
    "token_weights": "train.token_weights",
    "weight_config": "train.weight_config",
}
"""Options of `register_training_step`, and the keys of an experiment that say the same."""
_INSTEAD = {
    "adam_params": "[optimizer]",
    "eval_dataset": "data.eval",
    "seed": "search.seeds",
    "loss_fn_config": "train.loss",
    "citation_validity_weight": "train.weight_config",
    "on_evaluation": "search.stopping",
    "recovery": "run.max_attempts",
}


def load_plan(name: str) -> Plan:
    """The plan behind `module:attribute`: a `Plan`, or a function of one that adds steps. Raises
    `ConfigError` for what is neither, and for what no trial can run."""
    found = load(name, what=WHAT)
    plan = found if isinstance(found, Plan) else _defined(name, found)
    if plan.repeats != 1 or list(plan.conditions) != [DEFAULT_CONDITION]:
        raise _refused(
            name,
            "a trial is one cell; conditions are search.space or search.configs, repeats "
            "search.seeds",
        )
    trainings = [i for i, step in enumerate(plan.steps) if step.training is not None]
    if trainings not in ([], [0]):
        raise _refused(name, "a trial trains once, and first: no step stands before its training")
    if trainings and plan.steps[0].name != TRAINING:
        raise _refused(name, f"the training of a trial is called {TRAINING!r}")
    return plan


def steps_after(plan: Plan) -> list[Step]:
    """Those that look at what was trained."""
    return [step for step in plan.steps if step.training is None]


def check_plan(name: str, plan: Plan, experiment: Experiment) -> None:
    """Raises `ConfigError` where the training of the plan of this name is another than that of the
    experiment."""
    for step in plan.steps:
        for option, value in (step.training or {}).items():
            _check_option(name, option, value, experiment)


def _check_option(name: str, option: str, value: Any, experiment: Experiment) -> None:
    if option == "adam_params":
        varied = [key for key in experiment.search.space if key.startswith("optimizer.")]
        if varied or optimizer(experiment.optimizer, value) != experiment.optimizer:
            but = f"the search varies {varied[0]}" if varied else "[optimizer] says another"
            raise _contradicts(name, option, but)
        return
    key = _SAME.get(option)
    if key is None:
        instead = _INSTEAD.get(option)
        hint = f"; {instead} says it" if instead else ""
        raise _refused(name, f"a sweep's training has no {option}{hint}")
    said = getattr(experiment.train, key.removeprefix("train."))
    varies = key in experiment.search.space
    if varies or _plain(value) != _plain(said):
        but = f"the search varies {key}" if varies else f"{key} = {said!r}"
        raise _contradicts(name, f"{option} = {value!r}", but)


def _defined(name: str, define: Any) -> Plan:
    if not callable(define):
        raise _refused(name, "it must be a Plan, or a function that adds steps to one")
    plan = Plan(name)
    try:
        given = define(plan)
    except ConfigError as error:
        raise _refused(name, error.message) from error
    except Exception as error:
        raise _refused(name, f"it raised {type(error).__name__}: {error}") from error
    return given if isinstance(given, Plan) else plan


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _contradicts(name: str, said: str, but: str) -> ConfigError:
    return _refused(
        name, f"its training has {said}, but {but}; leave it out of register_training_step"
    )


def _refused(name: str, why: str) -> ConfigError:
    return ConfigError(f"{WHAT} {name!r}: {why}")
