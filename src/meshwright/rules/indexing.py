"""Indexing, gather and scatter: dims that are indexed stay whole, all others pass."""

from __future__ import annotations

from meshwright.program.types import Ref
from meshwright.rules.build import einsum, letters, normalise_dim
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule, Shape


def _index_letters(call: Call) -> tuple[str, list[str], str]:
    """Letters of the indexed tensor, of each index tensor, and of what indexing it gives.

    `x[i, :, j]` with index tensors that broadcast: their dims stand where the
    first index stood when all indices are neighbours, and in front otherwise.
    """
    shape = call.shapes[0]
    given = call.arg(1, "indices")
    assert isinstance(given, tuple)
    positions = [dim for dim, index in enumerate(given) if isinstance(index, Ref)]
    names = letters(len(shape))
    shapes = call.shapes[1 : 1 + len(positions)]
    rank = max(len(other) for other in shapes)
    broadcast = letters(rank, "p")
    indices = [broadcast[rank - len(other) :] for other in shapes]
    neighbours = positions == list(range(positions[0], positions[-1] + 1))
    kept = [name for dim, name in enumerate(names) if dim not in positions]
    start = positions[0] if neighbours else 0
    result = "".join(kept[:start]) + broadcast + "".join(kept[start:])
    fixed = "".join(names[dim] for dim in positions)
    return names, [*indices, result], fixed


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(call: Call) -> OpRule:
    names, (*indices, result), fixed = _index_letters(call)
    return einsum(
        ",".join([names, *indices]) + f"->{result}", call.shapes, call.results, fixed=fixed
    )


@rule("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(call: Call) -> OpRule:
    """(input, indices, values, accumulate): what is not indexed passes, the indices stay whole."""
    names, (*indices, picked), fixed = _index_letters(call)
    value_rank = len(call.shapes[-1])
    values = picked[len(picked) - value_rank :]
    broadcast = "".join(sorted(set("".join(indices))))
    return einsum(
        ",".join([names, *indices, values]) + f"->{names}",
        call.shapes,
        call.results,
        fixed=fixed + broadcast,
    )


def _along(call: Call, index: Shape, other: Shape, dim: int) -> tuple[str, str]:
    """Letters of an index tensor and of a tensor that it indexes along `dim`.

    Dims of one size pass; where the index is shorter, neither can be cut.
    """
    first, second = [], []
    for position, (mine, theirs) in enumerate(zip(index, other, strict=True)):
        shared = chr(ord("a") + position)
        same = mine == theirs and position != dim
        first.append(shared)
        second.append(shared if same else ".")
    return "".join(first), "".join(second)


@rule("aten.gather.default")
def gather(call: Call) -> OpRule:
    """(input, dim, index) -> result of the index's shape."""
    source, index_shape = call.shapes
    dim = normalise_dim(call.integer(1, "dim"), max(len(source), 1))
    index_names, source_names = _along(call, index_shape, source, dim)
    fixed = "".join(
        name
        for position, (name, other) in enumerate(zip(index_names, source_names, strict=True))
        if other == "." and position != dim
    )
    return einsum(
        f"{source_names},{index_names}->{index_names}", call.shapes, call.results, fixed=fixed
    )


@rule("aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default",
      "aten.scatter_reduce.two")  # fmt: skip
def scatter(call: Call) -> OpRule:
    """(input, dim, index, source or value) -> input's shape; dims beside `dim` pass if equal."""
    target, index_shape = call.shapes[0], call.shapes[1]
    dim = normalise_dim(call.integer(1, "dim"), max(len(target), 1))
    index_names, target_names = _along(call, index_shape, target, dim)
    index_names = "".join(
        name if other != "." else "." for name, other in zip(index_names, target_names, strict=True)
    )
    operands = [target_names, index_names]
    if len(call.shapes) > 2:
        source = call.shapes[2]
        operands.append(
            "".join(
                name if size == index_shape[position] else "."
                for position, (name, size) in enumerate(zip(index_names, source, strict=True))
            )
        )
    # A dim where the source is longer than the index can't be cut in step.
    shared = set(operands[0])
    for names in operands[1:]:
        shared &= set(names)
    operands = ["".join(n if n in shared else "." for n in names) for names in operands]
    return einsum(",".join(operands) + f"->{operands[0]}", call.shapes, call.results)


@rule("aten.index_select.default")
def index_select(call: Call) -> OpRule:
    """(input, dim, index [N])."""
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(1, "dim"), rank)
    names = letters(rank)
    result = names[:dim] + "p" + names[dim + 1 :]
    return einsum(f"{names},p->{result}", call.shapes, call.results, fixed=names[dim])


@rule("aten.index_add.default", "aten.index_copy.default")
def index_add(call: Call) -> OpRule:
    """(input, dim, index [N], source) -> input's shape; the indexed dim stays whole."""
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(1, "dim"), rank)
    names = letters(rank)
    source = names[:dim] + "p" + names[dim + 1 :]
    return einsum(f"{names},p,{source}->{names}", call.shapes, call.results, fixed=names[dim] + "p")


@rule("aten.topk.default")
def topk(call: Call) -> OpRule:
    """(input, k, dim) -> values, indices."""
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(2, "dim", -1), rank)
    names = letters(rank)
    result = names[:dim] + "." + names[dim + 1 :]
    return einsum(f"{names}->{result},{result}", call.shapes, call.results, fixed=names[dim])


@rule("aten.roll.default")
def roll(call: Call) -> OpRule:
    """Only dims that do not roll can be cut; without dims the whole tensor rolls as one."""
    rank = len(call.shapes[0])
    names = letters(rank)
    dims = [normalise_dim(dim, rank) for dim in call.ints(2, "dims")] or list(range(rank))
    return einsum(
        f"{names}->{names}", call.shapes, call.results, fixed="".join(names[dim] for dim in dims)
    )
