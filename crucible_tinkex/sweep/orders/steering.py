"""Has a sweep obey a command, whether it runs or not.

A running one answers itself. What asks for more work of one that does not run is checked here, left
in its control folder and taken up by the next run; anything else is refused.
"""

from __future__ import annotations

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.storage import is_locked
from crucible_tinkex.sweep.orders.control import LASTING, Command, Inbox, send
from crucible_tinkex.sweep.orders.hints import sweep_arguments
from crucible_tinkex.sweep.orders.obeying import extended_answer, obey
from crucible_tinkex.sweep.preparing.preparation import extended, load_sweep, prepare, reopened
from crucible_tinkex.sweep.results.views.summary import read_state


def steer(paths: SweepPaths, command: Command) -> str:
    """What became of it, in words. Raises `ConfigError` where it cannot be: nothing is changed."""
    if command.kind == "extend" and not command.settings:
        raise ConfigError(
            "extend: say what to ask for, as --set search.seeds=[0,1,2], --set train.epochs=4 or "
            "--budget 2h"
        )
    if is_locked(paths.lock) or command.kind not in LASTING:
        return send(paths, command)
    if command.kind == "extend":
        answer, is_new = _extension(paths, command)
    else:
        prepared = reopened(paths.root.parent, paths.root.name, [command])
        state = read_state(paths)
        decisions, answer = obey(state, prepared.policy(), prepared.planner, command)
        is_new = bool(decisions)
    if not is_new:
        return answer
    Inbox(paths).put(command)
    return f"{answer}; it begins with the next `crucible resume {sweep_arguments(paths)}`"


def _extension(paths: SweepPaths, command: Command) -> tuple[str, bool]:
    """What the sweep asks for now is not looked at: it may be what is to be corrected."""
    storage, name = str(paths.root.parent), paths.root.name
    present = load_sweep(storage, name)
    experiment = extended(present, command.settings, paths)
    more = prepare(experiment, storage=storage, name=name)
    changed = experiment.amendments(present)
    if not changed:
        return "extend: it asks for that already", False
    reached = more.policy().budget.reached(read_state(paths), 0.0)
    return extended_answer(changed, reached), True
