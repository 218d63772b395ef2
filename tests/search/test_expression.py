"""Conditions: what they mean, and that nothing else can be written in them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_tinkex.config.expression import Expression
from crucible_tinkex.errors import ConfigError

SETTINGS: dict[str, Any] = {
    "lora.rank": 8,
    "lora.train_mlp": True,
    "optimizer.learning_rate": 1e-3,
    "optimizer.schedule": "linear",
    "train.batch_size": 16,
    "train.epochs": None,
}


def holds(text: str) -> bool:
    return Expression.parse(text).holds(SETTINGS.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora.rank * train.batch_size <= 128", True),
        ("lora.rank * train.batch_size < 128", False),
        ("optimizer.learning_rate == 1e-3", True),
        ("4 <= lora.rank < 8", False),
        ("4 <= lora.rank <= 8", True),
        ("optimizer.schedule != 'constant' and lora.train_mlp", True),
        ("optimizer.schedule in ('cosine', 'constant')", False),
        ("optimizer.schedule not in ['cosine']", True),
        ("not lora.train_mlp or lora.rank % 3 == 2", True),
        ("lora.train_mlp == true", True),
        ("lora.train_mlp == False", False),
        ("-lora.rank // 3 == -3 and lora.rank / 2 - 1 == 3", True),
        ("lora.rank > 100 and lora.rank / 0 > 1", False),
    ],
)
def test_what_a_condition_means(text: str, expected: bool) -> None:
    assert holds(text) is expected


def test_it_knows_the_keys_that_it_looks_at() -> None:
    found = Expression.parse("lora.rank > 1 or optimizer.schedule == 'x'")
    assert found.keys == {"lora.rank", "optimizer.schedule"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lora.rank <",
        "x" * 501,
        "rank < 8",
        "print(1)",
        "lora.rank.__class__()",
        "(1).real",
        "lora.rank ** 9 ** 9",
        "lora[0]",
        "[r for r in (1, 2)]",
        "lambda: 1",
        "f'{lora.rank}'",
        "lora.rank is None",
        "b'x' == 1",
        "None",
        "1 if lora.rank else 2",
        "lora.rank := 3",
        "1j < 2",
    ],
)
def test_nothing_else_can_be_written(text: str) -> None:
    with pytest.raises(ConfigError):
        Expression.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer.schedule < 3", "optimizer.schedule = 'linear'"),
        ("lora.rank / (lora.rank - 8) > 1", "lora.rank = 8: .*zero"),
        ("train.epochs * 2 < 3", "train.epochs = None: None is no number"),
        ("'a' * 1000000000 == 'b'", "'a' is no number"),
    ],
)
def test_what_has_no_answer_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        holds(text)


@settings(max_examples=300, derandomize=True)
@given(st.text(alphabet="lora.rnk 0123456789()<>=!+-*/%'\"andoti[],:", max_size=60))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        found = Expression.parse(text)
    except ConfigError:
        return
    assert all("." in key for key in found.keys)
