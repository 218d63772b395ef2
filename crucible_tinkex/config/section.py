"""What all sections of a declaration share: their base class, dotted keys, paths.

Guarantees: a section is frozen, refuses unknown keys, NaN and infinity; every path in it is
absolute in memory, anchored at the folder that validation was given (that of the experiment file),
or at the current folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from crucible_tinkex.errors import ConfigError


class Section(BaseModel):
    """Base of all sections: frozen, extras forbidden, NaN and infinity refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@contextmanager
def as_value_error() -> Iterator[None]:
    """In a validator: a `ConfigError` becomes what pydantic takes for a problem of the key."""
    try:
        yield
    except ConfigError as e:
        raise ValueError(e.message) from None


def anchored(value: str, folder: Path) -> str:
    """The path as an absolute one; a URI stays as it is."""
    return value if "://" in value else os.path.abspath(folder / Path(value).expanduser())


def anchor_of(info: ValidationInfo) -> Path:
    """The folder that relative paths start from."""
    folder = (info.context or {}).get("folder")
    return Path.cwd() if folder is None else Path(folder)


def anchored_path(value: str, info: ValidationInfo) -> str:
    """Validates a path, and makes it absolute. Raises `ValueError`."""
    if not value or "\0" in value:
        raise ValueError("it must name a file or folder")
    return anchored(value, anchor_of(info))


AnchoredPath = Annotated[str, AfterValidator(anchored_path)]
"""A path of a file or folder; absolute once it is validated."""


def set_dotted(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested tables and lists, making tables that are missing."""
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        node = _child(node, part, key)
    _check_container(node, last, key)
    node[int(last) if isinstance(node, list) else last] = value


def _child(node: Any, part: str, key: str) -> Any:
    _check_container(node, part, key)
    child = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"{key!r}: {part!r} is not a section")
    return child


def _check_container(node: Any, part: str, key: str) -> None:
    if isinstance(node, list) and not (part.isdecimal() and int(part) < len(node)):
        legal = f"0 to {len(node) - 1}" if node else "and the list is empty"
        raise ConfigError(f"{key!r}: {part!r} must be a position, {legal}")


def get_dotted(raw: Mapping[str, Any], key: str) -> Any:
    """The value at `a.b.c`, or None."""
    node: Any = raw
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with a value that is no table; an empty table counts as a value."""
    for key, value in raw.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
