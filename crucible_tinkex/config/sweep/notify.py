"""`[notify]`: who is told when a sweep's run ends, or when there is trouble."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from crucible_tinkex.config.section import Section


class NotifySection(Section):
    """Who is told when a run ends, whatever ended it. One that fails is a warning."""

    command: str | None = Field(default=None, min_length=1)
    """A program and its arguments, run without a shell, in the current folder; it gets a JSON
    object on its standard input."""
    webhook: str | None = None
    """An https address that the same object is posted to."""

    @field_validator("command")
    @classmethod
    def _can_be_split(cls, command: str | None) -> str | None:
        if command is not None and not shlex.split(command):
            raise ValueError("it must name a program")
        return command

    @field_validator("webhook")
    @classmethod
    def _is_https(cls, webhook: str | None) -> str | None:
        if webhook is None:
            return None
        found = urlsplit(webhook)
        if found.scheme != "https" or not found.hostname:
            raise ValueError("it must be https://HOST/PATH")
        return webhook
