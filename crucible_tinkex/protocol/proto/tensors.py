"""Numbers as protobuf carries them: little-endian bytes, dense or as a compressed sparse matrix.

Everything is checked before it is believed: element counts against shapes, sparse indices
against their bounds, and what a sparse tensor unfolds to against a `Budget`, because a few bytes
can claim billions of zeros. Python's `array` does the conversion: for lists of some hundred
numbers it is faster than numpy, and importing it is free.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from typing_extensions import Buffer

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.proto.malformed import MalformedError
from crucible_tinkex.protocol.wire import TensorData

FLOAT32, INT64, INT32, BFLOAT16 = 1, 2, 3, 4
Code: TypeAlias = Literal["f", "q", "i", "H"]
Values: TypeAlias = Sequence[float] | Sequence[int] | Buffer
"""Numbers, or anything with a buffer of them, such as a numpy array."""

CODES: dict[int, Code] = {FLOAT32: "f", INT64: "q", INT32: "i", BFLOAT16: "H"}
NAMES: dict[int, Literal["float32", "int64"]] = {
    FLOAT32: "float32",
    BFLOAT16: "float32",
    INT64: "int64",
    INT32: "int64",
}
DTYPES = {"float32": FLOAT32, "int64": INT64}
_SWAP = sys.byteorder == "big"
_MASKED_LOGPROB = -99999.0
MAX_UNFOLDED = 1 << 24
_MAX_DIMENSIONS = 8

TopK: TypeAlias = list[list[tuple[int, float]] | None]


class Budget:
    """How many elements one message may still unfold to."""

    def __init__(self, elements: int = MAX_UNFOLDED) -> None:
        self._left = elements

    def spend(self, elements: int) -> None:
        self._left -= elements
        if self._left < 0:
            raise MalformedError("the sparse tensors of this message unfold to too many elements")


def pack(values: Values, code: Code) -> bytes:
    """Raises `ConfigError` for numbers that the type cannot hold."""
    try:
        numbers = array(code, values if isinstance(values, Sequence) else _buffered(values))
    except (TypeError, OverflowError, ValueError) as error:
        raise ConfigError(f"these numbers cannot be sent: {error}") from None
    if _SWAP:
        numbers.byteswap()
    return numbers.tobytes()


def _buffered(values: Buffer) -> array[Any]:
    view = memoryview(values)
    numbers: array[Any] = array(view.format)
    numbers.frombytes(view.tobytes())
    return numbers


def unpack(data: bytes, code: Code, *, what: str) -> list[Any]:
    return unpack_array(data, code, what=what).tolist()


def unpack_array(data: bytes, code: Code, *, what: str) -> array[Any]:
    """The same without a Python object per number; numpy takes it over as it is."""
    numbers = array(code)
    if len(data) % numbers.itemsize:
        raise MalformedError(f"{what} is cut: {len(data)} bytes of {numbers.itemsize} each")
    numbers.frombytes(data)
    if _SWAP:
        numbers.byteswap()
    if code == "H":  # bfloat16 is the upper half of a float32
        return array("f", array("I", (n << 16 for n in numbers)).tobytes())
    return numbers


def put_tensor(message: Any, tensor: TensorData) -> None:
    """Write `tensor` into the protobuf Tensor `message`."""
    dtype = DTYPES[tensor.dtype]
    message.dtype = dtype
    message.shape.extend(tensor.shape if tensor.shape is not None else [len(tensor.data)])
    values = pack(tensor.data, CODES[dtype])
    if tensor.sparse_crow_indices is None:
        message.dense = values
        return
    message.sparse_csr.values = values
    message.sparse_csr.crow_indices = pack(tensor.sparse_crow_indices, "q")
    message.sparse_csr.col_indices = pack(tensor.sparse_col_indices or [], "q")


def get_tensor(message: Any, *, what: str, budget: Budget) -> TensorData:
    """A dense tensor, whatever came; of one that came dense, the data are an array instead of a
    list. Raises `MalformedError`."""
    code = CODES.get(message.dtype)
    if code is None:
        raise MalformedError(f"{what} has the unknown dtype {message.dtype}")
    shape = list(message.shape)
    if message.WhichOneof("encoding") == "sparse_csr":
        data: Any = _unfolded(message.sparse_csr, code, shape, what=what, budget=budget)
    else:
        data = unpack_array(message.dense, code, what=what)
        shape = shape or [len(data)]
        is_odd = len(shape) > _MAX_DIMENSIONS or min(shape) < 0
        if is_odd or math.prod(shape) != len(data):
            raise MalformedError(f"{what} has {len(data)} elements and the shape {shape[:9]}")
    return TensorData.model_construct(data=data, dtype=NAMES[message.dtype], shape=shape)


def _unfolded(csr: Any, code: Code, shape: list[int], *, what: str, budget: Budget) -> list[Any]:
    values = unpack(csr.values, code, what=what)
    crow = unpack(csr.crow_indices, "q", what=f"{what} (crow_indices)")
    columns = unpack(csr.col_indices, "q", what=f"{what} (col_indices)")
    return unfold(values, crow, columns, shape, what=what, budget=budget)


def unfold(
    values: Sequence[Any],
    crow: Sequence[int],
    columns: Sequence[int],
    shape: Sequence[int],
    *,
    what: str,
    budget: Budget,
) -> list[Any]:
    """A compressed sparse matrix as its dense elements, row by row."""
    if len(shape) != 2 or min(shape) < 0:
        raise MalformedError(f"{what} is sparse and has the shape {list(shape)[:9]}")
    rows, width = shape
    budget.spend(rows * width)
    is_whole = len(crow) == rows + 1 and crow[0] == 0 and crow[-1] == len(values) == len(columns)
    if not is_whole or any(a > b for a, b in pairwise(crow)):
        raise MalformedError(f"{what} has wrong sparse row pointers")
    if columns and not 0 <= min(columns) <= max(columns) < width:
        raise MalformedError(f"{what} has sparse columns outside of 0 to {width - 1}")
    dense: list[Any] = [0.0 if values and isinstance(values[0], float) else 0] * (rows * width)
    for row, (start, end) in enumerate(pairwise(crow)):
        for index in range(start, end):
            dense[row * width + columns[index]] = values[index]
    return dense


def put_topk(message: Any, topk: TopK) -> None:
    """Ragged rows are filled up with token 0 at a logprob that no token has."""
    filler = (0, _MASKED_LOGPROB)
    k = max((len(row) for row in topk if row), default=0)
    rows = [[*(row or []), *[filler] * (k - len(row or []))] for row in topk]
    pairs = [pair for row in rows for pair in row]
    message.k, message.length = k, len(rows)
    message.token_ids = pack([token for token, _ in pairs], "i")
    message.logprobs = pack([logprob for _, logprob in pairs], "f")


def get_topk(message: Any, *, what: str) -> TopK:
    k, length = message.k, message.length
    tokens = unpack(message.token_ids, "i", what=what)
    logprobs = unpack(message.logprobs, "f", what=what)
    if not len(tokens) == len(logprobs) == k * length:
        raise MalformedError(f"{what} has {len(tokens)} entries for {length} x {k}")
    if k == 0:
        return []
    rows = []
    for start in range(0, len(tokens), k):
        pairs = zip(tokens[start : start + k], logprobs[start : start + k], strict=True)
        rows.append([pair for pair in pairs if pair != (0, _MASKED_LOGPROB)] or None)
    return rows
