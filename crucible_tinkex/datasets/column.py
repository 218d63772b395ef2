"""A column of numbers that grows without being held twice: in memory while it is small, then in a
temporary file, which becomes the array's memory and is gone when the array is."""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

IN_MEMORY = 64 * 2**20
"""Bytes up to which a column stays in memory."""
_TYPECODES = {np.dtype(np.int32): "i", np.dtype(np.uint8): "B", np.dtype(np.int64): "q"}


class Column:
    """Numbers of one `dtype` (int32, int64 or uint8); `close` it in the end."""

    def __init__(self, dtype: npt.DTypeLike, *, in_memory: int = IN_MEMORY) -> None:
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._code = _TYPECODES[self._dtype]
        self._in_memory = in_memory
        self._bytes = 0
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115

    def extend(self, numbers: Iterable[int]) -> None:
        raw = array(self._code, numbers).tobytes()
        self._bytes += len(raw)
        self._file.write(raw)

    def close(self) -> None:
        """Give up the file; an array that was finished stays."""
        self._file.close()

    def finish(self) -> npt.NDArray[Any]:
        """All numbers, read-only."""
        if self._bytes > self._in_memory:
            self._file.flush()
            # The map keeps the file, which has no name, until the array is gone.
            mapped = mmap.mmap(self._file.fileno(), self._bytes, access=mmap.ACCESS_READ)
            return np.frombuffer(mapped, self._dtype)
        self._file.seek(0)
        return np.frombuffer(self._file.read(), self._dtype)
