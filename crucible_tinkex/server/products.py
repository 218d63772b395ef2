"""Products with a frozen matrix whose rows do not depend on each other's number.

A CPU's library chooses its kernel, and with it the order in which a row's terms are added, by how
many rows there are: bf16 on AMX, and fp32 on two threads, give a row other last bits in company
than alone. So a product is made of tiles of always the same number of rows, the last one filled up;
within one shape a row's bits do not depend on its place (`tests/server/test_server_products.py`).
Measured for SmolLM2's shapes in bf16 on AMX, one thread: tiles of 128 take 1.6 to 1.9 times as long
as one product of 512 or 1,024 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

PACKED, DECODED = 128, 16
"""Rows of a tile where whole texts are passed, and where each row is one new token."""


def tiled(x: Tensor, matrix: Tensor, tile: int) -> Tensor:
    """`x` [M, d] times `matrix` [d, n], `tile` rows at a time; at once on a GPU, where nothing is
    promised."""
    if x.device.type != "cpu":
        return x @ matrix
    rows = len(x)
    out = x.new_empty(rows, matrix.shape[1])
    whole = rows - rows % tile
    for first in range(0, whole, tile):
        part = slice(first, first + tile)
        torch.mm(x[part], matrix, out=out[part])
    if whole < rows:
        filled = x.new_zeros(tile, x.shape[1])
        filled[: rows - whole] = x[whole:]
        out[whole:] = (filled @ matrix)[: rows - whole]
    return out
