"""Commands to a sweep that runs, and amendments of one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible_tinkex.cli.commands.options import DEFAULT_STORAGE, Folder, Json, Set, Sweep, Trials

if TYPE_CHECKING:
    from crucible_tinkex.sweep.orders.control import Kind


def stop(
    sweep: Sweep, trials: Trials = None, storage: Folder = DEFAULT_STORAGE, json: Json = False
) -> None:
    """End trials of a running sweep for good; without trials, save and end its run."""
    order(sweep, "stop", trials, storage=storage, json=json)


def pause(
    sweep: Sweep, trials: Trials = None, storage: Folder = DEFAULT_STORAGE, json: Json = False
) -> None:
    """Have trials of a running sweep, or all of it, save and wait for `unpause`."""
    order(sweep, "pause", trials, storage=storage, json=json)


def unpause(
    sweep: Sweep, trials: Trials = None, storage: Folder = DEFAULT_STORAGE, json: Json = False
) -> None:
    """Let what was paused go on."""
    order(sweep, "unpause", trials, storage=storage, json=json)


def clone(
    sweep: Sweep,
    trial: Annotated[str, typer.Argument(help="Id, name or number.", show_default=False)],
    set_: Set = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="From the base, not a checkpoint.")
    ] = False,
    at: Annotated[
        int | None,
        typer.Option(help="Newest checkpoint at or before this step (default: the last)."),
    ] = None,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Add a trial like another with --set changes; it goes on from the other's checkpoint."""
    order(sweep, "clone", [trial], storage=storage, json=json, set_=set_, fresh=fresh, at=at)


def extend(
    sweep: Sweep,
    set_: Set = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="5usd, 2h, 1e6tok, 300steps, 20trials: in all.")
    ] = None,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Ask a sweep, running or not, for more: --set train.epochs=4, search.seeds=[0,1,2]."""
    order(sweep, "extend", storage=storage, json=json, set_=set_, budget=budget)


def order(
    sweep: str,
    kind: Kind,
    trials: Sequence[str] | None = None,
    *,
    storage: str,
    json: bool,
    set_: Sequence[str] | None = None,
    budget: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """Give the sweep a command and print the answer. `options`: further fields of `Command`."""
    import json as json_module

    from crucible_tinkex.config import parse_assignment, parse_budget
    from crucible_tinkex.sweep.orders.control import Command
    from crucible_tinkex.sweep.orders.steering import steer
    from crucible_tinkex.sweep.results.views.summary import existing_sweep

    settings = dict(parse_assignment(a) for a in set_ or ())
    for text in budget or ():
        settings |= parse_budget(text)
    command = Command(kind, tuple(trials or ()), settings, **options)
    answer = steer(existing_sweep(storage, sweep), command)
    print(json_module.dumps({"sweep": sweep, "answer": answer}) if json else answer)
