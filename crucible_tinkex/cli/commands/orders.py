"""Commands to a sweep that runs, and amendments of one that does not."""

from __future__ import annotations

from typing import Annotated

import typer

from crucible_tinkex.cli.commands.options import DEFAULT_STORAGE, Json, Set, Storage, Sweep, Trials


def stop(sweep: Sweep, trials: Trials = None, storage: Storage = None, json: Json = False) -> None:
    """End trials of a running sweep for good; without trials, save and end its run."""
    from crucible_tinkex.cli.sweeps.control import command_sweep

    command_sweep(sweep, "stop", trials or [], storage=storage or DEFAULT_STORAGE, json=json)


def pause(sweep: Sweep, trials: Trials = None, storage: Storage = None, json: Json = False) -> None:
    """Have trials of a running sweep, or all of it, save and wait for `unpause`."""
    from crucible_tinkex.cli.sweeps.control import command_sweep

    command_sweep(sweep, "pause", trials or [], storage=storage or DEFAULT_STORAGE, json=json)


def unpause(
    sweep: Sweep, trials: Trials = None, storage: Storage = None, json: Json = False
) -> None:
    """Let what was paused go on."""
    from crucible_tinkex.cli.sweeps.control import command_sweep

    command_sweep(sweep, "unpause", trials or [], storage=storage or DEFAULT_STORAGE, json=json)


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
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Add a trial like another with --set changes; it goes on from the other's checkpoint."""
    from crucible_tinkex.cli.sweeps.control import command_sweep

    where = storage or DEFAULT_STORAGE
    command_sweep(
        sweep,
        "clone",
        [trial],
        storage=where,
        json=json,
        assignments=set_ or [],
        fresh=fresh,
        at=at,
    )


def extend(
    sweep: Sweep,
    set_: Set = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="5usd, 2h, 1e6tok, 300steps, 20trials: in all.")
    ] = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Ask a sweep, running or not, for more: --set train.epochs=4, search.seeds=[0,1,2]."""
    from crucible_tinkex.cli.sweeps.control import command_sweep

    where, asked = storage or DEFAULT_STORAGE, set_ or []
    command_sweep(sweep, "extend", storage=where, json=json, assignments=asked, budget=budget or [])
