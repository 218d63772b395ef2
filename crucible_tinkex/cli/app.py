"""The `crucible` command. Data goes to stdout, progress and errors to stderr.

Every command imports what it needs when it runs, so that `crucible --help` answers at once. Exit
codes: 0 done, 1 some trials failed, 2 usage or config, 3 budget used up, 4 service, 5 storage, 130
interrupted (resumable).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from crucible_tinkex.errors import CrucibleError, StorageError
from crucible_tinkex.version import VERSION

app = typer.Typer(
    name="crucible",
    help="Parallel, crash-safe LoRA experiments over the Tinker API.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)]
Sweep = Annotated[str, typer.Argument(help="Name of the sweep.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: optimizer.learning_rate=1e-4")
]
Storage = Annotated[
    str | None, typer.Option(help="Folder of all sweeps (default: run.storage, runs).")
]
Name = Annotated[str | None, typer.Option(help="Name of the sweep (default: of the experiment).")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join (default: RAY_ADDRESS, else a local one).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

Trials = Annotated[
    list[str] | None, typer.Argument(help="Ids, names or numbers (default: the whole sweep).")
]

DEFAULT_STORAGE = "runs"


def _print_version(asked: bool) -> None:
    if asked:
        print(f"crucible {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    file: File,
    set_: Set = None,
    name: Name = None,
    storage: Storage = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment, or continue its sweep if it exists."""
    from crucible_tinkex.cli.running import run_file

    code = run_file(
        file, set_ or [], name=name, storage=storage, address=address, json=json, quiet=quiet
    )
    raise typer.Exit(code)


@app.command()
def plan(
    file: File, set_: Set = None, name: Name = None, storage: Storage = None, json: Json = False
) -> None:
    """Say what would run, and check config, data and service. Trains nothing."""
    from crucible_tinkex.cli.planning import plan_file

    plan_file(file, set_ or [], name=name, storage=storage, json=json)


@app.command()
def resume(
    sweep: Sweep,
    storage: Storage = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a sweep that was interrupted."""
    from crucible_tinkex.cli.running import resume_sweep

    where = storage or DEFAULT_STORAGE
    raise typer.Exit(resume_sweep(sweep, storage=where, address=address, json=json, quiet=quiet))


@app.command()
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
    from crucible_tinkex.cli.control import command_sweep, is_running
    from crucible_tinkex.cli.running import retry_trials

    where = storage or DEFAULT_STORAGE
    if is_running(sweep, storage=where):
        command_sweep(sweep, "retry", trials or [], storage=where, json=json)
        return
    code = retry_trials(sweep, trials or [], storage=where, address=address, json=json, quiet=quiet)
    raise typer.Exit(code)


@app.command()
def stop(sweep: Sweep, trials: Trials = None, storage: Storage = None, json: Json = False) -> None:
    """End trials of a running sweep for good; without trials, save and end its run."""
    from crucible_tinkex.cli.control import command_sweep

    command_sweep(sweep, "stop", trials or [], storage=storage or DEFAULT_STORAGE, json=json)


@app.command()
def pause(sweep: Sweep, trials: Trials = None, storage: Storage = None, json: Json = False) -> None:
    """Have trials of a running sweep, or all of it, save and wait for `unpause`."""
    from crucible_tinkex.cli.control import command_sweep

    command_sweep(sweep, "pause", trials or [], storage=storage or DEFAULT_STORAGE, json=json)


@app.command()
def unpause(
    sweep: Sweep, trials: Trials = None, storage: Storage = None, json: Json = False
) -> None:
    """Let what was paused go on."""
    from crucible_tinkex.cli.control import command_sweep

    command_sweep(sweep, "unpause", trials or [], storage=storage or DEFAULT_STORAGE, json=json)


@app.command()
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
    from crucible_tinkex.cli.control import command_sweep

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


@app.command()
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
    from crucible_tinkex.cli.control import command_sweep

    where, asked = storage or DEFAULT_STORAGE, set_ or []
    command_sweep(sweep, "extend", storage=where, json=json, assignments=asked, budget=budget or [])


@app.command()
def status(sweep: Sweep, storage: Storage = None, json: Json = False) -> None:
    """Show the state, leaderboard and best configuration of a sweep."""
    from crucible_tinkex.cli.results import show_status

    show_status(sweep, storage=storage or DEFAULT_STORAGE, json=json)


@app.command("list")
def list_(storage: Storage = None, json: Json = False) -> None:
    """List the sweeps in the storage folder."""
    from crucible_tinkex.cli.results import show_list

    show_list(storage or DEFAULT_STORAGE, json=json)


@app.command()
def query(
    sweep: Sweep,
    sql: Annotated[str, typer.Argument(help='DuckDB SQL: "select * from trials"')],
    storage: Storage = None,
    json: Json = False,
    limit: Annotated[
        int | None, typer.Option(help="Most rows to print; 0: all (default: 40; all as JSON).")
    ] = None,
) -> None:
    """Ask a sweep in SQL; works while it runs.

    Tables: trials (settings and results), steps (one row per step), evaluations (held-out rows),
    checkpoints, requests (those that had trouble), events (all telemetry), and events_all,
    evaluations_all (also of attempts that were replaced).
    """
    from crucible_tinkex.cli.querying import show_query

    show_query(sweep, sql, storage=storage or DEFAULT_STORAGE, json=json, limit=limit)


@app.command()
def report(
    sweeps: Annotated[list[str], typer.Argument(help="One sweep, or several to compare.")],
    storage: Storage = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to (default: report in the sweep's).")
    ] = None,
    json: Json = False,
) -> None:
    """Write a page about a sweep, or several: one HTML file that needs no network."""
    from crucible_tinkex.cli.reporting import make_report

    make_report(sweeps, storage=storage or DEFAULT_STORAGE, out=out, json=json)


@app.command()
def watch(
    sweeps: Annotated[list[str], typer.Argument(help="One sweep, or several.")],
    storage: Storage = None,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes a free one.")] = 8088,
) -> None:
    """Follow running sweeps on a page in the browser (loopback only)."""
    from crucible_tinkex.cli.reporting import watch_sweeps

    raise typer.Exit(watch_sweeps(sweeps, storage=storage or DEFAULT_STORAGE, port=port))


@app.command()
def tb(
    sweep: Sweep,
    storage: Storage = None,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes a free one.")] = 6006,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First write its files anew from the events.")
    ] = False,
) -> None:
    """Open TensorBoard on one sweep (loopback only)."""
    from crucible_tinkex.cli.tensorboard import show_tensorboard

    where = storage or DEFAULT_STORAGE
    raise typer.Exit(show_tensorboard(sweep, storage=where, port=port, rebuild=rebuild))


@app.command()
def serve(
    model: Annotated[
        str, typer.Option(help="nano, smollm2-135m-instruct, or a Hugging Face folder.")
    ] = "smollm2-135m-instruct",
    host: Annotated[str, typer.Option(help="Other than loopback needs --api-key-file.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8010,
    data_dir: Annotated[Path, typer.Option(help="Checkpoints and key.")] = Path("runs/.service"),
    api_key_file: Annotated[Path | None, typer.Option(help="Key to accept (default: made)")] = None,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Number format of the base.")
    ] = "auto",
    device: Annotated[
        Literal["cpu", "cuda", "auto"], typer.Option(help="auto: CUDA where there is one.")
    ] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all cores).")] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(min=0.01, help="For adapters; idle ones lie on disk (default: RAM / 4)."),
    ] = None,
    max_sessions: Annotated[
        int, typer.Option(min=1, help="Sessions, and models, at a time; one more is refused.")
    ] = 4096,
    ready_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", hidden=True)] = False,
) -> None:
    """Run the embedded Tinker-compatible server alone."""
    from crucible_tinkex.server.sessions.limits import Limits
    from crucible_tinkex.server.web.serve import ServeOptions
    from crucible_tinkex.server.web.serve import serve as run_server

    run_server(
        ServeOptions(
            model=model,
            host=host,
            port=port,
            data_dir=data_dir,
            api_key_file=api_key_file,
            ready_file=ready_file,
            dtype=dtype,
            device=device,
            threads=threads,
            exit_with_parent=exit_with_parent,
            limits=Limits(max_sessions=max_sessions, max_models=max_sessions),
            memory_bytes=None if memory_gb is None else int(memory_gb * 1e9),
        )
    )


@app.command()
def submit(
    file: File,
    address: Annotated[str, typer.Option(help="Ray dashboard, as http://127.0.0.1:8265.")],
    set_: Set = None,
    name: Name = None,
    storage: Storage = None,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends.")] = True,
) -> None:
    """Run an experiment as a Ray job on a cluster."""
    from crucible_tinkex.cli.jobs import submit_file

    raise typer.Exit(
        submit_file(file, set_ or [], address=address, name=name, storage=storage, wait=wait)
    )


def main() -> None:
    """The console script: errors of this package become one clear message and an exit code."""
    try:
        app()
    except CrucibleError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(0)
    except OSError as e:  # what the system refuses, where nobody could say it better
        from crucible_tinkex.storage.files import reason

        print(f"error: {e.filename or 'the system'}: {reason(e)}", file=sys.stderr)
        sys.exit(StorageError.exit_code)
    except KeyboardInterrupt:
        print("interrupted; run the same command to continue", file=sys.stderr)
        sys.exit(130)
