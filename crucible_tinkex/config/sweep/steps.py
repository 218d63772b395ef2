"""`[steps]`: steps of one's own on every trained trial."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import field_validator

from crucible_tinkex.config.section import Section
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import check_segment

TRAINING = "tinkex_training"
"""The harness's name of the step that every trial begins with: its own training."""
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


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

    @field_validator("hooks")
    @classmethod
    def _function(cls, hooks: str | None) -> str | None:
        if hooks is not None:
            _named(hooks)
        return hooks

    def identity(self) -> dict[str, Any]:
        """What decides a trial's results; empty without steps."""
        return {"steps": self.model_dump(mode="json")} if self.after else {}


def step_name(step: str) -> str:
    """Of a step that is written `module:function`."""
    return step.rpartition(":")[2]


def _named(step: str) -> str:
    if step_name(step) == TRAINING:
        raise ValueError(f"{TRAINING!r} is the trial's own training, and only stands first")
    if not _FUNCTION.fullmatch(step):
        raise ValueError(f"{step!r} must be written module:function")
    try:
        return check_segment(step_name(step), what="step name")
    except ConfigError as e:
        raise ValueError(e.message) from None
