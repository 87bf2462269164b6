"""Bytes that an op reads and writes."""

from __future__ import annotations

from collections.abc import Mapping

from meshwright.cost.families import family_of
from meshwright.program.types import Op, Value

# These read as much of their first operand as they write.
_ROW_READERS = frozenset(
    {
        "embedding", "gather", "index", "index_select", "take", "take_along_dim", "_unsafe_index",
        "masked_select", "_unsafe_masked_index", "_embedding_bag", "_embedding_bag_forward_only",
        "slice_copy", "select_copy", "embedding_rows", "take_held", "gather_held", "select_held",
    }
)  # fmt: skip

# These pick one element of their first operand for each of their second.
_PICKERS = frozenset({"nll_loss", "nll_loss_forward", "nll_loss2d_forward"})

# Their second operand lends its shape alone.
_SHAPE_OF_SECOND = frozenset(
    {
        "nll_loss_backward", "nll_loss2d_backward", "max_pool2d_with_indices_backward",
        "max_pool3d_with_indices_backward", "adaptive_max_pool2d_backward",
        "adaptive_max_pool3d_backward", "avg_pool2d_backward", "avg_pool3d_backward",
        "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "gather_backward",
        "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
        "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward",
        "masked_scatter_backward",
    }
)  # fmt: skip


def reads(op: Op, values: Mapping[str, Value]) -> dict[str, int]:
    """Bytes read of each operand, by name; an expanded one is the memory behind it."""
    name = op.target.split(".")[1] if "." in op.target else op.target
    distinct = list(dict.fromkeys(op.operands()))
    if family_of(op.target) == "factory":  # the operand of a *_like op lends its shape alone
        return dict.fromkeys(distinct, 0)
    found = {}
    for position, operand in enumerate(distinct):
        value = values[operand]
        nbytes = min(value.nbytes, values.get(value.storage, value).nbytes)
        if position == 0 and name in _ROW_READERS:
            nbytes = min(nbytes, written(op, values))
        elif position == 0 and name in _PICKERS and len(distinct) > 1 and value.numel:
            picked = values[distinct[1]].numel
            nbytes = min(nbytes, picked * value.nbytes // value.numel)
        elif position == 1 and name in _SHAPE_OF_SECOND:
            nbytes = 0
        found[operand] = nbytes
    return found


def written(op: Op, values: Mapping[str, Value]) -> int:
    """Bytes of an op's results."""
    return sum(values[item].nbytes for item in op.results if item is not None)


def op_bytes(op: Op, values: Mapping[str, Value]) -> int:
    """Bytes that an op reads and writes, its operands counted once each."""
    name = op.target.split(".")[1] if "." in op.target else op.target
    if name.startswith(("empty", "new_empty")):
        return 0
    return sum(reads(op, values).values()) + written(op, values)
