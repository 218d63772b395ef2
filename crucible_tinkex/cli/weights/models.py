"""`crucible models`: the registered models of a storage."""

from __future__ import annotations

import json as json_module
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible_tinkex.cli.commands.options import (
    DEFAULT_STORAGE,
    ExistingFolder,
    Folder,
    Json,
    Tags,
)
from crucible_tinkex.cli.weights.numbers import number_text, numbers
from crucible_tinkex.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crucible_tinkex.registry.models import ModelRegistry, ModelVersion

models_app = typer.Typer(
    name="models", help="Registered models: versions, stages, tags.", no_args_is_help=True
)
Model = Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.", show_default=False)]


@models_app.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(help="Only versions of this model.")] = None,
    stage: Annotated[str | None, typer.Option(help="Only versions in this stage.")] = None,
    tag: Tags = None,
    storage: ExistingFolder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """List all versions, oldest first."""
    _print(_open(storage).list_models(name, stage=stage, tags=tag or ()), json=json)


@models_app.command()
def show(model: Model, storage: ExistingFolder = DEFAULT_STORAGE, json: Json = False) -> None:
    """Show all that is known of a model, and what it came from."""
    models = _open(storage)
    found = models.get_model(model)
    ancestors = [m.id for m in models.ancestors(found.id)]
    descendants = [m.id for m in models.descendants(found.id)]
    told = {**found.summary(), "ancestors": ancestors, "descendants": descendants}
    if json:
        print(json_module.dumps(told))
        return
    for key, value in told.items():
        if value not in (None, "", [], {}):
            print(f"{key:<16}  {_text(key, value)}")


@models_app.command()
def register(
    name: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    sweep: Annotated[str | None, typer.Option(help="The sweep that trained it.")] = None,
    trial: Annotated[
        str | None, typer.Option(help="Its trial: id, name or number (default: the best).")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Instead of a sweep: tinker:// path, folder or URI.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="With --checkpoint: its base model.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="With --checkpoint: eval/nll=0.5 (several times).")
    ] = None,
    tag: Tags = None,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Register a trial of a sweep, or a checkpoint, as a new version."""
    if (sweep is None) == (checkpoint is None):
        raise ConfigError("give one of --sweep and --checkpoint")
    tags = tuple(tag or ())
    if sweep is not None:
        if base or metric:
            raise ConfigError("--base and --metric go with --checkpoint; a sweep knows its own")
        found = _register_trial(name, sweep, trial, tags, storage)
    else:
        found = _open(storage).register_model(
            name,
            checkpoint_path=_place(checkpoint or ""),
            base_model=base,
            metrics=numbers(metric),
            tags=tags,
        )
    _print_one(found, json=json)


def _place(checkpoint: str) -> str:
    """An address as it is; a folder from the root, because later commands run elsewhere. Raises
    `ConfigError` for what is neither."""
    if "://" in checkpoint:
        return checkpoint
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"--checkpoint {checkpoint!r} is neither a folder nor an address (tinker://, s3://)"
        )
    return str(folder.resolve())


def _register_trial(
    name: str, sweep: str, trial: str | None, tags: tuple[str, ...], storage: str
) -> ModelVersion:
    from crucible_tinkex.sweep.results.registering import register_trial
    from crucible_tinkex.sweep.results.trained import chosen_trial
    from crucible_tinkex.sweep.results.views.summary import existing_sweep, read_state

    paths = existing_sweep(storage, sweep)
    state = read_state(paths)
    return register_trial(state, paths, chosen_trial(state, trial), name, tags=tags)


@models_app.command()
def tag(
    model: Model,
    tags: Annotated[list[str], typer.Argument(help="Tags to add.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take them away instead.")] = False,
    storage: ExistingFolder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Add tags to a version."""
    add, drop = ([], tags) if remove else (tags, [])
    _print_one(_open(storage).tag(model, add=add, remove=drop), json=json)


@models_app.command()
def promote(
    model: Model,
    stage: Annotated[
        str | None, typer.Argument(help="development, staging, production or archived.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Let NAME@ALIAS mean this version.")] = None,
    storage: ExistingFolder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Set the stage of a version; what was in production before becomes archived."""
    if stage is None and alias is None:
        raise ConfigError("give a stage, or --alias, or both")
    models = _open(storage)
    found = models.get_model(model)
    if stage is not None:
        found = models.promote(found.id, stage)
    if alias is not None:
        found = models.set_alias(found.id, alias)
    _print_one(found, json=json)


@models_app.command()
def delete(
    model: Model,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; otherwise it is only shown.")] = False,
    storage: ExistingFolder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Forget a version. Its number is never used again; its weights stay where they are.

    What is no longer registered, `checkpoints prune` may delete.
    """
    models = _open(storage)
    found = models.get_model(model)
    if model == found.name:  # whose newest version is another one the second time
        raise ConfigError(f"name the version to delete, such as {found.id}")
    children = [m.id for m in models.descendants(found.id) if found.id in m.entry.parents]
    if yes:
        models.delete(found.name, found.version)
    if json:
        told = {"done": yes, "deleted": found.summary(), "children": children}
        print(json_module.dumps(told))
        return
    came = f", from which {', '.join(children)} came" if children else ""
    done, again = ("deleted", "") if yes else ("would delete", "; do it: --yes")
    print(f"{done} {_one(found)}{came}{again}")


@models_app.command()
def find(
    metric: Annotated[str, typer.Argument(help="Metric that ranks: eval/nll.")],
    direction: Annotated[
        str | None, typer.Option(help="min or max (known metrics need none).")
    ] = None,
    top: Annotated[int, typer.Option(help="How many.")] = 5,
    tag: Tags = None,
    base: Annotated[str | None, typer.Option(help="Only adapters of this base model.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Threshold: 'eval/accuracy>=0.8' (several times).")
    ] = None,
    storage: ExistingFolder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Find the best models by a metric, one of each trial, for an ensemble."""
    found = _open(storage).find_for_ensemble(
        metric,
        direction=direction,  # type: ignore[arg-type]  # it is checked, and refused in words
        top_n=top,
        tags=tag or (),
        base=base,
        thresholds=dict(map(_threshold, where or [])),
    )
    _print(found, json=json, metric=metric)


@models_app.command("export")
def export_models(
    file: Annotated[Path | None, typer.Argument(help="New .jsonl (default: to stdout).")] = None,
    name: Annotated[str | None, typer.Option(help="Only versions of this model.")] = None,
    stage: Annotated[str | None, typer.Option(help="Only versions in this stage.")] = None,
    tag: Tags = None,
    storage: ExistingFolder = DEFAULT_STORAGE,
) -> None:
    """Write models with versions, stages, aliases, tags and parents, an object a line."""
    models = _open(storage)
    asked: dict[str, Any] = {"name": name, "stage": stage, "tags": tag or ()}
    if file is None:
        for model in models.list_models(**asked):
            print(json_module.dumps(model.summary()))
    else:
        print(f"{file}: {len(models.export_models(file, **asked))} models")


@models_app.command("import")
def import_models(
    source: Annotated[
        Path,
        typer.Argument(help="What `export` wrote, or a storage folder.", show_default=False),
    ],
    keep: Annotated[
        bool, typer.Option("--keep", help="Where the two differ, keep what is here.")
    ] = False,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Take over models from elsewhere; without --keep all of them or, on a conflict, none."""
    found = _open(storage).import_models(source, keep=keep)
    if json:
        print(json_module.dumps(found.to_dict()))
        return
    counts = {kind: len(names) for kind, names in found.to_dict().items() if kind != "kept"}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    for conflict in found.kept:
        print(f"kept what is here: {conflict}")


def _threshold(text: str) -> tuple[str, str]:
    at = next((i for i, c in enumerate(text) if c in "<>"), 0)
    if not at:
        raise ConfigError(f"--where {text!r} must be like 'eval/accuracy>=0.8'")
    return text[:at].strip(), text[at:]


def _open(storage: str) -> ModelRegistry:
    from crucible_tinkex.registry.models import ModelRegistry

    return ModelRegistry.open(storage)


def _print_one(model: ModelVersion, *, json: bool) -> None:
    if json:
        print(json_module.dumps(model.summary()))
    else:
        print(_one(model))


def _one(model: ModelVersion) -> str:
    marks = ", ".join([model.stage, *(f"@{a}" for a in model.aliases), *model.tags])
    return f"{model.id} ({marks}): {model.checkpoint_path}"


def _print(models: Sequence[ModelVersion], *, json: bool, metric: str | None = None) -> None:
    from crucible_tinkex.cli.terminal.tables import plain_table, print_rows
    from crucible_tinkex.metrics import told_first

    if json:
        print(json_module.dumps([m.summary() for m in models]))
        return
    if not models:
        print("no such models are registered")
        return
    metrics = [metric] if metric else told_first(n for m in models for n in m.metrics)[:3]
    table = plain_table()
    for head in ("model", "stage", "aliases", "tags", "base", *metrics, "from", "registered"):
        table.add_column(head, no_wrap=True)
    for m in models:
        origin = f"{m.entry.sweep}/{m.entry.trial_id}" if m.entry.sweep else "-"
        when = datetime.fromtimestamp(m.created).strftime("%Y-%m-%d %H:%M")
        measured = [number_text(m.metrics.get(name)) for name in metrics]
        aliases, tags = ",".join(m.aliases) or "-", ",".join(m.tags) or "-"
        base = m.base_model or "-"
        table.add_row(m.id, m.stage, aliases, tags, base, *measured, origin, when)
    print_rows(table)


def _text(key: str, value: Any) -> str:
    if key == "created":
        return datetime.fromtimestamp(value).isoformat(sep=" ", timespec="seconds")
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
