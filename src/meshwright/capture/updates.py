"""Buffers that a forward run again in the backward writes to once more.

PyTorch's checkpoints run BatchNorm twice, and its statistics move twice; a
captured step does the same. What such a write needs is computed in the Program's
forward, since buffers are updated at its end; it is the same ops on the same
values, only earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from meshwright.capture.recorder import RecordedOp
from meshwright.errors import CaptureError


def updates_in_forward(
    ops: list[RecordedOp],
    updates: Iterable[tuple[str, int]],
    tangent: int | None,
    used: Callable[[Any, Any], set[int]],
) -> list[RecordedOp]:
    """The ops, with those of the backward that buffer updates need moved to the forward's end.

    updates: paths of buffers and the numbers of their new values. used: the
    numbers in an op's arguments. Raises CaptureError for an update made of gradients.
    """
    makers = {number: op for op in ops for number in op.results if number is not None}
    moved: set[int] = set()  # ids of ops
    for path, number in updates:
        pending, seen = [number], set[int]()
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            if current == tangent:
                raise CaptureError(
                    f"{path} is given a value in the backward that depends on gradients.",
                    "Keep what is computed from gradients out of buffers: use the gradients "
                    "that the job gives after a step.",
                )
            maker = makers.get(current)
            if maker is not None and maker.phase == "backward":
                moved.add(id(maker))
                pending.extend(used(maker.args, maker.kwargs))
    if not moved:
        return ops
    forward = [op for op in ops if op.phase == "forward"]
    early = [replace(op, phase="forward") for op in ops if id(op) in moved]
    late = [op for op in ops if op.phase == "backward" and id(op) not in moved]
    return [*forward, *early, *late]
