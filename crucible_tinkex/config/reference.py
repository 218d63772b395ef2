"""The reference of the experiment file as Markdown, made from the models themselves.

`python -m crucible_tinkex.config.reference > docs/configuration.md`. Key, type, bounds and default
are pydantic's; what a key means is the docstring under its field. A field without one is an error.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from crucible_tinkex.config.axes import FIXED, NUMBERS, AxisRange, axis_keys
from crucible_tinkex.config.experiment import Experiment
from crucible_tinkex.config.sweep.run import DEFAULT_STORAGE
from crucible_tinkex.metrics import CATALOGUE

_INTRODUCTION = """\
# The experiment file

Made by `python -m crucible_tinkex.config.reference`; do not edit.

One TOML file declares one experiment. `--set section.key=value` edits it from the command line.
Paths in the file and in `--set` start from the file's folder; those given to Python or `--storage`,
and the default storage `runs`, start from the current folder. An unknown key is refused.
"""
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number"}


def reference() -> str:
    """The whole page."""
    sections = [_INTRODUCTION, *(_section(*s) for s in _sections(Experiment, ""))]
    return "\n".join([*sections, _axis(), _axes(), _metrics()])


def _sections(model: type[BaseModel], name: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield name, model
    for key, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _sections(inner, f"{name}.{key}".lstrip("."))


def _section(name: str, model: type[BaseModel]) -> str:
    about = inspect.cleandoc(model.__doc__ or "")
    heading = f"## `[{name}]`\n\n{about}" if name else "## Top level"
    return f"{heading}\n\n{_table(model)}"


def _table(model: type[BaseModel]) -> str:
    meanings = _meanings(model)
    rows = [
        f"| `{key}` | {_type(field)} | {_default(field)} | {meanings[key]} |"
        for key, field in model.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split()).replace("|", "\\|")
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _type(field: FieldInfo) -> str:
    is_path = any(isinstance(m, AfterValidator) for m in field.metadata)
    return ("path" if is_path else _type_name(field.annotation)) + _bounds(field)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        is_path = any(isinstance(m, AfterValidator) for m in annotation.__metadata__)
        return "path" if is_path else _type_name(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(a)}`" for a in arguments)
    if origin in (Union, types.UnionType):
        named = (_type_name(a) for a in arguments if a is not types.NoneType)
        return " or ".join(dict.fromkeys(named))
    if origin is tuple:
        inner = _type_name(arguments[0])
        if inner.startswith("list of"):
            return f"list of {inner.replace('list', 'lists', 1)}"
        return f"list of {inner.replace(' or ', 's or ')}s"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "table"
    return _NAMES.get(annotation, "path")


def _bounds(field: FieldInfo) -> str:
    signs = {
        annotated_types.Gt: ("gt", ">"),
        annotated_types.Ge: ("ge", ">="),
        annotated_types.Lt: ("lt", "<"),
        annotated_types.Le: ("le", "<="),
    }
    found = [
        f"{sign} {getattr(bound, name)}"
        for bound in field.metadata
        for kind, (name, sign) in signs.items()
        if isinstance(bound, kind)
    ]
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return f"`{json.dumps(DEFAULT_STORAGE)}`" if field.metadata else "`{}`"
    return "-" if field.default is None else f"`{json.dumps(field.default)}`"


def _axis() -> str:
    about = "A list of values, or a range:"
    return f"## An axis of `[search.space]`\n\n{about}\n\n{_table(AxisRange)}"


def _axes() -> str:
    fixed = "\n".join(f"- `{key}`: {why}" for key, why in FIXED.items())
    keys = ", ".join(f"`{key}`" for key in [*sorted(axis_keys()), f"{NUMBERS}.NAME"])
    return f"### Keys that may vary\n\n{keys}.\n\nNot these:\n\n{fixed}\n"


def _metrics() -> str:
    rows = [
        f"| `{m.name}` | {m.unit} | {m.direction or '-'} | {'yes' if m.objective else ''} "
        f"| {m.about} |"
        for m in CATALOGUE.values()
    ]
    head = ["| name | unit | better | ranks | meaning |", "|---|---|---|---|---|"]
    return "\n".join(["## Metrics", "", *head, *rows, ""])


if __name__ == "__main__":
    sys.stdout.write(reference())
