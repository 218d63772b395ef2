"""Whether one answer is right: as a text, by a pattern, by a JSON schema."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from crucible_tinkex.errors import ConfigError


def exact_match(answer: str, expected: str, *, strict: bool = False) -> bool:
    """Whether the texts are equal; unless `strict`, white space and case aside."""
    return answer == expected if strict else _plain(answer) == _plain(expected)


def similarity(answer: str, expected: str) -> float:
    """Cosine of the two texts' counts of character trigrams, from 0 (none shared) to 1.

    Trigrams of each word with a space before and behind, white space and case aside: how alike the
    texts look, which is near to what they mean only where words are. The counts are those of
    `char_wb` in scikit-learn (Cavnar and Trenkle, "N-gram-based text categorization", 1994)."""
    first, second = _trigrams(answer), _trigrams(expected)
    if not first or not second:
        return float(first == second)
    shared = sum(count * second[gram] for gram, count in first.items())
    squares = (sum(count**2 for count in grams.values()) for grams in (first, second))
    return min(1.0, shared / math.sqrt(math.prod(squares)))


def _trigrams(text: str) -> Counter[str]:
    words = (f" {word} " for word in text.casefold().split())
    return Counter(word[i : i + 3] for word in words for i in range(len(word) - 2))


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
