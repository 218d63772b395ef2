"""`[run]`: how wide and where; nothing here decides a number."""

from __future__ import annotations

import os
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from crucible_tinkex.config.section import AnchoredPath, Section

DEFAULT_STORAGE = "runs"
AUTO_MOST = 64


class RunSection(Section):
    """How wide and where."""

    executor: Literal["ray", "local"] = "ray"
    """Session processes on Ray, or all sessions in this process (debugging, notebooks)."""
    max_concurrent: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = 8
    """Sessions that train at the same time: from 1 to 10000, or "auto", which begins with two and
    takes more, up to 64, as long as that trains more tokens per second. Fewer while the service
    asks to slow down."""
    sessions_per_actor: int | Literal["auto"] = 1
    """Sessions that share one Ray actor process; "auto" packs them on one actor per core."""
    max_attempts: int = Field(default=5, ge=1)
    """How often a trial is tried without progress when its actor or its session is lost."""
    fail_fast: int | Literal[False] = False
    """End the sweep once so many trials failed by their own fault in this run and none got as far
    as a result; a new run goes on."""
    step_timeout_s: float = Field(default=3600.0, gt=0)
    """How long one function of `[steps]` may take; then its trial fails by name. Each call of
    another function of yours has 600 seconds."""
    verify_resume: bool = True
    """Compare the loss of two rows before a save and after it is loaded: some services load other
    weights than were saved, without a word."""
    otlp_endpoint: str | None = None
    """Where spans and metrics of the run go: a receiver of OTLP over HTTP, as
    `http://127.0.0.1:4318`; by default what OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere."""
    storage: AnchoredPath = Field(default_factory=lambda: os.path.abspath(DEFAULT_STORAGE))
    """Folder of the sweeps: in a file, relative to it; by default `runs` in the current folder."""

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        found = urlsplit(value)
        if found.scheme not in ("http", "https") or not found.hostname:
            raise ValueError("it must be http(s)://HOST:PORT")
        if found.username or found.password or found.query:
            raise ValueError("it must hold no secret: put it into OTEL_EXPORTER_OTLP_HEADERS")
        return value

    @field_validator("fail_fast", mode="before")
    @classmethod
    def _number_or_false(cls, value: object) -> object:
        if value is True or (value is not False and isinstance(value, int) and value < 1):
            raise ValueError("must be a number of failed trials, at least 1, or false")
        return value

    @property
    def most_concurrent(self) -> int:
        """What "auto" ends at is known only then; this is the most."""
        return AUTO_MOST if self.max_concurrent == "auto" else self.max_concurrent

    @field_validator("sessions_per_actor")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value
