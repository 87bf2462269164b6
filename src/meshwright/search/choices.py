"""For everything that was decided: the second best, and by how much it is worse.

Read off what the search costed: of all candidates that decide one thing otherwise, the
best. Improvement has tried every single change of the plan, so there is one for most.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from meshwright.plan.types import Choice
from meshwright.search.costing import Costed, Costing
from meshwright.search.named import RESIDENCY
from meshwright.search.space import ClassKey, Point, Space

__all__ = ["choices_of"]


def choices_of(costing: Costing, best: Costed) -> tuple[Choice, ...]:
    """One Choice for each thing that the best plan decides, in the order of decisions."""
    space, point = costing.space, best.point
    made: list[Choice | None] = []
    made.append(_choice(costing, best, "mesh", lambda p: p.mesh, _mesh))
    if space.strategy.microbatches is None:
        made.append(
            _choice(
                costing, best, "microbatches", lambda p: p.microbatches,
                lambda p: str(p.microbatches),
            )
        )  # fmt: skip
    same = [item for item in costing.costed if item.point.mesh == point.mesh]
    parts = point.sizes.get("tensor", 1)
    if parts > 1:
        for key in sorted({k for item in same for k in space.cut(item.point)}):
            subject = f"cut of {_cut_text(space, key)} over tensor"

            def cut(p: Point, key: ClassKey = key) -> bool:
                return key in space.cut(p)

            made.append(_choice(costing, best, subject, cut, _cut_or_whole(cut), same))
        made.append(
            _choice(
                costing, best, "values between cut products", lambda p: p.sequence,
                lambda p: "along the sequence" if p.sequence else "whole", same,
            )
        )  # fmt: skip
    if point.sizes.get("context", 1) > 1:
        made.append(
            _choice(
                costing, best, "attention's keys and values", lambda p: p.attention,
                lambda p: "passed round a ring" if p.attention == "ring" else "gathered", same,
            )
        )  # fmt: skip
    for axis, key in sorted({entry for item in same for entry in item.point.beside}):

        def over(p: Point, entry: tuple[str, ClassKey] = (axis, key)) -> bool:
            return entry in p.beside

        made.append(
            _choice(
                costing, best, f"cut of {_cut_text(space, key)} over {axis}", over,
                _cut_or_whole(over), same,
            )
        )  # fmt: skip
    for item in space.parameters:

        def kept(p: Point, number: int = item.number) -> str:
            return _kept(space, p, number)

        made.append(_choice(costing, best, f"residency of {item.pattern}", kept, kept, same))
    return tuple(choice for choice in made if choice is not None)


def _choice(
    costing: Costing,
    best: Costed,
    subject: str,
    value: Callable[[Point], Hashable],
    text: Callable[[Point], str],
    among: Iterable[Costed] | None = None,
) -> Choice | None:
    mine = value(best.point)
    others = [
        item for item in (costing.costed if among is None else among) if value(item.point) != mine
    ]
    chosen = text(best.point)
    if not others:
        if among is not None:
            return None
        return Choice(subject=subject, chosen=chosen, why="nothing else was left to cost")
    second = min(others, key=lambda item: costing.goal.rank(item.result))
    said, other = best.result.prediction, second.result.prediction
    slower_s = other.step_time_s - said.step_time_s if second.result.fits else None
    return Choice(
        subject=subject,
        chosen=chosen,
        second=text(second.point),
        slower_s=slower_s,
        more_bytes=other.peak_memory_bytes - said.peak_memory_bytes,
        why=f"the best with that is {second.result.candidate.name}"
        + ("" if second.result.fits else ", which does not fit"),
    )


def _cut_text(space: Space, key: ClassKey) -> str:
    """A class of groups in words: its first parameter's dim, and how that is seen."""
    path, dim, outer, extent = key
    item = next(p for p in space.first.program.inputs_of("parameter") if p.path == path)
    size = space.first.program.values[item.value].shape[dim]
    way = "" if (outer, extent) == (1, size) else f" as {outer} x {extent}"
    return f"{path} (dim {dim}{way})"


def _cut_or_whole(cut: Callable[[Point], bool]) -> Callable[[Point], str]:
    return lambda point: "cut" if cut(point) else "whole"


def _mesh(point: Point) -> str:
    return ",".join(f"{axis}={size}" for axis, size in point.mesh) or "one device"


def _kept(space: Space, point: Point, number: int) -> str:
    axes = [axis for axis, size in point.mesh if axis in point.stored and size > 1]
    stage = point.residency(number) if axes else 0
    if not stage:
        return "always"
    return f"{RESIDENCY[stage]} over {' and '.join(axes)}"
