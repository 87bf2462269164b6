"""Several tensors in one flat block: what is copied in comes out, with any cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meshwright.runtime import flat
from meshwright.runtime.primitives import Cut, part_of

Item = tuple[tuple[int, ...], Cut]


@st.composite
def items(draw: st.DrawFn) -> Item:
    """A shape and a cut of one of its dims, viewed as outer x extent x minor."""
    outer, extent, minor = (draw(st.integers(1, most)) for most in (2, 6, 3))
    before = draw(st.lists(st.integers(1, 3), max_size=2))
    after = draw(st.lists(st.integers(1, 3), max_size=1))
    shape = (*before, outer * extent * minor, *after)
    return shape, Cut(len(before), outer, extent, minor, draw(st.integers(0, 2)))


def drawn(shapes: list[tuple[int, ...]], transposed: bool) -> list[Tensor]:
    made = [torch.randn(shape) for shape in shapes]
    return [x.mT.contiguous().mT if transposed and x.dim() > 1 else x for x in made]


def row(tensors: list[Tensor], cuts: list[Cut], device: int, parts: int, length: int) -> Tensor:
    """What the module promises of one device's row, part by part."""
    pieces = [
        part_of(x.contiguous(), cut, cut.number(device, parts), parts).reshape(-1)
        for x, cut in zip(tensors, cuts, strict=True)
    ]
    used = sum(piece.numel() for piece in pieces)
    return torch.cat([*pieces, torch.zeros(length - used)])


@settings(deadline=None, max_examples=80)
@given(st.lists(items(), min_size=1, max_size=4), st.integers(2, 3), st.booleans())
def test_rows_hold_each_devices_parts_and_join_to_the_whole(
    found: list[Item], parts: int, transposed: bool
) -> None:
    wholes, cuts = [shape for shape, _ in found], [cut for _, cut in found]
    tensors = drawn(wholes, transposed)
    length = flat.row_length(wholes, cuts, parts)
    rows = torch.full((parts, length), torch.nan)
    flat.fill_rows(tensors, cuts, rows)
    for device in range(parts):
        assert torch.equal(rows[device], row(tensors, cuts, device, parts, length))
        shapes = flat.part_shapes(wholes, cuts, device, parts)
        own = flat.opened(rows[device], shapes)
        blocks = [x.mT.contiguous().mT if transposed and x.dim() > 1 else x for x in own]
        assert torch.equal(flat.row_of(blocks, length), rows[device])
    for x, result in zip(tensors, flat.joined(rows, wholes, cuts, parts), strict=True):
        assert torch.equal(x, result)
        assert result.is_contiguous()


@pytest.mark.parametrize("transposed", [False, True])
def test_flattened_tensors_open_again(transposed: bool) -> None:
    shapes = [(3, 4), (5,), (), (0, 2), (2, 3, 2)]
    tensors = drawn(shapes, transposed)
    whole = torch.full((sum(math.prod(shape) for shape in shapes),), torch.nan)
    flat.flatten(tensors, whole)
    for x, opened in zip(tensors, flat.opened(whole, shapes), strict=True):
        assert torch.equal(x, opened)
