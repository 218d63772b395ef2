"""A trial's adapter as a folder that others load: for `peft`, or merged into its base.

Guarantees: with `peft` the folder gives the logits of the service (tested on the embedded server);
a folder that holds anything is left alone unless `force` is given, and then only the files of the
same names are replaced; all files come or none. An adapter of the embedded server is read from the
sweep's folder, without a server and while the sweep runs; others are downloaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_tinkex.client.checkpoints.download import Progress
from crucible_tinkex.errors import ConfigError, ProtocolError, StorageError
from crucible_tinkex.names import SweepPaths, TinkerPath, hub_id
from crucible_tinkex.storage import make_folder, storage_errors
from crucible_tinkex.sweep.results.trained import Trained
from crucible_tinkex.telemetry.facts.ledger import record_of
from crucible_tinkex.weights.service import blocking, sampling_path, service_of

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


@dataclass(frozen=True)
class Exported:
    """What was written, and of what."""

    folder: Path
    files: tuple[str, ...]
    trial_id: str
    step: int
    checkpoint_path: str
    base_model: str
    merged: bool
    trial: str
    """The trial's name, which begins with its number."""

    def summary(self) -> dict[str, Any]:
        """JSON values; keys are only ever added."""
        return {**vars(self), "folder": str(self.folder), "files": list(self.files)}


def export_trial(
    paths: SweepPaths,
    trial: str | None,
    to: str | Path,
    *,
    merged: bool = False,
    base: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export a trial (by default the best) to the folder `to`; blocks.

    `merged`: a whole Hugging Face model instead of an adapter; `base` names the folder of the base
    model where the embedded server does not know it. Raises `ConfigError` before anything is
    fetched, then `ServiceError` (`DamagedCheckpointError` among them) or `StorageError`.
    """
    trained = Trained.find(paths, trial)
    folder = Path(to).expanduser().absolute()
    _check_free(folder, force=force)
    make_folder(folder.parent)
    with _staged(folder) as staged:
        adapter = staged / "adapter"
        fetch_adapter(trained, adapter, progress)
        ready = adapter
        if merged:
            ready = staged / "merged"
            _merge(adapter, ready, base or trained.base)
        files = _publish(ready, folder)
    about = {"checkpoint": trained.checkpoint.path, "files": list(files), "merged": merged}
    size = sum((folder / name).stat().st_size for name in files)
    trial_id = trained.trial.trial_id
    record_of(trained.paths, "artifact_stored", str(folder), trial_id, {"bytes": size}, about)
    return Exported(
        folder,
        files,
        trained.trial.trial_id,
        trained.checkpoint.step,
        trained.checkpoint.path,
        trained.base,
        merged,
        trained.trial.run_name,
    )


def _check_free(folder: Path, *, force: bool) -> None:
    with storage_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; choose another folder")
        if not force and folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty; choose another folder, or replace the files of the same "
                "names with --force"
            )


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Beside the target, so that files move there by renaming."""
    try:
        staged = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as e:
        raise StorageError(f"cannot write {folder}: {e.strerror}") from e
    with staged as name:
        yield Path(name)


def fetch_adapter(trained: Trained, out: Path, progress: Progress | None = None) -> None:
    """The adapter's files, as peft loads them, into the new folder `out`."""
    if trained.experiment.service.embedded:
        _read_embedded(trained, out)
    else:
        blocking(_download(trained, out, progress))
    _complete(trained, out)


def _read_embedded(trained: Trained, out: Path) -> None:
    # Only who exports pays for these imports.
    from crucible_tinkex.server.store.peft_files import export_peft

    path = TinkerPath.parse(trained.checkpoint.path)
    run = path.run_id.replace(":", "+")
    source = trained.paths.service / "checkpoints" / run / path.kind / path.name
    if not source.is_dir():
        raise StorageError(f"checkpoint {path} is gone: there is no {source}")
    export_peft(source, out, base_model=hub_id(trained.base))


async def _download(trained: Trained, out: Path, progress: Progress | None) -> None:
    async with service_of(trained.paths, trained.experiment) as service:
        path = await sampling_path(service, trained.checkpoint)
        await service.rest.download(path, out, progress=progress)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    trial_id = trained.trial.trial_id
    record_of(trained.paths, "checkpoint_downloaded", path, trial_id, {"bytes": size}, {})


def _complete(trained: Trained, out: Path) -> None:
    """Some services leave out of the archive which base the adapter is for."""
    missing = [name for name in ADAPTER_FILES if not (out / name).is_file()]
    if missing:
        found = ", ".join(sorted(p.name for p in out.iterdir())) or "nothing"
        raise ProtocolError(
            f"the service's archive of {trained.checkpoint.path} is no adapter for peft: it lacks "
            f"{' and '.join(missing)}, and has {found}"
        )
    config_file = out / "adapter_config.json"
    try:
        config = dict(json.loads(config_file.read_text()))
    except (ValueError, TypeError) as e:
        raise ProtocolError(f"the archive's adapter_config.json is damaged: {e}") from e
    if not config.get("base_model_name_or_path"):
        config["base_model_name_or_path"] = hub_id(trained.base)
        config_file.write_text(json.dumps(config, indent=2))


def _merge(adapter: Path, out: Path, base: str) -> None:
    try:
        from crucible_tinkex.server.merge import merge
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"--merged needs {e.name}: pip install 'crucible-tinkex[local]'"
        ) from None
    merge(adapter, out, base=base)


def _publish(ready: Path, folder: Path) -> tuple[str, ...]:
    make_folder(folder)
    with storage_errors(folder):
        names = sorted(p.relative_to(ready).as_posix() for p in ready.rglob("*") if p.is_file())
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (ready / name).chmod(0o644)  # a library may have made it for its owner alone
            os.replace(ready / name, target)
    return tuple(names)
