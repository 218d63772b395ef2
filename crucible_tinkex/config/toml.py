"""An experiment as TOML text, for the file in a sweep's folder that would do the same again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BARE = re.compile(r"^[A-Za-z0-9_-]+$")


def to_toml(values: Mapping[str, Any]) -> str:
    """JSON values as TOML that reads as the same values; what is None is left out, as TOML has
    nothing for it."""
    return "\n".join(_table(values, ())) + "\n"


def _table(values: Mapping[str, Any], path: Sequence[str]) -> Iterator[str]:
    given = {k: v for k, v in values.items() if v is not None}
    plain = {k: v for k, v in given.items() if not isinstance(v, Mapping)}
    if path and (plain or len(given) == len(plain)):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _table(value, (*path, key))


def _key(key: str) -> str:
    return key if _BARE.match(key) else _text(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float() if not math.isfinite(value):
            return str(value)  # inf, -inf, nan
        case int() | float():
            return repr(value)
        case Mapping():
            pairs = (f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
            return f"{{{', '.join(pairs)}}}"
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case _:
            return _text(str(value))


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
