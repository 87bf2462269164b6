"""What an op's measured time is a sum of: its launch, its arithmetic, the memory it touches.

The time of an op on a calibrated machine is a sum of non-negative constants
times these terms. There are few of them and each has a meaning, so that they
can be fitted to a few sizes and hold for others:

matmul        a launch, each product of the batch, multiply-adds, elements of left, right, result
convolution   a launch, multiply-adds (of filters of one element, and in groups, apart), those for
              one channel of input and for one of output (elements of the filters' windows, each
              read and written once however many channels there are), elements of input, output
              and filters
attention     a launch, multiply-adds, scores (each is an exponential), elements in and out; over a
              cut sequence those of queries once for each block of keys
all others    a launch, bytes moved, bytes moved beyond what caches hold
views         a launch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import NamedTuple

from meshwright.cost.families import family_of
from meshwright.cost.flops import attention_of, is_causal, op_flops
from meshwright.program.types import Op, Value

# PyTorch's attention on a CPU leaves out whole blocks of so many masked keys.
_CPU_KEY_BLOCK = 512

# What these copy out of a view is in another order.
_COPIES = frozenset({"clone", "contiguous", "copy", "_to_copy"})

_SMALL_INPUT = 20480  # elements


class Work(NamedTuple):
    """key: whose constants apply. family: whose apply where the key was not measured.

    amounts: how much of each term; of a memory-bound op, the bytes alone.
    """

    key: str
    family: str
    amounts: tuple[float, ...]
    dtype: str

    @property
    def streams(self) -> bool:
        return len(self.amounts) == 1 and self.key != "view"


def work_of(op: Op, values: Mapping[str, Value], nbytes: int, renames: bool) -> Work:
    """The terms of an op at the local shapes in `values`.

    nbytes: what it reads and writes. renames: it makes views and runs no kernel.
    """
    if renames:
        return Work("view", "view", (), "")
    family = family_of(op.target)
    name = op.target.split(".")[1].removesuffix("_")
    backward = "_backward" in name
    dtype = next((values[item].dtype for item in op.operands()), "float32")
    direction = f"{family}_backward" if backward else family
    if family == "matmul":
        return Work(direction, direction, _matmul(op, values), dtype)
    if family == "convolution":
        return _convolution(op, values, direction, backward, dtype)
    if family == "attention":
        if name in ("attention", "attention_backward") and op.target.startswith("mesh."):
            return Work(f"mesh.{name}", direction, _by_blocks(op, values), dtype)
        return Work(direction, direction, _attention(op, values, backward), dtype)
    if family == "view":  # one that has to copy
        return Work("copy_of_view", "copy", (float(nbytes),), dtype)
    name += _variant(op, values, name, family)
    if name in _COPIES and any(values[item].is_view for item in op.operands()):
        name = "copy_of_view"
    return Work(name, direction, (float(nbytes),), dtype)


def _variant(op: Op, values: Mapping[str, Value], name: str, family: str) -> str:
    """What of an op's arguments, beside sizes, makes PyTorch run another kernel on a CPU.

    Reductions go by rows, by columns or by both; ops that repeat an operand along a dim
    go by short runs; norms without weights are not vectorised.
    """
    operands = [values[item] for item in op.operands()]
    if any(item == "tanh" for _, item in op.kwargs):
        return " tanh"
    if family.startswith("normalisation") and None in op.args[1:]:
        return " plain"
    if family == "reduction" and operands and len(op.args) > 1:
        dims, rank = op.args[1], len(operands[0].shape)
        given = dims if isinstance(dims, tuple) else (dims,)
        reduced = {item % rank for item in given if isinstance(item, int) and rank}
        kept = [operands[0].shape[at] for at in range(rank) if at not in reduced]
        if not reduced or prod(kept) == 1:
            return ""
        if rank - 1 not in reduced:
            return " columns"
        return " rows" if min(reduced) == rank - len(reduced) else " planes"
    made = next((values[item] for item in op.results if item is not None), None)
    if made is not None and family in ("pointwise", "transcendental") and len(operands) > 1:
        smaller = [item for item in operands if 1 < item.numel < made.numel]
        if any(not _is_tail(item.shape, made.shape) for item in smaller):
            return " repeated"
    return ""


def _is_tail(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether an operand repeats along the outermost dims alone, as a bias does."""
    plain = [*shape]
    while plain and plain[0] == 1:
        plain = plain[1:]
    return not plain or [*whole[len(whole) - len(plain) :]] == plain


def terms(work: Work, cache_bytes: float) -> tuple[float, ...]:
    """The amounts that constants are multiplied with; the first is the launch."""
    if work.streams:
        moved = work.amounts[0]
        return (1.0, moved, max(moved - cache_bytes, 0.0))
    return (1.0, *work.amounts)


def _matmul(op: Op, values: Mapping[str, Value]) -> tuple[float, ...]:
    operands = [values[name] for name in op.operands()]
    results = [values[name] for name in op.results if name is not None]
    factors = operands[-2:] if len(operands) >= 2 else operands * 2
    result = results[0].numel if results else 1
    products = prod(results[0].shape[:-2]) if results and len(results[0].shape) > 2 else 1
    return (
        float(products), op_flops(op, values) / 2, float(factors[0].numel),
        float(factors[1].numel), float(result),
    )  # fmt: skip


def _convolution(
    op: Op, values: Mapping[str, Value], direction: str, backward: bool, dtype: str
) -> Work:
    operands = [values[name] for name in op.operands()]
    source, weight = operands[1:3] if backward else operands[:2]
    output = operands[0] if backward else values[next(item for item in op.results if item)]
    macs = op_flops(op, values) / 2
    grouped = weight.shape[1] not in (source.shape[1], output.shape[1])
    single = prod(weight.shape[2:]) == 1
    wide = 0.0 if grouped or single else macs
    amounts = (
        wide, macs if single and not grouped else 0.0, macs if grouped else 0.0,
        wide / source.shape[1], wide / output.shape[1],
        float(source.numel), float(output.numel), float(weight.numel),
    )  # fmt: skip
    dims = len(weight.shape) - 2
    native = "_native" if is_small_convolution(source, weight) else ""
    return Work(f"{direction}{dims}d{native}", direction, amounts, dtype)


def is_small_convolution(source: Value, weight: Value) -> bool:
    """Whether PyTorch leaves a CPU's convolution to its own kernel and not to oneDNN's.

    As `ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp has it.
    """
    if source.shape[1] != weight.shape[1]:  # in groups, or transposed
        return False
    wide = all(size > 3 for size in weight.shape[-2:]) and len(weight.shape) > 3
    return not wide and source.shape[0] <= 1 and prod(source.shape[:4]) <= _SMALL_INPUT


def _by_blocks(op: Op, values: Mapping[str, Value]) -> tuple[float, ...]:
    """Attention over a cut sequence: by blocks of keys, one a device, whose results are joined.

    As many terms as other attention has, whose constants stand in where this was not measured:
    multiply-adds, scores and elements; those of queries count once a block.
    """
    sizes = attention_of(op, values)
    blocks = max(1.0, sizes.keys / max(sizes.queries, 1))
    scores = float(sizes.heads * sizes.queries * sizes.keys)
    elements = sizes.heads * sizes.width * (blocks * sizes.queries + sizes.keys)
    return (op_flops(op, values), scores, elements)


def _attention(op: Op, values: Mapping[str, Value], backward: bool) -> tuple[float, ...]:
    operands = [values[name] for name in op.operands()]
    query, key = operands[1:3] if backward and len(operands) > 3 else operands[:2]
    scores = float(prod(query.shape[:-1]) * key.shape[-2])
    macs = op_flops(op, values) / 2
    if is_causal(op):
        blocks = max(1, ceil(query.shape[-2] / _CPU_KEY_BLOCK))
        done = (blocks + 1) / blocks  # as a multiple of the half that is needed
        scores, macs = scores * done / 2, macs * done
    return (macs, scores, float(sum(item.numel for item in operands[:4])))
