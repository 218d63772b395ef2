"""How a session trains: the seed's names and defaults, checked before anything is sent.

Optimizer numbers have the seed's names too (`lr`, `adam_beta1`, `max_grad_norm`, ...); what is not
given has the official SDK's default, not the original's, which never reached the service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import ValidationError

from crucible_tinkex.config import OptimizerSection
from crucible_tinkex.config.problems import explain
from crucible_tinkex.config.trial.train import DEFAULT_EPOCHS, asked_steps
from crucible_tinkex.errors import ConfigError, did_you_mean
from crucible_tinkex.training.losses.gradient_hooks import Hook
from crucible_tinkex.training.recipes.recipe import CustomLossMaker

_ADAM = {
    "lr": "learning_rate",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "epsilon": "eps",
    "adam_epsilon": "eps",
    "max_grad_norm": "grad_clip_norm",
}


@dataclass(frozen=True)
class RecoveryPolicy:
    """What `train` does when the service lost the session, or failed: open another one and go on
    from a checkpoint. The client has repeated every call for minutes before it comes to that."""

    enabled: bool = False
    max_attempts: int = 3
    base_s: float = 5.0
    cap_s: float = 60.0
    checkpoint: str = "latest"
    """`latest`, `best`, or the name or path of one."""
    restore_optimizer: bool = True

    def delay_s(self, attempt: int) -> float:
        """Before attempt 1, 2, ...: doubled each time, at most `cap_s`."""
        return min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 20))


@dataclass(frozen=True)
class TrainOptions:
    """What `train` takes by name."""

    epochs: float | None = None
    """Passes over the rows; 1 if neither this nor `max_steps` is given."""
    max_steps: int | None = None
    """Alone, exactly so many steps; with `epochs`, the smaller of the two."""
    batch_size: int = 8
    accumulate: int = 1
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step is always saved. 0: only the last."""
    eval_every: int = 0
    """Steps between evaluations on `eval_dataset`; the last step is always evaluated."""
    loss_fn: str | Mapping[str, float] | CustomLossMaker = "cross_entropy"
    """A name of the `LossRegistry`, `{name: weight}` for a composite, or a maker."""
    loss_fn_config: Mapping[str, float] | None = None
    token_weights: str | None = None
    """A token-weight scheme by name; `loss_fn` may name one as well."""
    weight_config: Mapping[str, float] = field(default_factory=dict)
    citation_validity_weight: float | None = None
    adam_params: Mapping[str, Any] | None = None
    seed: int | None = None
    submit_ahead: int = 1
    gradient_hooks: Sequence[str | tuple[str, Hook]] = ()
    generate: bool = True
    """Also measure `eval/accuracy`."""
    on_step_end: Callable[[dict[str, Any]], object] | None = None
    on_epoch_end: Callable[[int], object] | None = None
    on_checkpoint: Callable[[Any], object] | None = None
    on_evaluation: Callable[[int, Mapping[str, float]], object] | None = None
    """Gets the session's step and its held-out metrics; where it gives "fail", the training ends
    there, saved."""
    recovery: RecoveryPolicy = RecoveryPolicy()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainOptions:
        """Raises `ConfigError` for an unknown name, with the nearest, or a wrong number."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                legal = ["eval_dataset", *known]  # the session's own
                hint = did_you_mean(name, legal)
                raise ConfigError(f"train has no option {name!r}; {hint}it has {', '.join(legal)}")
        options = cls(**given)
        for name, least in (
            ("batch_size", 1),
            ("accumulate", 1),
            ("checkpoint_every", 0),
            ("eval_every", 0),
            ("submit_ahead", 0),
            ("max_steps", 1),
        ):
            value = getattr(options, name)
            if value is None and name == "max_steps":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"train: {name} = {value!r} must be a whole number, >= {least}")
        epochs = DEFAULT_EPOCHS if options.epochs is None else options.epochs
        if not (isinstance(epochs, int | float) and 0 < epochs < float("inf")):
            raise ConfigError(f"train: epochs = {options.epochs!r} must be a positive number")
        return options

    @property
    def step_rows(self) -> int:
        """Rows that a step learns from."""
        return self.batch_size * self.accumulate

    def steps(self, rows: int) -> int:
        """Steps over `rows` rows, as a sweep counts them."""
        return asked_steps(rows, self.epochs, self.max_steps, batch_size=self.step_rows)

    @property
    def weighing(self) -> dict[str, float]:
        """The numbers of the token-weight scheme."""
        own = self.citation_validity_weight
        return {**self.weight_config, **({} if own is None else {"citation_validity_weight": own})}


def optimizer(base: OptimizerSection, given: Mapping[str, Any] | None) -> OptimizerSection:
    """`base` with what `given` names, under the seed's names or ours. Raises `ConfigError`."""
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"train: adam_params = {given!r} must be a table, such as {{'lr': 1e-4}}")
    changed = {_ADAM.get(name, name): value for name, value in (given or {}).items()}
    try:
        return OptimizerSection.model_validate({**dict(base), **changed})
    except ValidationError as error:
        raise ConfigError(
            explain(error, source="train", model=OptimizerSection, section="adam_params")
        ) from None
