"""Data files that do not lie on this machine: fetched once, then read like any other.

`hf://datasets/ORG/NAME[@REVISION]/FILE` comes from the Hugging Face hub, into its own cache (extra
`[hf]`); without a network what the cache has is used. `s3://`, `gs://` and `az://` are fetched with
the credentials that the environment gives (`storage.Objects`) into `$XDG_CACHE_HOME/crucible/data`,
under a name made of the address and the object's version: a changed object is fetched again, an
unchanged one is not.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from crucible_tinkex.datasets.files.catalogue import HUB
from crucible_tinkex.errors import ConfigError, DataError, StorageError
from crucible_tinkex.storage import Objects, write_atomic

_OBJECTS = ("s3://", "gs://", "az://")
# A revision of the hub's own making has slashes, as in its file system for fsspec.
_ON_THE_HUB = re.compile(r"([^/@]+/[^/@]+)(?:@(refs/convert/\w+|refs/pr/\d+|[^/]+))?/(.+)")


def is_remote(name: str) -> bool:
    return "://" in name


def fetched(name: str) -> Path:
    """A local file with what lies at the address `name`. Raises `DataError`."""
    if name.startswith(HUB):
        return _from_hub(name)
    if name.startswith(_OBJECTS):
        return _from_bucket(name)
    raise DataError(
        f"{name}: data are read from files, {HUB}ORG/NAME/FILE, {', '.join(_OBJECTS)}; download "
        "it and name the file"
    )


def _from_hub(name: str) -> Path:
    found = _ON_THE_HUB.fullmatch(name.removeprefix(HUB))
    if found is None:
        raise DataError(f"{name}: an address on the hub is {HUB}ORG/NAME[@REVISION]/FILE")
    repository, revision, file = found.groups()
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise DataError(f"{name}: needs `pip install 'crucible-tinkex[hf]'`") from error
    try:
        path: str = hf_hub_download(
            repository, file, repo_type="dataset", revision=revision or None
        )
    except (OSError, ValueError) as error:  # the hub's own errors derive from these
        raise DataError(
            f"{name}: could not be fetched from the Hugging Face hub ({type(error).__name__}); "
            "check the address and the network (HF_TOKEN for a gated data set), or fetch it where "
            f"there is one, with `hf download {repository} {file} --repo-type dataset"
            f"{f' --revision {revision}' if revision else ''}`, and name the file"
        ) from error
    return Path(path)


def _from_bucket(name: str) -> Path:
    scheme, _, rest = name.partition("://")
    bucket, _, key = rest.partition("/")
    if not (bucket and key):
        raise DataError(f"{name}: an address is {scheme}://BUCKET/FILE")
    try:
        return from_objects(Objects.open(f"{scheme}://{bucket}"), key, name)
    except (ConfigError, StorageError) as error:
        raise DataError(
            f"{name}: could not be fetched: {error}; check the address and the credentials in the "
            "environment"
        ) from error


def from_objects(objects: Objects, key: str, name: str) -> Path:
    """The object `key` as a local file; `name` is its address. Raises `DataError` if there is none,
    `StorageError` if it cannot be read or kept."""
    found = objects.info(key)
    if found is None:
        raise DataError(f"{name}: could not be fetched: there is no such object")
    version = found.etag or f"{found.modified} {found.size_bytes}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(f"{name}\n{version}".encode()).hexdigest()[:24]
    path = home / "crucible" / "data" / digest / PurePosixPath(key).name
    if not path.exists():
        write_atomic(path, objects.stream(key))
    return path
