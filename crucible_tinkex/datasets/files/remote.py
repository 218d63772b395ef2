"""Data files that do not lie on this machine: fetched once, then read like any other.

`hf://datasets/ORG/NAME[@REVISION]/FILE` comes from the Hugging Face hub, into its own cache (extra
`[hf]`); without a network what the cache has is used. `s3://`, `gs://` and `az://` are fetched
through obstore, with the credentials that the environment gives it, into
`$XDG_CACHE_HOME/crucible/data`, under a name made of the address and the object's version: a
changed object is fetched again, an unchanged one is not.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from crucible_tinkex.errors import DataError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_OBJECTS = ("s3://", "gs://", "az://")
_HUB = "hf://datasets/"


def is_remote(name: str) -> bool:
    return "://" in name


def fetched(name: str) -> Path:
    """A local file with what lies at the address `name`. Raises `DataError`."""
    if name.startswith(_HUB):
        return _from_hub(name)
    if name.startswith(_OBJECTS):
        return _from_bucket(name)
    raise DataError(
        f"{name}: data are read from files, {_HUB}ORG/NAME/FILE, {', '.join(_OBJECTS)}; download "
        "it and name the file"
    )


def _from_hub(name: str) -> Path:
    organisation, _, rest = name.removeprefix(_HUB).partition("/")
    repository, _, file = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not (organisation and repository and file):
        raise DataError(f"{name}: an address on the hub is {_HUB}ORG/NAME[@REVISION]/FILE")
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise DataError(f"{name}: needs `pip install 'crucible-tinkex[hf]'`") from error
    try:
        path: str = hf_hub_download(
            f"{organisation}/{repository}", file, repo_type="dataset", revision=revision or None
        )
    except (OSError, ValueError) as error:  # the hub's own errors derive from these
        raise DataError(
            f"{name}: could not be fetched from the Hugging Face hub ({type(error).__name__}); "
            "check the address and the network (HF_TOKEN for a gated data set)"
        ) from error
    return Path(path)


def _from_bucket(name: str) -> Path:
    # Costs 0.1 s; most data are local.
    from obstore.store import from_url

    scheme, _, rest = name.partition("://")
    bucket, _, key = rest.partition("/")
    if not (bucket and key):
        raise DataError(f"{name}: an address is {scheme}://BUCKET/FILE")
    try:
        store: ObjectStore = from_url(f"{scheme}://{bucket}")
    except Exception as error:  # its errors share no base below this
        raise DataError(f"{name}: {error}") from error
    return from_store(store, key, name)


def from_store(store: ObjectStore, key: str, name: str) -> Path:
    """The object `key` of `store` as a local file; `name` is its address. Raises `DataError`."""
    from obstore.exceptions import BaseError

    try:
        meta = store.head(key)
        version = meta.get("e_tag") or f"{meta['last_modified']} {meta['size']}"
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        digest = hashlib.sha256(f"{name}\n{version}".encode()).hexdigest()[:24]
        path = home / "crucible" / "data" / digest / PurePosixPath(key).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(store, key, path)
    except (BaseError, OSError) as error:
        raise DataError(
            f"{name}: could not be fetched ({type(error).__name__}: {str(error)[:300]}); check the "
            "address and the credentials in the environment"
        ) from error
    return path


def _download(store: ObjectStore, key: str, path: Path) -> None:
    """Whole or not at all: a download that was cut short leaves no file of that name."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in store.get(key).stream():
                file.write(chunk)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
