"""`crucible checkpoints`: what a sweep left on its service."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crucible_tinkex.cli.commands.options import DEFAULT_STORAGE, Folder, Json, Sweep
from crucible_tinkex.cli.weights.numbers import number_text
from crucible_tinkex.names import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crucible_tinkex.sweep.keeping.retention import Checkpoint
    from crucible_tinkex.weights.checkpoints import CheckpointManager, Verified

checkpoints_app = typer.Typer(
    name="checkpoints", help="Checkpoints of a sweep: list, keep, delete.", no_args_is_help=True
)
Metric = Annotated[str | None, typer.Option(help="Metric that ranks (default: the sweep's).")]
Direction = Annotated[str | None, typer.Option(help="min or max (known metrics need none).")]
Path = Annotated[str, typer.Argument(help="tinker:// path.", show_default=False)]
Kind = Annotated[
    Literal["state", "sampler"] | None, typer.Option(help="Resumable ones, or those for sampling.")
]


@checkpoints_app.command("list")
def list_checkpoints(
    sweep: Sweep,
    trial: Annotated[str | None, typer.Option(help="Only of this trial.")] = None,
    kind: Kind = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also ask the service which of them it has.")
    ] = False,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """List all checkpoints; works while the sweep runs."""
    manager = _open(sweep, storage)
    found = manager.list_checkpoints(trial, kind=kind)
    seen = {v.checkpoint.path: v for v in manager.verify(found)} if check else None
    _print(found, json=json, metric=manager.metric, seen=seen)


@checkpoints_app.command()
def best(
    sweep: Sweep,
    metric: Metric = None,
    direction: Direction = None,
    kind: Kind = None,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Print the path of the best checkpoint of all trials."""
    found = _open(sweep, storage).get_best_checkpoint(metric, direction, kind=kind)
    print(json_module.dumps(_summary(found)) if json else found.path)


@checkpoints_app.command()
def prune(
    sweep: Sweep,
    keep_best: Annotated[int, typer.Option(min=0, help="Keep so many, by the metric.")] = 1,
    keep_last: Annotated[int, typer.Option(min=0, help="Keep the newest of each trial.")] = 1,
    keep_every: Annotated[int, typer.Option(min=0, help="Keep every so many steps.")] = 0,
    metric: Metric = None,
    direction: Direction = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; otherwise it is only shown.")] = False,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Delete checkpoints that no rule keeps.

    What is pinned, registered as a model, or needed to resume or rank a trial is never deleted.
    """
    from crucible_tinkex.sweep.keeping.retention import Retention

    rules = Retention(best=keep_best, last=keep_last, every=keep_every)
    manager = _open(sweep, storage)
    done = manager.prune_checkpoints(
        metric=metric, direction=direction, rules=rules, dry_run=not yes
    )
    if json:
        told = {
            "done": yes,
            "kept": [_summary(c) for c in done.kept],
            "deleted": [_summary(c) for c in done.deleted],
            "orphans": list(done.orphans),
        }
        print(json_module.dumps(told))
        return
    if done.deleted:
        _print(done.deleted, json=False, metric=manager.metric)
    count = len(done.deleted) + len(done.orphans)
    if yes:
        print(f"deleted {count}, kept {len(done.kept)}")
    else:
        print(f"would delete {count} and keep {len(done.kept)}; do it: --yes")


@checkpoints_app.command()
def pin(
    sweep: Sweep,
    path: Path,
    undo: Annotated[bool, typer.Option("--undo", help="It may be deleted again.")] = False,
    storage: Folder = DEFAULT_STORAGE,
) -> None:
    """Keep a checkpoint whatever the rules say."""
    _open(sweep, storage).pin(path, pinned=not undo)


@checkpoints_app.command()
def ttl(
    sweep: Sweep,
    path: Path,
    seconds: Annotated[int, typer.Argument(min=0, help="From now; 0: for ever.")],
    storage: Folder = DEFAULT_STORAGE,
) -> None:
    """Let the service delete a checkpoint after some time."""
    _open(sweep, storage).set_ttl(path, seconds or None)


@checkpoints_app.command()
def copy(
    sweep: Sweep,
    to: Annotated[str, typer.Option(help="Folder, s3:// or gs://.", show_default=False)],
    path: Annotated[str | None, typer.Argument(help="tinker:// path (default: the best).")] = None,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Copy an adapter, with the hash of every file, to a folder or a bucket.

    A copy can be used by peft, and not be trained further: the Tinker API takes no uploads, and an
    archive holds no optimizer.
    """
    manager = _open(sweep, storage)
    path = path or manager.get_best_checkpoint(kind="sampler").path
    made = manager.copy(path, to)
    print(json_module.dumps(vars(made)) if json else f"{to.rstrip('/')}/{made.prefix}")


@checkpoints_app.command()
def verify(
    sweep: Sweep,
    copies: Annotated[
        str | None, typer.Option(help="Read the copies there instead of asking the service.")
    ] = None,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Ask the service for every checkpoint, or read every copy again; exit code 1 if one is
    missing or damaged."""
    wrong = _wrong_copies(sweep, copies) if copies else _wrong_checkpoints(sweep, storage)
    if json:
        print(json_module.dumps(wrong))
    for path, why in wrong.items():
        print(f"{path}: {why or 'ok'}", file=sys.stderr if json else sys.stdout)
    if any(wrong.values()):
        raise typer.Exit(1)


def _wrong_checkpoints(sweep: str, storage: str) -> dict[str, str | None]:
    return {v.checkpoint.path: v.wrong for v in _open(sweep, storage).verify()}


def _wrong_copies(sweep: str, place: str) -> dict[str, str | None]:
    from crucible_tinkex.weights.copies import Copies

    copies = Copies.existing(place, sweep)
    return {c.checkpoint_path: "; ".join(copies.verify(c)) or None for c in copies.all()}


def _open(sweep: str, storage: str) -> CheckpointManager:
    from crucible_tinkex.weights.checkpoints import CheckpointManager

    return CheckpointManager.open(sweep, storage=storage)


def _summary(checkpoint: Checkpoint) -> dict[str, Any]:
    record = checkpoint.record
    return {
        "path": record.path,
        "trial_id": record.trial_id,
        "trial": checkpoint.trial,
        "step": record.step,
        "attempt": record.attempt,
        "kind": record.kind,
        "metrics": plain(record.metrics),
        "pinned": checkpoint.pinned,
        "models": list(checkpoint.models),
        "protected": checkpoint.protected,
        "kept_by": list(checkpoint.kept_by),
    }


def _print(
    found: Sequence[Checkpoint],
    *,
    json: bool,
    metric: str,
    seen: Mapping[str, Verified] | None = None,
) -> None:
    """`metric`: the sweep's. `seen`: what the service said of each, if it was asked."""
    from crucible_tinkex.cli.terminal.tables import plain_table, print_rows
    from crucible_tinkex.metrics import told_first

    if json:
        told = [_summary(c) | (_seen(seen[c.path]) if seen else {}) for c in found]
        print(json_module.dumps(told))
        return
    if not found:
        print("no checkpoints")
        return
    metrics = told_first((name for c in found for name in c.record.metrics), first=metric)[:2]
    table = plain_table()
    asked = () if seen is None else ("on the service",)
    for head in ("trial", "step", "kind", *metrics, *asked, "protected", "path"):
        table.add_column(head, no_wrap=True)
    for c in found:
        measured = [number_text(c.record.metrics.get(name)) for name in metrics]
        there = () if seen is None else (seen[c.path].wrong or "yes",)
        step, why = str(c.record.step), c.protected or "-"
        table.add_row(c.trial, step, c.record.kind, *measured, *there, why, c.path)
    print_rows(table)


def _seen(verified: Verified) -> dict[str, Any]:
    return {
        "on_service": verified.there,
        "wrong": verified.wrong,
        "size_bytes": verified.size_bytes,
        "expires": verified.expires,
    }
