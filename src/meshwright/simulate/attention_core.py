"""Attention that no fused kernel computes: from the scores to their weighted sum, by structure.

A softmax whose operand comes from a batched product, and whose result goes into
another, through nothing but pointwise ops, views, copies, masks and dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshwright.cost.families import family_of
from meshwright.program.types import Op

_PRODUCTS = frozenset({"bmm", "baddbmm", "matmul"})
_THROUGH = frozenset({"pointwise", "view", "copy", "random", "transcendental"})


def attention_cores(ops: Sequence[Op]) -> tuple[tuple[Op, ...], frozenset[str]]:
    """Ops of all such cores, in order, and the values inside: all but the weighted sums."""
    maker = {name: index for index, op in enumerate(ops) for name in op.results if name}
    users: dict[str, list[int]] = {}
    for index, op in enumerate(ops):
        for name in op.operands():
            users.setdefault(name, []).append(index)
    found: set[int] = set()
    sums: set[int] = set()
    for index, op in enumerate(ops):
        if family_of(op.target) != "softmax" or "log" in op.target or "backward" in op.target:
            continue
        before, scores = _back(index, ops, maker)
        after, weighted = _on(index, ops, users)
        if scores and weighted:
            found |= {index, *before, *after, *scores, *weighted}
            sums |= weighted
    inner = {name for i in found - sums for name in ops[i].results if name is not None}
    return tuple(ops[index] for index in sorted(found)), frozenset(inner)


def _packet(op: Op) -> str:
    return op.target.split(".")[1]


def _back(start: int, ops: Sequence[Op], maker: Mapping[str, int]) -> tuple[set[int], set[int]]:
    """Ops between a batched product and the softmax, and the product."""
    between: set[int] = set()
    products: set[int] = set()
    # The first operand alone: a mask's making is not part of attention.
    name = next(ops[start].operands(), None)
    while name is not None and name in maker:
        index = maker[name]
        if _packet(ops[index]) in _PRODUCTS:
            products.add(index)
            break
        if family_of(ops[index].target) not in _THROUGH:
            break
        between.add(index)
        name = next(iter(ops[index].operands()), None)
    return (between, products) if products else (set(), set())


def _on(
    start: int, ops: Sequence[Op], users: Mapping[str, Sequence[int]]
) -> tuple[set[int], set[int]]:
    """Ops between the softmax and the batched products of its result, and the products."""
    between: set[int] = set()
    products: set[int] = set()
    waiting = [start]
    while waiting:
        for name in ops[waiting.pop()].results:
            for index in users.get(name, ()) if name else ():
                if _packet(ops[index]) in _PRODUCTS:
                    products.add(index)
                elif family_of(ops[index].target) in _THROUGH and index not in between:
                    between.add(index)
                    waiting.append(index)
    return between, products
