"""The fingerprint of a sweep's data: what the files contain, and how they were read.

The same files read in another format, cut at another length or under another tokenizer are other
data: a trial on them has another identity. Where the files lie does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_tinkex.datasets.rows import Format
from crucible_tinkex.errors import DataError
from crucible_tinkex.names import digest

_LENGTH = 32
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def file_hash(path: str | Path) -> str:
    """SHA-256 of the bytes. Raises `DataError` if they cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror}") from error


def reading(*, format: Format, max_length: int, tokenizer: str | None) -> dict[str, Any]:
    """How rows become tokens. `format` is what the rows turned out to be (`Row.format`).
    `tokenizer`: a folder, which counts by its files, or a name; None for the base model's own."""
    return {"format": format, "max_length": max_length, "tokenizer": _tokenizer(tokenizer)}


def fingerprint(train: str, evaluation: str | None, reading: Mapping[str, Any]) -> str:
    """Identity of the data: the hashes of both files, and how they were read."""
    content = {"train": train, "eval": evaluation, "reading": dict(reading)}
    return digest(content, _LENGTH)


def _tokenizer(name: str | None) -> Any:
    folder = None if name is None else Path(name).expanduser()
    if folder is None or not folder.exists():
        return name
    if folder.is_file():
        folder = folder.parent
    files = [folder / file for file in _TOKENIZER_FILES]
    return {file.name: file_hash(file) for file in files if file.is_file()}
