"""Command lines that are shown to people, so quoted that they can be pasted into a shell."""

from __future__ import annotations

import shlex

from crucible_tinkex.config.sweep.run import DEFAULT_STORAGE
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import FAIL_FAST, SweepState
from crucible_tinkex.sweep.deciding.budget import BUDGET, more_budget


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
