"""Indexing, gather and scatter: what is indexed can be cut, and so can lists of positions.

Cut rows are looked up where they are, with a sum pending; a cut list of
positions to add to leaves each device with terms (`lower/special_index.py`).
"""

from __future__ import annotations

from meshwright.layout.types import Reduce
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
        ",".join([names, *indices]) + f"->{result}",
        call.shapes,
        call.results,
        special=dict.fromkeys(fixed, "take_held"),
    )


@rule("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(call: Call) -> OpRule:
    """(input, indices, values, accumulate): a list can be cut when terms are added up."""
    names, (*indices, picked), fixed = _index_letters(call)
    value_rank = len(call.shapes[-1])
    values = picked[len(picked) - value_rank :]
    broadcast = "".join(sorted(set("".join(indices))))
    adds = bool(call.arg(3, "accumulate", False))
    special = dict.fromkeys(fixed, "put_held")
    return einsum(
        ",".join([names, *indices, values]) + f"->{names}",
        call.shapes,
        call.results,
        fixed="" if adds else broadcast,
        special=special | dict.fromkeys(broadcast if adds else "", "put_terms"),
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
    source_names = source_names[:dim] + "Z" + source_names[dim + 1 :] if source else ""
    return einsum(
        f"{source_names},{index_names}->{index_names}",
        call.shapes,
        call.results,
        fixed=fixed,
        special={"Z": "gather_held"},
    )


# How terms of a cut list of positions are put together, by what a scatter does with them.
_TERMS: dict[str, Reduce] = {"sum": "sum", "add": "sum", "amax": "max", "amin": "min"}


@rule("aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default",
      "aten.scatter_reduce.two", "aten.scatter.reduce", "aten.scatter.value_reduce")  # fmt: skip
def scatter(call: Call) -> OpRule:
    """(input, dim, index, source or value) -> input's shape; dims beside `dim` pass if equal.

    Along `dim` the input can be cut, and the list of positions where terms add up.
    """
    target, index_shape = call.shapes[0], call.shapes[1]
    if not target:
        return einsum(",".join([""] * len(call.shapes)) + "->", call.shapes, call.results)
    dim = normalise_dim(call.integer(1, "dim"), len(target))
    index_names, target_names = _along(call, index_shape, target, dim)
    shared = {name for name, other in zip(index_names, target_names, strict=True) if other != "."}
    source = call.shapes[2] if len(call.shapes) > 2 else index_shape
    # A dim where the source is longer than the index can't be cut in step.
    same = [mine == theirs for mine, theirs in zip(source, index_shape, strict=True)]
    shared = {name for k, name in enumerate(index_names) if name in shared and same[k] and k != dim}
    reduce = _scattered(call)
    terms = "Y" if reduce is not None and same[dim] else "."

    def names(along: str) -> str:
        return "".join(
            along if k == dim else name if name in shared else "."
            for k, name in enumerate(index_names)
        )

    operands = [names("Z"), *[names(terms)] * (len(call.shapes) - 1)]
    return einsum(
        ",".join(operands) + f"->{names('Z')}",
        call.shapes,
        call.results,
        combine={"Y": reduce} if reduce is not None else None,
        special={"Z": "scatter_held", "Y": "scatter_terms"},
    )


def _scattered(call: Call) -> Reduce | None:
    """The reduction that a scatter's terms may be split by, None where they may not."""
    if call.op.target == "aten.scatter_add.default":
        return "sum"
    options = dict(call.op.kwargs)
    if call.op.target == "aten.scatter_reduce.two" and options.get("include_self", True):
        return _TERMS.get(str(call.arg(4, "reduce")))
    return _TERMS.get(str(options.get("reduce"))) if ".scatter.re" in call.op.target else None


@rule("aten.index_select.default")
def index_select(call: Call) -> OpRule:
    """(input, dim, index [N])."""
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(1, "dim"), rank)
    names = letters(rank)
    result = names[:dim] + "p" + names[dim + 1 :]
    return einsum(
        f"{names},p->{result}", call.shapes, call.results, special={names[dim]: "gather_held"}
    )


@rule("aten.index_add.default", "aten.index_copy.default", "aten.index_reduce.default",
      "aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")  # fmt: skip
def index_add(call: Call) -> OpRule:
    """(input, dim, index [N], source or value) -> input's shape."""
    rank = len(call.shapes[0])
    if not rank:
        dots = ["." * len(shape) for shape in call.shapes]
        return einsum(",".join(dots) + "->", call.shapes, call.results)
    dim = normalise_dim(call.integer(1, "dim"), rank)
    names = letters(rank)
    adds = call.op.target == "aten.index_add.default"
    last = names[:dim] + "p" + names[dim + 1 :] if call.shapes[-1] else ""
    operands = [names, "p" if call.shapes[1] else "", *([last] if len(call.shapes) > 2 else [])]
    special = {names[dim]: "scatter_held", **({"p": "scatter_terms"} if adds else {})}
    return einsum(
        ",".join(operands) + f"->{names}",
        call.shapes,
        call.results,
        fixed="" if adds else "p",
        special=special,
    )


@rule("aten.take.default")
def take(call: Call) -> OpRule:
    """(input, positions in it as one row): positions pass."""
    names = letters(len(call.shapes[1]))
    dots = "." * len(call.shapes[0])
    return einsum(f"{dots},{names}->{names}", call.shapes, call.results)


@rule("aten.put.default")
def put(call: Call) -> OpRule:
    """(input, positions in it as one row, values, accumulate): all whole."""
    dots = ["." * len(shape) for shape in call.shapes]
    return einsum(",".join(dots) + f"->{dots[0]}", call.shapes, call.results)


@rule("aten.roll.default")
def roll(call: Call) -> OpRule:
    """Only dims that do not roll can be cut; without dims the whole tensor rolls as one."""
    rank = len(call.shapes[0])
    names = letters(rank)
    dims = [normalise_dim(dim, rank) for dim in call.ints(2, "dims")] or list(range(rank))
    return einsum(
        f"{names}->{names}", call.shapes, call.results, fixed="".join(names[dim] for dim in dims)
    )
