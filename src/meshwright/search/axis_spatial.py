"""Decisions of the `spatial` axis: images and volumes lie cut along one of their sides.

A side is a dim of a batch leaf whose cut reaches an op that looks at neighbours,
a convolution or a pooling; the longest is cut, the outermost of several alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis, Group
from meshwright.layout.types import Split
from meshwright.plan.types import Decision
from meshwright.program.types import Input


@dataclass(frozen=True)
class Side:
    """One dim of one batch leaf that can be cut so."""

    item: Input
    dim: int
    size: int
    from_end: int
    group: Group


def sides(analysis: Analysis) -> list[Side]:
    """Sides of images and volumes in the batch, in the order of its leaves and their dims."""
    found = []
    for item in analysis.program.inputs_of("batch"):
        shape = analysis.program.values[item.value].shape
        for dim, size in enumerate(shape):
            if dim == 0 or size == 1:
                continue
            group = analysis.group(item.value, Split(dim, 1, size))
            ranged = any(
                analysis.rules[name].factors[cut.factor].ranged is not None
                for name, cut in group.cuts.items()
            )
            if ranged:
                found.append(Side(item, dim, size, len(shape) - dim, group))
    return found


def decisions(analysis: Analysis, parts: int) -> list[Decision]:
    """A cut of the longest side, and of the same side of every other leaf that has it.

    Raises StrategyError when the batch has no images or volumes, or none with
    `parts` rows.
    """
    found = sides(analysis)
    if not found:
        raise StrategyError(
            f"No input of this model is an image or a volume that {parts} devices could cut: no "
            "dim of the batch reaches a convolution, a pooling or an upsampling.",
            "Leave 'spatial' out of the strategy, or use another one, such as data or tensor.",
        )
    longest = max(found, key=lambda side: side.size)
    if longest.size < parts:
        raise StrategyError(
            f"{longest.item.path} has at most {longest.size} rows along a side, which "
            f"{parts} devices can't divide.",
            "Use a smaller spatial axis.",
        )
    chosen = [side for side in found if side is longest or _alike(side, longest)]
    made = {side.item.path: side.dim for side in _one_a_leaf(chosen)}
    for item in analysis.program.inputs_of("batch"):
        shape = analysis.program.values[item.value].shape
        if item.path in made or len(shape) < 3:
            continue
        # Labels of pixels: their sides end as the images' do, with no channels before them.
        split = longest.group.members.get(item.value)
        dim = split.dim if split is not None else len(shape) - longest.from_end
        whole = analysis.program.values[longest.item.value].shape
        if split is not None or (dim > 0 and shape[dim:] == whole[longest.dim :]):
            made[item.path] = dim
    return [
        Decision(
            axis="spatial", value=path, dim=dim,
            why=f"each of {parts} devices has a part of the rows; windows that reach beyond it "
            "get the rows from the devices that have them",
        )
        for path, dim in made.items()
    ]  # fmt: skip


def _alike(side: Side, longest: Side) -> bool:
    """Whether a side of another leaf goes with the longest: cut with it, or the same side."""
    if side.item.path == longest.item.path:
        return False
    cut_with_it = longest.group.members.get(side.item.value)
    if cut_with_it is not None:
        return cut_with_it.dim == side.dim
    return (side.from_end, side.size) == (longest.from_end, longest.size)


def _one_a_leaf(chosen: list[Side]) -> list[Side]:
    first: dict[str, Side] = {}
    for side in chosen:
        first.setdefault(side.item.path, side)
    return list(first.values())
