"""Commands that run a sweep, or say what would run."""

from __future__ import annotations

from typing import Annotated

import typer

from crucible_tinkex.cli.commands.options import (
    DEFAULT_STORAGE,
    Address,
    File,
    Json,
    Name,
    Quiet,
    Set,
    Storage,
    Sweep,
)


def run(
    file: File,
    set_: Set = None,
    name: Name = None,
    storage: Storage = None,
    address: Address = None,
    require_quality: Annotated[
        bool, typer.Option("--require-quality", help="Exit code 1 if a quality target is missed.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment, or continue its sweep if it exists."""
    from crucible_tinkex.cli.sweeps.running import run_file

    asked = [*(set_ or []), *(["quality.required=true"] if require_quality else [])]
    code = run_file(
        file, asked, name=name, storage=storage, address=address, json=json, quiet=quiet
    )
    raise typer.Exit(code)


def plan(
    file: File,
    set_: Set = None,
    name: Name = None,
    storage: Storage = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Prove by models of two steps what the service applies."),
    ] = False,
    loss: Annotated[
        list[str] | None,
        typer.Option(help="Prove that of the service's own losses, too, such as ppo; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what would run, and check config, data and service. Trains nothing without --probe."""
    from crucible_tinkex.cli.sweeps.planning import plan_file

    plan_file(
        file,
        set_ or [],
        name=name,
        storage=storage,
        probe=probe or bool(loss),
        losses=loss or [],
        json=json,
    )


def resume(
    sweep: Sweep,
    storage: Storage = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a sweep that was interrupted."""
    from crucible_tinkex.cli.sweeps.running import resume_sweep

    where = storage or DEFAULT_STORAGE
    raise typer.Exit(resume_sweep(sweep, storage=where, address=address, json=json, quiet=quiet))


def retry(
    sweep: Sweep,
    trials: Annotated[
        list[str] | None,
        typer.Argument(help="Ids, names or numbers (default: all that failed or were lost)."),
    ] = None,
    storage: Storage = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a sweep, and try its failed and lost trials again, also while it runs."""
    from crucible_tinkex.cli.sweeps.control import command_sweep, is_running
    from crucible_tinkex.cli.sweeps.running import retry_trials

    where = storage or DEFAULT_STORAGE
    if is_running(sweep, storage=where):
        command_sweep(sweep, "retry", trials or [], storage=where, json=json)
        return
    code = retry_trials(sweep, trials or [], storage=where, address=address, json=json, quiet=quiet)
    raise typer.Exit(code)


def submit(
    file: File,
    address: Annotated[str, typer.Option(help="Ray dashboard, as http://127.0.0.1:8265.")],
    set_: Set = None,
    name: Name = None,
    storage: Storage = None,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends.")] = True,
) -> None:
    """Run an experiment as a Ray job on a cluster."""
    from crucible_tinkex.cli.sweeps.jobs import submit_file

    raise typer.Exit(
        submit_file(file, set_ or [], address=address, name=name, storage=storage, wait=wait)
    )
