"""Several tensors in one collective: how they lie in the flat blocks that are sent.

A device's row holds, one after the other and each contiguous, its parts of all the
tensors. Rows are as long as the longest of any device, since blocks have one size;
parts need no padding of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from meshwright.runtime.primitives import Cut, part_of


def flatten(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """All elements of the tensors, one tensor after the other, copied to `flat`."""
    if all(x.is_contiguous() for x in tensors):
        torch.cat([x.view(-1) for x in tensors], out=flat)
        return
    for place, x in zip(opened(flat, [x.shape for x in tensors]), tensors, strict=True):
        place.copy_(x)


def opened(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Views of the tensors that lie in `flat`."""
    places, start = [], 0
    for shape in shapes:
        count = math.prod(shape)
        places.append(flat[start : start + count].view(tuple(shape)))
        start += count
    return places


def row_length(wholes: Sequence[Sequence[int]], cuts: Sequence[Cut], parts: int) -> int:
    """Elements of a row. wholes: shapes of the tensors that are cut."""
    return max(
        sum(math.prod(shape) for shape in part_shapes(wholes, cuts, device, parts))
        for device in range(parts)
    )


def part_shapes(
    wholes: Sequence[Sequence[int]], cuts: Sequence[Cut], device: int, parts: int
) -> list[tuple[int, ...]]:
    """Shapes of the parts that one device has."""
    return [
        (
            *whole[: cut.dim],
            cut.size(cut.part(cut.number(device, parts), parts)[1]),
            *whole[cut.dim + 1 :],
        )
        for whole, cut in zip(wholes, cuts, strict=True)
    ]


def fill_rows(tensors: Sequence[Tensor], cuts: Sequence[Cut], rows: Tensor) -> None:
    """Copy to `rows`, [parts, row], of each device its parts of the tensors."""
    parts = rows.shape[0]
    if all(
        x.is_contiguous() and in_runs(x.shape, cut, parts)
        for x, cut in zip(tensors, cuts, strict=True)
    ):
        torch.cat([x.view(parts, -1) for x in tensors], dim=1, out=rows)
        return
    for device in range(parts):
        start = 0
        for x, cut in zip(tensors, cuts, strict=True):
            part = part_of(x, cut, cut.number(device, parts), parts)
            rows[device, start : start + part.numel()].view(part.shape).copy_(part)
            start += part.numel()
        rows[device, start:].zero_()


def row_of(blocks: Sequence[Tensor], length: int) -> Tensor:
    """[row]: this device's own parts."""
    row = blocks[0].new_empty(length)
    start = sum(block.numel() for block in blocks)
    if all(block.is_contiguous() for block in blocks):
        torch.cat([block.view(-1) for block in blocks], out=row[:start])
        row[start:].zero_()
        return row
    start = 0
    for block in blocks:
        row[start : start + block.numel()].view(block.shape).copy_(block)
        start += block.numel()
    row[start:].zero_()
    return row


def joined(
    rows: Tensor, wholes: Sequence[tuple[int, ...]], cuts: Sequence[Cut], parts: int
) -> list[Tensor]:
    """The tensors whose parts lie in the rows of all devices, each in memory of its own."""
    if all(in_runs(whole, cut, parts) for whole, cut in zip(wholes, cuts, strict=True)):
        lengths = [math.prod(whole) // parts for whole in wholes]
        return [
            x.reshape(whole)
            for x, whole in zip(torch.split(rows, lengths, dim=1), wholes, strict=True)
        ]
    results = [rows.new_empty(whole) for whole in wholes]
    join_into(results, rows, cuts, parts)
    return results


def join_into(results: Sequence[Tensor], rows: Tensor, cuts: Sequence[Cut], parts: int) -> None:
    """The same, written to tensors that are there already."""
    if all(in_runs(x.shape, cut, parts) for x, cut in zip(results, cuts, strict=True)):
        lengths = [x.numel() // parts for x in results]
        used = rows[:, : sum(lengths)]
        for x, piece in zip(results, torch.split(used, lengths, dim=1), strict=True):
            x.view(parts, -1).copy_(piece)
        return
    for device in range(parts):
        start = 0
        for result, cut in zip(results, cuts, strict=True):
            place = part_of(result, cut, cut.number(device, parts), parts)
            place.copy_(rows[device, start : start + place.numel()].view(place.shape))
            start += place.numel()


def in_runs(whole: Sequence[int], cut: Cut, parts: int) -> bool:
    """Whether each device's part is one run of the tensor's memory, in the order of devices.

    Then all tensors are copied by one op, in place of one for each part.
    """
    return (
        cut.outer == 1
        and cut.extent % parts == 0
        and cut.shift % parts == 0
        and math.prod(whole[: cut.dim]) == 1
    )
