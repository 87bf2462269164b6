"""What PyTorch's DTensor would do with one call, asked of its sharding propagation alone.

DTensor has no public way to ask how it would place the results of an op without
running it on processes, so this file uses private parts of it, and nothing else does:

- `DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding_non_cached`:
  strategies, rules and decompositions, behind the one door that DTensor itself uses;
- its tables `op_strategy_funcs`, `op_single_dim_strategy_funcs`, `op_to_rules`,
  `op_to_schema_info` and `op_to_schema_info_for_single_dim_strategy`: which ops are
  registered, and which arguments of a call are part of the question;
- `OpSchema`, `DTensorSpec` and `TensorMeta`: how a question is put;
- `_StridedShard`: the placement of a dim that is cut inside;
- `DeviceMesh(..., _init_backend=False, _rank=0)`: a mesh that nothing runs on.

`test_rules_against_dtensor.py` holds that each is still there and still does this.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._op_schema import OpSchema, RuntimeSchemaInfo
from torch.distributed.tensor.placement_types import Placement, _StridedShard

PARTS = 2


@dataclass(frozen=True)
class Answer:
    """`outputs` has a placement for each result, None where there is none; None if unaccepted.

    kind: "accepts" if the op would run on the parts as they are, "redistributes" if
    DTensor would communicate (or cut) first, "refuses" if it says that it can't,
    "no strategy" if it doesn't know the op.
    """

    kind: str
    outputs: tuple[str | None, ...] = ()


def propagator() -> Any:
    return DTensor._op_dispatcher.sharding_propagator  # type: ignore[attr-defined]


@functools.cache
def mesh() -> DeviceMesh:
    return DeviceMesh("cpu", list(range(PARTS)), _init_backend=False, _rank=0)


def registered(target: str) -> bool:
    """Whether DTensor has something of its own for an op, not just its decomposition."""
    op, known = overload(target), propagator()
    return (
        op in known.op_strategy_funcs
        or op in known.op_single_dim_strategy_funcs
        or op in known.op_to_rules
    )


def overload(target: str) -> Any:
    name, variant = target.split(".")
    return getattr(getattr(torch.ops.aten, name), variant)


def ask(
    target: str, args: Sequence[Any], kwargs: Mapping[str, Any], placements: Sequence[str]
) -> Answer:
    """What DTensor makes of a call whose tensors, in argument order, lie as `placements` say.

    Some ops' shapes are worked out for accelerators' numbers alone. A refused call of
    fp32 is asked about again in bf16: how its parts lie doesn't depend on that.
    """
    answer = _ask(target, args, kwargs, placements, torch.float32)
    if answer.kind == "refuses":
        answer = _ask(target, args, kwargs, placements, torch.bfloat16)
    return answer


def _ask(
    target: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    placements: Sequence[str],
    single: torch.dtype,
) -> Answer:
    """`ask` with `single` in place of fp32."""
    op, known = overload(target), propagator()
    left = iter(placements)

    def question(item: Any) -> Any:
        if isinstance(item, Tensor):
            dtype = single if item.dtype is torch.float32 else item.dtype
            meta = TensorMeta(item.shape, item.stride(), dtype)
            return DTensorSpec(mesh(), (parsed(next(left)),), tensor_meta=meta)
        if isinstance(item, (list, tuple)):
            return type(item)(question(part) for part in item)
        return item

    asked = tuple(question(item) for item in args)
    named = {name: question(item) for name, item in kwargs.items()}
    assert next(left, None) is None, f"{target} has fewer tensors than {placements}"
    if not registered(target):
        return _by_decomposition(op, asked, named)
    info = known.op_to_schema_info.get(op)
    info = info or known.op_to_schema_info_for_single_dim_strategy.get(op)
    if any(isinstance(item, (list, tuple)) and _specs(item) for item in asked):
        info = _with_nested(info)  # as the dispatcher does before it asks
    try:
        made = known.propagate_op_sharding_non_cached(OpSchema(op, asked, named, schema_info=info))
    except (NotImplementedError, *_REFUSALS):
        return Answer("refuses")
    suggested = made.redistribute_schema
    # A suggestion may also be no more than local sizes in place of whole ones.
    if suggested is not None and _lie(suggested.args_schema) != _lie(asked):
        return Answer("redistributes")
    given = made.output_spec
    specs = given if isinstance(given, (list, tuple)) else (given,)
    return Answer(
        "accepts", tuple(None if spec is None else shown(spec.placements[0]) for spec in specs)
    )


def _by_decomposition(op: Any, asked: tuple[Any, ...], named: dict[str, Any]) -> Answer:
    """What DTensor finds by tracing an op that it has nothing for, at just these placements.

    It would itself trace every combination of placements and then look for the given
    one, which takes minutes for ops of many operands.
    """
    known = propagator().decomp_strategy
    if not known.has_decomp(op):
        return Answer("no strategy")
    schema = OpSchema(op, asked, named)
    flat = torch.utils._pytree.tree_leaves([*asked, *named.values()], lambda x: x is None)
    lying = tuple(x.placements[0] if isinstance(x, DTensorSpec) else None for x in flat)
    try:
        made = known._propagate_through_decomp(schema, lying, known._get_fake_mesh("cpu"))
    except NotImplementedError:
        return Answer("no strategy")
    except _REFUSALS:
        return Answer("redistributes")
    found = made if isinstance(made, (list, tuple)) else (made,)
    return Answer("accepts", tuple(None if x is None else shown(x) for x in found))


_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, KeyError, TypeError)


def _lie(item: Any) -> list[Any]:
    return [spec.placements for spec in _specs(item)]


def _with_nested(info: Any) -> Any:
    if info is None:
        return RuntimeSchemaInfo(needs_pytree=True)
    return RuntimeSchemaInfo(info.static_argnum, info.static_kwargkey, needs_pytree=True)


def _specs(item: Any) -> list[Any]:
    if isinstance(item, DTensorSpec):
        return [item]
    if isinstance(item, (list, tuple)):
        return [spec for part in item for spec in _specs(part)]
    return []


def parsed(text: str) -> Placement:
    """The placement of `R`, `S(dim)`, `S(dim) in N` (each of N stretches cut) or `P(sum)`."""
    if text == "R":
        return Replicate()
    inside, _, outer = text[2:].partition(")")
    if text.startswith("P"):
        return Partial(inside)
    return _StridedShard(int(inside), split_factor=int(outer[4:])) if outer else Shard(int(inside))


def shown(placement: Placement) -> str:
    """The text that `parsed` reads."""
    if isinstance(placement, Replicate):
        return "R"
    if isinstance(placement, _StridedShard):
        return f"S({placement.dim}) in {placement.split_factor}"
    if isinstance(placement, Shard):
        return f"S({placement.dim})"
    assert isinstance(placement, Partial), placement
    if hasattr(placement, "norm_type"):
        return f"P(norm {placement.norm_type:g})"
    if type(placement) is not Partial:
        return f"P({type(placement).__name__.strip('_')})"
    return f"P({'prod' if placement.reduce_op == 'product' else placement.reduce_op})"
