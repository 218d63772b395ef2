"""`[steps]`: steps of one's own on every trained trial."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from crucible_tinkex.config.section import Section, as_value_error
from crucible_tinkex.names import check_segment
from crucible_tinkex.user_code import FUNCTION

TRAINING = "tinkex_training"
"""The harness's name of the step that every trial begins with: its own training."""


class StepsSection(Section):
    """Functions that look at every trial when it was trained to its last step (`docs/python.md`).
    They are a part of the trial's identity."""

    after: tuple[str, ...] = ()
    """`module:function`, in order. Each takes a `harness.StepContext` and gives JSON values. The
    first may be `tinkex_training`, the trial's own training, which comes first anyway."""
    on_error: Literal["abort", "skip", "retry"] = "abort"
    """Of a step that raises: the trial fails, goes on without its result, or tries again (3 times
    at most)."""
    hooks: str | None = None
    """`module:function` that gives the `harness.Hooks` around the steps; its `on_error` wins."""
    plan: str | None = None
    """In place of `after`: `module:name` of a `harness.Plan`, or of a function that adds steps to
    one, with its hooks. `register_training_step` stands there for the trial's own training."""

    @field_validator("after", "hooks", "plan", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, list | tuple):
            return tuple(_import_path(one) for one in given)
        return _import_path(given)

    @field_validator("after")
    @classmethod
    def _functions(cls, after: tuple[str, ...]) -> tuple[str, ...]:
        if after[:1] == (TRAINING,):
            after = after[1:]
        names = [_named(step) for step in after]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"there are two steps {name!r}; rename one of the functions")
        return after

    @field_validator("hooks", "plan")
    @classmethod
    def _function(cls, name: str | None) -> str | None:
        if name is not None:
            _named(name)
        return name

    @model_validator(mode="after")
    def _one_way(self) -> StepsSection:
        if self.plan is not None and self.after:
            raise ValueError("after and plan are two ways to say it: add those steps to the plan")
        return self

    @property
    def any(self) -> bool:
        return bool(self.after or self.plan)

    @property
    def functions(self) -> dict[str, str]:
        """What is imported by name, and what messages call it."""
        found = {**dict.fromkeys(self.after, "step")}
        found |= {self.plan: "steps.plan"} if self.plan else {}
        return found | ({self.hooks: "steps.hooks"} if self.hooks else {})

    def identity(self) -> dict[str, Any]:
        """What decides a trial's results; empty without steps."""
        if not self.any:
            return {}
        return {"steps": self.model_dump(mode="json", exclude=None if self.plan else {"plan"})}


def step_name(step: str) -> str:
    """Of a step that is written `module:function`."""
    return step.rpartition(":")[2]


def _import_path(given: Any) -> Any:
    """Of a function that was given itself, where other processes can import it."""
    if given is None or isinstance(given, str):
        return given
    module, name = (str(getattr(given, a, "")) for a in ("__module__", "__qualname__"))
    if module in ("", "__main__") or not name.isidentifier():
        raise ValueError(
            f"{given!r} cannot be imported elsewhere: put it at the top of a module of its own, "
            "and give the function, or module:name"
        )
    return f"{module}:{name}"


def _named(step: str) -> str:
    if step_name(step) == TRAINING:
        raise ValueError(f"{TRAINING!r} is the trial's own training, and only stands first")
    if not FUNCTION.fullmatch(step):
        raise ValueError(f"{step!r} must be written module:function")
    with as_value_error():
        return check_segment(step_name(step), what="step name")
