"""Objects below one place: a folder, `s3://`, `gs://`, `az://` or memory, behind the same calls.

Guarantees: a key is a relative path that stays below its place; readers see a whole object or none;
`put` returns when the object is durable; files of any size are streamed with bounded memory;
deleting what is gone succeeds; every refusal becomes a `StorageError` that names place, key and
reason. Credentials and endpoints of a bucket come from where its own tools look for them
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...); none is kept here.
Calls block. Not for: appending (`log`), locks, renames.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.storage.files import fsync_folder, make_folder, storage_errors

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("az", "file", "gs", "memory", "s3")
PIECE_BYTES = 1 << 20
_RETRY: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing says of an object."""

    key: str
    size_bytes: int
    modified: datetime
    etag: str | None
    """Another one where the content is another; None where the place gives none."""


class Objects:
    """See the module. `url` names the place; two openings of `memory://` share nothing."""

    def __init__(self, url: str, store: ObjectStore, *, folder: Path | None = None) -> None:
        self.url = url
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, place: str | Path) -> Objects:
        """A folder, which is made, or a URI. Raises `ConfigError` for another scheme, and
        `StorageError` where the folder cannot be. A bucket is first asked by the first call."""
        from obstore.store import LocalStore, MemoryStore

        text = str(place)
        scheme = text.partition("://")[0] if "://" in text else "file"
        if scheme not in SCHEMES or not text:
            legal = ", ".join(f"{name}://" for name in SCHEMES)
            raise ConfigError(f"{text!r} is neither a folder nor one of {legal}")
        if scheme == "memory":
            return cls(text, MemoryStore())
        if scheme == "file":
            folder = Path(text.removeprefix("file://")).expanduser().absolute()
            make_folder(folder)
            return cls(str(folder), LocalStore(folder), folder=folder)
        return cls(text.rstrip("/"), _bucket(text))

    def __repr__(self) -> str:
        return f"Objects({self.url!r})"

    def put(self, key: str, content: bytes | Path) -> None:
        """Store bytes, or a file's content; what the key held before is replaced."""
        import obstore

        with self._errors(key):
            obstore.put(self._store, _checked(key), content)
        if self._folder is not None:
            self._make_durable(self._folder / key)

    def _make_durable(self, path: Path) -> None:
        assert self._folder is not None
        with storage_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            for parent in path.parents:
                fsync_folder(parent)
                if parent == self._folder:
                    return

    def get(self, key: str) -> bytes:
        """The whole object. Raises `StorageError` if there is none."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in pieces of about `PIECE_BYTES`."""
        import obstore

        with self._errors(key):
            found = obstore.get(self._store, _checked(key))
            for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    def info(self, key: str) -> ObjectInfo | None:
        """None if there is no such object."""
        import obstore

        with self._errors(key):
            try:
                return _info(obstore.head(self._store, _checked(key)))
            except FileNotFoundError:
                return None

    def listing(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects below the folder `prefix`, by key."""
        import obstore

        with self._errors(prefix):
            inside = _checked(prefix.rstrip("/")) if prefix else None
            found = [_info(m) for page in obstore.list(self._store, prefix=inside) for m in page]
        return sorted(found, key=lambda o: o.key)

    def delete(self, keys: str | Iterable[str]) -> None:
        """Delete some objects; those that are gone already do not matter."""
        import obstore

        for key in [keys] if isinstance(keys, str) else keys:
            with self._errors(key):
                try:
                    obstore.delete(self._store, _checked(key))
                except FileNotFoundError:
                    continue

    def delete_all(self, prefix: str) -> None:
        """Delete every object below the folder `prefix`."""
        self.delete([o.key for o in self.listing(prefix)])

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """The library raises its own tree, and the system's errors without an errno."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as e:
            where = f"{self.url}/{key}".rstrip("/")
            reason = _reason(e)
            raise StorageError(f"cannot use {where}: {reason}{_hint(self.url, reason)}") from e


def _bucket(url: str) -> ObjectStore:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    is_here = endpoint.startswith(("http://127.0.0.1", "http://localhost", "http://[::1]"))
    client: ClientConfig | None = {"allow_http": True} if is_here else None
    try:
        return from_url(url, client_options=client, retry_config=_RETRY)
    except (BaseError, ValueError) as e:
        raise ConfigError(f"{url!r} cannot be opened: {_reason(e)}") from e


_CREDENTIALS = {
    "s3://": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs://": "GOOGLE_APPLICATION_CREDENTIALS",
    "az://": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_METADATA_HOSTS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
"""Where a cloud's own machines get credentials, asked where the environment has none."""


def _hint(url: str, reason: str) -> str:
    """What to set, where the library looked for credentials in vain."""
    names = _CREDENTIALS.get(url[:5])
    if names is None or not any(host in reason for host in _METADATA_HOSTS):
        return ""
    return f"; the environment has no credentials: set {names}"


def _reason(e: Exception) -> str:
    """The first line: what follows repeats it with the library's own structures."""
    if isinstance(e, FileNotFoundError):
        return "there is no such bucket" if "NoSuchBucket" in str(e) else "there is no such object"
    return (str(e).strip() or type(e).__name__).splitlines()[0][:500]


def _checked(key: str) -> str:
    path = PurePosixPath(key)
    is_plain = key.isprintable() and "\\" not in key and str(path) == key
    if not is_plain or not key or path.is_absolute() or ".." in path.parts or key == ".":
        raise ValueError(f"{key!r} is not a relative path of plain names")
    return key


def _info(found: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(found["path"], found["size"], found["last_modified"], found.get("e_tag"))
