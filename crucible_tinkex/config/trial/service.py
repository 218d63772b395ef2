"""`[service]`: where training happens. Holds the place of the API key, never the key."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from crucible_tinkex.config.section import AnchoredPath, Section
from crucible_tinkex.errors import did_you_mean

EMBEDDED = "embedded"


class ServiceSection(Section):
    """Where training happens."""

    base_url: str | None = None
    """`"embedded"` starts the local server; otherwise an https address. By default the environment
    variable TINKER_BASE_URL, else hosted Tinker."""
    allow_http: bool | tuple[str, ...] = False
    """Permit an http address that is not this machine: `true`, or a list of the hosts it holds for.
    The API key then crosses the network in clear text: only for a network you trust."""
    api_key_file: AnchoredPath | None = None
    """A file that holds the key; otherwise the environment variable TINKER_API_KEY."""
    transport: Literal["http", "sdk"] = "http"
    """Our own client, or the official `tinker` SDK (extra `[sdk]`)."""
    attest: bool = True
    """Before the first step on a service other than the embedded one, prove with models of two
    steps that it applies what the search varies, and refuse by name what it does not."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Embedded server: number format of the frozen base."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Embedded server: where it computes; auto: CUDA where there is one."""
    threads: int | None = Field(default=None, ge=1)
    """Embedded server: CPU threads (default: all cores; one for a tiny base)."""

    @field_validator("base_url")
    @classmethod
    def _embedded_or_url(cls, value: str | None) -> str | None:
        if value is None or value == EMBEDDED or _is_url(value):
            return value
        hint = did_you_mean(value.casefold(), (EMBEDDED,))
        raise ValueError(f"{hint}it must be {EMBEDDED!r} or https://HOST[:PORT][/PATH]")

    @property
    def embedded(self) -> bool:
        return self.base_url == EMBEDDED


def _is_url(value: str) -> bool:
    return value.strip().casefold().startswith(("http://", "https://"))
