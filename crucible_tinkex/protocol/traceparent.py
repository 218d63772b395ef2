"""W3C Trace Context: the `traceparent` header, by which a trace goes on in another process.

Version 00 of https://www.w3.org/TR/trace-context/: `00-TRACE-SPAN-FLAGS` in lower-case hexadecimal
digits, of 16, 8 and 1 bytes; neither id is all zeros, and bit 0 of the flags says that the sender
records. OpenTelemetry is asked only where the process has loaded it: elsewhere no span is active.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

HEADER = "traceparent"
Hear: TypeAlias = Callable[[str, int, float, str], None]
"""Of a server's answer to a traced request: route, status, seconds that it took, and the header."""
_VERSION_00 = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1


class TraceParent(NamedTuple):
    """A span of another process. Ids in hexadecimal digits."""

    trace_id: str
    span_id: str
    sampled: bool

    @classmethod
    def parse(cls, text: str) -> TraceParent | None:
        """None for what is no such header: a receiver passes over it."""
        found = _VERSION_00.fullmatch(text.strip())
        if found is None:
            return None
        trace_id, span_id, flags = found.groups()
        if not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def active() -> str | None:
    """The header of the span that is active here (OpenTelemetry's), if there is one."""
    trace = sys.modules.get("opentelemetry.trace")
    current = getattr(trace, "get_current_span", None)  # absent while another thread imports it
    if current is None:
        return None
    return header_of(current())


def header_of(span: object) -> str | None:
    """The header of a span of OpenTelemetry; None for one that is in no trace."""
    context = span.get_span_context()  # type: ignore[attr-defined]
    if not context.is_valid:
        return None
    sampled = bool(context.trace_flags & _SAMPLED)
    return str(TraceParent(f"{context.trace_id:032x}", f"{context.span_id:016x}", sampled))
