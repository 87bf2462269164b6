"""Memory that an op holds while it runs, beside its operands and results.

What PyTorch's CPU kernels and the collectives of this project's runtime
allocate and let go of again. Libraries that allocate by themselves (oneDNN,
MKL, NCCL) are not in what PyTorch counts, and not in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod

from meshwright.cost.families import family_of
from meshwright.cost.terms import is_small_convolution
from meshwright.layout.halo import sent_bytes
from meshwright.layout.merge import cuts_of, row_length, tensors_of
from meshwright.program.types import Op, Value

# As in `meshwright.runtime.collectives`, whose tests hold the two together.
DIRECT_BYTES = 64 << 10
PIECE_BYTES = 8 << 20


# One more tensor like the largest operand, for as long as the op runs.
_COPIES_OPERAND = frozenset(
    {
        "native_batch_norm_backward", "native_dropout", "mse_loss",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    }
)  # fmt: skip

_BLOCK = 16  # channels that oneDNN keeps side by side
_FEW_CHANNELS = 4  # pictures of so few stay as they are

# Of attention over a cut sequence: tensors like the queries that one block of keys takes.
_BLOCK_TENSORS = {"attention": 4, "attention_step": 4,
                  "attention_backward": 11, "attention_step_backward": 11}  # fmt: skip


@cache
def _asks(target: str) -> bool:
    name = target.split(".")[1]
    own = target.startswith("mesh.") and name in _BLOCK_TENSORS
    return family_of(target) in ("collective", "convolution") or name in _COPIES_OPERAND or own


def needs_scratch(op: Op) -> bool:
    """Whether it is worth asking; most ops have none."""
    return _asks(op.target)


def scratch_bytes(op: Op, values: Mapping[str, Value], extent: int = 1, cpu: bool = True) -> int:
    """Most bytes that live inside `op` at once beyond its operands and results.

    extent: devices on the axis of a collective. cpu: the device is one, and
    its collectives are Gloo's; else kernels' workspaces are not known and 0.
    """
    family = family_of(op.target)
    if family == "collective":
        return _collective(op, values, extent, cpu) if extent > 1 else 0
    if not cpu:
        return 0
    if family == "convolution":
        return _convolution(op, values)
    name = op.target.split(".")[1]
    if op.target.startswith("mesh.") and name in _BLOCK_TENSORS:
        operands = [values[item] for item in op.operands()]
        query = operands[1] if name == "attention_backward" else operands[0]
        return _BLOCK_TENSORS[name] * query.nbytes
    if name in _COPIES_OPERAND:
        return max((values[name].nbytes for name in op.operands()), default=0)
    return 0


def _convolution(op: Op, values: Mapping[str, Value]) -> int:
    operands = [values[name] for name in op.operands()]
    backward = op.target.split(".")[1] == "convolution_backward"
    source, weight = operands[1:3] if backward else operands[:2]
    output = operands[0] if backward else values[next(item for item in op.results if item)]
    single = prod(weight.shape[2:]) == 1 and source.shape[2:] == output.shape[2:]
    if is_small_convolution(source, weight):
        if single:
            return 0
        # PyTorch's own kernel lays out the input once for each element of the filter.
        positions = output.numel // max(output.shape[1], 1)  # batch included
        return source.shape[1] * prod(weight.shape[2:]) * positions * _item(source)
    if single:
        return 0
    # oneDNN works on copies whose channels lie in blocks.
    x, y = _blocked(source), _blocked(output)
    w = weight.nbytes * x * y // max(source.nbytes * output.nbytes, 1)
    if not backward:
        x = x if source.shape[1] >= _BLOCK else 0  # few channels are read where they lie
        return max(x + w + y, y + output.nbytes) - output.nbytes
    made = sum(values[name].nbytes for name in op.results if name)
    given = source.nbytes + weight.nbytes + output.nbytes
    most = max(x + w + y, 3 * source.nbytes, source.nbytes + given)
    return most - min(made, source.nbytes + weight.nbytes)


def _blocked(value: Value) -> int:
    """Bytes of a picture whose channels are padded to whole blocks."""
    channels = max(value.shape[1], 1)
    if channels <= _FEW_CHANNELS:
        return value.nbytes
    return value.nbytes * (-(-channels // _BLOCK) * _BLOCK) // channels


def _collective(op: Op, values: Mapping[str, Value], n: int, cpu: bool) -> int:
    kind = op.target.split(".")[1]
    result = sum(values[name].nbytes for name in op.results if name)
    payload = sum(values[name].nbytes for name in op.operands())
    cut = dict(op.kwargs)
    if tensors_of(op) > 1 and kind != "all_reduce":
        rows = n * _row_bytes(op, values, n)
        slots, pieces = _slots(rows // n, n, cpu)
        return rows + pieces * slots if kind == "reduce_scatter" else rows
    if kind == "all_reduce":
        return n * payload if cpu and payload <= DIRECT_BYTES else 0
    if kind == "all_gather":
        # Blocks arrive side by side, and are put together in another order.
        shape = values[next(iter(op.operands()))].shape
        return 0 if _outermost(shape, _number(cut, "dim"), _number(cut, "outer", 1)) else result
    if kind == "reduce_scatter":
        shape = values[next(iter(op.operands()))].shape
        in_order = _outermost(shape, _number(cut, "dim"), _number(cut, "outer", 1))
        slots, pieces = _slots(payload // n, n, cpu)
        return (0 if in_order else payload) + pieces * slots
    if kind == "all_to_all":
        return payload
    if kind == "halo":
        return 2 * sent_bytes(op, values)
    return 0


def merged_scratch(kind: str, nbytes: int, n: int, cpu: bool) -> int:
    """Of a merged collective of which the payload alone is known."""
    if kind == "all_reduce":
        return n * nbytes if cpu and nbytes <= DIRECT_BYTES else 0
    slots, pieces = _slots(nbytes // n, n, cpu)
    return nbytes + (pieces * slots if kind == "reduce_scatter" else 0)


def _slots(block: int, n: int, cpu: bool) -> tuple[int, int]:
    """Bytes of one receive buffer of a reduction, and how many there are."""
    return (n * min(block, PIECE_BYTES // n) if cpu else 0), (2 if block > PIECE_BYTES // n else 1)


def _row_bytes(op: Op, values: Mapping[str, Value], n: int) -> int:
    """Of what one device has of all the tensors of a merged collective."""
    gathers = op.target.split(".")[1] == "all_gather"
    wholes = [values[name] for name in (op.results if gathers else op.operands()) if name]
    return row_length([item.numel for item in wholes], cuts_of(op), n) * _item(wholes[0])


def rearranged_bytes(op: Op, values: Mapping[str, Value], extent: int) -> int:
    """Bytes that a collective of this project's runtime copies into another order.

    Blocks travel one device after the other, so a cut of an inner dim is put in
    that order before it is scattered, or out of it once it is gathered. An
    all_to_all does both, which is in its own measured time. Tensors of a merged
    collective are put side by side, and gathered ones apart again.
    """
    kind = op.target.split(".")[1]
    if extent > 1 and kind == "halo":
        # What stays is copied beside what comes; about two borders are in the measured time.
        made = sum(values[item].nbytes for item in op.results if item is not None)
        return max(made - 2 * sent_bytes(op, values), 0)
    if extent == 1 or kind not in ("all_gather", "reduce_scatter", "all_reduce"):
        return 0
    if kind == "all_reduce":
        return sum(values[x].nbytes for x in op.operands()) if tensors_of(op) > 1 else 0
    if tensors_of(op) > 1:
        rows = extent * _row_bytes(op, values, extent)
        return rows + rows // extent if kind == "all_gather" else rows
    cut = dict(op.kwargs)
    operand = values[next(iter(op.operands()))]
    if _outermost(operand.shape, _number(cut, "dim"), _number(cut, "outer", 1)):
        return 0
    return operand.nbytes * (extent if kind == "all_gather" else 1)


def _outermost(shape: Sequence[int], dim: int, outer: int) -> bool:
    """Whether the cut divides memory into runs, one for each device."""
    return prod(shape[:dim]) == 1 and outer == 1


def _number(cut: Mapping[str, object], name: str, otherwise: int = 0) -> int:
    found = cut.get(name, otherwise)
    return found if isinstance(found, int) else otherwise


def _item(value: Value) -> int:
    return value.nbytes // max(value.numel, 1)
