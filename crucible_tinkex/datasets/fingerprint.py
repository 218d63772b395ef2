"""The fingerprint of a sweep's data: what the files contain, and how they were read.

The same files read in another format, cut at another length or under another tokenizer are other
data: a trial on them has another identity. Where the files lie does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.datasets.files.source import Rows
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


def files_hash(rows: Rows) -> Any:
    """What the files of `rows` contain: the hash of the one file, or where there are several, or
    weights, or a corpus, all of them in order. Raises `DataError`."""
    parts = [
        {
            "file": file_hash(file.local),
            "weight": file.declared.weight,
            **({"corpus": file_hash(file.corpus)} if file.corpus else {}),
            **({"rows": choice} if (choice := file.address.choice.identity()) else {}),
        }
        for file in rows.files
    ]
    plain = len(parts) == 1 and parts[0] == {"file": parts[0]["file"], "weight": 1.0}
    return parts[0]["file"] if plain else parts


def reading(
    *,
    format: Format | Sequence[Format],
    max_length: int,
    tokenizer: str | None,
    **chosen: Any,
) -> dict[str, Any]:
    """How rows become tokens. `format` is that of the training file, or a list, of each file.
    `tokenizer`: a folder, which counts by its files, or a name; None for the base model's own.
    `chosen`: further JSON values, of which None, the default of each, says nothing, so that what
    was read before there was such a choice keeps its identity."""
    return {
        "format": format,
        "max_length": max_length,
        "tokenizer": _tokenizer(tokenizer),
        **{key: value for key, value in chosen.items() if value is not None},
    }


def fingerprint(train: Any, evaluation: Any, reading: Mapping[str, Any]) -> str:
    """Identity of the data: the hashes of the training and of the evaluation files (`files_hash`;
    None if there are none), and how they were read."""
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
