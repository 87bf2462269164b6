"""Users' constraints on one Program: which values they name, and a candidate that obeys them.

What the user says of a value comes before what any group wants of it. A cut that is asked
for is a decision of its own, the first of all: what has to go with it follows by its group.
A value that is to stay whole is left out of the groups that would cut it; a group that would
cut nothing else of the model's inputs is not cut at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.layout.assignment import Assignment
from meshwright.layout.cuts import compatible
from meshwright.layout.groups import Analysis
from meshwright.layout.types import Split
from meshwright.plan.types import STAGE, Decision, ParameterPlan
from meshwright.program.types import Input
from meshwright.search.constraint_texts import (
    NONE,
    REPLICATED,
    Constraints,
    Cut,
    contradiction,
    in_module,
    matches,
    parse,
)

__all__ = ["NONE", "Constraints", "Resolved", "apply", "check", "parse", "refuse", "resolve"]

_ZERO = {"step": "1", "microbatch": "2", "use": "3"}


@dataclass(frozen=True)
class Resolved:
    """Constraints by the Program's names.

    cuts: by value and axis, the split and the text that asks for it. whole: by value and axis,
    the text; the axis `*` stands for all. residency: by parameter, how it is kept and the text.
    """

    cuts: Mapping[str, Mapping[str, tuple[Split, str]]]
    whole: Mapping[str, Mapping[str, str]]
    residency: Mapping[str, tuple[str, str]]

    def is_whole(self, value: str, axis: str) -> bool:
        held = self.whole.get(value, {})
        return axis != STAGE and (axis in held or "*" in held)


@lru_cache(maxsize=16)
def resolve(constraints: Constraints, analysis: Analysis) -> Resolved:
    """Raises StrategyError that names together all that no mesh can make right.

    Those are patterns that match nothing, dims that aren't there or can't be cut, and
    constraints that say different things of one value.
    """
    problems: list[str] = []
    cuts: dict[str, dict[str, tuple[Split, str]]] = {}
    whole: dict[str, dict[str, str]] = {}
    residency: dict[str, tuple[str, str]] = {}
    inputs = [i for i in analysis.program.inputs if i.kind in ("parameter", "buffer", "batch")]
    for layout in constraints.layouts:
        names = _named(analysis, inputs, layout.pattern)
        if not names:
            problems.append(_nothing(layout.text, layout.pattern, [i.path for i in inputs]))
        for value, path in names:
            if not layout.cuts:
                whole.setdefault(value, {})[layout.whole or "*"] = layout.text
            for cut in layout.cuts:
                split = _split(analysis, value, path, cut, layout.text, problems)
                if split is None:
                    continue
                before = cuts.setdefault(value, {}).setdefault(cut.axis, (split, layout.text))
                if before[0] != split:
                    problems.append(
                        f"'{before[1]}' and '{layout.text}' cut {path} over {cut.axis} in two ways"
                    )
    for pin in constraints.pins:
        mine = [i for i in inputs if i.kind == "parameter" and in_module(pin.pattern, i.path)]
        if not mine:
            modules = [i.path.rpartition(".")[0] for i in inputs if i.kind == "parameter"]
            problems.append(_nothing(pin.text, pin.pattern, modules))
        for item in mine:
            residency_before = residency.setdefault(item.path, (pin.how, pin.text))
            if residency_before[0] != pin.how:
                problems.append(
                    f"'{residency_before[1]}' and '{pin.text}' pin {item.path} to "
                    f"{residency_before[0]} and {pin.how}"
                )
            if pin.how == REPLICATED:
                whole.setdefault(item.value, {}).setdefault("*", pin.text)
    problems += _contradictions(analysis, cuts, whole, residency)
    if problems:
        raise contradiction(problems)
    return Resolved(cuts, whole, residency)


def apply(
    constraints: Constraints,
    analysis: Analysis,
    mesh: Mesh,
    decisions: Sequence[Decision],
    parameters: Mapping[str, ParameterPlan],
) -> tuple[tuple[Decision, ...], dict[str, ParameterPlan]]:
    """A candidate's decisions and parameters, changed so that they obey.

    Raises StrategyError, naming all that contradict, where this mesh can't obey or what is
    forbidden is there. To apply it twice is to apply it once.
    """
    if not constraints:
        return tuple(decisions), dict(parameters)
    resolved = resolve(constraints, analysis)
    problems = _on_mesh(analysis, mesh, resolved)
    if problems:
        raise contradiction(problems)
    own = _own(analysis, mesh, resolved, constraints)
    left, kept = _left_whole(analysis, mesh, resolved, decisions)
    stored = dict(parameters)
    for path, (how, _) in resolved.residency.items():
        if how == REPLICATED:
            stored[path] = ParameterPlan()
        else:
            before = stored.get(path, ParameterPlan())
            stored[path] = before.model_copy(
                update={"residency": how, "storage_axes": before.storage_axes or ("data",)}
            )
    by_path = {item.path: item.value for item in analysis.program.inputs}
    for path, item in stored.items():
        axes = tuple(
            a for a in item.storage_axes if not resolved.is_whole(by_path.get(path, path), a)
        )
        if axes != item.storage_axes:
            stored[path] = (
                item.model_copy(update={"storage_axes": axes}) if axes else ParameterPlan()
            )
    made = (*own, *left, *kept)
    refuse(constraints, mesh, made, stored)
    return made, stored


def check(constraints: Constraints, analysis: Analysis, assignment: Assignment) -> None:
    """Raises StrategyError where an assignment does not obey: for plans made in other ways."""
    if not constraints:
        return
    resolved = resolve(constraints, analysis)
    broken = []
    stored = {item.value: item for item in assignment.parameters.values()}
    for value, axes in resolved.cuts.items():
        for axis, (split, text) in axes.items():
            found = assignment.wanted.get(axis, {}).get(value)
            if found != split:
                broken.append(f"'{text}' is not what the plan does with {value}")
    for axis in assignment.mesh.names:
        for value in resolved.whole:
            if not resolved.is_whole(value, axis):
                continue
            cut = value in assignment.wanted.get(axis, {})
            if cut or (value in stored and stored[value].storage.split(axis)):
                text = resolved.whole[value].get(axis) or resolved.whole[value]["*"]
                broken.append(f"'{text}' is not what the plan does with {value}")
    for path, (how, text) in resolved.residency.items():
        item = assignment.parameters[path]
        kept = "always" if how == REPLICATED else how
        if item.storage != item.compute and item.residency != kept:
            broken.append(f"'{text}' is not how the plan keeps {path}")
    if broken:
        raise contradiction(broken)


def _own(
    analysis: Analysis, mesh: Mesh, resolved: Resolved, constraints: Constraints
) -> list[Decision]:
    """What the user asks to be cut, outermost axis first."""
    paths = {item.value: item.path for item in analysis.program.inputs}
    made = []
    for axis in mesh.names:
        for value, axes in resolved.cuts.items():
            if axis not in axes:
                continue
            split, text = axes[axis]
            size = analysis.program.values[value].shape[split.dim]
            plain = split.outer == 1 and split.extent == size
            made.append(
                Decision(
                    axis=axis, value=paths.get(value, value), dim=split.dim, outer=split.outer,
                    extent=None if plain else split.extent, fixed="cut", why=f"asked for: {text}",
                )
            )  # fmt: skip
    return made


def _left_whole(
    analysis: Analysis, mesh: Mesh, resolved: Resolved, decisions: Sequence[Decision]
) -> tuple[list[Decision], list[Decision]]:
    """(what says that values stay whole, decisions that are left beside the user's)."""
    paths = {i.value: i.path for i in analysis.program.inputs if i.kind != "tangent"}
    values = {path: value for value, path in paths.items()}
    left: dict[tuple[str, str], Decision] = {}
    kept = []
    for item in decisions:
        if item.fixed is not None:
            continue
        value = values.get(item.value, item.value)
        split = _split_of(analysis, value, item)
        if item.axis in resolved.cuts.get(value, {}):
            continue  # the user's own decision says how this one is cut
        members = analysis.group(value, split).members
        cut = [name for name in members if name in paths]
        whole = [name for name in members if resolved.is_whole(name, item.axis)]
        free = [name for name in cut if name not in whole]
        if whole and cut and not free:
            continue
        for name in whole:
            held = resolved.whole[name]
            left[item.axis, name] = Decision(
                axis=item.axis, value=paths.get(name, name), dim=0, fixed="whole",
                why=f"asked for: {held.get(item.axis) or held['*']}",
            )  # fmt: skip
        if value in whole and free:
            item = _by(analysis, paths[free[0]], members[free[0]], item, free[0])
        if item not in kept:
            kept.append(item)
    for value in resolved.whole:
        # What ops make may be cut as its operands lie, without any group that wants it.
        made = value not in paths and bool(analysis.program.values[value].shape)
        for axis, size in mesh.axes if made else ():
            if size > 1 and resolved.is_whole(value, axis):
                held = resolved.whole[value]
                left.setdefault(
                    (axis, value),
                    Decision(axis=axis, value=value, dim=0, fixed="whole",
                             why=f"asked for: {held.get(axis) or held['*']}"),
                )  # fmt: skip
    return list(left.values()), kept


def _by(analysis: Analysis, path: str, split: Split, item: Decision, value: str) -> Decision:
    """The decision `item`, named after another member of its group."""
    size = analysis.program.values[value].shape[split.dim]
    plain = split.outer == 1 and split.extent == size
    return item.model_copy(
        update={
            "value": path,
            "dim": split.dim,
            "outer": 1 if item.owner is not None else split.outer,
            "extent": None if plain or item.owner is not None else split.extent,
        }
    )


def _split_of(analysis: Analysis, value: str, item: Decision) -> Split:
    if item.owner is not None:
        return Split(item.dim, 1, 1, item.owner)
    size = analysis.program.values[value].shape[item.dim]
    extent = item.extent if item.extent is not None else size // max(item.outer, 1)
    return Split(item.dim, item.outer, extent)


def _on_mesh(analysis: Analysis, mesh: Mesh, resolved: Resolved) -> list[str]:
    sizes = dict(mesh.axes)
    shown = " x ".join(f"{name} {size}" for name, size in mesh.axes)
    problems = []
    for value, axes in resolved.cuts.items():
        for axis, (split, text) in axes.items():
            parts = sizes.get(axis, 1)
            if parts == 1:
                problems.append(f"'{text}' cuts over {axis}, which the mesh {shown} does not have")
            elif split.extent < parts:
                problems.append(
                    f"'{text}' cuts {split.extent} of dim {split.dim} of {value} over {axis}, "
                    f"which has {parts} devices"
                )
    for how, text in resolved.residency.values():
        if how != REPLICATED and sizes.get("data", 1) == 1:
            problems.append(
                f"'{text}' asks for parts of parameters on the devices of data, an axis that the "
                f"mesh {shown} does not have"
            )
    return problems


def refuse(
    constraints: Constraints,
    mesh: Mesh,
    decisions: Sequence[Decision],
    parameters: Mapping[str, ParameterPlan],
) -> None:
    """Raises StrategyError where what is forbidden is there."""
    held = [(name, str(size)) for name, size in mesh.axes if size > 1]
    kept = {item.residency for item in parameters.values() if item.storage_axes}
    held += [("zero", _ZERO[how]) for how in sorted(kept) if how in _ZERO]
    held += [("attention", item.attention) for item in decisions if item.attention]
    held += [("sequence", "") for item in decisions if item.beside]
    held += [("tables", "") for item in decisions if item.alone and item.axis != "expert"]
    text = constraints.forbids_run(held=held)
    if text is not None:
        parts = ",".join(dict.fromkeys("=".join(part) if part[1] else part[0] for part in held))
        raise StrategyError(
            f"'{text}' forbids what this is: {parts}.", "Change the strategy, or allow it."
        )


def _named(analysis: Analysis, inputs: Sequence[Input], pattern: str) -> list[tuple[str, str]]:
    """(value, name) of what a pattern names: inputs, or values of ops where it has a slash."""
    if "/" in pattern:
        return [(name, name) for name in analysis.program.values if matches(pattern, name)]
    return [(item.value, item.path) for item in inputs if matches(pattern, item.path)]


def _split(
    analysis: Analysis, value: str, path: str, cut: Cut, text: str, problems: list[str]
) -> Split | None:
    """The split that is asked for; None, with a problem added, where there is no such."""
    shape = analysis.program.values[value].shape
    dim = cut.dim + len(shape) if cut.dim < 0 else cut.dim
    if not 0 <= dim < len(shape):
        problems.append(f"'{text}' cuts dim {cut.dim} of {path}, whose shape is {list(shape)}")
        return None
    extent = cut.extent if cut.extent is not None else shape[dim] // max(cut.outer, 1)
    if cut.outer < 1 or extent < 1 or shape[dim] % (cut.outer * extent):
        problems.append(
            f"'{text}' sees dim {dim} of {path}, of size {shape[dim]}, as "
            f"[{cut.outer}, {extent}, …], which does not divide it"
        )
        return None
    split = Split(dim, cut.outer, extent)
    group = analysis.group(value, split)
    ends = [analysis.by_name[name] for name in group.ends]
    works = any(
        result is not None and not analysis.program.values[result].is_view
        for name in group.cuts
        for result in analysis.by_name[name].results
    )
    if ends and not works:
        what = ends[0].target.removeprefix("aten.").removesuffix(".default")
        problems.append(
            f"'{text}' cuts dim {dim} of {path}, along which {what} in "
            f"{ends[0].source.module or 'the top module'} can't be divided"
        )
        return None
    return split


def _contradictions(
    analysis: Analysis,
    cuts: Mapping[str, Mapping[str, tuple[Split, str]]],
    whole: Mapping[str, Mapping[str, str]],
    residency: Mapping[str, tuple[str, str]],
) -> list[str]:
    """Constraints that say different things of one value."""
    problems = []
    values = {item.path: item.value for item in analysis.program.inputs}
    for value, axes in cuts.items():
        held = whole.get(value, {})
        for axis, (split, text) in axes.items():
            against = held.get(axis) or held.get("*")
            if against:
                problems.append(
                    f"'{text}' cuts {value} over {axis}, and '{against}' leaves it whole"
                )
            for other, (beside, other_text) in axes.items():
                if axis < other and not compatible(split, beside):
                    problems.append(
                        f"'{text}' and '{other_text}' cut dim {split.dim} of {value} in ways that "
                        "don't nest"
                    )
    for path, (how, text) in residency.items():
        held = whole.get(values[path], {})
        against = held.get("*") or held.get("data")
        if how != REPLICATED and against:
            problems.append(
                f"'{text}' stores {path} in parts over data, and '{against}' leaves it whole"
            )
    return problems


def _nothing(text: str, pattern: str, known: Sequence[str]) -> str:
    names = list(dict.fromkeys(name for name in known if name))
    bare = pattern.replace("*", "").strip(".")
    close = [name for name in names if bare and bare in name][:2]
    close = close or difflib.get_close_matches(bare, names, 2, 0.5)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"'{text}' names nothing of this model{hint}"
