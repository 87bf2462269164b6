"""Devices that a cut leaves nothing to compute, as five classes over four devices do.

PyTorch's kernels are not made for empty tensors: some refuse them, some divide
by zero. What such a device holds is known without running anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from meshwright.cluster.mesh import Mesh
from meshwright.layout.types import Reduce, Split, share
from meshwright.rules.types import FactorCut, OpRule, Shape

_BITS = {"int64": 64, "int32": 32, "int16": 16, "int8": 8}


def emptied(
    chosen: Mapping[str, FactorCut], mesh: Mesh, coordinate: Mapping[str, int]
) -> frozenset[int]:
    """Factors of which the device at `coordinate` holds nothing."""
    left: dict[FactorCut, int] = {}
    for axis in mesh.names:
        cut = chosen.get(axis)
        if cut is not None:
            extent = left.get(cut, cut.extent)
            split = Split(0, cut.outer, extent, cut.shift)
            left[cut] = share(split, extent, axis, mesh.extent(axis), coordinate)
    return frozenset(cut.factor for cut, count in left.items() if not count)


def known_results(
    rule: OpRule, empty: Collection[int], shapes: Sequence[Shape | None]
) -> tuple[Reduce, ...] | None:
    """For each result the reduction whose neutral element fills it; None when the op must run.

    `shapes` are local ones. A result that holds an empty factor is empty itself,
    so that it does not matter with what it is filled.
    """
    found: list[Reduce] = []
    for position, shape in enumerate(shapes):
        combines: list[Reduce] = [
            rule.factors[factor].combine or "sum"
            for factor in empty
            if rule.reduces(position, factor)
        ]
        if not combines and shape is not None and 0 not in shape:
            return None
        found.append(combines[0] if combines else "sum")
    return tuple(found) if empty else None


def neutral(reduce: Reduce, dtype: str) -> float:
    """The number that changes nothing in a reduction of values of `dtype`."""
    if reduce in ("sum", "prod"):
        return 0 if reduce == "sum" else 1
    if dtype == "bool":
        return 0 if reduce == "max" else 1
    if dtype in _BITS:
        largest = (1 << (_BITS[dtype] - 1)) - 1
        return -largest - 1 if reduce == "max" else largest
    return float("-inf") if reduce == "max" else float("inf")
