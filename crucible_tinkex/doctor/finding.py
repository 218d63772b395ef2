"""What one check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from crucible_tinkex.errors import CrucibleError

State: TypeAlias = Literal["ok", "note", "failed"]


class Note(str):
    """Said of what works, and could be better."""


class Check(NamedTuple):
    """Something to look at. `look` says what is so; it raises `CrucibleError` where that keeps a
    run from working."""

    name: str
    look: Callable[[], str]


@dataclass(frozen=True)
class Finding:
    """`exit_code`: that of the error that a run would end with; 0 where it would not."""

    name: str
    state: State
    says: str
    exit_code: int = 0


def looked(check: Check) -> Finding:
    """What the check says, an error as its words."""
    try:
        says = check.look()
    except CrucibleError as e:
        return Finding(check.name, "failed", str(e), e.exit_code)
    return Finding(check.name, "note" if isinstance(says, Note) else "ok", says)
