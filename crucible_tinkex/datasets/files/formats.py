"""From a JSON object to a row: which format it is in, and what is wrong with it.

A format is the keys by which it is known and a function that makes the row. The three of our own
(`prompt_completion`, `text`, `chat`) are here, published ones in `published`. `id` names a row in
what is measured of it, `group` those that belong together; other keys beyond those of the format
are notes, which only token-weight schemes see. Every fault is a `DataError` that names the file,
the line, the key and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crucible_tinkex.datasets.files.containers import json_cells, type_name
from crucible_tinkex.datasets.rows import (
    MAX_ID_LENGTH,
    Chat,
    Format,
    Message,
    PromptCompletion,
    Row,
    Text,
    place,
)
from crucible_tinkex.errors import DataError

Value = Mapping[str, Any]
_ROLES = ("system", "developer", "user", "assistant", "tool")
FORMATS_HELP = (
    'a row is {"prompt": ..., "completion": ...}, {"text": ...} or '
    '{"messages": [{"role": ..., "content": ...}, ...]}'
)
PUBLISHED_HELP = (
    "or as alpaca, sharegpt, scifact, fever, gsm8k, mmlu or humaneval are published (docs/data.md)"
)


@dataclass(frozen=True)
class Origin:
    """Where a row stands; part of every row and every message."""

    path: str
    line: int
    id: str | None
    group: str | None = None

    @property
    def where(self) -> str:
        return place(self.path, self.line)


@dataclass(frozen=True)
class Reader:
    """How a format is known and read."""

    keys: tuple[str, ...]
    """All of them are needed, and together they tell the format."""
    row: Callable[[Value, Origin], Row]
    json_keys: tuple[str, ...] = ()
    """Those whose cells in a CSV file hold JSON."""
    noted: tuple[str, ...] = ()
    """Those of `keys` that are notes, too."""


def row_of(
    value: Any, format: Format, readers: Mapping[Format, Reader], *, path: str, line: int
) -> Row:
    """The row that `value`, a JSON value, is in `format`."""
    where = place(path, line)
    _check_object(value, where)
    _check_keys(value, format, readers, where)
    reader = readers[format]
    if reader.json_keys:
        value = json_cells(value, reader.json_keys, where)
    row = reader.row(value, Origin(path, line, _id(value.get("id")), _id(value.get("group"))))
    known = {*reader.keys, "id", "group"} - {*reader.noted}
    notes = {key: value[key] for key in value if key not in known}
    return replace(row, notes=notes) if notes else row


def detect(value: Any, readers: Mapping[Format, Reader], *, path: str, line: int) -> Format:
    """The one format whose keys the row has."""
    where = place(path, line)
    _check_object(value, where)
    matching = _matching(value, readers)
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise DataError(
            f"{where}: could be {' or '.join(matching)}; set data.format to one of them"
        )
    for name, reader in readers.items():
        if any(key in value for key in reader.keys):
            _check_keys(value, name, readers, where)
    raise DataError(
        f"{where}: has the keys {_listed(value)}, of no known format; {FORMATS_HELP}, "
        + PUBLISHED_HELP
    )


def _check_object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        hint = "; a file that is one JSON array must be named .json"
        raise DataError(
            f"{where}: expected a JSON object, found {type_name(value)}; {FORMATS_HELP}"
            + (hint if isinstance(value, list) else "")
        )


def _matching(value: Value, readers: Mapping[Format, Reader]) -> list[Format]:
    """Formats whose keys it has; without those that another of them has all keys of, and more."""
    found = {name: {*r.keys} for name, r in readers.items() if all(key in value for key in r.keys)}
    return [name for name, keys in found.items() if not any(keys < more for more in found.values())]


def _check_keys(value: Value, format: Format, readers: Mapping[Format, Reader], where: str) -> None:
    missing = [key for key in readers[format].keys if key not in value]
    if not missing:
        return
    others = _matching(value, readers)
    if others:
        raise DataError(
            f"{where}: a {others[0]} row in a {format} file; put each format in a file of its own"
        )
    raise DataError(
        f"{where}: the key {missing[0]!r} of format {format} is missing (found {_listed(value)}); "
        + FORMATS_HELP
    )


def _prompt_completion(value: Value, origin: Origin) -> Row:
    prompt = text(value["prompt"], "'prompt'", origin, fix='use format text: {"text": ...}')
    completion = text(value["completion"], "'completion'", origin)
    return pair(prompt, completion, origin)


def _text(value: Value, origin: Origin) -> Row:
    return Text(
        origin.path,
        origin.line,
        text(value["text"], "'text'", origin),
        id=origin.id,
        group=origin.group,
    )


def turns_of(value: Value, key: str, origin: Origin) -> list[Any]:
    turns = value[key]
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{origin.where}: {key!r} must be a list of at least one turn, found "
            + type_name(turns)
        )
    return turns


def _chat(value: Value, origin: Origin) -> Row:
    turns = turns_of(value, "messages", origin)
    messages = [_message(item, f"'messages'[{i}]", origin) for i, item in enumerate(turns)]
    return conversation(messages, origin)


def _message(value: Any, name: str, origin: Origin) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        found = _listed(value) if isinstance(value, dict) else type_name(value)
        raise DataError(
            f"{origin.where}: {name} must have exactly the keys 'role' and 'content', found {found}"
        )
    role = value["role"]
    if role not in _ROLES:
        raise DataError(
            f"{origin.where}: {name} has the role {role!r}; use one of {', '.join(_ROLES)}"
        )
    return turn(role, value["content"], f"the content of {name}", origin)


OWN: Mapping[Format, Reader] = {
    "prompt_completion": Reader(("prompt", "completion"), _prompt_completion),
    "text": Reader(("text",), _text),
    "chat": Reader(("messages",), _chat, json_keys=("messages",)),
}


# --- what all formats are made of --------------------------------------------------------------


def pair(prompt: str, completion: str, origin: Origin) -> PromptCompletion:
    """A row that asks `prompt` and learns `completion`."""
    return PromptCompletion(
        origin.path, origin.line, prompt, completion, id=origin.id, group=origin.group
    )


def turn(role: str, content: Any, name: str, origin: Origin) -> Message:
    """A turn whose content is checked; only what is learnt must not be empty."""
    if role != "assistant" and content == "":
        return Message(role, "")
    return Message(role, text(content, name, origin))


def conversation(messages: Sequence[Message], origin: Origin) -> Chat:
    """A row of turns, the last of which is the assistant's."""
    if messages[0].role == "assistant" or messages[-1].role != "assistant":
        raise DataError(
            f"{origin.where}: a conversation must begin with another role and end with the "
            f"assistant's turn, which is learnt; found {', '.join(m.role for m in messages)}"
        )
    return Chat(origin.path, origin.line, tuple(messages), id=origin.id, group=origin.group)


def text(
    value: Any, name: str, origin: Origin, *, fix: str = "remove the row or fill it in"
) -> str:
    """A string with something in it. Raises `DataError` that calls it `name`."""
    if not isinstance(value, str):
        raise DataError(f"{origin.where}: {name} must be a string, found {type_name(value)}")
    if not value.strip():
        raise DataError(f"{origin.where}: {name} is empty; {fix}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{origin.where}: {name} holds half of a surrogate pair "
            f"(\\u{ord(value[error.start]):04x}); write the whole character"
        ) from error
    return value


def _id(value: Any) -> str | None:
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    name = str(value).strip()
    return name if len(name) <= MAX_ID_LENGTH and name.isprintable() and name else None


def _listed(value: Value) -> str:
    return ", ".join(repr(key) for key in value) or "no keys"
