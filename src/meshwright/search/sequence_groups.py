"""Groups that cut a sequence: positions of tokens, along which no weight is cut.

A batch's tokens are the natural names of such groups. Where none leads to a
group (positions are cut out of a longer run, patches are joined with a class
token, a decoder's tokens are made from labels), one starts at the index of an
embedding or at attention's own queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from meshwright.cost.families import family_of
from meshwright.cost.flops import is_causal, op_flops
from meshwright.layout.groups import Analysis, Group, Member
from meshwright.layout.types import Split
from meshwright.program.types import Op

_BATCHED = frozenset({"aten.bmm.default", "aten.baddbmm.default"})
_LOOK_UP = frozenset({"aten.embedding.default"})


@dataclass(frozen=True)
class Tokens:
    """A sequence that can be cut: dim `dim` of `value`, of which `split` is all.

    flops: matrix work that cutting it divides. causal: whether attention that it
    cuts lets a position see none of the later ones.
    """

    value: str
    split: Split
    group: Group
    flops: float
    causal: bool


@lru_cache(maxsize=8)
def token_groups(analysis: Analysis) -> tuple[Tokens, ...]:
    """Sequences of the model, the last first that the step comes to.

    Where attention of one sequence looks at another, it is cut as the queries
    are, which come later: so theirs is the earlier decision.
    """
    work = {op.name: op_flops(op, analysis.program.values) for op in analysis.program.ops}
    weights = _weights(analysis)
    found: list[Tokens] = []
    seen: set[int] = set()
    for value, split in _seeds(analysis):
        group = analysis.group(value, split)
        if id(group) in seen:
            continue
        seen.add(id(group))
        if _is_sequence(analysis, group, work, weights):
            flops = sum(work[name] for name in group.cuts)
            causal = any(is_causal(analysis.by_name[name]) for name in group.cuts)
            found.append(Tokens(value, split, group, flops, causal))
    kept: list[Tokens] = []
    taken: set[str] = set()
    for item in sorted(found, key=lambda item: -item.flops):
        # Attention between two sequences is cut by both; what multiplies weights is not.
        products = {
            name for name in item.group.cuts
            if work[name] and not weights.isdisjoint(analysis.operands[name])
        } or {name for name in item.group.cuts if work[name]}  # fmt: skip
        if products.isdisjoint(taken):
            kept.append(item)
            taken |= products
    place = {name: k for k, name in enumerate(analysis.program.values)}
    return tuple(sorted(kept, key=lambda item: -min(map(place.__getitem__, item.group.members))))


def _is_sequence(
    analysis: Analysis, group: Group, work: Mapping[str, float], weights: frozenset[str]
) -> bool:
    """Whether a group cuts tokens: no batch, no feature or head of a weight, no image alone."""
    program = analysis.program
    for item in program.inputs_of("batch"):
        split = group.members.get(item.value)
        if split is not None and split.dim == 0:
            return False
    attends = looks_up = False
    for name in group.cuts:
        op = analysis.by_name[name]
        if work[name] and any(
            used in weights and used in group.members for used in analysis.operands[name]
        ):
            return False
        attends |= _attends(analysis, op, group.cuts[name].factor, weights)
        looks_up |= op.target in _LOOK_UP
    return any(work[name] for name in group.cuts) and (attends or looks_up)


def _attends(analysis: Analysis, op: Op, factor: int, weights: frozenset[str]) -> bool:
    """Whether the op is attention cut along what looks or is looked at, no batch and no head."""
    operands = analysis.rules[op.name].operands
    if family_of(op.target) == "attention":
        return any(factor in dims[-2] for dims in operands if len(dims) == 4)
    return (
        op.target in _BATCHED
        and weights.isdisjoint(analysis.operands[op.name])
        and factor not in operands[-1][0]
    )


def _weights(analysis: Analysis) -> frozenset[str]:
    """Parameters, and what views and copies make of them alone."""
    found = {item.value for item in analysis.program.inputs_of("parameter")}
    for op in analysis.program.ops:
        names = analysis.operands[op.name]
        if names and found.issuperset(names) and family_of(op.target) in ("view", "copy"):
            found.update(name for name in op.results if name is not None)
    return frozenset(found)


def _seeds(analysis: Analysis) -> Iterator[Member]:
    """Batch leaves first, since a reader knows them; then what look-ups and attention take."""
    program = analysis.program
    names = [item.value for item in program.inputs_of("batch")]
    names += [analysis.operands[op.name][1] for op in _forward(analysis, _LOOK_UP)]
    names += [
        analysis.operands[op.name][0]
        for op in program.phase_ops("forward")
        if op.target in _BATCHED or family_of(op.target) == "attention"
    ]
    for name in dict.fromkeys(names):
        for dim, size in enumerate(program.values[name].shape):
            if size > 1:
                yield name, Split(dim, 1, size)


def _forward(analysis: Analysis, targets: frozenset[str]) -> Iterator[Op]:
    return (op for op in analysis.program.phase_ops("forward") if op.target in targets)
