"""Decisions of the `expert` axis: which device has which expert of a mixture.

Experts are found by what they do, never by name, and come in two forms.

Stacked: a parameter has a dim of experts, which matrix products run over as a batch, and
routing leads to it. That dim is cut. Where the batch can be cut over the axis, stacks are
cut alone, so that routing stays with the batch and only what experts take and give travels.

Looped: sets of parameters alike in shape, each used on the rows that a mask of its own
selects. Each set goes to one device, round: its hidden dims are cut so that one part is
everything, as Megatron cuts them into equal ones. What an expert gives is then a term of
a sum over the axis, and zeros on other devices, which compute nothing of it.

The batch is cut over the axis as well, where it can be: the rest of the model then runs as
under data parallelism, and tokens are exchanged around each mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from meshwright.cost.flops import op_flops
from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis, Group
from meshwright.layout.types import Split
from meshwright.plan.types import Decision
from meshwright.program.types import Input, Op
from meshwright.rules.types import OpRule

AXIS = "expert"
_COPY = "aten.clone.default"

_ROUTING = (
    "topk", "sort", "argmax", "max", "eq", "scatter", "gather", "index", "take", "put",
    "nonzero", "_grouped_mm", "searchsorted", "bincount", "histc",
)  # fmt: skip


@dataclass(frozen=True)
class Expert:
    """One of a looped mixture: its parameters, and the lists of rows that it works on."""

    parameters: tuple[Input, ...]
    lists: frozenset[str]


def decisions(analysis: Analysis, parts: int) -> list[Decision]:
    """Raises StrategyError where the model has no experts, or fewer than `parts` of them."""
    batch = _batch(analysis, parts)
    stacked = _stacked(analysis, parts)
    looped = _looped(analysis, parts)
    if not stacked and not looped:
        raise StrategyError(
            f"This model has no experts to divide over an expert axis of {parts} devices: no "
            "parameter stacks them along a dim that routing leads to, and no sets of parameters "
            f"alike (at least {parts}) work on rows that masks of their own select.",
            "Use another strategy, such as data, zero=3 or tensor.",
        )
    if not batch or any(not _parameters(analysis, item) for item in stacked):
        return [*stacked, *looped, *batch]
    alone = [
        item.model_copy(update={"value": path, "dim": dim, "alone": True})
        for item in stacked
        for path, dim in _parameters(analysis, item)
    ]
    return [*batch, *alone, *looped]


def _batch(analysis: Analysis, parts: int) -> list[Decision]:
    program = analysis.program
    leaves = [i for i in program.inputs_of("batch") if program.values[i.value].shape]
    if any(program.values[item.value].shape[0] % parts for item in leaves):
        return []
    return [
        Decision(
            axis=AXIS, value=item.path, dim=0,
            why="outside of the experts the batch is divided over their devices",
        )
        for item in leaves
    ]  # fmt: skip


# Stacked experts.


def _stacked(analysis: Analysis, parts: int) -> list[Decision]:
    program = analysis.program
    done: set[str] = set()
    found = []
    for item in program.inputs_of("parameter"):
        shape = program.values[item.value].shape
        if item.value in done or len(shape) < 2:
            continue
        for dim, size in enumerate(shape):
            if size < parts:
                continue
            group = analysis.group(item.value, Split(dim, 1, size))
            if not _is_stack(analysis, item, group):
                continue
            others = [
                other.path for other in program.inputs_of("parameter")
                if other.value in group.members and other.path != item.path
            ]  # fmt: skip
            done |= group.members.keys()
            shared = f", with {', '.join(others[:3])}" if others else ""
            found.append(
                Decision(
                    axis=AXIS, value=item.path, dim=dim,
                    why=f"each device has {_share(size, parts)} of {size} experts{shared}",
                )
            )  # fmt: skip
            break
    return found


def _parameters(analysis: Analysis, stack: Decision) -> list[tuple[str, int]]:
    """Parameters of a stack's experts with their dims, without the router's.

    Empty where products are grouped by lists of rows: those lists are cut with the experts.
    """
    by_path = {item.path: item for item in analysis.program.inputs_of("parameter")}
    first = by_path[stack.value]
    size = analysis.program.values[first.value].shape[stack.dim]
    group = analysis.group(first.value, Split(stack.dim, 1, size))
    found = []
    for path, item in by_path.items():
        split = group.members.get(item.value)
        if split is None or len(analysis.program.values[item.value].shape) < 2:
            continue
        batched = []
        for op in uses(analysis, item):
            cut = group.cuts.get(op.name)
            if op.target.startswith("aten._grouped_mm"):
                return []
            if cut is not None and op_flops(op, analysis.program.values):
                batched.append(_runs_over(analysis.rules[op.name], cut.factor))
        if all(batched):
            found.append((path, split.dim))
    return found


def _runs_over(rule: OpRule, factor: int) -> bool:
    """Whether a factor is a batch dim of a product: of both operands and of what it gives."""
    results = [dims for dims in rule.results if dims is not None]
    return all(any(factor in dim for dim in dims) for dims in (*rule.operands[:2], *results))


def _share(size: int, parts: int) -> str:
    return str(size // parts) if size % parts == 0 else f"up to {-(-size // parts)}"


def _is_stack(analysis: Analysis, item: Input, group: Group) -> bool:
    """Whether a group's dim is one that products with the parameter run over as a batch.

    And that routing leads to: an op that picks by value is cut along it, or ends it.
    """
    batched = False
    for op in uses(analysis, item):
        cut = group.cuts.get(op.name)
        if cut is None or not op_flops(op, analysis.program.values):
            continue
        if op.target.startswith("aten._grouped_mm"):
            return True
        batched |= _runs_over(analysis.rules[op.name], cut.factor)
    if not batched:
        return False
    names = (analysis.by_name[name].target for name in (*group.cuts, *group.ends))
    return any(target.split(".")[1].startswith(_ROUTING) for target in names)


def uses(analysis: Analysis, item: Input) -> Iterator[Op]:
    """Forward ops that use a parameter, past its views and casts."""
    stack, seen = [item.value], {item.value}
    while stack:
        name = stack.pop()
        for op, _, _ in analysis.touching[name]:
            if op.phase != "forward" or name in op.results:
                continue
            alone = len(set(op.operands())) == 1 and not op_flops(op, analysis.program.values)
            if not alone or analysis.lists.touches.get(op.name):
                yield op
                continue
            for result in op.results:
                if result is not None and result not in seen:
                    seen.add(result)
                    stack.append(result)


def travelling(analysis: Analysis, groups: Sequence[Group]) -> list[str]:
    """Values that stacks cut alone exchange: what experts take from outside, and give to it.

    groups: of the stacks, each with the products that it cuts. Between those everything
    stays where it is; views and copies of one value travel once.
    """
    program = analysis.program
    products = {name for group in groups for name in group.cuts}
    cut = {name for group in groups for name in analysis.group(*group.seed).members}
    weights = {item.value for item in program.inputs_of("parameter")}
    inside: set[str] = set()
    roots: dict[str, str] = {}  # what views and copies are of
    found: dict[str, None] = {}
    for op in program.ops:
        names = analysis.operands[op.name]
        made = [name for name in op.results if name is not None]
        if names and weights.issuperset(names) and op.name not in products:
            weights.update(made)
            continue
        if len(names) == 1 and (op.target == _COPY or program.values[made[0]].is_view):
            roots.update((name, roots.get(names[0], names[0])) for name in made)
        if op.name in products:
            for name in names:
                if name not in inside and name not in weights:
                    found.setdefault(roots.get(name, name))
            inside.update(made)
        elif (
            not inside.isdisjoint(names)
            and cut.issuperset(made)
            and not op_flops(op, program.values)
        ):
            inside.update(made)
        else:
            for name in inside.intersection(names):
                found.setdefault(roots.get(name, name))
    gradients = set(program.gradients.values())
    return [name for name in found if name not in gradients]


# Looped experts.


def _looped(analysis: Analysis, parts: int) -> list[Decision]:
    found = []
    for alike in _classes(analysis):
        if len(alike) < parts:
            continue
        for number, expert in enumerate(alike):
            found += _owned(analysis, expert, number % parts, len(alike))
    return found


def experts(analysis: Analysis) -> tuple[Expert, ...]:
    """Parameters by the lists whose rows alone they work on, in the Program's order."""
    lists_of: dict[str, set[str]] = {}
    shared: set[str] = set()
    for item in analysis.program.inputs_of("parameter"):
        for op in uses(analysis, item):
            touched = analysis.lists.touches.get(op.name)
            if not touched:
                shared.add(item.path)
            lists_of.setdefault(item.path, set()).update(touched or ())
    merged: list[tuple[list[Input], set[str]]] = []
    for item in analysis.program.inputs_of("parameter"):
        lists = lists_of.get(item.path, set())
        if not lists or item.path in shared:
            continue
        mine = [entry for entry in merged if entry[1] & lists]
        entry = ([item], set(lists))
        for other in mine:
            merged.remove(other)
            entry = ([*other[0], *entry[0]], entry[1] | other[1])
        merged.append(entry)
    return tuple(Expert(tuple(items), frozenset(lists)) for items, lists in merged)


def _classes(analysis: Analysis) -> list[list[Expert]]:
    """Experts of one mixture that are alike in the shapes of their parameters, in order."""
    values = analysis.program.values
    found = experts(analysis)
    depths = _depths(analysis, found)
    classes: dict[tuple[int, tuple[tuple[int, ...], ...]], list[Expert]] = {}
    for expert, depth in zip(found, depths, strict=True):
        shapes = tuple(values[item.value].shape for item in expert.parameters)
        classes.setdefault((depth, shapes), []).append(expert)
    return list(classes.values())


def _depths(analysis: Analysis, found: Sequence[Expert]) -> list[int]:
    """How many mixtures lie before each expert's rows are picked, one after another.

    Experts of one mixture work side by side: what picks their rows depends on none of them.
    Those of the next one wait for all of these, so that each mixture is dealt out by itself.
    """
    uses_of: dict[str, int] = {}
    for number, expert in enumerate(found):
        for item in expert.parameters:
            uses_of.update(dict.fromkeys((op.name for op in uses(analysis, item)), number))
    depths: dict[str, int] = {}
    for op in analysis.program.phase_ops("forward"):
        depth = max((depths.get(name, 0) for name in analysis.operands[op.name]), default=0)
        if op.name in uses_of:
            depth = max(depth, 1 + _picked(found[uses_of[op.name]], depths))
        depths.update((name, depth) for name in op.results if name is not None)
    return [_picked(expert, depths) for expert in found]


def _picked(expert: Expert, depths: Mapping[str, int]) -> int:
    return max((depths.get(name, 0) for name in expert.lists), default=0)


def _owned(analysis: Analysis, expert: Expert, device: int, count: int) -> list[Decision]:
    """Cuts that leave all of an expert to one device, most of its bytes with the fewest cuts."""
    values = analysis.program.values
    own = {item.value: item for item in expert.parameters}
    options: list[tuple[Group, Input, int]] = []
    for item in expert.parameters:
        for dim in range(len(values[item.value].shape)):
            group = analysis.group(item.value, Split(dim, 1, 1, device))
            if _only(analysis, group, own):
                options.append((group, item, dim))
    left = set(own)
    taken: set[str] = set()  # products that are cut
    found = []
    while options and left:
        options.sort(key=lambda option: -_covered(analysis, option[0], left))
        group, item, dim = options.pop(0)
        covered = group.members.keys() & left
        products = {
            name for name in group.cuts
            if op_flops(analysis.by_name[name], values) and _by_parameter(analysis, name, own)
        }  # fmt: skip
        if not covered or products & taken:
            continue
        left -= covered
        taken |= products
        found.append(
            Decision(
                axis=AXIS, value=item.path, dim=dim, owner=device,
                why=f"one of {count} experts, with "
                + ", ".join(own[name].path for name in own if name in covered),
            )
        )  # fmt: skip
    return found


def _only(analysis: Analysis, group: Group, own: Mapping[str, Input]) -> bool:
    """Whether a group cuts parameters of this expert alone, and not the rows it works on."""
    parameters = {item.value for item in analysis.program.inputs_of("parameter")}
    if (group.members.keys() & parameters) - own.keys():
        return False
    for name, cut in group.cuts.items():
        for touch in analysis.lists.touches.get(name, {}).values():
            if cut.factor in touch.factors:
                return False
    return True


def _covered(analysis: Analysis, group: Group, left: set[str]) -> int:
    return sum(analysis.program.values[name].nbytes for name in group.members.keys() & left)


def _by_parameter(analysis: Analysis, name: str, own: Mapping[str, Input]) -> bool:
    op = analysis.by_name[name]
    storages = {analysis.program.values[used].storage for used in op.operands()}
    return op.phase == "forward" and bool(storages & own.keys())
