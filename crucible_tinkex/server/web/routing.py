"""Which handler answers which method and path. No HTTP library here.

A path's template names its variable parts, as in `sessions/{id}/finish`; a part never holds a
slash. Guarantees: a template without variables is found first; `names` lists all there is, and the
tests measure the protocol's routes against it.
"""

from __future__ import annotations

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
        self._fixed: dict[tuple[str, str], T] = {}
        self._open: list[tuple[str, list[str], T]] = []
        for (method, template), handler in table.items():
            if "{" in template:
                self._open.append((method, template.split("/"), handler))
            else:
                self._fixed[method, template] = handler

    @property
    def names(self) -> frozenset[str]:
        fixed = {f"{method} {template}" for method, template in self._fixed}
        return frozenset(fixed | {f"{method} {'/'.join(parts)}" for method, parts, _ in self._open})

    def find(self, method: str, path: str) -> Found[T] | None:
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            return Found(f"{method} {path}", fixed, {})
        given = path.split("/")
        for known, parts, handler in self._open:
            if known == method and (params := _matched(parts, given)) is not None:
                return Found(f"{method} {'/'.join(parts)}", handler, params)
        return None


def _matched(parts: list[str], given: list[str]) -> dict[str, str] | None:
    if len(parts) != len(given):
        return None
    params: dict[str, str] = {}
    for part, value in zip(parts, given, strict=True):
        if part.startswith("{"):
            if not value:
                return None
            params[part[1:-1]] = value
        elif part != value:
            return None
    return params
