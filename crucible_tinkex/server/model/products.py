"""Products whose bits do not depend on how many others are made with them.

A CPU's library chooses its kernel, and with it the order in which a row's terms are added, by how
many rows there are: bf16 on AMX, and fp32 on two threads, give a row other last bits in company
than alone. So the base's products are made of tiles of always the same number of rows, the last one
filled up; within one shape a row's bits do not depend on its place. The adapters' have the shape of
their own request, one after another (`tests/server/test_server_products.py`).
Measured for SmolLM2's shapes in bf16 on AMX, one thread: tiles of 128 take 1.6 to 1.9 times as long
as one product of 512 or 1,024 rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED, DECODED = 128, 16
"""Rows of a tile where whole texts are passed, and where each row is one new token."""


def tiled(x: Tensor, matrix: Tensor, tile: int) -> Tensor:
    """`x` [M, d] times `matrix` [d, n]."""
    return in_tiles(lambda part: part @ matrix, x, tile)


def in_tiles(product: Callable[[Tensor], Tensor], x: Tensor, tile: int) -> Tensor:
    """A product of the rows of `x` [M, d], `tile` of them at a time; on a GPU, where nothing is
    promised, at once."""
    if x.device.type != "cpu":
        return product(x)
    rows = len(x)
    if filling := -rows % tile:
        x = F.pad(x, (0, 0, 0, filling))
    parts = [product(x[first : first + tile]) for first in range(0, len(x), tile)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[:rows]


def each(a: Tensor, b: Tensor) -> Tensor:
    """[n, m, k] times [n, k, l]. In bf16 on a CPU one after another, because there a batch of them
    has, for some shapes, other bits than one alone."""
    if _may_be_batch(a):
        return torch.bmm(a, b)
    return torch.stack([torch.mm(x, y) for x, y in zip(a, b, strict=True)])


def add_each(out: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """Add `scale` times `each(a, b)` to `out` in place."""
    if _may_be_batch(a):
        out.baddbmm_(a, b, alpha=scale)
        return
    for into, x, y in zip(out, a, b, strict=True):
        into.addmm_(x, y, alpha=scale)


def _may_be_batch(a: Tensor) -> bool:
    return a.dtype != torch.bfloat16 or a.device.type != "cpu"
