"""Whether one answer is right: as a text, by a pattern, by a JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from crucible_tinkex.errors import ConfigError


def exact_match(answer: str, expected: str, *, strict: bool = False) -> bool:
    """Whether the texts are equal; unless `strict`, white space and case aside."""
    return answer == expected if strict else _plain(answer) == _plain(expected)


def matches(answer: str, pattern: str) -> bool:
    """Whether the regular expression is found in the answer (`^` and `$` tie it to the ends).
    Raises `ConfigError` if it is not valid."""
    return _compiled(pattern).search(answer) is not None


def matches_schema(answer: str, schema: Mapping[str, Any]) -> bool:
    """Whether the answer is JSON that the schema allows. Raises as `json_problem`."""
    return json_problem(answer, schema) is None


def json_problem(answer: str, schema: Mapping[str, Any]) -> str | None:
    """Why the answer is not JSON that the schema allows; None where it is. Raises `ConfigError` if
    the schema, by default of draft 2020-12, is not valid."""
    # Costs 0.1 s, and few experiments have a schema.
    import jsonschema

    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigError(f"the JSON schema is not valid: {error.message}") from error
    try:
        value = json.loads(answer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    problem = jsonschema.exceptions.best_match(validator(schema).iter_errors(value))
    if problem is None:
        return None
    return f"{problem.json_path}: {problem.message}"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")  # Python reads NaN and Infinity; JSON has neither


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression: {error}") from error
