"""Unpacking a tar file that a stranger may have made.

Only plain files and folders are taken. Links, devices, sparse files, absolute names, `..`, names
given twice (also in another case), and more members or bytes than the limits are refused, and
nothing is believed before it is read: a header's size counts against the bytes, and so does what
is decompressed. Member modes, owners and times are ignored. Zip is not supported.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from crucible_tinkex.errors import ProtocolError, StorageError

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1 << 18
_HEADER_BYTES = 1 << 20
"""The most that is read at once: the names in a header are shorter."""
_NAME_CHARS = 1024
_LEAST_BYTES = 1 << 24
"""The ratio is not applied below this size: small text packs very well."""


class ArchiveLimits(NamedTuple):
    members: int = 10_000
    bytes: int = 20 * 1000**3
    ratio: int = 100
    """Unpacked bytes per packed byte."""


class _Bounded(io.RawIOBase):
    """A readable stream that refuses to give more than `limit_bytes` in all."""

    def __init__(self, source: BinaryIO, limit_bytes: int) -> None:
        self._source = source
        self._limit_bytes = limit_bytes

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise ProtocolError(f"the archive has a header of {size} bytes")
        data = self._source.read(size)
        if self._source.tell() > self._limit_bytes:
            raise ProtocolError(f"the archive unpacks to more than {self._limit_bytes} bytes")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence != 0 or not 0 <= offset <= self._limit_bytes + _HEADER_BYTES:
            raise ProtocolError(f"the archive unpacks to more than {self._limit_bytes} bytes")
        return self._source.seek(offset)

    def tell(self) -> int:
        return self._source.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def unpack(packed: Path, folder: Path, *, limits: ArchiveLimits | None = None) -> None:
    """Into `folder`, which exists and is empty. After an error it holds part of the content.

    Raises `ProtocolError` for an archive that is refused, `StorageError` for the disk.
    """
    limits = limits or ArchiveLimits()
    ratio_bytes = max(packed.stat().st_size * limits.ratio, _LEAST_BYTES)
    limit_bytes = min(limits.bytes, ratio_bytes)
    try:
        with packed.open("rb") as file:
            is_gzip = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            source = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzip else file
            bounded = cast(BinaryIO, _Bounded(source, limit_bytes))
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                _take_all(archive, folder, limits, limit_bytes)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ProtocolError(f"the checkpoint's archive is damaged: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot unpack into {folder}: {error}") from error


def _take_all(
    archive: tarfile.TarFile, folder: Path, limits: ArchiveLimits, limit_bytes: int
) -> None:
    seen: set[str] = set()
    total = 0
    for count, member in enumerate(archive, start=1):
        total += member.size
        if count > limits.members:
            raise ProtocolError(f"the archive has more than {limits.members} members")
        if not 0 <= member.size <= total <= limit_bytes:
            raise ProtocolError(f"the archive unpacks to more than {limit_bytes} bytes")
        _take(archive, member, folder, seen)


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, seen: set[str]) -> None:
    if member.isdir() and PurePosixPath(member.name) == PurePosixPath("."):
        return
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise ProtocolError(f"the archive's member {member.name[:200]!r} is not a plain file")
    place = member_path(member.name)
    target = folder / place
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    folded = str(place).casefold()
    if folded in seen:
        raise ProtocolError(f"the archive has {member.name[:200]!r} twice")
    seen.add(folded)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None
    with target.open("xb") as file:
        while piece := content.read(_PIECE_BYTES):
            file.write(piece)
    if target.stat().st_size != member.size:
        raise ProtocolError(f"the archive's member {member.name[:200]!r} is cut")


def member_path(name: str) -> PurePosixPath:
    """A relative path that stays below its folder. Raises `ProtocolError`."""
    path = PurePosixPath(name)
    is_odd = "\\" in name or ":" in name or not name.isprintable() or len(name) > _NAME_CHARS
    if is_odd or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ProtocolError(f"the archive's name {name[:200]!r} is not safe")
    return path
