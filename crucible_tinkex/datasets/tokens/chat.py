"""Conversations rendered by a model's own chat template, cut at the assistant's turns.

The template runs as in transformers (immutable sandbox, trimmed blocks, `raise_exception`,
`tojson`), with one difference: `strftime_now` is not defined, so that a row is the same text on
every day; templates that date the system prompt fall back to their fixed date.

What is learnt is found by rendering the conversation up to each assistant's turn and through it:
the difference is the turn, exactly as the model will have to write it. A template that rewrites
earlier turns when later ones come (as those that drop past reasoning do) cannot be cut so and is
refused, rather than learnt wrongly; where only the last turn is learnt, it is cut there alone, and
such a template serves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from crucible_tinkex.datasets.rows import Message, TrainOn
from crucible_tinkex.errors import ConfigError, DataError


def render_parts(
    template: str,
    messages: Sequence[Message],
    *,
    special: Mapping[str, str],
    train_on: TrainOn = "all_assistant",
) -> list[tuple[str, bool]]:
    """The rendered conversation as (text, learnt) parts that join to the whole. A part begins at
    each turn that is cut out: every assistant's, or (`last_assistant`, `everything`) the last."""
    compiled = _compile(template)
    turns = [message._asdict() for message in messages]
    whole = _render(compiled, turns, special, generate=False)
    parts: list[tuple[str, bool]] = []
    done = 0
    learnt = [i for i, message in enumerate(messages) if message.role == "assistant"]
    for i in learnt if train_on == "all_assistant" else learnt[-1:]:
        before = _render(compiled, turns[:i], special, generate=True)
        through = _render(compiled, turns[: i + 1], special, generate=False)
        if not (whole.startswith(through) and through.startswith(before)) or len(before) < done:
            raise DataError(
                f"the chat template rewrites turn {i + 1} when later turns come; "
                "split the conversation, so that each row has one assistant's turn, the last, or "
                'set data.train_on = "last_assistant"'
            )
        parts += [
            (whole[done : len(before)], train_on == "everything"),
            (whole[len(before) : len(through)], True),
        ]
        done = len(through)
    return [part for part in [*parts, (whole[done:], False)] if part[0]]


def _render(
    template: jinja2.Template,
    turns: list[dict[str, Any]],
    special: Mapping[str, str],
    *,
    generate: bool,
) -> str:
    try:
        return template.render(
            messages=turns, tools=None, documents=None, add_generation_prompt=generate, **special
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise DataError(f"the chat template refuses the conversation: {error}") from error


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ConfigError(f"the tokenizer's chat template is not valid: {error}") from error


class _Generation(jinja2.ext.Extension):
    """Reads transformers' `{% generation %}` blocks as their body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None) -> str:
    # jinja2's own filter escapes HTML, which would put "\u003c" in front of the model.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
