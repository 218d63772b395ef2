"""A row of a product has the same bits in any company, at any place; so has a whole request."""

from __future__ import annotations

import pytest
import torch

from crucible_tinkex.server.model.products import DECODED, PACKED, add_each, each, tiled

SHAPES = [(576, 576), (576, 192), (576, 1536), (1536, 576), (64, 48)]
"""SmolLM2's, and a small one."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tile", [PACKED, DECODED])
def test_a_rows_bits_do_not_depend_on_the_others(
    shape: tuple[int, int], dtype: torch.dtype, threads: int, tile: int
) -> None:
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(700, shape[0], generator=generator).to(dtype)
        matrix = torch.randn(shape[1], shape[0], generator=generator).to(dtype).T
        together = tiled(rows, matrix, tile)
        for start, count in [(0, 16), (8, 64), (128, 128), (136, 300), (699, 1)]:
            alone = tiled(rows[start : start + count], matrix, tile)
            assert torch.equal(alone, together[start : start + count]), (start, count)
    finally:
        torch.set_num_threads(1)


def test_it_is_the_product() -> None:
    rows, matrix = torch.randn(300, 40), torch.randn(40, 7)
    torch.testing.assert_close(tiled(rows, matrix, 128), rows @ matrix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_side_by_side_have_the_bits_of_one_alone(dtype: torch.dtype) -> None:
    torch.set_num_threads(2)
    try:
        generator = torch.Generator().manual_seed(0)
        for rows, rank, width in [(800, 16, 1536), (800, 16, 576), (24, 8, 192)]:
            a = torch.randn(3, rows, width, generator=generator).to(dtype)
            b = torch.randn(3, width, rank, generator=generator).to(dtype)
            assert torch.equal(each(a, b)[:1], each(a[:1], b[:1]))
            both, one = (
                torch.ones(3, rows, rank, dtype=dtype),
                torch.ones(1, rows, rank, dtype=dtype),
            )
            add_each(both, a, b, 2.0)
            add_each(one, a[:1], b[:1], 2.0)
            assert torch.equal(both[:1], one)
    finally:
        torch.set_num_threads(1)
