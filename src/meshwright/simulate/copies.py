"""The model as a row of block instances, where one module may stand for several in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from meshwright.errors import UsageError
from meshwright.simulate.block import Block
from meshwright.simulate.blocks import Costed


class Instance(NamedTuple):
    """Copy number `copy` of a block: its number in `Costed.blocks`."""

    block: int
    copy: int


class Passed(NamedTuple):
    """A storage that crosses instances; positions are of instances. See `traffic.Crossing`."""

    nbytes: int
    sent: int
    made: int
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    derived: bool

    @property
    def end(self) -> int:
        return max((self.made, *self.forward, *self.backward))


class Returned(NamedTuple):
    """A gradient that crosses instances, from `made` down to `end`. See `traffic.Gradient`."""

    nbytes: int
    sent: int
    made: int
    end: int
    shared: bool


@dataclass
class Row:
    """Instances in the model's order, and what passes between them."""

    costed: Costed
    instances: list[Instance] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    returned: list[Returned] = field(default_factory=list)

    def block(self, position: int) -> Block:
        return self.costed.blocks[self.instances[position].block]

    def position(self, cut: str) -> int:
        """Where a cut lies: `layers.3`, or `layers.1#30` for a copy of a module, from 0."""
        name, _, copy = cut.partition("#")
        number = int(copy) if copy.isdecimal() else 0
        for position, (block, which) in enumerate(self.instances):
            if self.costed.blocks[block].name == name and which == number:
                return position
        raise UsageError(
            f"The pipeline is cut at {cut!r}, which is no module that a stage can begin with.",
            "Name a module that runs in the forward, or leave out the cuts.",
        )


def row(costed: Costed, stands_for: Mapping[str, int]) -> Row:
    """Raises UsageError for a module that is no block, or stands for less than one."""
    blocks = costed.blocks
    names = [block.name for block in blocks]
    for name, count in stands_for.items():
        if name not in names or count < 1:
            raise UsageError(
                f"The module {name!r} is to stand for {count} in a row.",
                f"Name one of {', '.join(item for item in names if item)}, and 1 or more.",
            )
    counts = [stands_for.get(name, 1) for name in names]
    made = Row(costed)
    first: list[int] = []
    for number, count in enumerate(counts):
        first.append(len(made.instances))
        made.instances += [Instance(number, copy) for copy in range(count)]
    _passed(made, counts, first)
    _returned(made, counts, first)
    return made


def steady(costed: Costed, stands_for: Mapping[str, int]) -> bool:
    """Whether what stands for several asks ahead for what it waits for itself.

    Where the block after it has other gathers, in a row only the last would ask for those, and
    nobody would for the others'.
    """
    blocks = costed.blocks
    for number, block in enumerate(blocks):
        if stands_for.get(block.name, 1) == 1:
            continue
        before, after = blocks[max(number - 1, 0)], blocks[min(number + 1, len(blocks) - 1)]
        for tasks, sooner in (
            (block.forward.tasks, before.forward.tasks),
            (
                [*block.inputs.tasks, *block.weights.tasks],
                [*after.inputs.tasks, *after.weights.tasks],
            ),
        ):
            waits = [task.key for task in tasks if task.role == "arrive"]
            asked = {task.key: (task.nbytes, task.axis) for task in tasks if task.key
                     and task.role == "gather"}  # fmt: skip
            theirs = {task.key: (task.nbytes, task.axis) for task in sooner if task.key
                      and task.role == "gather"}  # fmt: skip
            if any(key not in asked or asked[key] != theirs.get(key) for key in waits):
                return False
            if len(asked) < len(waits):
                return False
    return True


def _passed(made: Row, counts: Sequence[int], first: Sequence[int]) -> None:
    crossing = made.costed.traffic.crossing
    chained: dict[int, list[int]] = {}  # per run: what it takes from before, and gives likewise
    own_backward: dict[int, set[int]] = {}
    for block, count in enumerate(counts):
        if count == 1:
            continue
        given = [item for item in crossing if item.made == block]
        sizes = [item.nbytes for item in given]
        own_backward[block] = {item.nbytes for item in given if block in item.backward}
        chained[block] = []
        for index, item in enumerate(crossing):
            uses = block in item.forward or block in item.backward
            if item.made == block - 1 and uses and item.nbytes in sizes:
                sizes.remove(item.nbytes)
                chained[block].append(index)
        if sizes and given and not chained[block]:
            raise UsageError(
                f"The module {made.costed.blocks[block].name!r} is to stand for {count} in a row, "
                "but what it takes is not what it gives.",
                "Take one of the modules between the first and the last of the row.",
            )

    def users(index: int, segments: Sequence[int], maker: int) -> tuple[int, ...]:
        found: list[int] = []
        for segment in segments:
            if segment == maker:
                found.append(first[segment] + counts[segment] - 1)
            elif index in chained.get(segment, ()):
                found.append(first[segment])
            else:
                found += range(first[segment], first[segment] + counts[segment])
        return tuple(found)

    for index, item in enumerate(crossing):
        made.passed.append(
            Passed(
                item.nbytes, item.sent, first[item.made] + counts[item.made] - 1,
                users(index, item.forward, item.made), users(index, item.backward, item.made),
                item.derived,
            )
        )  # fmt: skip
    for block, indices in chained.items():
        for index in indices:
            item = crossing[index]
            for copy in range(1, counts[block]):
                here = first[block] + copy
                backward = [here] if block in item.backward else []
                if item.nbytes in own_backward[block]:
                    backward.append(here - 1)
                forward = (here,) if block in item.forward else ()
                made.passed.append(
                    Passed(item.nbytes, item.sent, here - 1, forward, tuple(backward), item.derived)
                )


def _returned(made: Row, counts: Sequence[int], first: Sequence[int]) -> None:
    for item in made.costed.traffic.gradients:
        end = first[item.end] + counts[item.end] - 1
        made.returned.append(Returned(item.nbytes, item.sent, first[item.made], end, item.shared))
        if item.end == item.made - 1 and not item.shared:
            for copy in range(1, counts[item.made]):
                here = first[item.made] + copy
                made.returned.append(Returned(item.nbytes, item.sent, here, here - 1, False))
