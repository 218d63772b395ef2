"""What is wrong with a declaration, in words: file, key, what is wrong, what would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from crucible_tinkex.errors import did_you_mean

_MEMBERS = {
    "range",
    "values",
    "number",
    "word",
    "table",
    "bool",
    "int",
    "float",
    "str",
    "file",
    "files",
    "weighted",
    "score",
}
"""Names that pydantic gives to members of a union, which are no keys."""


def explain(
    error: ValidationError, *, source: str, model: type[BaseModel], section: str = ""
) -> str:
    """Every problem of a `model` on a line of its own; `section` is where the model stands."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_key(detail, section), []).append(detail)
    return "\n".join(f"{source}: {_explain(k, d, model)}" for k, d in found.items())


def _key(detail: Mapping[str, Any], section: str) -> str:
    parts = [str(p) for p in detail["loc"] if not _is_member(p)]
    return ".".join([section, *parts] if section else parts)


def _is_member(part: int | str) -> bool:
    return isinstance(part, str) and (
        part in _MEMBERS or part.startswith("constrained-") or "[" in part
    )


def _explain(key: str, details: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> str:
    detail = details[0]
    if detail["type"] == "extra_forbidden":
        location = [str(p) for p in detail["loc"] if not _is_member(p)]
        legal = _legal_keys(model, location[:-1])
        hint = did_you_mean(location[-1], legal)
        return f"unknown key {key!r}; {hint}legal here: {', '.join(legal)}"
    if detail["type"] == "missing":
        return f"missing key {key!r}"
    message = ", or ".join(dict.fromkeys(_message(d) for d in details))
    if not key or isinstance(detail["input"], Mapping):
        return f"{key}: {message}".removeprefix(": ")  # a whole section says nothing more
    return f"{key}: {message} (got {detail['input']!r})"


def _message(detail: Mapping[str, Any]) -> str:
    text: str = detail["msg"]
    text = text.removeprefix("Value error, ").replace("Tuple should", "List should")
    return text.replace("a valid tuple", "a list").replace("a valid dictionary", "a table")


def _legal_keys(model: Any, location: Sequence[str]) -> list[str]:
    is_table = False
    for part in location:
        if part.isdecimal():
            continue
        if is_table:  # `part` is a name of the user's
            is_table = False
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model, is_table = _model_of(field.annotation), get_origin(field.annotation) is dict
    return sorted(getattr(model, "model_fields", {}))


def _model_of(annotation: Any) -> Any:
    """The section that an annotation is, or has a place for."""
    if hasattr(annotation, "model_fields"):
        return annotation
    found = (_model_of(inner) for inner in get_args(annotation))
    return next((model for model in found if hasattr(model, "model_fields")), annotation)
