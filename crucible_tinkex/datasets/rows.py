"""Rows of a dataset file, read and checked before anything is trained.

Reads JSON Lines (`.jsonl`), the same gzipped (`.jsonl.gz`), and a JSON array (`.json`, `.json.gz`),
in three formats: `prompt_completion`, `text` and `chat`. `id` names a row in what is measured of
it; other keys beyond those of the format are ignored, so that rows may carry notes. Every fault is
a `DataError` that names the file, the line, what is wrong and what to do.

It does not tokenise, does not resolve a path against the experiment file (the caller does), and
does not download.
"""

from __future__ import annotations

import gzip
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from crucible_tinkex.errors import DataError

Format = Literal["prompt_completion", "text", "chat"]

_KEYS: dict[Format, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "chat": ("messages",),
}
MAX_ID_LENGTH = 128
_ROLES = ("system", "developer", "user", "assistant", "tool")
_FORMATS_HELP = (
    'a row is {"prompt": ..., "completion": ...}, {"text": ...} or '
    '{"messages": [{"role": ..., "content": ...}, ...]}'
)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row(ABC):
    """One row and where it came from: `line` counts lines, or the items of a `.json` array."""

    format: ClassVar[Format]
    path: str
    line: int
    id: str | None = field(default=None, kw_only=True)
    """As the file gives it, if it is fit for one: text or a whole number, printable, not long."""

    @property
    def example_id(self) -> str:
        """What the row is called in per-example results: its id, else its line (`00012`)."""
        return self.id or f"{self.line:05d}"

    @property
    def where(self) -> str:
        return _where(self.path, self.line)

    @property
    @abstractmethod
    def content(self) -> tuple[str, ...]:
        """The text of the row, whatever its format."""


@dataclass(frozen=True, slots=True)
class PromptCompletion(Row):
    """A prompt, which is given, and a completion, which is learnt."""

    format = "prompt_completion"
    prompt: str
    completion: str

    @property
    def content(self) -> tuple[str, ...]:
        return (self.prompt, self.completion)


@dataclass(frozen=True, slots=True)
class Text(Row):
    """A text, all of which is learnt."""

    format = "text"
    text: str

    @property
    def content(self) -> tuple[str, ...]:
        return (self.text,)


@dataclass(frozen=True, slots=True)
class Chat(Row):
    """A conversation that ends with an assistant's turn; the assistant's turns are learnt."""

    format = "chat"
    messages: tuple[Message, ...]

    @property
    def content(self) -> tuple[str, ...]:
        return tuple(part for message in self.messages for part in message)


def read_rows(path: str | Path, *, format: Format | None = None) -> list[Row]:
    """All rows of a file, never none; without a `format`, the first row's keys decide it."""
    if format is not None and format not in _KEYS:
        legal = ", ".join(get_args(Format))
        raise DataError(f"{path}: there is no data format {format!r}; choose one of {legal}")
    rows: list[Row] = []
    for line, value in _values(_check_file(path)):
        where = _where(str(path), line)
        if not isinstance(value, dict):
            hint = "; a file that is one JSON array must be named .json"
            raise DataError(
                f"{where}: expected a JSON object, found {_type_name(value)}; {_FORMATS_HELP}"
                + (hint if isinstance(value, list) else "")
            )
        format = format or _detect(value, where)
        _check_keys(value, format, where)
        rows.append(_row(value, format, str(path), line))
    if not rows:
        raise DataError(f"{path}: the file has no rows; {_FORMATS_HELP}")
    return rows


def overlap(train: Sequence[Row], evaluation: Sequence[Row]) -> int:
    """How many evaluation rows also occur in the training rows, white space and case aside."""
    seen = {_normalised(row) for row in train}
    return sum(_normalised(row) in seen for row in evaluation)


def _normalised(row: Row) -> tuple[str, ...]:
    return tuple(" ".join(part.casefold().split()) for part in row.content)


# --- the file --------------------------------------------------------------------------------


def _check_file(path: str | Path) -> Path:
    if "://" in str(path):
        raise DataError(f"{path}: only local files are read; download it and name the file")
    file = Path(path)
    if file.is_dir():
        raise DataError(f"{path}: this is a folder; name one .jsonl, .jsonl.gz or .json file in it")
    if not file.exists():
        raise DataError(
            f"{path}: no such file; a path in an experiment file is relative to that file"
        )
    if not file.name.lower().removesuffix(".gz").endswith((".jsonl", ".json")):
        raise DataError(f"{path}: unknown kind of file; give .jsonl, .jsonl.gz or .json")
    return file


def _is_array(path: str) -> bool:
    return path.lower().removesuffix(".gz").endswith(".json")


def _where(path: str, line: int) -> str:
    return f"{path}, {'item' if _is_array(path) else 'line'} {line}"


def _values(file: Path) -> Iterator[tuple[int, Any]]:
    if _is_array(file.name):
        text = _decode(b"".join(_lines(file)), str(file))
        if not text.strip():
            return
        value = _parse(text, str(file), fix="a file with one object per line must be named .jsonl")
        if not isinstance(value, list):
            raise DataError(f"{file}: expected a JSON array of rows, found {_type_name(value)}")
        yield from enumerate(value, 1)
        return
    for line, raw in enumerate(_lines(file), 1):
        where = _where(str(file), line)
        text = _decode(raw, where).strip()
        if text:
            yield line, _parse(text, where, fix="each line must be one whole JSON object")


def _lines(file: Path) -> Iterator[bytes]:
    # Bytes, because text mode would hide the line on which a file stops being UTF-8.
    try:
        with gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb") as lines:
            yield from lines
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: the file cannot be read: {reason}") from error


def _decode(raw: bytes, where: str) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise DataError(
            f"{where}: the file begins with a byte order mark; save it as UTF-8 without BOM"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); "
            "save the file as UTF-8"
        ) from error


def _parse(text: str, where: str, *, fix: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = (
            f"line {error.lineno} column {error.colno}"
            if error.lineno > 1
            else (f"column {error.colno}")
        )
        raise DataError(f"{where}: malformed JSON at {at}: {error.msg}; {fix}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: malformed JSON: {error}; {fix}") from error


# --- one row ---------------------------------------------------------------------------------


def _matching(value: dict[str, Any]) -> list[Format]:
    return [name for name, keys in _KEYS.items() if all(key in value for key in keys)]


def _detect(value: dict[str, Any], where: str) -> Format:
    matching = _matching(value)
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise DataError(
            f"{where}: could be {' or '.join(matching)}; set data.format to one of them"
        )
    for name, keys in _KEYS.items():
        if any(key in value for key in keys):
            _check_keys(value, name, where)
    raise DataError(f"{where}: has the keys {_listed(value)}, of no known format; {_FORMATS_HELP}")


def _check_keys(value: dict[str, Any], format: Format, where: str) -> None:
    missing = [key for key in _KEYS[format] if key not in value]
    if not missing:
        return
    others = _matching(value)
    if others:
        raise DataError(
            f"{where}: a {others[0]} row in a {format} file; put each format in a file of its own"
        )
    raise DataError(
        f"{where}: the key {missing[0]!r} of format {format} is missing (found {_listed(value)}); "
        + _FORMATS_HELP
    )


def _row(value: dict[str, Any], format: Format, path: str, line: int) -> Row:
    where, id = _where(path, line), _id(value.get("id"))
    if format == "chat":
        return Chat(path, line, _messages(value["messages"], where), id=id)
    if format == "text":
        return Text(path, line, _text(value["text"], "'text'", where), id=id)
    prompt = _text(value["prompt"], "'prompt'", where, fix='use format text: {"text": ...}')
    completion = _text(value["completion"], "'completion'", where)
    return PromptCompletion(path, line, prompt, completion, id=id)


def _id(value: Any) -> str | None:
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    text = str(value).strip()
    return text if len(text) <= MAX_ID_LENGTH and text.isprintable() and text else None


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: 'messages' must be a list of at least one turn, found {_type_name(value)}"
        )
    messages = tuple(_message(item, f"'messages'[{i}]", where) for i, item in enumerate(value))
    if messages[0].role == "assistant" or messages[-1].role != "assistant":
        raise DataError(
            f"{where}: a conversation must begin with another role and end with the assistant's "
            f"turn, which is learnt; found {', '.join(m.role for m in messages)}"
        )
    return messages


def _message(value: Any, name: str, where: str) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        found = _listed(value) if isinstance(value, dict) else _type_name(value)
        raise DataError(
            f"{where}: {name} must have exactly the keys 'role' and 'content', found {found}"
        )
    role = value["role"]
    if role not in _ROLES:
        raise DataError(f"{where}: {name} has the role {role!r}; use one of {', '.join(_ROLES)}")
    # Only what is learnt must not be empty.
    if role != "assistant" and value["content"] == "":
        return Message(role, "")
    return Message(role, _text(value["content"], f"the content of {name}", where))


def _text(value: Any, name: str, where: str, *, fix: str = "remove the row or fill it in") -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} must be a string, found {_type_name(value)}")
    if not value.strip():
        raise DataError(f"{where}: {name} is empty; {fix}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {name} holds half of a surrogate pair (\\u{ord(value[error.start]):04x}); "
            "write the whole character"
        ) from error
    return value


def _listed(value: dict[str, Any]) -> str:
    return ", ".join(repr(key) for key in value) or "no keys"


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value == []:
        return "an empty list"
    return "null" if value is None else names.get(type(value), "a number")
