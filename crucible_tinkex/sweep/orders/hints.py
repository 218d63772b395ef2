"""Command lines that are shown to people, so quoted that they can be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crucible_tinkex.config.sweep.run import DEFAULT_STORAGE
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import FAIL_FAST, SweepState
from crucible_tinkex.sweep.deciding.budget import BUDGET, more_budget
from crucible_tinkex.sweep.deciding.proposing.confirming import AUTO
from crucible_tinkex.sweep.results.leaderboard import Configuration, configurations

if TYPE_CHECKING:
    from crucible_tinkex.bench import Conclusion

WORTH_SEEDS = 20


def sweep_arguments(paths: SweepPaths) -> str:
    """How to name a sweep on the command line, from the current folder."""
    return f"{shlex.quote(paths.root.name)}{_storage_argument(paths)}"


def no_sweep(paths: SweepPaths) -> ConfigError:
    """What to say where there is none."""
    name, storage = paths.root.name, paths.root.parent
    if not storage.exists():
        return ConfigError(f"no sweep {name!r}: there is no folder {storage}; --storage names one")
    listing = f"crucible list{_storage_argument(paths)}"
    return ConfigError(f"no sweep {name!r} in {storage}; `{listing}` shows them")


def _storage_argument(paths: SweepPaths) -> str:
    storage = paths.root.parent
    if storage == SweepPaths.of(DEFAULT_STORAGE, paths.root.name).root.parent:
        return ""
    return f" --storage {shlex.quote(str(storage))}"


def going_on(state: SweepState, paths: SweepPaths) -> str:
    """The command that continues a sweep whose run has ended: what ended it must not end the next
    run at once."""
    where = sweep_arguments(paths)
    if state.ended_by == BUDGET and state.ended:
        return f"crucible extend {where} --budget {more_budget(state.ended, len(state.trials))}"
    return f"crucible {'retry' if state.ended_by == FAIL_FAST else 'resume'} {where}"


def is_rarely_worth(found: Conclusion) -> bool:
    """Whether it would take more seeds than most would spend to tell the leaders apart."""
    more = found.more if found.kind == "open" else None
    return more is not None and more.seeds is not None and more.seeds > WORTH_SEEDS


def surer(state: SweepState, paths: SweepPaths, found: Conclusion | None = None) -> str | None:
    """The commands that train the leaders again until they are told apart, for a sweep that is over
    and has not told them. `found`: of that state, where it is at hand."""
    asked = state.meta["experiment"]["search"]["confirm"]
    if asked == AUTO or not state.complete or state.ended_by == BUDGET:
        return None
    rivals = [c for c in configurations(state) if not c.reference]
    if len(rivals) < 2 or not _may_be_told(state, rivals, found):
        return None
    where = sweep_arguments(paths)
    return f"crucible extend {where} --set search.confirm=auto && crucible resume {where}"


def _may_be_told(
    state: SweepState, rivals: Sequence[Configuration], found: Conclusion | None
) -> bool:
    """By fresh seeds, which only complete configurations that are no clones are given."""
    from crucible_tinkex.sweep.results.conclusion import conclusion, configuration_names  # SciPy

    found = found or conclusion(state)
    names = zip(configuration_names(rivals), rivals, strict=True)
    able = {name for name, c in names if c.complete and not c.forked}
    if found.kind == "nothing":
        return len(able.intersection(found.not_separable)) > 1
    has_end = bool(found.more and found.more.seeds) and not is_rarely_worth(found)
    return found.kind == "open" and has_end and able.issuperset(found.not_separable)
