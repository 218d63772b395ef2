"""Commands that show what a sweep found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from crucible_tinkex.cli.commands.options import (
    DEFAULT_STORAGE,
    LAST_PORT,
    ExistingFolder,
    Folder,
    Json,
    Sweep,
)


def status(sweep: Sweep, storage: Folder = DEFAULT_STORAGE, json: Json = False) -> None:
    """Show the state, leaderboard and best configuration of a sweep."""
    from crucible_tinkex.cli.findings.results import show_status

    show_status(sweep, storage=storage, json=json)


def conclude(sweep: Sweep, storage: Folder = DEFAULT_STORAGE, json: Json = False) -> None:
    """Say which configuration is best, how sure that is, and what would settle it."""
    from crucible_tinkex.cli.findings.concluding import show_conclusion

    show_conclusion(sweep, storage=storage, json=json)


def compare(
    sweep: Sweep,
    a: Annotated[str, typer.Argument(help="A trial: id, name or number.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Another.", show_default=False)],
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Compare two trials' configurations on every held-out row, over all their seeds."""
    from crucible_tinkex.cli.findings.concluding import show_comparison

    show_comparison(sweep, a, b, storage=storage, json=json)


def list_(storage: ExistingFolder = DEFAULT_STORAGE, json: Json = False) -> None:
    """List the sweeps in the storage folder."""
    from crucible_tinkex.cli.findings.results import show_list

    show_list(storage, json=json)


def query(
    sweep: Annotated[str, typer.Argument(help="Its name; several as ONE,TWO.")],
    sql: Annotated[str, typer.Argument(help='DuckDB SQL: "select * from trials"')],
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
    limit: Annotated[
        int | None, typer.Option(help="Most rows to print; 0: all (default: 40; all as JSON).")
    ] = None,
    format: Annotated[
        Literal["csv", "jsonl", "parquet"] | None,
        typer.Option(help="Of the output, in place of a table (default: as -o is named)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all rows to this file.")
    ] = None,
) -> None:
    """Ask a sweep in SQL; works while it runs.

    Tables: trials (settings and results), steps (one row per step), evaluations (held-out rows),
    checkpoints, requests (those that had trouble), events (all telemetry), evaluations_after (rows
    of `crucible evaluate`), and events_all, evaluations_all (also of attempts that were replaced).
    Of several sweeps, sweep_id tells the rows apart.
    """
    from crucible_tinkex.cli.findings.querying import export_query, show_query

    if format is None and output is None:
        show_query(sweep, sql, storage=storage, json=json, limit=limit)
    else:
        export_query(sweep, sql, storage=storage, format=format, output=output, limit=limit)


def report(
    sweeps: Annotated[list[str], typer.Argument(help="One sweep, or several to compare.")],
    storage: Folder = DEFAULT_STORAGE,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to; of several, needed (default: report in the sweep's)."
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="html (with Markdown, JSON and CSV beside it), latex or notebook.")
    ] = "html",
    json: Json = False,
) -> None:
    """Write a page about a sweep, or several: one HTML file that needs no network."""
    from crucible_tinkex.cli.findings.reporting import make_report

    make_report(sweeps, storage=storage, out=out, format=format, json=json)


def watch(
    sweeps: Annotated[list[str], typer.Argument(help="One sweep, or several.")],
    storage: Folder = DEFAULT_STORAGE,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=LAST_PORT,
            help="Of the page, on this machine; 0 takes a free one (default: 8088).",
        ),
    ] = None,
    terminal: Annotated[
        bool | None,
        typer.Option("--terminal/--page", help="Where (default: a page if there is a browser)."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print what is to be seen now, and end.")
    ] = False,
) -> None:
    """Follow running sweeps on a page in the browser (loopback only), or in the terminal."""
    from crucible_tinkex.cli.findings.reporting import in_terminal, watch_page

    if once or in_terminal(terminal, port):
        from crucible_tinkex.cli.findings.watching import watch_in_terminal

        raise typer.Exit(watch_in_terminal(sweeps, storage=storage, once=once))
    raise typer.Exit(watch_page(sweeps, storage=storage, port=port))


def tb(
    sweep: Sweep,
    storage: Folder = DEFAULT_STORAGE,
    port: Annotated[
        int, typer.Option(min=0, max=LAST_PORT, help="Port on this machine; 0 takes a free one.")
    ] = 6006,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First write its files anew from the events.")
    ] = False,
) -> None:
    """Open TensorBoard on one sweep (loopback only)."""
    from crucible_tinkex.cli.findings.tensorboard import show_tensorboard

    raise typer.Exit(show_tensorboard(sweep, storage=storage, port=port, rebuild=rebuild))
