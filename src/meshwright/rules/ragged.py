"""Indexing by positions that a mask selects: what is indexed is cut along with the mask.

A list of a mask `[k, n]` has one dim, `(k n)`: all the positions there could be. Cutting
`n` leaves each device with the positions of its own part, counted from the part's start.
They are right for tensors whose indexed dim is cut as the mask is, which these rules see to.
"""

from __future__ import annotations

from meshwright.program.types import Ref
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Dims, Factor, OpRule, Shape


@rule("mesh.nonzero.default")
def nonzero(call: Call) -> OpRule:
    """mask -> one list for each of its dims."""
    factors, dims = _mask(call.shapes[0])
    listed = tuple(factor for dim in dims for factor in dim)
    return OpRule(factors, (dims,), tuple((listed,) for _ in call.results))


@rule("mesh.take.default")
def take(call: Call) -> OpRule:
    """(x, indices, mask's shape, which of its dims each index runs along)."""
    factors, x, lists, picked = _indexing(call, *_given(call, 2))
    return OpRule(factors, (x, *lists), (picked,), "unary")


@rule("mesh.put.default")
def put(call: Call) -> OpRule:
    """(x, indices, values, accumulate, mask's shape, which of its dims each index runs along).

    A dim of the mask that no index runs along can't be cut: each part would put into a
    tensor of its own.
    """
    mask, which = _given(call, 4)
    factors, x, lists, picked = _indexing(call, mask, which)
    values_shape = call.shapes[-1]
    aligned = picked[len(picked) - len(values_shape) :]
    values = tuple(
        dim if size != 1 else () for dim, size in zip(aligned, values_shape, strict=True)
    )
    held = {factor for dim in x for factor in dim}
    fixed = tuple(
        factor if k in held else Factor(factor.size, shardable=False)
        for k, factor in enumerate(factors)
    )
    joint = (0, len(call.shapes) - 1)
    return OpRule(fixed, (x, *lists, values), (x,), "joint", linear_operands=joint)


def _given(call: Call, position: int) -> tuple[Shape, tuple[int, ...]]:
    return call.ints(position, "mask"), call.ints(position + 1, "dims")


def _mask(shape: Shape) -> tuple[tuple[Factor, ...], Dims]:
    """A factor for each dim of the mask that is larger than 1."""
    factors: list[Factor] = []
    dims: list[tuple[int, ...]] = []
    for size in shape:
        dims.append((len(factors),) if size != 1 else ())
        factors += [Factor(size)] if size != 1 else []
    return tuple(factors), tuple(dims)


def _indexing(
    call: Call, mask: Shape, which: tuple[int, ...]
) -> tuple[tuple[Factor, ...], Dims, tuple[Dims, ...], Dims]:
    """Factors, and the dims of `x`, of its lists and of `x[lists]`.

    Where an indexed dim has another size than the mask's, neither is cut.
    """
    given = call.arg(1, "indices")
    assert isinstance(given, tuple)
    found, mask_dims = _mask(mask)
    factors = list(found)
    x: list[tuple[int, ...]] = []
    positions = [dim for dim, index in enumerate(given) if isinstance(index, Ref)]
    runs = dict(zip(positions, which, strict=True))
    for dim, size in enumerate(call.shapes[0]):
        if dim not in runs:
            x.append((len(factors),) if size != 1 else ())
            factors += [Factor(size)] if size != 1 else []
            continue
        held = mask_dims[runs[dim]]
        if size != mask[runs[dim]]:
            for factor in held:
                factors[factor] = Factor(factors[factor].size, shardable=False)
            held = ()
        x.append(held)
    listed = tuple(factor for dim in mask_dims for factor in dim)
    kept = [dims for dim, dims in enumerate(x) if dim not in runs]
    neighbours = positions == list(range(positions[0], positions[-1] + 1))
    start = positions[0] if neighbours else 0
    picked = (*kept[:start], listed, *kept[start:])
    return tuple(factors), tuple(x), tuple((listed,) for _ in positions), picked
