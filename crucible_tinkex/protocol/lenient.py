"""Field types for what other services answer: values that are new or unusual are read, not refused.

What is read is never more than the protocol says, and what cannot be read is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator

_WIDTHS = {"int": "int64", "uint": "int64", "float": "float32", "bfloat": "float32"}


def _dtype(given: Any) -> Any:
    """Integers and floats of any width: the values are Python's all the same."""
    return _WIDTHS.get(given.rstrip("0123456789"), given) if isinstance(given, str) else given


def _numbers(given: Any) -> Any:
    """The entries that are numbers."""
    if not isinstance(given, Mapping):
        return given
    return {name: value for name, value in given.items() if isinstance(value, int | float)}


def _metrics(given: Any) -> Any:
    return {} if given is None else _numbers(given)


def _rows(given: Any) -> Any:
    """Of each row, the outputs that are tensors of numbers."""
    if not isinstance(given, list):
        return given
    return [
        {name: value for name, value in row.items() if _is_tensor(value)}
        if isinstance(row, Mapping)
        else row
        for row in given
    ]


def _is_tensor(given: Any) -> bool:
    return not isinstance(given, Mapping) or _dtype(given.get("dtype")) in ("int64", "float32")


def _stop_reason(given: Any) -> Any:
    """A reason that is newer than this client reads as `stop`, in JSON as in protobuf."""
    return "stop" if isinstance(given, str) and given != "length" else given


def _time(given: Any) -> Any:
    """Seconds since 1970, as ISO 8601."""
    if isinstance(given, int | float) and math.isfinite(given):
        return datetime.fromtimestamp(given, UTC).isoformat()
    return given


def _listed(given: Any) -> Any:
    """Some services take a list only."""
    return [given] if isinstance(given, str) else given


def _models(given: Any) -> Any:
    """The models that have a name; a service may list what it means by other fields."""
    if not isinstance(given, list):
        return given
    return [m for m in given if not isinstance(m, Mapping) or m.get("model_name")]


DType: TypeAlias = Annotated[Literal["int64", "float32"], BeforeValidator(_dtype)]
StopReason: TypeAlias = Annotated[Literal["stop", "length"], BeforeValidator(_stop_reason)]
Stop: TypeAlias = Annotated[str | list[str] | list[int] | None, BeforeValidator(_listed)]
Metrics: TypeAlias = Annotated[dict[str, float], BeforeValidator(_metrics)]
SomeMetrics: TypeAlias = Annotated[dict[str, float] | None, BeforeValidator(_numbers)]
Rows = BeforeValidator(_rows)
NamedModels = BeforeValidator(_models)
Time: TypeAlias = Annotated[str | None, BeforeValidator(_time)]
