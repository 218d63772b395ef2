"""A base by its id on the Hugging Face hub: `org/name`, or `org/name@revision`.

Guarantees: what is in the hub's local cache whole is used as it is, without a word over the
network, so a sweep goes on with the same weights, offline too; else `config.json` comes first, and
a model that the server cannot run is refused before its weights are fetched. Files go into the
hub's own cache (`HF_HOME`), and code that comes with a model is never run.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.server.bases.families import check_family

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_CONFIG, _TOKENIZER, _INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
_FILES = (
    _CONFIG,
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "*.safetensors",
    "*.safetensors.index.json",
)
_SPARE_BYTES = 64 * 1024 * 1024
PROBE_S = 5.0


class _Wanted(NamedTuple):
    repo_id: str
    revision: str | None


def is_hub_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None


def ensure(name: str) -> Path:
    """The model's folder in the hub's cache, fetched first if it is not there whole. Raises
    `ConfigError` for a model that there is not, or that the server cannot run, and `StorageError`
    where there is no room."""
    repo_id, _, revision = name.partition("@")
    wanted = _Wanted(repo_id, revision or None)
    folder = _cached(wanted)
    if folder is None:
        with _named(name):
            folder = _fetch(wanted, name)
    check_family(_json(folder / _CONFIG), name)
    return folder


def _cached(wanted: _Wanted) -> Path | None:
    try:
        folder = huggingface_hub.snapshot_download(
            wanted.repo_id,
            revision=wanted.revision,
            allow_patterns=list(_FILES),  # else what nobody wants would have to be there, too
            local_files_only=True,
        )
    except errors.LocalEntryNotFoundError:
        return None
    return Path(folder) if _is_whole(Path(folder)) else None


def _is_whole(folder: Path) -> bool:
    """A snapshot may have some of its files only: those that somebody asked for."""
    if not all((folder / name).is_file() for name in (_CONFIG, _TOKENIZER)):
        return False
    index = folder / _INDEX
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    parts = set(_json(index).get("weight_map", {}).values())
    return bool(parts) and all((folder / part).is_file() for part in parts)


def _reach() -> None:
    """Raises `OSError` at once where there is no network: the hub's own client tries for half a
    minute. A proxy is left to that."""
    hub = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        raise errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    if hub.hostname and not getproxies().get(hub.scheme):
        port = hub.port or (443 if hub.scheme == "https" else 80)
        socket.create_connection((hub.hostname, port), timeout=PROBE_S).close()


def _fetch(wanted: _Wanted, name: str) -> Path:
    _reach()
    config = huggingface_hub.hf_hub_download(wanted.repo_id, _CONFIG, revision=wanted.revision)
    check_family(_json(Path(config)), name)
    with _without_bars():
        planned = huggingface_hub.snapshot_download(
            wanted.repo_id, revision=wanted.revision, allow_patterns=list(_FILES), dry_run=True
        )
    names = [file.filename for file in planned]
    if _TOKENIZER not in names or not any(file.endswith(".safetensors") for file in names):
        raise ConfigError(
            f"base {name!r}: the model on the hub lacks {_TOKENIZER}, or weights as safetensors; "
            "convert it (`save_pretrained` of transformers), and give the folder as base"
        )
    needed = sum(file.file_size or 0 for file in planned if file.will_download)
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(cache).free
    if free < needed + _SPARE_BYTES:
        raise StorageError(
            f"base {name!r} needs {needed / 1e6:,.0f} MB in {cache}, which has {free / 1e6:,.0f} "
            "free; free some space, or set HF_HOME to a larger disk"
        )
    print(
        f"fetching {name} ({needed / 1e6:,.0f} MB) from the Hugging Face hub, once",
        file=sys.stderr,
        flush=True,
    )
    with nullcontext() if sys.stderr.isatty() else _without_bars():
        folder = huggingface_hub.snapshot_download(
            wanted.repo_id, revision=wanted.revision, allow_patterns=list(_FILES)
        )
    return Path(folder)


@contextmanager
def _without_bars() -> Iterator[None]:
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """The hub's errors in words that say what to do."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"base {name!r} is gated: accept its terms on https://huggingface.co/"
            f"{name.partition('@')[0]}, and set HF_TOKEN to a token of your account"
        ) from error
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise ConfigError(
            f"base {name!r}: no such folder here, and no such model on the Hugging Face hub; check "
            "the name (HF_TOKEN for a private one)"
        ) from error
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _unreachable(name, error) from error
        raise ConfigError(
            f"base {name!r}: the repository on the hub has no {_CONFIG}, so it is no model of "
            "transformers; choose another"
        ) from error
    except OSError as error:  # whatever the network does
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> ConfigError:
    offline = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else f"{type(error).__name__}: {error}"
    return ConfigError(
        f"base {name!r}: no such folder here, it is not whole in the hub's cache "
        f"({constants.HF_HUB_CACHE}), and the Hugging Face hub cannot be reached "
        f"({why}); fetch it where there is a network "
        f"(`hf download {name.partition('@')[0]}`), or give the folder of the model as base"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**found}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}; delete it to fetch it again") from error
