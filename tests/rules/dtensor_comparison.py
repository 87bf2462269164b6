"""Our rules beside DTensor's strategies: every case, cut in two on one axis.

`dtensor_tables.py` keeps what is found here, with explanations.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import meshwright.as_is  # noqa: F401  (registers ops)
from meshwright.lower.choose import allowed
from meshwright.lower.special_random import RANDOM
from meshwright.rules import FactorCut, OpRule
from meshwright.rules.registry import _RULES
from rules.brute_force import Recorded, record
from rules.dtensor_oracle import PARTS, ask, overload
from rules.rule_cases import Case, all_cases

# Whose results are draws, or whatever was in memory.
UNDEFINED = ("empty_like.default", "new_empty.default", "new_empty_strided.default")
DRAWN = frozenset({*UNDEFINED, *(name.removeprefix("aten.") for name in RANDOM)})

# Families of special lowerings, by a pattern of their names.
LOWERINGS = {
    r"^spatial_": "neighbours' rows",
    r"^attention": "a cut sequence in attention",
    r"_across$": "one number from all devices",
    r"_(held|terms|rows)$": "rows that others hold",
    r"_norm": "statistics of all devices",
    r"mean$|loss$": "means and losses over all devices",
    r"^bias_once$": "a bias added once",
}
OPERANDS_TRIED = 3  # combinations are enumerated for calls of at most so many tensors


@dataclass(frozen=True)
class Cut:
    """What one cut of our rule makes of a call, in DTensor's words; `special` as of Factor."""

    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]
    special: str | None = None


def cuts(recorded: Recorded, even: bool = True) -> Iterator[Cut]:
    """Every whole factor that lies on some operand, cut; and terms of a sum on every operand."""
    rule = recorded.rule
    for number, factor in enumerate(rule.factors):
        cut = FactorCut(number, 1, factor.size)
        if factor.ranged not in (None, number) or not allowed(rule, cut, PARTS):
            continue
        inputs = tuple(_placement(rule, dims, cut) for dims in rule.operands)
        if set(inputs) <= {"R"} or (even and factor.size % PARTS):
            continue
        outputs = tuple(
            None if name is None or dims is None else _placement(rule, dims, cut, position)
            for position, (name, dims) in enumerate(
                zip(recorded.op.results, rule.results, strict=True)
            )
        )
        yield Cut(inputs, outputs, factor.special)


def terms(recorded: Recorded) -> Cut | None:
    """The call on terms of a sum, if our rule lets them through."""
    rule, operands = recorded.rule, tuple(recorded.op.operands())
    if rule.linear == "none" or not operands:
        return None
    linear: Sequence[int] = range(1 if rule.linear == "unary" else len(operands))
    if rule.linear == "joint" and rule.linear_operands is not None:
        linear = rule.linear_operands
    inputs = tuple("P(sum)" if k in linear else "R" for k in range(len(operands)))
    return Cut(inputs, tuple(None if name is None else "P(sum)" for name in recorded.op.results))


def _placement(rule: OpRule, dims: Any, cut: FactorCut, result: int | None = None) -> str:
    split = rule.to_split(dims, cut)
    if split is not None:
        return f"S({split.dim})" + (f" in {split.outer}" if split.outer > 1 else "")
    if result is not None and rule.reduces(result, cut.factor):
        return f"P({rule.factors[cut.factor].combine})"
    return "R"


def outcome(case: Case, cut: Cut) -> tuple[str, tuple[str | None, ...]]:
    """How DTensor's answer compares with `cut`, and its outputs where it accepts the inputs.

    As `Answer.kind`, with "accepts" told apart into "same" and "differs".
    """
    answer = ask(case.target, case.args, case.kwargs, cut.inputs)
    if answer.kind != "accepts":
        return answer.kind, ()
    # A result that a rule leaves out is one that the op, asked so, doesn't compute.
    same = len(answer.outputs) == len(cut.outputs) and all(
        ours in (None, theirs) for ours, theirs in zip(cut.outputs, answer.outputs, strict=True)
    )
    return ("same" if same else "differs"), answer.outputs


def only_dtensor(case: Case, recorded: Recorded) -> Iterator[tuple[Cut, str]]:
    """What DTensor accepts and no cut or sum of ours means, each with the kind of reason."""
    tensors = [recorded.tensors[name] for name in recorded.op.operands()]
    if not 0 < len(tensors) <= OPERANDS_TRIED:
        return
    summed = terms(recorded)
    ours = {cut.inputs for cut in cuts(recorded, even=False)}
    ours |= {summed.inputs} if summed else set()
    sharded = itertools.product(
        *(
            ["R", *(f"S({dim})" for dim, size in enumerate(x.shape) if size and size % PARTS == 0)]
            for x in tensors
        )
    )
    pending = itertools.product(
        *(["R", "P(sum)"] if x.is_floating_point() else ["R"] for x in tensors)
    )
    for inputs in (*sharded, *pending):
        if set(inputs) <= {"R"} or inputs in ours:
            continue
        answer = ask(case.target, case.args, case.kwargs, inputs)
        if answer.kind == "accepts":
            yield Cut(inputs, answer.outputs), _reason(recorded.rule, inputs)


def _reason(rule: OpRule, inputs: tuple[str, ...]) -> str:
    """Why our rule has no such cut."""
    if "P(sum)" in inputs:
        return "terms of one operand" if len(inputs) > 1 else "terms"
    for dims, text in zip(rule.operands, inputs, strict=True):
        if text == "R":
            continue
        factors = [rule.factors[factor] for factor in dims[int(text[2:-1])]]
        if not factors or not factors[0].shardable:
            return "held whole"
    return "cut together"


def numbers(case: Case, whole: Sequence[Tensor | None], cut: Cut) -> str:
    """Whether the plain op on parts, put together as `cut` says, gives "equal" or "unequal".

    "not run" where the op can't run on parts as it is, as a view to given sizes.
    """
    if case.target in DRAWN or any(" in " in text for text in cut.inputs):
        return "not run"
    made: list[Sequence[Tensor | None]] = []
    torch.manual_seed(1)
    shares = {
        position: torch.randn_like(x)
        for position, x in enumerate(_tensors(case))
        if x.is_floating_point()
    }
    for index in range(PARTS):
        left = iter(enumerate(cut.inputs))

        def local(item: Any, index: int = index, left: Any = left) -> Any:
            if isinstance(item, Tensor):
                position, text = next(left)
                if text == "P(sum)":
                    return item - shares[position] if index else shares[position]
                return item if text == "R" else item.chunk(PARTS, int(text[2:-1]))[index]
            if isinstance(item, (list, tuple)):
                return type(item)(local(part) for part in item)
            return item

        try:
            found = overload(case.target)(
                *(local(item) for item in case.args),
                **{name: local(item) for name, item in case.kwargs.items()},
            )
        except (RuntimeError, IndexError):
            return "not run"
        made.append((found,) if isinstance(found, Tensor) else tuple(found))
    if len(made[0]) != len(cut.outputs):
        return "not run"
    for position, (text, expected) in enumerate(zip(cut.outputs, whole, strict=True)):
        parts = [results[position] for results in made]
        if text is None or expected is None:
            continue
        joined = _joined([part for part in parts if part is not None], text)
        if joined is None:
            return "not run"
        if joined.shape != expected.shape:
            # Of the sizes of a part: what DTensor gives is not the op's own result.
            return "not run" if case.target.startswith(("new_", "view", "reshape")) else "unequal"
        wide = torch.complex128 if expected.is_complex() else torch.float64
        if not torch.allclose(joined.to(wide), expected.to(wide), 1e-4, 1e-5, equal_nan=True):
            return "unequal"
    return "equal"


def _tensors(item: Any) -> list[Tensor]:
    if isinstance(item, Case):
        return _tensors([item.args, list(item.kwargs.values())])
    if isinstance(item, Tensor):
        return [item]
    return [x for part in item for x in _tensors(part)] if isinstance(item, (list, tuple)) else []


def _joined(parts: list[Tensor], text: str) -> Tensor | None:
    """Parts that lie as `text` says, as one tensor."""
    if text == "R":
        return parts[0] if all(torch.equal(parts[0], x) for x in parts) else parts[0] * torch.nan
    if " in " in text:
        return None
    kind, _, inside = text[:-1].partition("(")
    if kind == "S":
        return torch.cat(parts, int(inside))
    stacked = torch.stack(parts)
    if stacked.dtype is torch.bool:
        stacked = stacked.to(torch.int64)
        return (stacked.prod(0) if inside in ("prod", "min") else stacked.amax(0)).bool()
    if inside.startswith("norm"):
        power = float(inside.removeprefix("norm "))
        return stacked.abs().pow(power).sum(0).pow(1 / power)
    return {
        "sum": lambda: stacked.sum(0),
        "avg": lambda: stacked.mean(0),
        "prod": lambda: stacked.prod(0),
        "max": lambda: stacked.amax(0),
        "min": lambda: stacked.amin(0),
    }[inside]()


def family(target: str, cut: Cut) -> str:
    """What differences of this kind have in common: how it is lowered, else where the rule is."""
    if cut.special is not None:
        for pattern, name in LOWERINGS.items():
            if re.search(pattern, cut.special):
                return name
        return cut.special
    if "P(sum)" in cut.inputs:
        return "terms of a sum"
    return f"{_RULES[f'aten.{target}'].__module__.rpartition('.')[2]}.py"


Table = dict[str, Any]
LISTED = ("differs", "only DTensor")


def asked_in(part: int, target: str) -> bool:
    """Whether the op is among one in `part` ops, picked by its name."""
    return zlib.crc32(target.encode()) % part == 0


def found(part: int = 1) -> Table:
    """All that there is to say, without explanations.

    part: what only DTensor does, which takes longest to find, is looked for in one of so many ops.
    ops: how many cuts of all cases of an op come to which outcome.
    families: how many cuts and ops there are of each outcome and family.
    differs, only DTensor: each one, with what running it on parts gives.
    """
    ops: dict[str, Counter[str]] = {}
    counted: Counter[tuple[str, str]] = Counter()
    members: dict[tuple[str, str], set[str]] = {}
    listed: dict[str, list[dict[str, str]]] = {name: [] for name in LISTED}
    for case in all_cases():
        recorded = record(case)
        summed = terms(recorded)
        for cut in (*cuts(recorded), *((summed,) if summed else ())):
            kind, given = outcome(case, cut)
            ops.setdefault(case.target, Counter())[kind] += 1
            if kind == "differs":
                ran = numbers(case, recorded.whole, Cut(cut.inputs, given))
                _add(listed[kind], _entry(case, cut.inputs, given, ran, ours=cut.outputs))
            key = (kind, family(case.target, cut))
            counted[key] += 1
            members.setdefault(key, set()).add(case.target)
        beyond = only_dtensor(case, recorded) if asked_in(part, case.target) else ()
        for cut, reason in beyond:
            ran = numbers(case, recorded.whole, cut)
            _add(listed["only DTensor"], _entry(case, cut.inputs, cut.outputs, ran, reason=reason))
    return {
        "ops": {target: dict(sorted(kinds.items())) for target, kinds in sorted(ops.items())},
        "families": {
            kind: {
                name: {"cuts": count, "ops": len(members[kind, name])}
                for (other, name), count in sorted(counted.items())
                if other == kind
            }
            for kind in sorted({kind for kind, _ in counted})
        },
        **listed,
    }


def _entry(
    case: Case,
    inputs: tuple[str, ...],
    outputs: tuple[str | None, ...],
    ran: str,
    ours: tuple[str | None, ...] | None = None,
    reason: str | None = None,
) -> dict[str, str]:
    entry = {"op": case.target, "inputs": _line(inputs), "DTensor": _line(outputs)}
    if ours is not None:
        entry["Meshwright"] = _line(ours)
    if reason is not None:
        entry["reason"] = reason
    return {**entry, "numbers": ran}


def _line(placements: Sequence[str | None]) -> str:
    return ", ".join("-" if text is None else text for text in placements)


def _add(entries: list[dict[str, str]], entry: dict[str, str]) -> None:
    if entry not in entries:
        entries.append(entry)
