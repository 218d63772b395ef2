"""Commands that run a sweep, or say what would run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from crucible_tinkex.cli.commands.options import (
    DEFAULT_STORAGE,
    Address,
    File,
    Folder,
    Json,
    Name,
    Quiet,
    Set,
    Storage,
    Sweep,
)
from crucible_tinkex.cli.commands.orders import order

if TYPE_CHECKING:
    from crucible_tinkex.runtime.jobs import SubmittedJob


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
    from crucible_tinkex.cli.sweeps.execution import execute
    from crucible_tinkex.cli.sweeps.reading import read_experiment
    from crucible_tinkex.sweep.preparing.preparation import prepare

    asked = [*(set_ or []), *(["quality.required=true"] if require_quality else [])]
    experiment, source = read_experiment(file, asked)
    prepared = prepare(experiment, storage=storage, name=name, source=source)
    raise typer.Exit(execute(prepared, address=address, json=json, quiet=quiet))


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
    storage: Folder = DEFAULT_STORAGE,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a sweep that was interrupted."""
    from crucible_tinkex.cli.sweeps.execution import execute
    from crucible_tinkex.sweep.preparing.preparation import reopened

    prepared = reopened(storage, sweep)
    raise typer.Exit(execute(prepared, address=address, json=json, quiet=quiet))


def retry(
    sweep: Sweep,
    trials: Annotated[
        list[str] | None,
        typer.Argument(help="Ids, names or numbers (default: all that failed or were lost)."),
    ] = None,
    storage: Folder = DEFAULT_STORAGE,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a sweep, and try its failed and lost trials again, also while it runs."""
    from crucible_tinkex.cli.sweeps.execution import execute
    from crucible_tinkex.storage import is_locked
    from crucible_tinkex.sweep.orders.obeying import failed_trials
    from crucible_tinkex.sweep.preparing.preparation import reopened
    from crucible_tinkex.sweep.results.views.summary import existing_sweep, read_state

    paths = existing_sweep(storage, sweep)
    if is_locked(paths.lock):
        order(sweep, "retry", trials, storage=storage, json=json)
        return
    again = [trial.trial_id for trial in failed_trials(read_state(paths), trials or [])]
    if not again:
        print("no trial failed or was lost", file=sys.stderr)
    prepared = reopened(storage, sweep)
    raise typer.Exit(execute(prepared, address=address, json=json, quiet=quiet, retry=again))


def submit(
    file: File,
    address: Annotated[str, typer.Option(help="Ray dashboard, as http://127.0.0.1:8265.")],
    set_: Set = None,
    name: Name = None,
    storage: Storage = None,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends.")] = True,
) -> None:
    """Run an experiment as a Ray job on a cluster."""
    import asyncio

    from crucible_tinkex.cli.sweeps.reading import read_experiment
    from crucible_tinkex.runtime.jobs import submit_job
    from crucible_tinkex.sweep.preparing.preparation import prepare

    experiment, _ = read_experiment(file, set_ or [])
    prepared = prepare(experiment, storage=storage, name=name)
    arguments = ["run", str(file.resolve()), "--name", prepared.name]
    arguments += ["--storage", str(prepared.paths.root.parent)]
    arguments += [part for a in set_ or [] for part in ("--set", a)]
    job = submit_job(address, sweep=prepared.name, arguments=arguments)
    verb = "submitted" if job.is_new else "already running"
    print(
        f"{verb}: {job.submission_id} "
        f"(stop it: ray job stop {job.submission_id} --address {address})",
        file=sys.stderr,
    )
    if not wait:
        print(job.submission_id)
        return
    asyncio.run(_follow(job))
    raise typer.Exit(job.exit_code())


async def _follow(job: SubmittedJob) -> None:
    async for text in job.lines():
        sys.stdout.write(text)
        sys.stdout.flush()
