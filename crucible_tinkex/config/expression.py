"""A condition on the settings of a trial: `lora.rank * train.batch_size <= 512`.

A small part of Python's expressions: numbers, text, `true` and `false`, dotted keys, arithmetic
without powers, comparisons, `in`, `and`, `or`, `not`. It is read with `ast` and walked here, so
nothing else can be written in it: no call, no index, no name but the keys of the experiment.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from crucible_tinkex.errors import ConfigError

MAX_LENGTH = 500
Lookup = Callable[[str], Any]

_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Expression:
    """A condition that was read; make one with `parse`."""

    text: str
    keys: frozenset[str]
    """The dotted keys that it looks at."""
    _tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Raises `ConfigError` that says what cannot be written."""
        if len(text) > MAX_LENGTH:
            raise ConfigError(f"a condition has at most {MAX_LENGTH} characters")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise ConfigError(f"{text!r} is no condition such as 'lora.rank <= 16'") from None
        return cls(text, frozenset(_keys(tree, text)), tree)

    def holds(self, lookup: Lookup) -> bool:
        """Whether it is true of the settings. Raises `ConfigError` where it has no value, as
        `'a' < 1` has none."""
        try:
            return bool(_value(self._tree, lookup))
        except (TypeError, ZeroDivisionError, OverflowError) as e:
            found = ", ".join(f"{key} = {lookup(key)!r}" for key in sorted(self.keys))
            raise ConfigError(f"{self.text!r} cannot be answered for {found}: {e}") from None


def _keys(node: ast.expr, text: str) -> Iterator[str]:
    """Check that only what `_value` knows is written."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return
        case ast.Name(id=word) if word in _WORDS:
            return
        case ast.Attribute():
            yield _dotted(node, text)
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                yield from _keys(part, text)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield from _keys(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            yield from _keys(left, text)
            yield from _keys(right, text)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(
            type(op) in _COMPARISONS for op in ops
        ):
            for part in (left, *others):
                yield from _keys(part, text)
        case _:
            _refuse(node, text)


def _refuse(node: ast.expr, text: str) -> NoReturn:
    raise ConfigError(
        f"{text!r}: {ast.unparse(node)!r} cannot stand in a condition; it takes dotted keys, "
        "numbers, text, + - * / // %, comparisons, in, and, or, not"
    )


def _dotted(node: ast.expr, text: str) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=before, attr=name):
            return f"{_dotted(before, text)}.{name}"
        case _:
            _refuse(node, text)


def _value(node: ast.expr, lookup: Lookup) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=word):
            return _WORDS[word]
        case ast.Attribute():
            return lookup(_dotted(node, ""))
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, lookup) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, lookup) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, lookup)
        case ast.UnaryOp(operand=operand):
            return -_number(operand, lookup)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(left, lookup), _number(right, lookup))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(part, lookup) for part in (left, *others)]
            pairs = zip(ops, values, values[1:], strict=False)
            return all(_COMPARISONS[type(op)](a, b) for op, a, b in pairs)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [_value(part, lookup) for part in parts]
        case _:
            raise AssertionError("parse let it pass")


def _number(node: ast.expr, lookup: Lookup) -> Any:
    """Text times a large number would fill the memory."""
    value = _value(node, lookup)
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
