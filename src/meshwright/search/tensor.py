"""Which groups to cut over a tensor axis.

Groups that play the same part in every repeated block form a class and are
decided at once. A class is worth the matrix work that it divides (along
another factor than the batch) and costs the bytes that it leaves pending or
must gather. Classes are taken cheapest work first, as long as no matrix
product would be cut twice: on a transformer that is Megatron's layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from meshwright.cost.flops import op_flops
from meshwright.layout.groups import Analysis, Group, Member
from meshwright.layout.types import Split

# A table that no matrix product uses is worth a cut from this share of all parameters on.
_TABLE_SHARE = 0.05


@dataclass(frozen=True)
class GroupClass:
    """Groups alike in all but position, with what cutting all of them divides and costs."""

    groups: tuple[Group, ...]
    products: frozenset[str]  # matrix products cut
    flops: float
    moved_bytes: int
    parameter_bytes: int


@lru_cache(maxsize=8)
def tensor_groups(analysis: Analysis, parts: int) -> tuple[Group, ...]:
    """Groups to cut over an axis of `parts` devices, in program order; none when nothing can be."""
    order = {name: k for k, name in enumerate(analysis.program.values)}
    groups = [group for item in chosen_classes(analysis, parts) for group in item.groups]
    return tuple(sorted(groups, key=lambda group: order[group.seed[0]]))


@lru_cache(maxsize=12)
def chosen_classes(analysis: Analysis, parts: int) -> tuple[GroupClass, ...]:
    """The classes that tensor parallelism over `parts` devices cuts, as the module says."""
    chosen: list[GroupClass] = []
    taken: set[str] = set()
    cut: set[str] = set()
    classes = classes_of(analysis, parts)
    total = sum(
        analysis.program.values[item.value].nbytes
        for item in analysis.program.inputs_of("parameter")
    )
    for item in sorted(classes, key=_price):
        values = {name for group in item.groups for name in group.members}
        worth = item.flops > 0 or item.parameter_bytes >= _TABLE_SHARE * total
        if not worth or item.products & taken or (not item.products and values & cut):
            continue
        chosen.append(item)
        taken |= item.products
        cut |= values
    return tuple(chosen)


def _price(item: GroupClass) -> tuple[float, float, int]:
    """Bytes moved for each unit of work divided; tables that divide none come last."""
    if item.flops:
        return (0.0, item.moved_bytes / item.flops, -item.parameter_bytes)
    return (1.0, item.moved_bytes / max(item.parameter_bytes, 1), -item.parameter_bytes)


@lru_cache(maxsize=12)
def classes_of(analysis: Analysis, parts: int) -> tuple[GroupClass, ...]:
    """Classes of groups that cut some parameter into `parts` and leave the batch whole."""
    program = analysis.program
    flops = {op.name: op_flops(op, program.values) for op in program.ops}
    batch_cuts = _batch_cuts(analysis)
    batch = {item.value for item in program.inputs_of("batch")}
    found: dict[Hashable, list[Group]] = {}
    for group in _candidates(analysis, flops):
        cut_parameters = [
            item
            for item in program.inputs_of("parameter")
            if item.value in group.members and group.members[item.value].extent >= parts
        ]
        if not cut_parameters:
            continue
        if any(group.members[name].dim == 0 for name in batch if name in group.members):
            continue
        found.setdefault(_signature(analysis, group), []).append(group)
    result = []
    for groups in found.values():
        products = frozenset(
            name
            for group in groups
            for name, cut in group.cuts.items()
            if flops[name] and batch_cuts.get(name) != cut.factor
        )
        result.append(
            GroupClass(
                tuple(groups),
                products,
                sum(flops[name] for name in products),
                sum(_moved(analysis, group) for group in groups),
                sum(
                    program.values[item.value].nbytes
                    for item in program.inputs_of("parameter")
                    if any(item.value in group.members for group in groups)
                ),
            )
        )
    return tuple(result)


def _candidates(analysis: Analysis, flops: dict[str, float]) -> Iterable[Group]:
    """Groups that start at a parameter, at matrix work, or at a dim that a view makes."""
    seen: set[int] = set()
    for seed in _seeds(analysis, flops):
        group = analysis.group(*seed)
        if id(group) not in seen:
            seen.add(id(group))
            yield group


def _seeds(analysis: Analysis, flops: dict[str, float]) -> Iterable[Member]:
    values = analysis.program.values
    names = [item.value for item in analysis.program.inputs_of("parameter")]
    for op in analysis.program.phase_ops("forward"):
        # Attention written with plain products merges batch and heads into one dim of
        # those: heads are a dim of their own only where a view makes them.
        makes_dims = any(len(dim) > 1 for dims in analysis.rules[op.name].operands for dim in dims)
        if flops[op.name]:
            names += [*op.operands(), *(name for name in op.results if name is not None)]
        elif makes_dims:
            names += [name for name in op.results if name is not None]
    for name in dict.fromkeys(names):
        for dim, size in enumerate(values[name].shape):
            if size > 1:
                yield name, Split(dim, 1, size)


def _batch_cuts(analysis: Analysis) -> dict[str, int]:
    """The factor that each op's batch is."""
    factors: dict[str, int] = {}
    for item in analysis.program.inputs_of("batch"):
        value = analysis.program.values[item.value]
        if value.shape and value.shape[0] > 1:
            group = analysis.group(item.value, Split(0, 1, value.shape[0]))
            for name, cut in group.cuts.items():
                factors.setdefault(name, cut.factor)
    return factors


def _moved(analysis: Analysis, group: Group) -> int:
    """Bytes of sums left pending, and of members that an op needs whole."""
    values = analysis.program.values
    moved = sum(values[name].nbytes for name in group.pending)
    for name in group.ends:
        op = analysis.by_name[name]
        moved += sum(values[used].nbytes for used in set(op.operands()) if used in group.members)
    return moved


def _signature(analysis: Analysis, group: Group) -> Hashable:
    """What a group does, without where: equal for the same dim of repeated blocks."""
    values = analysis.program.values
    return tuple(
        sorted(
            Counter(
                (
                    analysis.by_name[name].target,
                    cut.factor,
                    cut.outer,
                    cut.extent,
                    tuple(values[used].shape for used in analysis.by_name[name].operands()),
                )
                for name, cut in group.cuts.items()
            ).items()
        )
    )
