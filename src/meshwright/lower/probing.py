"""Probing: finds the rule of an op that has none by running it on small inputs.

The op is run whole, then in parts, and what the parts give is compared with the
whole: a cut is kept when it holds for several sizes, part counts (uneven parts
and strided cuts included) and draws of several magnitudes. What holds is a
Pattern; what does not is left whole. This is experiment and not proof: an op
that behaves differently beyond some threshold needs a registered rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from meshwright.errors import RuleError
from meshwright.layout.types import Reduce, Split
from meshwright.lower.probe_cache import ProbeCache
from meshwright.lower.probe_runs import (
    REDUCTIONS,
    Run,
    all_close,
    close,
    drawn,
    joined,
    op_of,
    positions,
    reduced,
    run_op,
    run_parts,
    whole_runs,
)
from meshwright.rules.pattern import Names, Pattern, PatternError, Place, replicated
from meshwright.rules.probe import Candidate, Scheme, candidates
from meshwright.rules.registry import Call
from meshwright.rules.types import FactorCut, OpRule
from meshwright.rules.user import UserRule

Say = Callable[[str], None]
_Way = tuple[str, int, int]  # ("cut", dim, outer) or (a reduction or "same", 0, 0)


class Probing:
    """Finds and checks rules; what was found is kept, in memory and on disk.

    say: told of each op that was probed. cache: where rules found are kept
    between runs; None keeps them in memory alone.
    """

    def __init__(self, say: Say | None = None, cache: ProbeCache | None = None) -> None:
        self.say = say or (lambda message: None)
        self._cache = cache
        self._found: dict[str, Pattern] = {}
        self._checked: set[tuple[str, str]] = set()
        self._told: set[str] = set()

    def probe(self, call: Call) -> OpRule:
        """The rule of an op without one, at the shapes of `call`.

        Raises RuleError for an op that draws random numbers, gives other results
        when run again, or can't be run on small inputs.
        """
        key = f"{call.op.target} {ProbeCache.key(call)}"
        pattern = self._found.get(key)
        if pattern is None:
            with torch.no_grad():
                pattern = self._remembered(call) or self._search(call)
            self._found[key] = pattern
            if self._cache is not None:
                self._cache.write(call, pattern)
        try:
            rule = pattern.rule(call.shapes, call.results)
        except PatternError as error:
            raise RuleError(
                f"Probing {call.op.target} in {call.op.source} found {pattern.text}, which its "
                f"shapes contradict: {error}.",
                _remedy(call),
            ) from error
        cut = any(factor.shardable for factor in rule.factors)
        name = call.op.target.removesuffix(".default")
        line = f"probed {name}: {pattern.text}" if cut else f"probed {name}: can be cut nowhere"
        if line not in self._told:
            self._told.add(line)
            self.say(line)
        return replace(rule, origin=line)

    def check(self, call: Call, rule: UserRule) -> None:
        """Holds a user's rule against what the op does on small inputs.

        Raises RuleError that names the factor, when cutting it gives other numbers.
        """
        key = (f"{call.op.target} {ProbeCache.key(call)}", repr(rule))
        if rule.pattern is None or key in self._checked:
            return
        _refuse_random(call)
        with torch.no_grad():
            runs, failure = whole_runs(call, lambda scheme: _fits(rule.pattern, call, scheme))
            if not runs:
                raise RuleError(
                    f"The rule '{rule.text}' of {call.op.target} in {call.op.source} could not be "
                    f"checked: the op does not run on small inputs ({failure}).",
                    "Make the op run on small inputs on this machine, or pass check=False to "
                    "register_rule.",
                )
            wrong = _failing(call, rule.pattern, runs)
            if not wrong and rule.pattern.linear != "none":
                wrong = _not_linear(call, rule.pattern, runs)
        if wrong:
            raise RuleError(
                f"The rule '{rule.text}' is not what {call.op.target} in {call.op.source} does: "
                f"{wrong[0][1]}.",
                f"Correct the rule, or keep '{wrong[0][0]}' whole with fixed=['{wrong[0][0]}']."
                if wrong[0][0] else "Leave linear out.",
            )  # fmt: skip
        self._checked.add(key)

    def _remembered(self, call: Call) -> Pattern | None:
        """The rule of an earlier run, if it still holds: the op may have changed since."""
        pattern = self._cache.read(call) if self._cache is not None else None
        if pattern is None:
            return None
        runs, _ = whole_runs(call, lambda scheme: _fits(pattern, call, scheme))
        return pattern if runs and not _failing(call, pattern, runs) else None

    def _search(self, call: Call) -> Pattern:
        _refuse_random(call)
        runs, failure = whole_runs(call, lambda scheme: True)
        if not runs:
            raise RuleError(
                f"{call.op.target} in {call.op.source} has no sharding rule, and probing it "
                f"failed: it does not run on small inputs ({failure}).",
                _remedy(call),
            )
        first = runs[0]
        again = run_op(call, first.scheme.args(call.op.args), first.operands)
        if not all_close(again, first.results):
            raise RuleError(
                f"{call.op.target} in {call.op.source} gives other results when it is run again, "
                "so that no rule can be found for it.",
                _remedy(call),
            )
        same = [run for run in runs if run.scheme == first.scheme]
        found = [
            (way, ways) for way in candidates(call, first.scheme)
            if (ways := _interpreted(call, way, same)) is not None
        ]  # fmt: skip
        pattern = _pattern(call, first.scheme, _disjoint(found))
        while True:
            fitting = [run for run in runs if _fits(pattern, call, run.scheme)]
            wrong = [name for name, _ in _failing(call, pattern, fitting or same)]
            if not wrong:
                return pattern
            pattern = pattern.without(wrong)


def probing(say: Say | None = None) -> Probing:
    """What finds rules for the api: with the cache on disk that the environment allows."""
    return Probing(say, ProbeCache.from_environment())


def _remedy(call: Call) -> str:
    name = "::".join(call.op.target.removesuffix(".default").split(".", 1))
    return (
        f"Register a rule: meshwright.register_rule('{name}', '[a,b] -> [a,b]') with the op's own "
        "dims, or whole=True to run it whole on every device."
    )


def _refuse_random(call: Call) -> None:
    if torch.Tag.nondeterministic_seeded in op_of(call.op.target).tags:
        raise RuleError(
            f"{call.op.target} in {call.op.source} draws random numbers, which would differ from "
            "device to device and from plan to plan.",
            "Draw them with a PyTorch op (torch.rand_like, dropout) and pass them to the op.",
        )


def _fits(pattern: Pattern | None, call: Call, scheme: Scheme) -> bool:
    """Whether small operands agree with the pattern; results are not known before a run."""
    assert pattern is not None
    try:
        shapes = tuple(scheme.shape(shape) for shape in call.shapes)
        nothing: tuple[None, ...] = (None,) * len(call.results)
        pattern.factor_sizes(shapes, nothing)
    except PatternError as error:
        return "nothing tells" in str(error)
    return True


def _interpreted(call: Call, way: Candidate, runs: Sequence[Run]) -> list[set[_Way]] | None:
    """How results of parts can be read as the whole, for every draw; None when they can't."""
    found: list[set[_Way]] | None = None
    for run in runs[:2]:
        size = run.scheme.small[way.size]
        for parts in (2, 3):
            pieces = positions(size, Split(0, 1, size), parts)
            made = run_parts(call, run, way.dims, [pieces] * len(way.dims), way.places, pieces)
            if made is None:
                return None
            here = [
                _ways(whole, [part[k] for part in made], pieces, size)
                for k, whole in enumerate(run.results)
            ]
            found = here if found is None else [a & b for a, b in zip(found, here, strict=True)]
            if not all(found):
                return None
    assert found is not None
    kinds = {kind for ways in found for kind, *_ in [_best(ways)] if kind in REDUCTIONS}
    tells = any(_best(ways)[0] not in ("same", "none") for ways in found)
    return found if len(kinds) <= 1 and tells else None


def _ways(
    whole: Tensor | None, parts: list[Tensor | None], pieces: Sequence[Tensor], size: int
) -> set[_Way]:
    if whole is None or any(part is None for part in parts):
        alike = whole is None and all(part is None for part in parts)
        return {("none", 0, 0)} if alike else set()
    terms = [part for part in parts if part is not None]
    found: set[_Way] = set()
    if all(term.shape == whole.shape for term in terms):
        if all(close(term, whole) for term in terms):
            found.add(("same", 0, 0))
        if whole.dtype != torch.bool:  # no collective combines these
            found |= {
                (reduce, 0, 0) for reduce in REDUCTIONS if close(reduced(terms, reduce), whole)
            }
        return found
    for dim, held in enumerate(whole.shape):
        if held % size or any(term.dim() != whole.dim() for term in terms):
            continue
        rest = held // size
        for outer in (k for k in range(1, rest + 1) if rest % k == 0):
            made = joined(terms, whole, dim, outer, size, pieces)
            if made is not None and close(made, whole):
                found.add(("cut", dim, outer))
    return found


def _best(ways: set[_Way]) -> _Way:
    order = ("none", "cut", "same", *REDUCTIONS)
    return min(ways, key=lambda way: (order.index(way[0]), way[1:]))


def _disjoint(
    found: list[tuple[Candidate, list[set[_Way]]]],
) -> list[tuple[Candidate, list[set[_Way]]]]:
    """Ways that share no dim. Of two that do the one that cuts more stays; equals both go."""
    kept: list[tuple[Candidate, list[set[_Way]]]] = []
    for way, ways in found:
        rivals = [other for other, _ in found if other is not way and _clash(way, other)]
        if all(way.weight > other.weight for other in rivals) or not rivals:
            kept.append((way, ways))
    return kept


def _clash(way: Candidate, other: Candidate) -> bool:
    return bool(way.members & other.members) or (
        not way.members and not other.members and bool(set(way.places) & set(other.places))
    )


def _pattern(call: Call, scheme: Scheme, found: list[tuple[Candidate, list[set[_Way]]]]) -> Pattern:
    """The pattern of all ways that hold; dims of none have no factor."""
    letters = iter([*"abcdefghijklmnopqrstuvwxyz", *(f"x{k}" for k in range(200))])
    bare = replicated(call.shapes, call.results)
    operands = [list(dims) for dims in bare.operands]
    held: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
    combine: dict[str, Reduce] = {}
    unreduced: set[tuple[int, str]] = set()
    sizes: list[tuple[Place, str]] = []
    order = sorted(found, key=lambda item: sorted(map(str, item[0].members)))
    for way, ways in order:
        name = next(letters)
        for operand, dim in enumerate(way.dims):
            if dim is not None:
                operands[operand][dim] = (name,)
        for position, options in enumerate(ways):
            kind, dim, outer = _best(options)
            if kind == "cut":
                item = (outer, scheme.small[way.size], name)
                held.setdefault((position, dim), []).append(item)
            elif kind == "same":
                unreduced.add((position, name))
            elif kind == "none":
                pass
            else:
                combine[name] = next(reduce for reduce in REDUCTIONS if reduce == kind)
        sizes += [(place, name) for place in way.places]
    results: list[Names | None] = []
    lost: set[str] = set()
    for position, dims in enumerate(bare.results):
        if dims is None:
            results.append(None)
            continue
        made = list(dims)
        for dim in range(len(dims)):
            factors = sorted(held.get((position, dim), []))
            product = 1
            for outer, size, _ in factors:
                if outer != product:
                    break
                product *= size
            else:
                if factors and product == _small_result(call, scheme, position, dim):
                    made[dim] = tuple(name for *_, name in factors)
                    continue
            lost |= {name for *_, name in factors}
        results.append(tuple(made))

    def strip(names: Names) -> Names:
        return tuple(() if lost & set(dim) else dim for dim in names)

    return Pattern(
        tuple(strip(tuple(dims)) for dims in operands),
        tuple(None if dims is None else strip(dims) for dims in results),
        {name: how for name, how in combine.items() if name not in lost and how != "sum"},
        frozenset(), "none",
        tuple(item for item in sizes if item[1] not in lost),
        frozenset(item for item in unreduced if item[1] not in lost),
    )  # fmt: skip


def _small_result(call: Call, scheme: Scheme, position: int, dim: int) -> int:
    operands = tuple(drawn(call, [scheme.shape(shape) for shape in call.shapes], 0, 1.0))
    made = run_op(call, scheme.args(call.op.args), operands)[position]
    assert made is not None
    return int(made.shape[dim])


def _failing(call: Call, pattern: Pattern, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Factors of a pattern that do not hold, each with what is wrong."""
    wrong: dict[str, str] = {}
    for run in runs:
        shapes = tuple(tuple(x.shape) for x in run.operands)
        made = tuple(None if x is None else tuple(x.shape) for x in run.results)
        try:
            rule = pattern.rule(shapes, made)
        except PatternError as error:
            return [(name, f"its dims do not fit: {error}") for name in pattern.names()]
        sizes = pattern.factor_sizes(shapes, made)
        names = [name for name in pattern.names() if sizes.get(name, 1) > 1]
        for index, name in enumerate(names):
            if name in wrong or not rule.factors[index].shardable:
                continue
            for cut, parts in _cuts(index, rule.factors[index].size):
                problem = _problem(call, pattern, rule, run, name, cut, parts)
                if problem:
                    wrong[name] = problem
                    break
    return list(wrong.items())


def _cuts(factor: int, size: int) -> Iterator[tuple[FactorCut, int]]:
    """Whole factors in two and in three parts, and a strided cut where the size has one."""
    yield FactorCut(factor, 1, size), 2
    if size > 3:
        yield FactorCut(factor, 1, size), 3
    if size % 2 == 0 and size > 2:
        yield FactorCut(factor, 2, size // 2), 2


def _problem(
    call: Call, pattern: Pattern, rule: OpRule, run: Run, name: str, cut: FactorCut, parts: int
) -> str:
    """What goes wrong when the op is cut so; nothing when the parts make the whole."""
    splits = [rule.to_split(dims, cut) for dims in rule.operands]
    pieces = [
        [] if split is None else positions(x.shape[split.dim], split, parts)
        for split, x in zip(splits, run.operands, strict=True)
    ]
    held = positions(rule.factors[cut.factor].size, Split(0, cut.outer, cut.extent), parts)
    places = [place for place, factor in pattern.sizes if factor == name]
    dims = [None if split is None else split.dim for split in splits]
    made = run_parts(call, run, dims, pieces, places, held)
    if made is None:
        return f"the op does not run on a part when '{name}' is cut in {parts}"
    for position, whole in enumerate(run.results):
        described = rule.results[position]
        if whole is None or described is None:
            continue
        terms = [part[position] for part in made]
        found = [term for term in terms if term is not None]
        if len(found) != len(terms):
            return f"result {position} is missing on a part when '{name}' is cut"
        split = rule.to_split(described, cut)
        shown = f"when '{name}' is cut in {parts}, result {position}"
        if split is not None:
            where = positions(whole.shape[split.dim], split, parts)
            expected = [whole.index_select(split.dim, piece) for piece in where]
            if any(not close(a, b) for a, b in zip(found, expected, strict=True)):
                return f"{shown} is not cut along with it"
        elif rule.reduces(position, cut.factor):
            how = rule.factors[cut.factor].combine or "sum"
            if whole.dtype == torch.bool:
                return f"{shown} would be combined, which values of true and false can't be"
            if any(term.shape != whole.shape for term in found) or not close(
                reduced(found, how), whole
            ):
                return f"{shown} is not the {how} of its parts"
        elif any(not close(term, whole) for term in found):
            return f"{shown} differs from part to part"
    return ""


def _not_linear(call: Call, pattern: Pattern, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Whether terms of the operands that are said to be linear add up to the whole's results."""
    for run in runs:
        moved = range(len(run.operands)) if pattern.linear == "joint" else range(1)
        halves = [
            [x / 3 if k in moved else x for k, x in enumerate(run.operands)],
            [x - x / 3 if k in moved else x for k, x in enumerate(run.operands)],
        ]
        args = run.scheme.args(call.op.args)
        terms = [run_op(call, args, half) for half in halves]
        for position, whole in enumerate(run.results):
            one, two = (made[position] for made in terms)
            known = whole is not None and one is not None and two is not None
            if known and not close(one + two, whole):  # type: ignore[operator, arg-type]
                return [("", f"it is not linear, as '{pattern.linear}' says")]
    return []
