"""Indexing by a mask's positions, cut along every factor: lists count from their part's start."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from meshwright import own_ops
from meshwright.layout.types import Split
from meshwright.program.types import Argument, Op, Ref, Value
from meshwright.rules import FactorCut, OpRule, rule_of
from meshwright.runtime.primitives import Cut, positions
from rules.brute_force import joined

MASKS = [(6,), (3, 6), (6, 4), (2, 3, 4), (1, 6), (5, 1)]


def rule(target: str, args: tuple[Argument, ...], shapes: dict[str, tuple[int, ...]]) -> OpRule:
    values = {name: Value(name, shape, "float32", name) for name, shape in shapes.items()}
    results = tuple(name for name in shapes if name.startswith("result"))
    op = Op("op", target, args, (), results, target == "mesh.nonzero.default", "forward")
    return rule_of(op, values)


def part(x: Tensor, split: Split | None, index: int, parts: int) -> Tensor:
    if split is None:
        return x
    minor = x.shape[split.dim] // (split.outer * split.extent)
    cut = Cut(split.dim, split.outer, split.extent, minor)
    return x.index_select(split.dim, positions(cut, index, parts))


@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("shorter", [False, True])
def test_parts_make_the_whole(shape: tuple[int, ...], share: float, shorter: bool) -> None:
    torch.manual_seed(len(shape))
    mask = torch.rand(shape) < share
    bound = mask.numel()
    which = list(range(len(shape)))[::-1]  # x has the mask's dims in another order
    x = torch.randn(*[shape[dim] for dim in which], 5)
    if shorter:  # positions along a dim of another size can't be cut
        x = torch.cat((x, x[:1]), 0)
    lists = tuple(Ref(f"list{dim}") for dim in which)
    listed = {f"list{dim}": (bound,) for dim in which}
    sizes, order = tuple(shape), tuple(which)
    nonzero = rule(
        "mesh.nonzero.default", (Ref("mask"),),
        {"mask": shape, **{f"result{dim}": (bound,) for dim in range(len(shape))}},
    )  # fmt: skip
    take = rule(
        "mesh.take.default", (Ref("x"), lists, sizes, order),
        {"x": tuple(x.shape), **listed, "result": (bound, 5)},
    )  # fmt: skip
    put = rule(
        "mesh.put.default", (Ref("x"), lists, Ref("values"), True, sizes, order),
        {"x": tuple(x.shape), **listed, "values": (bound, 5), "result": tuple(x.shape)},
    )  # fmt: skip
    weight = torch.randn(5)
    whole_lists = own_ops.nonzero(mask)
    indices = [whole_lists[dim] for dim in which]
    picked = own_ops.take(x, indices, shape, which)
    whole = own_ops.put(x, indices, picked * weight, True, shape, which)
    torch.testing.assert_close(whole, x + _added(mask, x, which) * weight)
    for factor, parts in product(range(len(nonzero.factors)), (2, 3)):
        described = (nonzero, take, put)
        assert take.factors[factor].size == nonzero.factors[factor].size
        if not all(item.factors[factor].shardable for item in described):
            continue
        for outer in range(1, nonzero.factors[factor].size):
            if nonzero.factors[factor].size % outer:
                continue
            cut = FactorCut(factor, outer, nonzero.factors[factor].size // outer)
            split = put.to_split(put.operands[0], cut)
            assert split is not None
            assert split == take.to_split(take.operands[0], cut)
            assert nonzero.to_split(nonzero.results[0] or (), cut) == take.to_split(
                take.operands[1], cut
            )
            made = []
            for index in range(parts):
                local = own_ops.nonzero(
                    part(mask, nonzero.to_split(nonzero.operands[0], cut), index, parts)
                )
                here = [local[dim] for dim in which]
                mine = part(x, split, index, parts)
                rows = own_ops.take(mine, here, shape, which)
                made.append(own_ops.put(mine, here, rows * weight, True, shape, which))
            torch.testing.assert_close(joined(made, split, tuple(x.shape)), whole)


def _added(mask: Tensor, x: Tensor, which: list[int]) -> Tensor:
    """`x` where the mask is set and zeros elsewhere."""
    wide = torch.zeros(x.shape[:-1], dtype=torch.bool)
    turned = mask.permute(which)
    wide[: turned.shape[0]] = turned
    return x * wide.unsqueeze(-1)


def test_a_mask_longer_than_what_it_indexes_closes_the_cut() -> None:
    shapes = {"x": (7, 5), "list0": (6,), "result": (6, 5)}
    take = rule("mesh.take.default", (Ref("x"), (Ref("list0"),), (6,), (0,)), shapes)
    assert not take.factors[0].shardable
    assert take.factors[1].shardable


def test_a_dim_of_the_mask_that_no_index_runs_along() -> None:
    """Entries of one row may lie in several parts: taking is right, putting is not."""
    lists = (Ref("list"),)
    shapes = {"x": (6, 5), "list": (18,), "result": (18, 5)}
    take = rule("mesh.take.default", (Ref("x"), lists, (3, 6), (1,)), shapes)
    assert [factor.shardable for factor in take.factors] == [True, True, True]
    shapes = {"x": (6, 5), "list": (18,), "values": (18, 5), "result": (6, 5)}
    put = rule("mesh.put.default", (Ref("x"), lists, Ref("values"), True, (3, 6), (1,)), shapes)
    assert [factor.shardable for factor in put.factors] == [False, True, True]


@pytest.mark.parametrize("accumulate", [False, True])
def test_put_and_take_are_pytorch_s_indexing(accumulate: bool) -> None:
    x, index = torch.randn(4, 6), torch.tensor([5, 0, 3])
    values = torch.randn(4, 3)
    expected = x.clone()
    expected.index_put_((torch.arange(4)[:, None], index), values, accumulate)
    torch.testing.assert_close(
        own_ops.put(x, [None, index], values, accumulate, [6], [0]), expected
    )
    torch.testing.assert_close(own_ops.take(x, [None, index], [6], [0]), x[:, index])
