"""Which handler answers which method and path. No HTTP library here.

A path's template names its variable parts, as in `sessions/{id}/finish`; a part never holds a
slash. Guarantees: a template without variables is found first; `names` lists all there is, and the
tests measure the protocol's routes against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `params` are the variable parts of its path, `root` is this server's URL."""

    body: bytes
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    root: str


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """`name` is method and template."""

    name: str
    handler: T
    params: Mapping[str, str]


class Routes(Generic[T]):
    def __init__(self, table: Mapping[tuple[str, str], T]) -> None:
        """The handlers by method and template."""
        self.names = frozenset(f"{method} {template}" for method, template in table)
        self._fixed = {place: handler for place, handler in table.items() if "{" not in place[1]}
        self._open = [
            (*place, re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", place[1])), handler)
            for place, handler in table.items()
            if place not in self._fixed
        ]

    def find(self, method: str, path: str) -> Found[T] | None:
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            return Found(f"{method} {path}", fixed, {})
        for known, template, pattern, handler in self._open:
            if known == method and (found := pattern.fullmatch(path)) is not None:
                return Found(f"{method} {template}", handler, found.groupdict())
        return None
